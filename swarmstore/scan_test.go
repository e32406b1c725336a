//go:build unix

package swarmstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// scan lists all swarms, and fails the test when one comes twice or out of order.
func scan(t *testing.T, g *storetest.Gateway, now time.Time) (map[swarm.InfoHash]swarm.Counts, error) {
	t.Helper()
	found := map[swarm.InfoHash]swarm.Counts{}
	var last swarm.InfoHash
	err := g.Scan(t.Context(), func() time.Time { return now }, func(entries []swarm.Entry) error {
		if len(entries) == 0 || len(entries) > 512 {
			t.Errorf("%d entries at once", len(entries))
		}
		for _, e := range entries {
			if len(found) > 0 && bytes.Compare(e.InfoHash[:], last[:]) <= 0 {
				t.Errorf("%x follows %x", e.InfoHash, last)
			}
			last = e.InfoHash
			found[e.InfoHash] = e.Counts
		}
		return nil
	})
	return found, err
}

// fill a store with n swarms, a multiple of 100, of a leecher each.
func fill(t *testing.T, g *storetest.Gateway, n int) {
	t.Helper()
	for from := 0; from < n; from += 100 {
		var batch []*swarm.Announce
		for n := from; n < from+100; n++ {
			batch = append(batch, &swarm.Announce{InfoHash: storetest.Hash(n), Peer: storetest.Peer4(n), Event: swarm.Started, Left: 5})
		}
		announceNow(t, g, batch)
	}
}

func TestScan(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			now := time.Now()
			g := b.Open(t, &now, func(o *swarmstore.Options) { o.ViewTTL = 100 * time.Millisecond })
			if found, err := scan(t, g, now); err != nil || len(found) != 0 {
				t.Fatalf("an empty store: %v, %v", found, err)
			}

			want := map[swarm.InfoHash]swarm.Counts{}
			const small = 3000
			fill(t, g, small)
			for n := range small {
				want[storetest.Hash(n)] = swarm.Counts{Leechers: 1}
			}
			g.Put(storetest.Hash(1), storetest.Peer6(1), swarm.Paused, 5)
			g.Put(storetest.Hash(1), storetest.Peer6(2), swarm.Completed, 0)
			want[storetest.Hash(1)] = swarm.Counts{Leechers: 1, PartialSeeds: 1, Seeders: 1, Downloads: 1}

			// Downloads alone, in two ways: without peers, and with one that is stale. Nothing at
			// all: peers that are stale, or left.
			now = now.Add(-2 * time.Hour)
			g.Put(storetest.Hash(small), storetest.Peer4(1), swarm.Completed, 0)
			g.Put(storetest.Hash(small+1), storetest.Peer4(1), swarm.Started, 5)
			now = now.Add(2 * time.Hour)
			g.Put(storetest.Hash(small+2), storetest.Peer4(1), swarm.Completed, 0)
			g.Put(storetest.Hash(small+2), storetest.Peer4(1), swarm.Stopped, 0)
			g.Put(storetest.Hash(small+3), storetest.Peer4(1), swarm.Started, 5)
			g.Put(storetest.Hash(small+3), storetest.Peer4(1), swarm.Stopped, 5)
			want[storetest.Hash(small)] = swarm.Counts{Downloads: 1}
			want[storetest.Hash(small+2)] = swarm.Counts{Downloads: 1}

			for n, size := range []int{113, 2000} {
				hash := storetest.Hash(small + 10 + n)
				for from := 0; from < size; {
					var batch []*swarm.Announce
					for ; from < size && len(batch) < 100; from++ {
						a := &swarm.Announce{InfoHash: hash, Peer: peerOf(from), Event: swarm.Started}
						if from%3 != 0 {
							a.Left = 5
						}
						batch = append(batch, a)
					}
					announceNow(t, g, batch)
				}
				want[hash] = swarm.Counts{Seeders: (size + 2) / 3, Leechers: size - (size+2)/3}
			}

			// Keys of others, and of other kinds.
			other := storetest.Hash(small + 20)
			for _, key := range []string{"swarmgate:secret", "x", "{abc}" + string(other[:]) + "p", "{abc}" + string(other[:]) + "d", strings.Repeat("p", 26)} {
				anywhere(t, b, func(c *redis.Client) error { return c.Set(t.Context(), key, "1", 0).Err() })
			}

			// All at once, and in rounds; also while the large ones are spread over partitions, and then.
			for _, hashes := range []int{1 << 20, 1000, 7} {
				g.SetScanHashes(hashes)
				if hashes == 7 && name != "embedded" {
					continue // many rounds, which only a store in the process finishes soon
				}
				found, err := scan(t, g, now)
				if err != nil {
					t.Fatalf("in rounds of %d: %v", hashes, err)
				}
				if err := differs(found, want, 1); err != nil { // one that is just moved may be counted twice
					t.Error(err)
				}
			}
			g.SetScanHashes(1000)
			storetest.Eventually(t, 20*time.Second, func() error {
				counts(t, g)
				if n := b.Keys(t); n < small+30 {
					return fmt.Errorf("%d keys: the large swarms are not spread yet", n)
				}
				return nil
			})
			storetest.Eventually(t, 20*time.Second, func() error { // until all peers are where they belong
				counts(t, g)
				found, err := scan(t, g, now)
				if err != nil {
					t.Fatal(err)
				}
				return differs(found, want, 0.02)
			})
		})
	}
}

