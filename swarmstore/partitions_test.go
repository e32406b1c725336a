package swarmstore_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// fleet is some gateways on one backend, whose clock runs by itself.
type fleet struct {
	t        *testing.T
	gateways []*storetest.Gateway
}

func newFleet(t *testing.T, b *storetest.Backend, n int) *fleet {
	f := &fleet{t: t}
	for range n {
		now := time.Now()
		f.gateways = append(f.gateways, b.Open(t, &now, func(o *swarmstore.Options) {
			o.ViewTTL, o.ViewMemory = 100*time.Millisecond, 64<<20
		}))
	}
	return f
}

// announce peers from to to, through all gateways at once; every third is a seeder.
func (f *fleet) announce(event swarm.Event, from, to int) {
	f.t.Helper()
	var all sync.WaitGroup
	for n, g := range f.gateways {
		all.Go(func() {
			for at := from + n; at < to; {
				var batch []*swarm.Announce
				for ; at < to && len(batch) < 64; at += len(f.gateways) {
					a := &swarm.Announce{InfoHash: storetest.Hash(1), Peer: peerOf(at), Event: event, NumWant: 50}
					if at%3 != 0 {
						a.Left = 5
					}
					batch = append(batch, a)
				}
				announceNow(f.t, g, batch)
			}
		})
	}
	all.Wait()
}

func announceNow(t *testing.T, g *storetest.Gateway, batch []*swarm.Announce) {
	var left sync.WaitGroup
	left.Add(len(batch))
	g.Announce(time.Now(), batch, func(part []*swarm.Announce) {
		for _, a := range part {
			if a.Err != nil {
				t.Errorf("an announce failed: %v", a.Err)
			} else if a.Event != swarm.Stopped {
				storetest.Picks(t, a.View, a.Peer, a.Class(), 50) // fails when one comes twice
			}
			left.Done()
		}
	})
	left.Wait()
}

func peerOf(n int) netip.AddrPort {
	if n%8 == 0 {
		return storetest.Peer6(n)
	}
	return storetest.Peer4(n)
}

func counts(t *testing.T, g *storetest.Gateway) swarm.Counts {
	done := make(chan struct{})
	s := &swarm.Scrape{Hashes: []swarm.InfoHash{storetest.Hash(1)}}
	g.Scrape(time.Now(), s, func(*swarm.Scrape) { close(done) })
	<-done
	if s.Err != nil {
		t.Fatal(s.Err)
	}
	return s.Counts[0]
}

// settled waits until every gateway counts as many as there are, to within 2 %.
func (f *fleet) settled(what string, peers int) {
	f.t.Helper()
	near := func(got, want int) bool { return math.Abs(float64(got-want)) <= 0.02*float64(want) }
	storetest.Eventually(f.t, 5*time.Second, func() error {
		for n, g := range f.gateways {
			c := counts(f.t, g)
			if !near(c.Seeders, (peers+2)/3) || !near(c.Leechers, peers-(peers+2)/3) {
				return fmt.Errorf("%s: of %d peers gateway %d counts %+v", what, peers, n, c)
			}
		}
		return nil
	})
}

// A swarm grows and shrinks under the hands of several gateways.
func TestSwarmGrowsAndShrinks(t *testing.T) {
	sizes := []int{1, 50, 112, 113, 500, 3000, 20_000}
	if testing.Short() {
		sizes = sizes[:6]
	}
	for name, backend := range map[string]func(*testing.T) *storetest.Backend{
		"embedded": storetest.Embedded,
		"cluster":  func(t *testing.T) *storetest.Backend { return storetest.Real(t, storetest.Cluster(t, 3, 0)...) },
	} {
		t.Run(name, func(t *testing.T) {
			b := backend(t)
			f := newFleet(t, b, 3)
			peers := 0
			for _, size := range sizes {
				f.announce(swarm.Started, peers, size)
				peers = size
				f.settled("growing", peers)
				f.announce(swarm.None, rand.IntN(peers), peers)
				f.settled("announcing again", peers)
			}
			for n := len(sizes) - 2; n >= 0; n-- {
				f.announce(swarm.Stopped, sizes[n], peers)
				peers = sizes[n]
				f.settled("shrinking", peers)
			}
		})
	}
}

