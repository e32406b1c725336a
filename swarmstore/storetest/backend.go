package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/embedded"
	"swarmgate/swarmstore/swarm"
)

// Backend is a Redis of some kind, empty, with a clock that can be driven.
type Backend struct {
	URLs []string
	// Set what a store needs to reach it besides, if anything.
	Set func(*swarmstore.Options)
	// ReadsApart tells that stores read from replicas, where a look keeps nothing.
	ReadsApart bool
	// Admin are the URLs by which the tests look at it and change it, as Redis's default user.
	Admin []string
	// Advance the clock by which keys expire.
	Advance func(d time.Duration)
	// Reset forgets everything.
	Reset func()
}

// AdminName is how the connections of tests call themselves, to tell them from a store's.
const AdminName = "storetest"

// Backends are all kinds that the store runs on, by name.
func Backends() map[string]func(t *testing.T) *Backend {
	return map[string]func(t *testing.T) *Backend{
		"embedded": Embedded,
		"single":   func(t *testing.T) *Backend { return Real(t, Redis(t)) },
		"cluster":  func(t *testing.T) *Backend { return Real(t, Cluster(t, 3, 0)...) },
	}
}

// Embedded starts an embedded store that ends with the test.
func Embedded(t *testing.T) *Backend {
	t.Helper()
	server, err := embedded.Start(embedded.Limits{Swarms: 100_000, Peers: 1_000_000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	now := time.Unix(0, 0)
	server.Tick(now)
	client := client(t, server.URL())
	return &Backend{
		URLs:  []string{server.URL()},
		Admin: []string{server.URL()},
		Advance: func(d time.Duration) {
			now = now.Add(d)
			server.Tick(now)
		},
		Reset: func() { must(t, client.FlushAll(context.Background()).Err()) },
	}
}

// Real is the backend of running servers, all of them masters. A real server's clock
// cannot be driven: Advance brings the expiry of all keys nearer instead.
func Real(t *testing.T, masters ...*Process) *Backend {
	t.Helper()
	ctx := context.Background()
	var clients []*redis.Client
	var admin []string
	for _, p := range masters {
		admin = append(admin, "redis://"+p.Addr+"?client_name="+AdminName)
		clients = append(clients, client(t, admin[len(admin)-1]))
	}
	return &Backend{
		URLs:  URLs(masters...),
		Admin: admin,
		Advance: func(d time.Duration) {
			for _, c := range clients {
				keys := c.Scan(ctx, 0, "*", 1000).Iterator()
				for keys.Next(ctx) {
					left, err := c.PTTL(ctx, keys.Val()).Result()
					must(t, err)
					switch {
					case left < 0: // without an expiry, or gone
					case left <= d:
						must(t, c.Del(ctx, keys.Val()).Err())
					default:
						must(t, c.PExpire(ctx, keys.Val(), left-d).Err())
					}
				}
				must(t, keys.Err())
			}
		},
		Reset: func() {
			for _, c := range clients {
				must(t, c.FlushAll(ctx).Err())
			}
		},
	}
}

// Keys counts the keys that a backend holds.
func (b *Backend) Keys(t *testing.T) int {
	t.Helper()
	n := 0
	for _, url := range b.Admin {
		size, err := client(t, url).DBSize(context.Background()).Result()
		must(t, err)
		n += int(size)
	}
	return n
}

// Peers counts in how many sets each compact peer stands, whatever its swarm.
func (b *Backend) Peers(t *testing.T) map[string]int {
	t.Helper()
	ctx, sets := context.Background(), map[string]int{}
	for _, url := range b.Admin {
		c := client(t, url)
		keys := c.Scan(ctx, 0, "*", 1000).Iterator()
		for keys.Next(ctx) {
			if kind := keys.Val()[len(keys.Val())-1]; kind != 'p' && kind != 'q' {
				continue
			}
			members, err := c.ZRange(ctx, keys.Val(), 0, -1).Result()
			must(t, err)
			for _, m := range members {
				if len(m) >= swarm.Size4 {
					sets[m]++
				}
			}
		}
		must(t, keys.Err())
	}
	return sets
}

func client(t *testing.T, url string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	must(t, err)
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