// differs tells where the swarms found are not those wanted, with no fewer peers but for 2 %, and with no more than
// this part of them too many.
func differs(found, want map[swarm.InfoHash]swarm.Counts, more float64) (err error) {
	near := func(got, want int) bool { return got-want <= int(more*float64(want)) && want-got <= want/50 }
	for hash, w := range want {
		f, ok := found[hash]
		if !ok || !near(f.Seeders, w.Seeders) || !near(f.Leechers, w.Leechers) || f.PartialSeeds != w.PartialSeeds || f.Downloads != w.Downloads {
			err = errors.Join(err, fmt.Errorf("%x is listed as %+v, want %+v", hash, f, w))
		}
	}
	for hash := range maps.Keys(found) {
		if _, ok := want[hash]; !ok {
			err = errors.Join(err, fmt.Errorf("%x is listed, as %+v", hash, found[hash]))
		}
	}
	return err
}

// anywhere runs a command on the node that takes it.
func anywhere(t *testing.T, b *storetest.Backend, run func(*redis.Client) error) {
	t.Helper()
	var err error
	for _, url := range b.URLs {
		o, _ := redis.ParseURL(url)
		c := redis.NewClient(o)
		err = run(c)
		_ = c.Close()
		if err == nil {
			return
		}
	}
	t.Fatal(err)
}

func TestScanEndsWithWhoAsked(t *testing.T) {
	now := time.Now()
	g := storetest.Embedded(t).Open(t, &now, nil)
	fill(t, g, 1000)
	clock := func() time.Time { return now }

	mine := errors.New("mine")
	if err := g.Scan(t.Context(), clock, func([]swarm.Entry) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("yield failed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	if err := g.Scan(ctx, clock, func([]swarm.Entry) error { calls++; cancel(); return nil }); !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("ended after %d calls: %v", calls, err)
	}
	if err := g.Scan(t.Context(), clock, func([]swarm.Entry) error { g.Close(); return nil }); err == nil {
		t.Error("a store that is closed is listed to the end")
	}
}

// A scan that may have missed something fails.
func TestScanFails(t *testing.T) {
	clock := func() time.Time { return time.Now() }
	during := func(t *testing.T, g *storetest.Gateway, happens func()) error {
		t.Helper()
		fill(t, g, 1000)
		if found, err := scan(t, g, time.Now()); err != nil || len(found) != 1000 {
			t.Fatalf("before: %d swarms, %v", len(found), err)
		}
		return g.Scan(t.Context(), clock, func([]swarm.Entry) error {
			if happens != nil {
				happens()
				happens = nil
			}
			return nil
		})
	}
	t.Run("Redis restarts", func(t *testing.T) {
		server := storetest.Redis(t)
		g := gateway(t, storetest.URLs(server), nil)
		if err := during(t, g, func() {
			if err := server.Kill(); err != nil {
				t.Error(err)
			}
			storetest.Eventually(t, 10*time.Second, func() error {
				if err := g.Ping(t.Context()); err == nil {
					return errors.New("it is still there")
				}
				return nil
			})
			storetest.RedisAt(t, port(t, server))
		}); err == nil {
			t.Error("a server that lost all is listed to the end")
		}
	})
	t.Run("Redis is away", func(t *testing.T) {
		server := storetest.Redis(t)
		g := gateway(t, storetest.URLs(server), nil)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := scan(t, g, time.Now()); err == nil {
			t.Error("a server that is away is listed")
		}
	})
	t.Run("a master hangs", func(t *testing.T) {
		masters := storetest.Cluster(t, 3, 0)
		g := gateway(t, storetest.URLs(masters...), nil)
		if err := during(t, g, func() {
			if err := masters[1].Signal(syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
		}); err == nil {
			t.Error("a cluster without one of its masters is listed to the end")
		}
		if _, err := scan(t, g, time.Now()); err == nil {
			t.Error("a cluster without one of its masters is listed")
		}
		if err := masters[1].Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		storetest.Eventually(t, 20*time.Second, func() error {
			found, err := scan(t, g, time.Now())
			if err == nil && len(found) != 1000 {
				t.Errorf("%d swarms are listed", len(found))
			}
			return err
		})
	})
	t.Run("slots move", func(t *testing.T) {
		masters := storetest.Cluster(t, 3, 0)
		g := gateway(t, storetest.URLs(masters...), nil)
		ctx := t.Context()
		var nodes []*redis.Client
		for _, p := range masters {
			c := redis.NewClient(&redis.Options{Addr: p.Addr})
			defer c.Close()
			nodes = append(nodes, c)
		}
		// Slot 0 is empty, and on the first master.
		id := nodes[1].ClusterMyID(ctx).Val()
		if err := during(t, g, func() {
			if err := nodes[0].Do(ctx, "cluster", "setslot", 0, "migrating", id).Err(); err != nil {
				t.Error(err)
			}
		}); err == nil {
			t.Error("a cluster whose slots move is listed to the end")
		}
		for _, c := range nodes[:2] {
			if err := c.Do(ctx, "cluster", "setslot", 0, "node", id).Err(); err != nil {
				t.Fatal(err)
			}
		}
		storetest.Eventually(t, 20*time.Second, func() error { // when all have heard of it
			found, err := scan(t, g, time.Now())
			if err == nil && len(found) != 1000 {
				t.Errorf("%d swarms are listed", len(found))
			}
			return err
		})
	})
}