// Each peer of a large swarm is handed out about equally often.
func TestPicksOfALargeSwarmAreUniform(t *testing.T) {
	const peers, answers, want = 10_000, 10_000, 50
	f := newFleet(t, storetest.Embedded(t), 1)
	g := f.gateways[0]
	var batch []*swarm.Announce
	for n := range peers {
		batch = append(batch, &swarm.Announce{InfoHash: storetest.Hash(1), Peer: storetest.Peer4(n), Event: swarm.Started, Left: 5})
		if len(batch) == 500 {
			announceNow(t, g, batch)
			batch = batch[:0]
		}
	}
	storetest.Eventually(t, 10*time.Second, func() error {
		if c := counts(t, g); c.Leechers != peers {
			return fmt.Errorf("%d peers are counted", c.Leechers)
		}
		return nil
	})
	rnd := rand.New(rand.NewPCG(1, 2))
	// While peers are being moved, a view holds a sample of partitions that are too full.
	storetest.Eventually(t, 20*time.Second, func() error {
		got := map[string]float64{}
		for n := range answers {
			a := &swarm.Announce{InfoHash: storetest.Hash(1), Peer: storetest.Peer4(n % peers), Left: 5}
			announceNow(t, g, []*swarm.Announce{a})
			picked := a.View.Pick(nil, swarm.Size4, a.Peer, swarm.Leecher, want, rnd.Uint64())
			if len(picked) != want*swarm.Size4 {
				t.Fatalf("%d bytes of peers", len(picked))
			}
			for ; len(picked) > 0; picked = picked[swarm.Size4:] {
				got[string(picked[:swarm.Size4])]++
			}
		}
		chi, expected := 0.0, float64(answers*want)/peers
		for _, n := range got {
			chi += (n - expected) * (n - expected) / expected
		}
		chi += float64(peers-len(got)) * expected
		// Four standard deviations above the mean of chi-square with so many degrees of freedom.
		if limit := peers + 4*math.Sqrt(2*peers); chi > limit {
			return fmt.Errorf("chi-square is %.0f, above %.0f", chi, limit)
		}
		return nil
	})
}

// What a gateway began that died, another one ends.
func TestAnotherMoverGoesOn(t *testing.T) {
	masters := storetest.Cluster(t, 3, 0)
	b := storetest.Real(t, masters...)
	f := newFleet(t, b, 2)
	dies := f.gateways[0]
	f.gateways = f.gateways[:1]
	f.announce(swarm.Started, 0, 2000)
	storetest.Eventually(t, 5*time.Second, func() error {
		if n := b.Keys(t); n < 10 {
			return fmt.Errorf("only %d keys", n) // the layout is not written yet
		}
		return nil
	})
	dies.Close()
	b.Advance(time.Minute) // the mover's key expires

	f = &fleet{t: t, gateways: newFleet(t, b, 2).gateways}
	f.settled("after a mover died", 2000)
	f.announce(swarm.Started, 2000, 9000)
	f.settled("growing on", 9000)
	once := func(peers int) {
		t.Helper()
		storetest.Eventually(t, 20*time.Second, func() error {
			counts(t, f.gateways[0]) // who looks goes on
			found := b.Peers(t)
			for _, sets := range found {
				if sets != 1 {
					return fmt.Errorf("a peer stands in %d sets", sets)
				}
			}
			if len(found) != peers {
				return fmt.Errorf("there are %d peers", len(found))
			}
			return nil
		})
	}
	once(9000)
	f.announce(swarm.Stopped, 100, 9000)
	f.settled("shrinking", 100)
	once(100)
}

