package storetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/swarm"
)

const (
	peerTTL      = 45 * time.Minute
	keyTTL       = peerTTL + peerTTL/16 + 2*time.Second // what is left of a silent swarm may last so long
	downloadsTTL = 24 * time.Hour
)

// Gateway is a store as one gateway has it, with a clock that the test drives
// together with the backend's, and calls that wait.
type Gateway struct {
	*swarmstore.Store
	Counted
	backend *Backend
	now     *time.Time
	t       *testing.T
}

// Counted is a swarmstore.Metrics that adds up.
type Counted struct{ Exchanges, Failed, Refusals, Hits, Misses, Absorb atomic.Int64 }

func (c *Counted) Exchange(_ int, _ time.Duration, failed bool) {
	c.Exchanges.Add(1)
	if failed {
		c.Failed.Add(1)
	}
}
func (c *Counted) Refused()                { c.Refusals.Add(1) }
func (c *Counted) Views(hits, misses int)  { c.Hits.Add(int64(hits)); c.Misses.Add(int64(misses)) }
func (c *Counted) Absorbed(n int)          { c.Absorb.Add(int64(n)) }
func (c *Counted) Renewed(netip.Addr, int) {}

// Open a store on the backend with the suite's TTLs; set changes its options.
func (b *Backend) Open(t *testing.T, now *time.Time, set func(*swarmstore.Options)) *Gateway {
	t.Helper()
	g := &Gateway{backend: b, now: now, t: t}
	opt := swarmstore.Options{
		URLs:         b.URLs,
		PeerTTL:      peerTTL,
		DownloadsTTL: downloadsTTL,
		ViewTTL:      time.Second,
		ViewMemory:   1 << 20,
		Log:          slog.New(slog.NewTextHandler(t.Output(), nil)),
		Metrics:      &g.Counted,
	}
	for _, set := range []func(*swarmstore.Options){b.Set, set} {
		if set != nil {
			set(&opt)
		}
	}
	store, err := swarmstore.Open(t.Context(), opt)
	must(t, err)
	t.Cleanup(store.Close)
	g.Store = store
	return g
}

// Announces hands a batch to the store and waits until all of it has come back.
func (g *Gateway) Announces(batch ...*swarm.Announce) {
	g.t.Helper()
	var mu sync.Mutex
	back := map[*swarm.Announce]int{}
	done := make(chan struct{})
	n := 0
	g.Announce(*g.now, batch, func(part []*swarm.Announce) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range part {
			back[a]++
			if n++; n == len(batch) {
				close(done)
			}
		}
	})
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		g.t.Fatal("announces did not come back")
	}
	for _, a := range batch {
		if back[a] != 1 {
			g.t.Fatalf("an announce came back %d times", back[a])
		}
	}
}

// Put announces one peer and fails the test when the store does.
func (g *Gateway) Put(hash swarm.InfoHash, peer netip.AddrPort, event swarm.Event, left uint64) *swarm.View {
	g.t.Helper()
	a := &swarm.Announce{InfoHash: hash, Peer: peer, Event: event, Left: left, Complete: true}
	g.Announces(a)
	if a.Err != nil {
		g.t.Fatal(a.Err)
	}
	return a.View
}

// Counts scrapes one swarm.
func (g *Gateway) Counts(hash swarm.InfoHash) swarm.Counts {
	g.t.Helper()
	return g.Scrapes(hash)[0]
}

// Scrapes asks for the counts of some swarms and waits for them.
func (g *Gateway) Scrapes(hashes ...swarm.InfoHash) []swarm.Counts {
	g.t.Helper()
	done := make(chan struct{})
	s := &swarm.Scrape{Hashes: hashes}
	g.Scrape(*g.now, s, func(*swarm.Scrape) { close(done) })
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		g.t.Fatal("a scrape did not come back")
	}
	must(g.t, s.Err)
	return s.Counts
}

// Pass lets time go by, for the gateways and in the backend.
func (g *Gateway) Pass(d time.Duration) {
	*g.now = g.now.Add(d)
	g.backend.Advance(d)
}

