package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"swarmgate/gateway/internal/stats"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

var dumped = regexp.MustCompile(`^6161616161616161616161616161616161616161:\d{8}:1\n$`)

func (g *running) stats() (r stats.Report) {
	g.t.Helper()
	status, body := g.get("http://" + g.HTTP + "/stats.json")
	if err := json.Unmarshal([]byte(body), &r); status != 200 || err != nil {
		g.t.Fatalf("%d %q: %v", status, body, err)
	}
	return r
}

func TestStatisticsOfAFleet(t *testing.T) {
	for name, flags := range map[string]func(t *testing.T) []string{
		"one Redis": func(t *testing.T) []string { return redisFlags(storetest.Redis(t)) },
		"a cluster": func(t *testing.T) []string { return redisFlags(storetest.Cluster(t, 3, 1)...) },
	} {
		t.Run(name, func(t *testing.T) {
			args := append(flags(t), "--stats-interval", "1s")
			one, other := gatewayWith(t, args...), gatewayWith(t, args...)
			one.announce("port=1001&left=0")
			one.announce("port=1002&left=5&numwant=3")
			one.announce("port=0") // makes no sense
			one.scrape()
			one.get("http://" + one.HTTP + "/nosuch")
			c := other.dialUDP()
			c.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, NumWant: -1, Port: 1003, Event: swarm.Completed})
			c.ask(bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{hashA}})

			storetest.Eventually(t, 30*time.Second, func() error {
				a, b := one.stats(), other.stats()
				for _, r := range []*stats.Report{&a, &b} {
					s, n := &r.Swarms, &r.Counts
					if r.Gateways != 2 || s.Torrents != 1 || s.Peers != 3 || s.Seeds != 2 || s.Leechers != 1 || s.Downloads != 1 ||
						n.HTTP.Announced() != 2 || n.UDP.Announced() != 1 || n.HTTP.Scrapes.OK != 1 || n.UDP.Scrapes.OK != 1 || n.Downloads != 1 ||
						n.UDP.Received.IPv4 != 3 || n.ConnectionIDs.IPv4 != 1 || n.NumWants[3] != 1 || n.NumWants[50] != 2 ||
						n.Refused.Invalid != 1 || n.Refused.NotFound != 1 || n.HTTP.Received.IPv4 < 5 {
						return fmt.Errorf("%+v", r)
					}
					if name == "a cluster" && s.Replicated == 0 {
						return fmt.Errorf("nothing was replicated")
					}
				}
				return nil
			})
			for _, g := range []*running{one, other} {
				if status, body := g.get("http://" + g.HTTP + "/stats"); status != 200 || body != "3\n2\nopentracker serving 1 torrents\nopentracker" {
					t.Errorf("%d %q", status, body)
				}
				if _, body := g.get("http://" + g.HTTP + "/stats?mode=statedump"); !dumped.MatchString(body) {
					t.Errorf("%q", body)
				}
				want := "Top 10 torrents by peers:\n\t3\t6161616161616161616161616161616161616161\n"
				if _, body := g.get("http://" + g.HTTP + "/stats?mode=top10"); !strings.HasPrefix(body, want) {
					t.Errorf("%q", body)
				}
			}
			other.end()
			storetest.Eventually(t, 10*time.Second, func() error {
				if r := one.stats(); r.Gateways != 1 || r.Counts.UDP.Announced() != 0 || r.Swarms.Peers != 3 {
					return fmt.Errorf("%+v", r)
				}
				return nil
			})
		})
	}
}

func TestStatisticsOfAStoreInTheProcess(t *testing.T) {
	g := gatewayWith(t, "--stats-interval", "1s", "--stats", "open")
	g.announce("port=1001&left=0")
	storetest.Eventually(t, 20*time.Second, func() error {
		if r := g.stats(); r.Gateways != 1 || r.Swarms.Peers != 1 || r.Counts.HTTP.Announced() != 1 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}

func TestWhoIsRefusedStatistics(t *testing.T) {
	for _, test := range []struct {
		flags  []string
		path   string
		status int
	}{
		{nil, "/stats", 200},
		{[]string{"--stats", "10.0.0.0/8"}, "/stats", 403},
		{[]string{"--stats", "off"}, "/stats", 404},
		{[]string{"--stats-path", "/numbers"}, "/stats", 404},
		{[]string{"--stats-path", "/numbers"}, "/numbers.json", 200},
	} {
		g := gatewayWith(t, test.flags...)
		if status, body := g.get("http://" + g.HTTP + test.path); status != test.status {
			t.Errorf("%v: %s gets %d %q", test.flags, test.path, status, body)
		}
		g.end()
	}
}

func TestStatisticsWithoutAPass(t *testing.T) {
	g := gatewayWith(t, "--stats-interval", "0")
	g.announce("port=1001&left=0")
	if r := g.stats(); r.Counts.HTTP.Announced() != 1 || r.Swarms.Time != 0 {
		t.Errorf("%+v", r)
	}
}
