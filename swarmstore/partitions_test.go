package swarmstore_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

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