// Hash is the nth info hash; they differ in all bytes.
func Hash(n int) (h swarm.InfoHash) {
	x := uint64(n)
	for i := range h {
		x = x*6364136223846793005 + 1442695040888963407
		h[i] = byte(x >> 56)
	}
	return h
}

// Peer4 is the nth IPv4 peer, Peer6 the nth IPv6 peer.
func Peer4(n int) netip.AddrPort {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 0x0a000000+uint32(n))
	return netip.AddrPortFrom(netip.AddrFrom4(a), 6881)
}

func Peer6(n int) netip.AddrPort {
	a := [16]byte{0xfd}
	binary.BigEndian.PutUint32(a[12:], uint32(n))
	return netip.AddrPortFrom(netip.AddrFrom16(a), 6881)
}

// Picks are the peers that a view hands to an asker, on both families.
func Picks(t *testing.T, v *swarm.View, asker netip.AddrPort, class swarm.Class, n int) map[netip.AddrPort]bool {
	t.Helper()
	picked := map[netip.AddrPort]bool{}
	for _, size := range []int{swarm.Size4, swarm.Size6} {
		peers := v.Pick(nil, size, asker, class, n, rand.Uint64())
		for ; len(peers) > 0; peers = peers[size:] {
			p, ok := swarm.FromCompact(peers[:size])
			if !ok || picked[p] {
				t.Fatalf("%v handed out twice, or not a peer", p)
			}
			picked[p] = true
		}
	}
	return picked
}

// Run is the conformance suite: what every backend must do.
func Run(t *testing.T, b *Backend) {
	for _, viewTTL := range []time.Duration{0, time.Second} {
		t.Run(fmt.Sprintf("view-ttl=%v", viewTTL), func(t *testing.T) {
			for _, c := range suite {
				t.Run(c.name, func(t *testing.T) {
					b.Reset()
					now := time.Unix(1_800_000_000, 0)
					c.run(t, b.Open(t, &now, func(o *swarmstore.Options) { o.ViewTTL = viewTTL }))
				})
			}
		})
	}
}

