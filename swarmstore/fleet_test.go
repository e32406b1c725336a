package swarmstore_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

func TestFleet(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			ctx, now := t.Context(), time.Unix(1_800_000_000, 0)
			one, other := b.Open(t, &now, nil), b.Open(t, &now, nil)
			want := func(ids ...string) {
				t.Helper()
				fleet, err := other.Fleet(ctx, now)
				if err != nil {
					t.Fatal(err)
				}
				if got := slices.Sorted(maps.Keys(fleet)); !slices.Equal(got, ids) {
					t.Errorf("the fleet is %q, want %q", got, ids)
				}
				for id, state := range fleet {
					if string(state) != "state of "+id+" \x00\n" {
						t.Errorf("the state of %s is %q", id, state)
					}
				}
			}
			publish := func(g *storetest.Gateway, id string) {
				t.Helper()
				if err := g.Publish(ctx, now, id, []byte("state of "+id+" \x00\n")); err != nil {
					t.Fatal(err)
				}
			}
			want()
			publish(one, "a")
			publish(other, "b")
			want("a", "b")
			one.Pass(40 * time.Second)
			publish(other, "b")
			want("a", "b")
			one.Pass(21 * time.Second)
			want("b")      // a died
			for range 15 { // and is removed, while others are there
				one.Pass(45 * time.Second)
				publish(other, "b")
			}
			want("b")
			one.Pass(-10 * time.Minute)
			publish(other, "b")
			want("b")
			publish(one, "a")
			if err := one.Leave(ctx, "a"); err != nil {
				t.Fatal(err)
			}
			want("b")
			one.Pass(2 * time.Minute)
			if n := b.Keys(t); n != 0 {
				t.Errorf("a fleet that died leaves %d keys", n)
			}
		})
	}
}

func TestOneGatewayLeads(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			ctx, now := t.Context(), time.Unix(1_800_000_000, 0)
			g := start(t).Open(t, &now, nil)
			lead := func(id string, want bool) {
				t.Helper()
				if leads, err := g.Lead(ctx, id, time.Minute); err != nil || leads != want {
					t.Errorf("%s leads: %v, %v", id, leads, err)
				}
			}
			lead("a", true)
			lead("b", false)
			g.Pass(50 * time.Second)
			lead("a", true) // for longer
			g.Pass(50 * time.Second)
			lead("b", false)
			if err := g.Resign(ctx, "b"); err != nil {
				t.Fatal(err)
			}
			lead("b", false) // which had nothing to resign
			g.Pass(11 * time.Second)
			lead("b", true) // a died
			lead("a", false)
			if err := g.Resign(ctx, "b"); err != nil {
				t.Fatal(err)
			}
			lead("a", true)
		})
	}
}

func TestSummary(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			ctx, now := t.Context(), time.Unix(1_800_000_000, 0)
			g := start(t).Open(t, &now, nil)
			want := func(want string) {
				t.Helper()
				if got, err := g.Summary(ctx); err != nil || string(got) != want {
					t.Errorf("the summary is %q, %v; want %q", got, err, want)
				}
			}
			want("")
			if err := g.PutSummary(ctx, []byte("all of it\x00"), time.Hour); err != nil {
				t.Fatal(err)
			}
			g.Pass(59 * time.Minute)
			want("all of it\x00")
			g.Pass(2 * time.Minute)
			want("")
			if n, err := g.Replicated(ctx); err != nil || n != 0 {
				t.Errorf("%d bytes were replicated, %v", n, err)
			}
		})
	}
}

func TestReplicatedBytesGrow(t *testing.T) {
	now := time.Now()
	g := storetest.Real(t, storetest.Cluster(t, 3, 1)...).Open(t, &now, nil)
	storetest.Eventually(t, 20*time.Second, func() error {
		before, err := g.Replicated(t.Context())
		if err != nil {
			return err
		}
		g.Put(storetest.Hash(1), storetest.Peer4(1), swarm.Started, 0)
		after, err := g.Replicated(t.Context())
		if err == nil && after <= before {
			err = errors.New("nothing more was replicated")
		}
		return err
	})
}

func TestTheFleetWithoutRedis(t *testing.T) {
	b := &storetest.Backend{URLs: []string{"redis://127.0.0.1:1"}}
	now := time.Now()
	g := b.Open(t, &now, nil)
	_, err1 := g.Fleet(t.Context(), now)
	_, err2 := g.Summary(t.Context())
	_, err3 := g.Lead(t.Context(), "a", time.Minute)
	_, err4 := g.Replicated(t.Context())
	for _, err := range []error{err1, err2, err3, err4, g.Publish(t.Context(), now, "a", nil), g.Leave(t.Context(), "a"),
		g.Resign(t.Context(), "a"), g.PutSummary(t.Context(), nil, time.Minute)} {
		if err != swarm.ErrUnavailable {
			t.Errorf("%v", err)
		}
	}
}

// renewals notes what the store tells of them.
type renewals struct {
	*storetest.Counted
	mu      sync.Mutex
	minutes map[int]int
	peers   map[netip.Addr]bool
}

func (r *renewals) Renewed(peer netip.Addr, minutes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.minutes[minutes]++
	r.peers[peer] = true
}

func TestRenewals(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			for _, test := range []struct {
				name   string
				off    bool
				swarms int // that the peers are spread over
			}{{"small swarms", false, 64}, {"a large swarm", false, 1}, {"off", true, 64}} {
				t.Run(test.name, func(t *testing.T) {
					b.Reset()
					now := time.Unix(1_800_000_000, 0)
					r := &renewals{minutes: map[int]int{}, peers: map[netip.Addr]bool{}}
					g := b.Open(t, &now, func(o *swarmstore.Options) {
						r.Counted = o.Metrics.(*storetest.Counted)
						o.Metrics, o.Renewals = r, !test.off
					})
					const peers = 1024
					round := func() {
						t.Helper()
						var batch []*swarm.Announce
						for n := range peers {
							peer := storetest.Peer4(n)
							if n%2 == 1 {
								peer = storetest.Peer6(n)
							}
							batch = append(batch, &swarm.Announce{InfoHash: storetest.Hash(n % test.swarms), Peer: peer, Left: 5, Event: swarm.Started})
						}
						g.Announces(batch...)
						for _, a := range batch {
							if a.Err != nil {
								t.Fatal(a.Err)
							}
						}
					}
					want := peers / swarmstore.RenewalSample
					if test.off {
						want = 0
					}
					round()
					// At first peers of a large swarm are moved to other partitions, and new there.
					storetest.Eventually(t, 20*time.Second, func() error {
						g.Pass(7*time.Minute + 30*time.Second)
						clear(r.minutes)
						clear(r.peers)
						round()
						// One in 64, of each lane: it may come to its next turn or not.
						if got := r.minutes[7]; got < want-3 || got > want+3 || len(r.minutes) > 1 || len(r.peers) > got {
							return fmt.Errorf("want %d samples of 7 minutes or so, got %v of %d peers", want, r.minutes, len(r.peers))
						}
						return nil
					})
				})
			}
		})
	}
}
