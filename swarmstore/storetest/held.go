package storetest

import (
	"fmt"
	"testing"
	"time"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/swarm"
)

// heldCounts is what becomes of them in a swarm of some size, which grows and shrinks.
func heldCounts(size int) func(t *testing.T, g *Gateway) {
	return func(t *testing.T, g *Gateway) {
		hold := func(o *swarmstore.Options) { o.Hold, o.ViewTTL = true, 0 }
		g = g.backend.Open(t, g.now, hold)
		batch := func(from, to int, event swarm.Event) {
			t.Helper()
			var batch []*swarm.Announce
			for n := from; n < to; n++ {
				a := &swarm.Announce{InfoHash: Hash(1), Peer: Peer4(n), Event: event}
				switch n % 3 {
				case 1:
					a.Left = 5
				case 2:
					a.Left, a.Peer = 5, Peer6(n)
				}
				batch = append(batch, a)
			}
			g.Announces(batch...)
			for _, a := range batch {
				must(t, a.Err)
			}
			g.Pass(2 * time.Second)
		}
		// look tells what is held for leechers, and checks that all ways to read a swarm agree.
		look := func() swarm.Held {
			t.Helper()
			held := g.Counts(Hash(1)).Held
			if again := g.backend.Open(t, g.now, hold).Counts(Hash(1)).Held; again != held {
				t.Errorf("another gateway reads %+v, the first %+v", again, held)
			}
			must(t, g.Scan(t.Context(), func() time.Time { return *g.now }, func(part []swarm.Entry) error {
				if scanned := part[0].Held; scanned != held {
					t.Errorf("a scan reads %+v, a scrape %+v", scanned, held)
				}
				return nil
			}))
			return held
		}
		near := func(got float64, want int) {
			t.Helper()
			if got < float64(want)*0.97-1 || got > float64(want)*1.03+1 {
				t.Errorf("%.1f are held, want %d", got, want)
			}
		}

		batch(0, 1, swarm.Started)
		if h := g.Counts(Hash(1)).Held; h != (swarm.Held{}) {
			t.Errorf("of who is alone is held %+v", h)
		}
		batch(1, size/2, swarm.Started)
		g.Counts(Hash(1))
		g.Pass(2 * time.Second)
		young := look()
		batch(size/2, size, swarm.Started)
		g.Counts(Hash(1))
		g.Pass(2 * time.Second)
		if h := look(); h == young || h.Since != young.Since || h.Until-h.Since > 600 {
			t.Errorf("a young swarm that has grown is held to %+v, before it to %+v", h, young)
		}
		g.Pass(10 * time.Minute)
		g.Counts(Hash(1)) // it is young no more
		g.Pass(2 * time.Second)
		first := look()
		for _, at := range []time.Time{*g.now, g.now.Add(time.Hour)} {
			leechers, leechers6 := first.At(swarm.Leecher, at)
			near(leechers, 2*size/3)
			near(leechers6, size/3)
			seeders, seeders6 := first.At(swarm.Seeder, at)
			near(seeders, size/3)
			near(seeders6, 0)
		}
		if hold := first.Until - g.now.Unix(); hold < 3500 || hold > 7200 {
			t.Errorf("counts are held for %d s", hold)
		}

		batch(size, 3*size, swarm.Started)
		if h := look(); h != first {
			t.Errorf("a swarm that has grown threefold is held to %+v instead of %+v", h, first)
		}
		batch(0, 1, swarm.Stopped)
		if h := look(); h != first {
			t.Errorf("a swarm that one left is held to %+v instead of %+v", h, first)
		}

		// When it is time, or it grows fourfold, what is held goes on from what it was.
		goesOn := func(before swarm.Held, peers int) swarm.Held {
			t.Helper()
			g.Counts(Hash(1))
			g.Pass(2 * time.Second)
			h := look()
			if h == before {
				t.Fatal("it was not looked at again")
			}
			was, _ := before.At(swarm.Leecher, time.Unix(h.Since, 0))
			from, _ := h.At(swarm.Leecher, time.Unix(h.Since, 0))
			to, _ := h.At(swarm.Leecher, time.Unix(h.Until, 0))
			if from < was-1 || from > was+1 {
				t.Errorf("%.1f leechers were held, then %.1f", was, from)
			}
			near(to, 2*peers/3)
			return h
		}
		batch(3*size, 4*size+1, swarm.Started)
		grown := goesOn(first, 4*size)
		// Half of the peers announce no more, which nobody sees until it is time.
		for g.now.Unix() < grown.Until {
			if h := look(); h != grown {
				t.Fatalf("before it is time it is held to %+v instead of %+v", h, grown)
			}
			g.Pass(peerTTL / 2)
			batch(1, 2*size, swarm.None)
		}
		goesOn(grown, 2*size)

		// And its key goes.
		Eventually(t, 20*time.Second, func() error { // when nobody moves its peers any more
			g.Pass(4 * time.Hour)
			if n := g.backend.Keys(t); n != 0 {
				return fmt.Errorf("%d keys of a silent swarm are left", n)
			}
			return nil
		})
	}
}
