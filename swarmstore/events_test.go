package swarmstore_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// told collects the downloads that a store tells of.
type told struct {
	mu        sync.Mutex
	downloads []swarmstore.Download
}

func (d *told) add(download swarmstore.Download) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.downloads = append(d.downloads, download)
}

func (d *told) of(hash swarm.InfoHash) (found []swarmstore.Download) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, download := range d.downloads {
		if download.InfoHash == hash {
			found = append(found, download)
		}
	}
	return found
}

func TestDownloadsAreToldOnce(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			var d told
			now := time.Unix(1_800_000_000, 0)
			b := start(t)
			g := b.Open(t, &now, func(o *swarmstore.Options) { o.Downloaded = d.add })
			small, large := storetest.Hash(1), storetest.Hash(2)

			g.Put(small, storetest.Peer4(1), swarm.Started, 1)
			g.Put(small, storetest.Peer4(2), swarm.Started, 0) // came complete
			g.Put(small, storetest.Peer4(1), swarm.Completed, 0)
			g.Put(small, storetest.Peer4(1), swarm.Completed, 0)
			g.Put(small, storetest.Peer4(1), swarm.None, 0)
			want := []swarmstore.Download{{InfoHash: small, At: now, Counts: swarm.Counts{Seeders: 2, Downloads: 1}}}
			if got := d.of(small); !slices.Equal(got, want) {
				t.Errorf("of a small swarm %+v are told, want %+v", got, want)
			}

			for n := range 300 {
				g.Put(large, storetest.Peer4(n), swarm.Started, 1)
			}
			for range 2 {
				for n := range 10 {
					g.Put(large, storetest.Peer4(n), swarm.Completed, 0)
				}
			}
			got := d.of(large)
			// Counts are told as the view has them, which was read some announces ago if the swarm is being spread just now.
			if len(got) != 10 || got[9].Counts.Seeders < 5 || got[9].Counts.Downloads < 5 || got[9].Counts.Downloads > 10 {
				t.Errorf("of a large swarm %d are told: %+v", len(got), got)
			}

			// A gateway that does not know yet that the swarm is large.
			var other told
			g2 := b.Open(t, &now, func(o *swarmstore.Options) { o.Downloaded = other.add })
			for range 2 {
				g2.Put(large, storetest.Peer4(11), swarm.Completed, 0)
			}
			if got := other.of(large); len(got) != 1 {
				t.Errorf("by a gateway that is new %+v are told", got)
			}
		})
	}
}

func TestTheStreamOfDownloads(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			now := time.Unix(1_800_000_000, 0)
			g := b.Open(t, &now, nil)
			for _, n := range []int{2, 3} {
				downloads := make([]swarmstore.Download, n)
				for i := range downloads {
					downloads[i] = swarmstore.Download{InfoHash: storetest.Hash(i), At: now}
				}
				if err := g.PublishDownloads(t.Context(), downloads); err != nil {
					t.Fatal(err)
				}
			}
			entries := stream(t, b)
			if len(entries) != 5 {
				t.Fatalf("the stream is %v", entries)
			}
			hash := storetest.Hash(2)
			want := map[string]any{"hash": fmt.Sprintf("%x", hash[:]), "time": "1800000000"}
			if got := entries[4].Values; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the last entry is %v, want %v", got, want)
			}
			if name != "single" || testing.Short() {
				return
			}
			for range 110 {
				if err := g.PublishDownloads(t.Context(), make([]swarmstore.Download, 1000)); err != nil {
					t.Fatal(err)
				}
			}
			if n := len(stream(t, b)); n < 100_000 || n > 101_000 {
				t.Errorf("after 110,005 downloads the stream has %d entries", n)
			}
		})
	}
}

// stream reads what is in swarmgate:completed.
func stream(t *testing.T, b *storetest.Backend) []redis.XMessage {
	t.Helper()
	o, err := redis.ParseURL(b.URLs[0])
	if err != nil {
		t.Fatal(err)
	}
	// A cluster's nodes send the client where the stream is.
	c := redis.UniversalClient(redis.NewClient(o))
	if len(b.URLs) > 1 {
		_ = c.Close()
		c = redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{o.Addr}})
	}
	defer c.Close()
	entries, err := c.XRange(context.Background(), "swarmgate:completed", "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestDownloadsAreToldWhileASwarmGrows(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1_800_000_000, 0)
			var told atomic.Int64
			g := start(t).Open(t, &now, func(o *swarmstore.Options) {
				o.Downloaded = func(swarmstore.Download) { told.Add(1) }
			})
			for n := range 200 { // small, then large
				g.Put(storetest.Hash(1), storetest.Peer4(n), swarm.Completed, 0)
				g.Put(storetest.Hash(1), storetest.Peer4(n), swarm.Completed, 0)
			}
			storetest.Eventually(t, 20*time.Second, func() error {
				g.Pass(5 * time.Second) // until nothing older is in a view
				if got, counted := told.Load(), g.Counts(storetest.Hash(1)).Downloads; got != 200 || counted != 200 {
					return fmt.Errorf("%d downloads were told, %d counted", got, counted)
				}
				return nil
			})
		})
	}
}