// What a peer says through a gateway that has not seen a swarm's new layout yet holds for what it
// said through one that has.
func TestGatewaysDisagreeAboutALayout(t *testing.T) {
	for name, sizes := range map[string][2]int{"a small swarm": {60, 300}, "a large one": {300, 1200}} {
		t.Run(name, func(t *testing.T) {
			b := storetest.Embedded(t)
			knows, sleeps := newFleet(t, b, 1), &fleet{t: t}
			now := time.Now()
			sleeps.gateways = append(sleeps.gateways, b.Open(t, &now, func(o *swarmstore.Options) {
				o.ViewTTL, o.ViewMemory = time.Minute, 64<<20
			}))
			knows.announce(swarm.Started, 0, sizes[0])
			knows.settled("before", sizes[0])
			if sizes[0] > 112 {
				storetest.Eventually(t, 20*time.Second, func() error { return layoutSettled(t, knows, b) })
			}
			for range 3 { // so that it keeps what it has seen
				sleeps.announce(swarm.None, 0, sizes[0])
			}
			before := b.Keys(t)
			storetest.Eventually(t, 20*time.Second, func() error {
				knows.announce(swarm.Started, sizes[0], sizes[1])
				if n := b.Keys(t); n < before+4 {
					return fmt.Errorf("the swarm has %d keys, after %d", n, before)
				}
				return nil
			})
			const from, stopped, completed = 5000, 5040, 5080
			knows.announce(swarm.Started, from, completed)
			sleeps.announce(swarm.Stopped, from, stopped)
			sleeps.announce(swarm.Completed, stopped, completed)
			found := b.Peers(t)
			for n := from; n < stopped; n++ {
				if sets := found[string(swarm.AppendCompact(nil, peerOf(n)))]; sets > 0 {
					t.Errorf("peer %d stopped and stands in %d sets", n, sets)
				}
			}
			seeders := 0
			for n := range sizes[1] {
				if n%3 == 0 {
					seeders++
				}
			}
			storetest.Eventually(t, 20*time.Second, func() error {
				if c := counts(t, knows.gateways[0]); c.Seeders != seeders+completed-stopped {
					return fmt.Errorf("counts are %+v, not %d and %d seeders", c, seeders, completed-stopped)
				}
				return layoutSettled(t, knows, b)
			})
		})
	}
}

// A gateway that has never seen a large swarm writes peers to its first partition, and then where they belong. Who stops through another
// gateway before somebody has tidied up stands nowhere.
func TestStopAfterAColdStart(t *testing.T) {
	b := storetest.Embedded(t)
	knows := newFleet(t, b, 1)
	knows.announce(swarm.Started, 0, 500)
	knows.settled("before", 500)
	storetest.Eventually(t, 20*time.Second, func() error { return layoutSettled(t, knows, b) })
	o, err := redis.ParseURL(b.Admin[0])
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(o)
	defer c.Close()
	first := c.Keys(t.Context(), "*p").Val()
	if len(first) != 1 {
		t.Fatalf("the keys of first partitions are %q", first)
	}
	// As long as somebody has the mover's key nobody else tidies up.
	mover := strings.TrimSuffix(first[0], "p") + "m"
	storetest.Eventually(t, 20*time.Second, func() error {
		if !c.SetNX(t.Context(), mover, "the test", 0).Val() {
			return errors.New("somebody has the mover's key")
		}
		return nil
	})

	const from, to = 1000, 1040
	newFleet(t, b, 1).announce(swarm.Started, from, to)
	twice := 0
	for _, sets := range b.Peers(t) {
		if sets > 1 {
			twice++
		}
	}
	if twice == 0 {
		t.Fatal("no peer stands where it does not belong")
	}
	knows.announce(swarm.Stopped, from, to)
	found := b.Peers(t)
	for n := from; n < to; n++ {
		if sets := found[string(swarm.AppendCompact(nil, peerOf(n)))]; sets > 0 {
			t.Errorf("peer %d stopped and stands in %d sets", n, sets)
		}
	}
}

// layoutSettled tells whether each peer stands in one set.
func layoutSettled(t *testing.T, f *fleet, b *storetest.Backend) error {
	counts(t, f.gateways[0]) // who looks goes on
	for _, sets := range b.Peers(t) {
		if sets != 1 {
			return fmt.Errorf("a peer stands in %d sets", sets)
		}
	}
	return nil
}
