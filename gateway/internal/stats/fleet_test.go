package stats

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleetOf makes a gateway's view of the fleet; now is driven by the test.
func fleetOf(t *testing.T, store interface {
	Store
	Swarms
}, id string, now func() time.Time) *Fleet {
	return NewFleet(Options{
		Store: store, Swarms: store, Permits: func(swarm.InfoHash) bool { return true }, Counters: NewCounters(true), ID: id, Version: "test", Interval: time.Minute,
		Now: now, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
}

func mustReport(t *testing.T, f *Fleet) *Report {
	t.Helper()
	r, err := f.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var client4, client6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")

func TestAllGatewaysTellTheNumbersOfTheFleet(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			ctx, now := t.Context(), time.Unix(1_800_000_000, 0)
			clock := func() time.Time { return now }
			g := b.Open(t, &now, nil)
			first := fleetOf(t, g.Store, "first", clock)
			g.Pass(100 * time.Second)
			second := fleetOf(t, b.Open(t, &now, nil).Store, "second", clock)
			both := []*Fleet{first, second}

			for range 3 {
				first.Counters.Accepted(client4)
			}
			for range 4 {
				second.Counters.Accepted(client4)
			}
			second.Counters.Accepted(client6)
			second.Counters.Renewed(client6, 7, 64)
			for n := range 5 {
				g.Put(storetest.Hash(1), storetest.Peer4(n), swarm.Started, uint64(n%3))
			}
			g.Put(storetest.Hash(2), storetest.Peer6(1), swarm.Completed, 0)
			must(t, first.publish(ctx))
			must(t, second.publish(ctx))
			must(t, second.Summarize(ctx))

			for _, f := range both {
				r := mustReport(t, f)
				if r.Gateways != 2 || r.Uptime != 100 || r.Counts.HTTP.Received != (Families{7, 1}) || r.Counts.Renewed[7] != 64 {
					t.Errorf("%s tells of %d gateways, %d s, %v, %v", f.ID, r.Gateways, r.Uptime, r.Counts.HTTP.Received, r.Counts.Renewed)
				}
				if s := r.Swarms; s.Torrents != 2 || s.Peers != 6 || s.Seeds != 3 || s.Leechers != 3 || s.Downloads != 1 || s.Time != now.Unix() {
					t.Errorf("%s tells of %+v", f.ID, s)
				}
				if s := r.Swarms; !slices.Equal(s.TopPeers, top{{hash(storetest.Hash(1)), 5}, {hash(storetest.Hash(2)), 1}}) ||
					len(s.TopSeeds) != 2 || !slices.Equal(s.TopLeechers, top{{hash(storetest.Hash(1)), 3}}) {
					t.Errorf("%s tells of %+v", f.ID, s)
				}
			}
			for mode := range pages {
				one, known, err := first.Page(ctx, mode)
				must(t, err)
				other, _, _ := second.Page(ctx, mode)
				own := mode == "everything" || mode == "woodpeckers" // by its tracker_id, and by its own networks
				if !known || own == (string(one) == string(other)) {
					t.Errorf("mode %s: the gateways tell %q and %q", mode, one, other)
				}
			}

			// The second dies.
			for range 13 {
				g.Pass(publishEvery)
				must(t, first.publish(ctx))
			}
			if r := mustReport(t, first); r.Gateways != 1 || r.Counts.HTTP.Received != (Families{3, 0}) {
				t.Errorf("of a gateway that died %d and %v are told", r.Gateways, r.Counts.HTTP.Received)
			}
		})
	}
}

// A summary lasts for long, and what was denied since is not shown any more.
func TestDeniedSwarmsAreInNoList(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	g := storetest.Embedded(t).Open(t, &now, nil)
	f := fleetOf(t, g.Store, "one", func() time.Time { return now })
	g.Put(storetest.Hash(1), storetest.Peer4(1), swarm.Started, 0)
	g.Put(storetest.Hash(2), storetest.Peer4(1), swarm.Started, 0)
	must(t, f.Summarize(t.Context()))
	if s := mustReport(t, f).Swarms; len(s.TopPeers) != 2 || len(s.TopSeeds) != 2 {
		t.Errorf("listed are %v, %v", s.TopPeers, s.TopSeeds)
	}
	f.Permits = func(hash swarm.InfoHash) bool { return hash != storetest.Hash(1) }
	now = now.Add(reportTTL)
	want := top{{hash(storetest.Hash(2)), 1}}
	if s := mustReport(t, f).Swarms; !slices.Equal(s.TopPeers, want) || !slices.Equal(s.TopSeeds, want) || s.Torrents != 2 {
		t.Errorf("listed are %v, %v, of %d", s.TopPeers, s.TopSeeds, s.Torrents)
	}
}

func TestAGatewayThatEndsLeavesAtOnce(t *testing.T) {
	b := storetest.Embedded(t)
	now := time.Unix(1_800_000_000, 0)
	clock := func() time.Time { return now }
	store := b.Open(t, &now, nil).Store
	first, second := fleetOf(t, store, "first", clock), fleetOf(t, store, "second", clock)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		second.Run(ctx)
	}()
	there := func() int {
		fleet, err := store.Fleet(t.Context(), now)
		must(t, err)
		return len(fleet)
	}
	storetest.Eventually(t, 10*time.Second, func() error {
		if summary, err := store.Summary(t.Context()); err != nil || summary == nil || there() != 1 {
			return errors.New("the gateway is not there")
		}
		return nil
	})
	end()
	<-ended
	if there() != 0 {
		t.Error("the gateway is still there")
	}
	if r := mustReport(t, first); r.Gateways != 1 || r.Swarms.Time != now.Unix() {
		t.Errorf("%+v", r)
	}
}