var suite = []struct {
	name string
	run  func(t *testing.T, g *Gateway)
}{
	{"a swarm's first peer is alone", func(t *testing.T, g *Gateway) {
		v := g.Put(Hash(1), Peer4(1), swarm.Started, 100)
		wantCounts(t, v.Counts(), swarm.Counts{Leechers: 1})
		wantPeers(t, Picks(t, v, Peer4(1), swarm.Leecher, 50))
	}},
	{"a leecher is handed both kinds and a seeder leechers", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Started, 0)
		g.Put(Hash(1), Peer4(2), swarm.Started, 0)
		g.Put(Hash(1), Peer4(3), swarm.Started, 5)
		v := g.Put(Hash(1), Peer4(4), swarm.Started, 5)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: 2, Leechers: 2})
		wantPeers(t, Picks(t, v, Peer4(4), swarm.Leecher, 50), Peer4(1), Peer4(2), Peer4(3))
		wantPeers(t, Picks(t, v, Peer4(1), swarm.Seeder, 50), Peer4(3), Peer4(4))
	}},
	{"both address families count", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer6(1), swarm.Started, 0)
		v := g.Put(Hash(1), Peer4(1), swarm.Started, 5)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: 1, Leechers: 1})
		wantPeers(t, Picks(t, v, Peer4(1), swarm.Leecher, 50), Peer6(1))
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Seeders: 1, Leechers: 1})
	}},
	{"who stops is gone at once", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Started, 0)
		g.Put(Hash(1), Peer4(2), swarm.Started, 5)
		v := g.Put(Hash(1), Peer4(1), swarm.Stopped, 0)
		wantCounts(t, v.Counts(), swarm.Counts{Leechers: 1})
		v = g.Put(Hash(1), Peer4(3), swarm.Started, 5)
		wantPeers(t, Picks(t, v, Peer4(3), swarm.Leecher, 50), Peer4(2))
		g.Put(Hash(1), Peer4(9), swarm.Stopped, 5)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 2})
	}},
	{"completed makes a seeder and counts once a peer", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Started, 5)
		v := g.Put(Hash(1), Peer4(1), swarm.Completed, 0)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: 1, Downloads: 1})
		g.Put(Hash(1), Peer4(1), swarm.Completed, 0)
		g.Put(Hash(1), Peer4(1), swarm.None, 0)
		for range 3 {
			g.Pass(peerTTL * 2 / 3)
			g.Put(Hash(1), Peer4(1), swarm.Completed, 0)
		}
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Seeders: 1, Downloads: 1})
		v = g.Put(Hash(1), Peer6(1), swarm.Completed, 0)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: 2, Downloads: 2})
	}},
	{"left of 0 makes a seeder, in no list twice", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Started, 5)
		v := g.Put(Hash(1), Peer4(1), swarm.None, 0)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: 1})
		v = g.Put(Hash(1), Peer4(2), swarm.Started, 5)
		wantPeers(t, Picks(t, v, Peer4(2), swarm.Leecher, 50), Peer4(1))
		wantPeers(t, Picks(t, v, Peer4(3), swarm.Seeder, 50), Peer4(2))
		v = g.Put(Hash(1), Peer4(1), swarm.Completed, 0)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: 1, Leechers: 1, Downloads: 1})
	}},
	{"a partial seed is incomplete and downloads nothing", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Paused, 5)
		v := g.Put(Hash(1), Peer4(2), swarm.Started, 5)
		wantCounts(t, v.Counts(), swarm.Counts{PartialSeeds: 1, Leechers: 1})
		wantPeers(t, Picks(t, v, Peer4(2), swarm.Leecher, 50), Peer4(1))
		wantPeers(t, Picks(t, v, Peer4(3), swarm.Seeder, 50), Peer4(2))
		v = g.Put(Hash(1), Peer4(1), swarm.None, 5)
		wantCounts(t, v.Counts(), swarm.Counts{Leechers: 2})
	}},
	{"a silent peer and its keys go after the peer TTL", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Started, 0)
		g.Put(Hash(1), Peer4(2), swarm.Started, 5)
		g.Put(Hash(1), Peer4(3), swarm.Paused, 5)
		g.Pass(peerTTL - time.Minute)
		v := g.Put(Hash(1), Peer4(2), swarm.None, 5)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: 1, Leechers: 1, PartialSeeds: 1})
		g.Pass(2 * time.Minute)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 1})
		v = g.Put(Hash(1), Peer4(4), swarm.None, 5)
		wantPeers(t, Picks(t, v, Peer4(4), swarm.Leecher, 50), Peer4(2))
		g.Pass(peerTTL + time.Second)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{})
		g.Pass(keyTTL - peerTTL)
		if n := g.backend.Keys(t); n != 0 {
			t.Errorf("%d keys of a silent swarm are left", n)
		}
	}},
	{"downloads outlive the swarm by their TTL", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Completed, 0)
		g.Put(Hash(1), Peer4(1), swarm.Stopped, 0)
		g.Pass(downloadsTTL - time.Hour)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Downloads: 1})
		if !g.backend.ReadsApart { // who looks keeps them
			g.Pass(downloadsTTL - time.Hour)
			wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Downloads: 1})
		}
		g.Pass(downloadsTTL + 2*time.Second)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{})
		if n := g.backend.Keys(t); n != 0 {
			t.Errorf("%d keys are left", n)
		}
	}},
	{"downloads are known to who asks for them, and last as long as a swarm", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Completed, 0)
		g.Pass(2 * time.Second)
		for range int(downloadsTTL/peerTTL)*2 + 2 {
			g.Announces(&swarm.Announce{InfoHash: Hash(1), Peer: Peer4(1)})
			g.Pass(peerTTL * 2 / 3)
		}
		v := g.Put(Hash(1), Peer4(2), swarm.Started, 5)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: 1, Leechers: 1, Downloads: 1})
		g.Announces(&swarm.Announce{InfoHash: Hash(2), Peer: Peer4(1), Left: 5})
		g.Put(Hash(2), Peer4(1), swarm.Completed, 0)
		wantCounts(t, g.Counts(Hash(2)), swarm.Counts{Seeders: 1, Downloads: 1})
	}},
	{"a large swarm is counted exactly and sampled", func(t *testing.T, g *Gateway) {
		const seeders, leechers = 900, 60
		var batch []*swarm.Announce
		for n := range seeders + leechers {
			a := &swarm.Announce{InfoHash: Hash(1), Peer: Peer4(n), Event: swarm.Started}
			if n%16 == 0 {
				a.Left = 5
			}
			batch = append(batch, a)
		}
		g.Announces(batch...)
		g.Pass(2 * time.Second)
		v := g.Put(Hash(1), Peer6(1), swarm.Started, 5)
		wantCounts(t, v.Counts(), swarm.Counts{Seeders: seeders, Leechers: leechers + 1})
		for _, c := range []struct {
			class swarm.Class
			want  int
		}{{swarm.Leecher, 50}, {swarm.Seeder, 50}} {
			for p := range Picks(t, v, Peer6(1), c.class, 50) {
				n := int(binary.BigEndian.Uint32(p.Addr().AsSlice()) - 0x0a000000)
				if c.class == swarm.Seeder && n%16 != 0 {
					t.Errorf("a seeder was handed the seeder %d", n)
				}
				c.want--
			}
			if c.want != 0 {
				t.Errorf("class %d was handed %d peers too few", c.class, c.want)
			}
		}
		// Stale peers leave a large swarm too.
		g.Pass(peerTTL - 3*time.Second)
		g.Put(Hash(1), Peer4(0), swarm.None, 5)
		g.Pass(3 * time.Second)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 2})
	}},
	{"a batch over many swarms", func(t *testing.T, g *Gateway) {
		var batch []*swarm.Announce
		for n := range 300 {
			batch = append(batch, &swarm.Announce{InfoHash: Hash(n % 100), Peer: Peer4(n), Event: swarm.Started, Left: 5})
		}
		g.Announces(batch...)
		for _, a := range batch {
			must(t, a.Err)
			if own := Picks(t, a.View, Peer4(1000), swarm.Leecher, 200); !own[a.Peer] {
				t.Fatalf("%v is not in its own swarm", a.Peer)
			}
		}
		var hashes []swarm.InfoHash
		for n := range 102 {
			hashes = append(hashes, Hash(n))
		}
		hashes[101] = Hash(0)
		for n, c := range g.Scrapes(hashes...) {
			want := swarm.Counts{Leechers: 3}
			if n == 100 {
				want = swarm.Counts{}
			}
			wantCounts(t, c, want)
		}
	}},
	{"order within a batch holds", func(t *testing.T, g *Gateway) {
		at := func(e swarm.Event, left uint64) *swarm.Announce {
			return &swarm.Announce{InfoHash: Hash(1), Peer: Peer4(1), Event: e, Left: left}
		}
		g.Announces(at(swarm.Started, 5), at(swarm.Completed, 0), at(swarm.Stopped, 0))
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Downloads: 1})
		g.Announces(at(swarm.Stopped, 0), at(swarm.Started, 5))
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 1, Downloads: 1})
	}},
	{"a swarm that emptied and filled again in one batch expires", func(t *testing.T, g *Gateway) {
		at := func(n int, e swarm.Event) *swarm.Announce {
			return &swarm.Announce{InfoHash: Hash(1), Peer: Peer4(n), Event: e, Left: 5}
		}
		g.Announces(at(1, swarm.Started), at(1, swarm.Stopped), at(2, swarm.Started))
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 1})
		g.Pass(keyTTL)
		if n := g.backend.Keys(t); n != 0 {
			t.Errorf("%d keys of a silent swarm are left", n)
		}
	}},
	{"a swarm that was forgotten and comes back expires", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Started, 5)
		other := g.backend.Open(t, g.now, nil)
		other.Put(Hash(1), Peer4(1), swarm.Stopped, 5) // and the key is gone
		g.Put(Hash(1), Peer4(1), swarm.None, 5)
		g.Pass(2 * time.Second)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 1})
		g.Pass(keyTTL)
		if n := g.backend.Keys(t); n != 0 {
			t.Errorf("%d keys of a silent swarm are left", n)
		}
	}},
	{"a swarm lasts as long as one peer announces", func(t *testing.T, g *Gateway) {
		g.Put(Hash(1), Peer4(1), swarm.Started, 5)
		for range 100 {
			g.Pass(peerTTL / 20)
			g.Put(Hash(1), Peer4(1), swarm.None, 5)
		}
		g.Pass(peerTTL - time.Second)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 1})
	}},
	{"who stops and announces again in one batch is there", func(t *testing.T, g *Gateway) {
		g = g.backend.Open(t, g.now, func(o *swarmstore.Options) { o.RepeatWindow = 2 * time.Minute })
		at := func(e swarm.Event) *swarm.Announce {
			return &swarm.Announce{InfoHash: Hash(1), Peer: Peer4(1), Event: e, Left: 5}
		}
		g.Put(Hash(1), Peer4(1), swarm.Started, 5)
		g.Announces(at(swarm.Stopped), at(swarm.None))
		g.Pass(2 * time.Second)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 1})
	}},
	{"a seeder is handed any leecher of a large swarm", func(t *testing.T, g *Gateway) {
		var batch []*swarm.Announce
		const leechers = 600
		for n := range 3 * leechers {
			a := &swarm.Announce{InfoHash: Hash(1), Peer: Peer4(n), Event: swarm.Started}
			if n < leechers {
				a.Left = 5
			}
			batch = append(batch, a)
		}
		g.Announces(batch...)
		seen := map[netip.AddrPort]bool{}
		for range 40 {
			g.Pass(2 * time.Second)
			v := g.Put(Hash(1), Peer6(1), swarm.Started, 0)
			for p := range Picks(t, v, Peer6(1), swarm.Seeder, 50) {
				seen[p] = true
			}
		}
		// 2,000 draws of 600 leave out 4 % of them.
		if len(seen) < leechers*85/100 {
			t.Errorf("only %d of %d leechers were handed out", len(seen), leechers)
		}
	}},
	{"gateways see each other after the view TTL", func(t *testing.T, g *Gateway) {
		other := g.backend.Open(t, g.now, nil)
		g.Put(Hash(1), Peer4(1), swarm.Started, 5)
		wantPeers(t, Picks(t, other.Put(Hash(1), Peer4(2), swarm.Started, 5), Peer4(2), swarm.Leecher, 50), Peer4(1))
		g.Pass(time.Second)
		wantPeers(t, Picks(t, g.Put(Hash(1), Peer4(1), swarm.None, 5), Peer4(1), swarm.Leecher, 50), Peer4(2))
		other.Put(Hash(1), Peer4(2), swarm.Stopped, 5)
		g.Pass(time.Second)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Leechers: 1})
	}},
	{"a repeat within the window is not written", func(t *testing.T, g *Gateway) {
		g = g.backend.Open(t, g.now, func(o *swarmstore.Options) { o.RepeatWindow = 2 * time.Minute })
		absorbed := func(want int64) {
			t.Helper()
			if n := g.Absorb.Swap(0); n != want {
				t.Errorf("%d announces were absorbed, want %d", n, want)
			}
		}
		g.Put(Hash(1), Peer4(1), swarm.Started, 5)
		g.Put(Hash(1), Peer4(1), swarm.None, 4)
		g.Pass(time.Minute)
		v := g.Put(Hash(1), Peer4(1), swarm.None, 3)
		absorbed(2)
		wantCounts(t, v.Counts(), swarm.Counts{Leechers: 1})
		g.Put(Hash(1), Peer4(1), swarm.Started, 3) // may have stopped elsewhere
		g.Put(Hash(1), Peer4(1), swarm.None, 0)    // another class
		g.Put(Hash(2), Peer4(1), swarm.None, 0)    // another swarm
		g.Put(Hash(1), Peer4(1), swarm.Stopped, 0)
		g.Put(Hash(1), Peer4(1), swarm.None, 0) // stopped before
		absorbed(0)
		wantCounts(t, g.Counts(Hash(1)), swarm.Counts{Seeders: 1})
		g.Pass(2*time.Minute - time.Second)
		g.Put(Hash(1), Peer4(1), swarm.None, 0)
		absorbed(1)
		g.Pass(time.Second)
		g.Put(Hash(1), Peer4(1), swarm.None, 0)
		absorbed(0)
	}},
	{"many at once", func(t *testing.T, g *Gateway) {
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for n := range 50 {
					a := &swarm.Announce{InfoHash: Hash(n % 5), Peer: Peer4(w*50 + n), Event: swarm.Started, Left: 5}
					g.Announces(a)
					if a.Err != nil {
						t.Error(a.Err)
					}
				}
			})
		}
		wg.Wait()
		g.Pass(2 * time.Second)
		for n := range 5 {
			wantCounts(t, g.Counts(Hash(n)), swarm.Counts{Leechers: 80})
		}
	}},
	{"the first secret is everybody's", func(t *testing.T, g *Gateway) {
		mine, err := g.Secrets(t.Context(), swarmstore.DecoySecret, swarmstore.Secrets{{1}, {1}})
		must(t, err)
		theirs, err := g.Secrets(t.Context(), swarmstore.DecoySecret, swarmstore.Secrets{{2}, {3}})
		must(t, err)
		if mine != (swarmstore.Secrets{{1}, {1}}) || theirs != mine {
			t.Errorf("secrets are %v and %v", mine, theirs)
		}
	}},
	{"counts are held while a small swarm changes", heldCounts(6)},
	{"counts are held while a large swarm changes", heldCounts(150)},
	{"the access list says what it was told last", lastWordOnAccess},
	{"a file's word on access replaces its word before", fileOnAccess},
	{"an access list that was lost is told from another one, and restored", restoreAccess},
	{"changes of the access list at the same time are all kept", manyChangeAccess},
	{"a secret is rotated in two steps", func(t *testing.T, g *Gateway) {
		const key = swarmstore.ConnectionSecret
		if err := g.RotateSecret(t.Context(), key, [16]byte{9}, 0); !errors.Is(err, swarmstore.ErrNoSecret) {
			t.Errorf("without a secret: %v", err)
		}
		want := func(want swarmstore.Secrets) error {
			got, err := g.Secrets(t.Context(), key, swarmstore.Secrets{{1}, {1}})
			if err == nil && got != want {
				err = fmt.Errorf("secrets are %v, not %v", got, want)
			}
			return err
		}
		must(t, want(swarmstore.Secrets{{1}, {1}}))
		rotate := func(secret byte, between func()) error {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- g.RotateSecret(ctx, key, [16]byte{secret}, time.Second) }()
			Eventually(t, 10*time.Second, func() error { return want(swarmstore.Secrets{{1}, {secret}}) })
			if between == nil {
				cancel()
			} else {
				between()
			}
			return <-ended
		}
		if err := rotate(2, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("a rotation that is broken off: %v", err)
		}
		must(t, want(swarmstore.Secrets{{1}, {2}}))
		if err := rotate(3, func() { must(t, g.RotateSecret(t.Context(), key, [16]byte{4}, 0)) }); !errors.Is(err, swarmstore.ErrRotating) {
			t.Errorf("a rotation that another one overtakes: %v", err)
		}
		must(t, want(swarmstore.Secrets{{4}, {1}}))
	}},
}

func wantCounts(t *testing.T, got, want swarm.Counts) {
	t.Helper()
	if got != want {
		t.Errorf("counts are %+v, want %+v", got, want)
	}
}

func wantPeers(t *testing.T, got map[netip.AddrPort]bool, want ...netip.AddrPort) {
	t.Helper()
	for _, p := range want {
		if !got[p] {
			t.Errorf("%v was not handed out", p)
		}
	}
	if len(got) != len(want) {
		t.Errorf("handed out %v, want %v", got, want)
	}
}
