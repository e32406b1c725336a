package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
)

// download announces a download through the gateway, twice.
func (g *running) download() {
	g.t.Helper()
	g.announce("port=1001&left=5&event=started")
	for range 2 {
		if body := g.announce("port=1001&left=0&event=completed"); !strings.Contains(body, "10:downloadedi1e") {
			g.t.Errorf("a download gets %q", body)
		}
	}
}

func TestCompletedEventsInTheLog(t *testing.T) {
	const line = "msg=completed info_hash=6161616161616161616161616161616161616161"
	g := gatewayWith(t, "--completed-events", "log")
	g.download()
	g.end() // which passes on the last of them
	log := g.log.String()
	if strings.Count(log, line) != 1 || !strings.Contains(log, "seeders=1 leechers=0") || strings.Contains(log, "127.0.0.1") {
		t.Errorf("the log is %q", log)
	}

	g = gatewayWith(t)
	g.download()
	g.end()
	if log := g.log.String(); strings.Contains(log, "completed") {
		t.Errorf("they are off, and the log is %q", log)
	}
}

func TestCompletedEventsInAStream(t *testing.T) {
	for name, servers := range map[string]func(t *testing.T) []*storetest.Process{
		"one Redis": func(t *testing.T) []*storetest.Process { return []*storetest.Process{storetest.Redis(t)} },
		"a cluster": func(t *testing.T) []*storetest.Process { return storetest.Cluster(t, 3, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			servers := servers(t)
			g := gatewayWith(t, append(redisFlags(servers...), "--completed-events", "stream")...)
			g.download()
			client := redis.UniversalClient(redis.NewClient(&redis.Options{Addr: servers[0].Addr}))
			if len(servers) > 1 {
				_ = client.Close()
				client = redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{servers[0].Addr}})
			}
			defer client.Close()
			storetest.Eventually(t, 10*time.Second, func() error {
				entries, err := client.XRange(context.Background(), "swarmgate:completed", "-", "+").Result()
				if err != nil || len(entries) != 1 || entries[0].Values["hash"] != strings.Repeat("61", 20) || len(entries[0].Values) != 2 {
					return fmt.Errorf("the stream is %v, %v", entries, err)
				}
				return nil
			})
		})
	}
}

func TestTooManyCompletedEventsAreLostAndCounted(t *testing.T) {
	var got, lost int
	away := false
	e := newCompletedEvents(func(_ context.Context, d []swarmstore.Download) error {
		if away {
			return errors.New("away")
		}
		if len(d) > completedBatch {
			t.Errorf("%d at a time", len(d))
		}
		got += len(d)
		return nil
	}, func(n int) { lost += n }, slog.New(slog.DiscardHandler))
	for range completedQueue + 10 {
		e.add(swarmstore.Download{})
	}
	if e.flush(); got != completedQueue || lost != 10 {
		t.Errorf("%d are passed on, %d lost", got, lost)
	}
	away = true
	for range completedBatch + 1 {
		e.add(swarmstore.Download{})
	}
	if e.flush(); got != completedQueue || lost != 10+completedBatch+1 {
		t.Errorf("without Redis %d are passed on, %d lost", got, lost)
	}
}