func TestOneGatewayLooksAtAllSwarms(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			ctx, now := t.Context(), time.Unix(1_800_000_000, 0)
			clock := func() time.Time { return now }
			g := b.Open(t, &now, nil)
			first, second := fleetOf(t, g.Store, "first", clock), fleetOf(t, b.Open(t, &now, nil).Store, "second", clock)
			when := func(want time.Time) {
				t.Helper()
				s, err := second.summary(ctx)
				must(t, err)
				if s.Time != want.Unix() {
					t.Errorf("the summary is of %d, want %d", s.Time, want.Unix())
				}
			}
			began := now
			must(t, first.Summarize(ctx))
			when(began)
			g.Pass(59 * time.Second)
			must(t, second.Summarize(ctx)) // too early
			when(began)
			g.Pass(2 * time.Second)

			// The first begins, and dies.
			if leads, err := first.lead(ctx); err != nil || !leads {
				t.Fatal(leads, err)
			}
			must(t, second.Summarize(ctx))
			when(began)
			g.Pass(leadTTL + time.Second)
			must(t, second.Summarize(ctx))
			when(now)
			if leads, err := first.lead(ctx); err != nil || !leads {
				t.Errorf("the lead is still taken: %v", err)
			}
		})
	}
}

// fakeStore counts what it is asked.
type fakeStore struct {
	fleets, scans, leads, resigned atomic.Int64
	err                            error
	scan                           func(ctx context.Context) error
	lost                           atomic.Bool // the lead, after it was had
}

func (s *fakeStore) Publish(context.Context, time.Time, string, []byte) error { return s.err }
func (s *fakeStore) Leave(context.Context, string) error                      { return s.err }
func (s *fakeStore) Fleet(context.Context, time.Time) (map[string][]byte, error) {
	s.fleets.Add(1)
	return map[string][]byte{"newer": []byte(`{"counts":5}`)}, s.err
}
func (s *fakeStore) Lead(context.Context, string, time.Duration) (bool, error) {
	return s.leads.Add(1) == 1 || !s.lost.Load(), s.err
}
func (s *fakeStore) Resign(context.Context, string) error                    { s.resigned.Add(1); return s.err }
func (s *fakeStore) PutSummary(context.Context, []byte, time.Duration) error { return s.err }
func (s *fakeStore) Summary(context.Context) ([]byte, error)                 { return nil, s.err }
func (s *fakeStore) Replicated(context.Context) (uint64, error)              { return 0, s.err }
func (s *fakeStore) Scan(ctx context.Context, _ func() time.Time, _ func([]swarm.Entry) error) error {
	s.scans.Add(1)
	return s.scan(ctx)
}

func TestAFloodOfRequestsIsOneReadASecond(t *testing.T) {
	for _, err := range []error{nil, swarm.ErrUnavailable} {
		store := &fakeStore{err: err}
		var now atomic.Int64
		f := fleetOf(t, store, "me", func() time.Time { return time.Unix(1_800_000_000, now.Load()) })
		const seconds = 5
		for range seconds {
			var asking sync.WaitGroup
			for range 200 {
				asking.Go(func() {
					for mode := range pages {
						if _, known, got := f.Page(t.Context(), mode); !known || !errors.Is(got, err) {
							t.Errorf("mode %s: %v, %v", mode, known, got)
						}
					}
				})
			}
			asking.Wait()
			now.Add(int64(time.Second))
		}
		if n := store.fleets.Load(); n != seconds {
			t.Errorf("the store was asked %d times in %d seconds", n, seconds)
		}
		if n := store.scans.Load() + store.leads.Load(); n != 0 {
			t.Errorf("requests made %d looks at all swarms", n)
		}
	}
}

func TestALeadThatIsLostEndsTheLook(t *testing.T) {
	store := &fakeStore{scan: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	store.lost.Store(true)
	f := fleetOf(t, store, "me", time.Now)
	if err := f.lookAtAll(t.Context()); !errors.Is(err, errOther) {
		t.Errorf("%v", err)
	}
}

func TestALookThatFailsWaitsForTheLeadToEnd(t *testing.T) {
	store := &fakeStore{scan: func(context.Context) error { return errors.New("a node is away") }}
	f := fleetOf(t, store, "me", time.Now)
	must(t, f.Summarize(t.Context()))
	if n, resigned := store.scans.Load(), store.resigned.Load(); n != 1 || resigned != 0 {
		t.Errorf("%d looks, resigned %d times", n, resigned)
	}
	store.scan = func(context.Context) error { return nil }
	must(t, f.Summarize(t.Context()))
	if n, resigned := store.scans.Load(), store.resigned.Load(); n != 2 || resigned != 1 {
		t.Errorf("%d looks, resigned %d times", n, resigned)
	}
}

func TestUnknownModes(t *testing.T) {
	store := &fakeStore{}
	f := fleetOf(t, store, "me", time.Now)
	for _, mode := range []string{"", "nosuch", "PEER", "json", "tpbs"} {
		if page, known, err := f.Page(t.Context(), mode); known || page != nil || err != nil {
			t.Errorf("mode %q: %q, %v", mode, page, err)
		}
	}
	if store.fleets.Load() != 0 {
		t.Error("the store was asked")
	}
	if text, err := f.JSON(t.Context()); err != nil || !strings.Contains(string(text), `"gateways": 1,`) || strings.Contains(string(text), "null") {
		t.Errorf("%s, %v", text, err)
	}
}
