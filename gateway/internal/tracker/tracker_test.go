package tracker

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// fakeStore answers from one view, in parts of one announce.
type fakeStore struct {
	view  *swarm.View
	err   error
	asked map[swarm.InfoHash]int // announces
}

func (s *fakeStore) Announce(_ time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce)) {
	if s.asked == nil {
		s.asked = map[swarm.InfoHash]int{}
	}
	for i, a := range batch {
		s.asked[a.InfoHash]++
		a.View, a.Err = s.view, s.err
		answered(batch[i : i+1])
	}
}

func (s *fakeStore) Scrape(_ time.Time, scrape *swarm.Scrape, answered func(*swarm.Scrape)) {
	scrape.Err = s.err
	scrape.Counts = scrape.Counts[:0]
	for range scrape.Hashes {
		scrape.Counts = append(scrape.Counts, s.view.Counts())
	}
	answered(scrape)
}

func (s *fakeStore) Scan(_ context.Context, _ func() time.Time, yield func([]swarm.Entry) error) error {
	if s.err != nil {
		return s.err
	}
	return yield([]swarm.Entry{{InfoHash: decoyHash, Counts: s.view.Counts()}})
}

// denying denies some swarms, and knows nothing when it is nil.
type denying map[swarm.InfoHash]bool

func (d denying) Check(hash swarm.InfoHash) error {
	switch {
	case d == nil:
		return swarm.ErrUnavailable
	case d[hash]:
		return swarm.ErrDenied
	}
	return nil
}

type fakeMetrics struct {
	announced, failed, scraped int
}

func (m *fakeMetrics) Announced(part []*swarm.Announce, _ time.Duration) {
	for _, a := range part {
		m.announced++
		if a.Err != nil {
			m.failed++
		}
	}
}
func (m *fakeMetrics) Scraped(error, time.Duration) { m.scraped++ }

var policy = Policy{Interval: 1000 * time.Second, MinInterval: 500 * time.Second}

func peer4(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 6881)
}

func peer6(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 14: byte(n >> 8), 15: byte(n)}), 6881)
}

// viewOf a swarm with so many leechers on IPv4 and IPv6 and seeders on IPv4.
func viewOf(leechers4, leechers6, seeders4 int) *swarm.View {
	v := swarm.NewView(swarm.Part{}, 0)
	for n := range leechers4 {
		v.Put(peer4(n), swarm.Leecher, true)
	}
	for n := range leechers6 {
		v.Put(peer6(n), swarm.Leecher, true)
	}
	for n := range seeders4 {
		v.Put(peer4(1000+n), swarm.Seeder, true)
	}
	return v
}

func announce(v *swarm.View, a *swarm.Announce) *swarm.Announce {
	New(&fakeStore{view: v}, denying{}, policy).Front(&fakeMetrics{}).
		Announce(time.Now(), []*swarm.Announce{a}, func([]*swarm.Announce) {})
	return a
}

func TestPeersHandedOut(t *testing.T) {
	tests := []struct {
		name         string
		view         *swarm.View
		ask          swarm.Announce
		want4, want6 int
	}{
		{"all but oneself", viewOf(10, 0, 5), swarm.Announce{Peer: peer4(1), Left: 1, NumWant: 50}, 14, 0},
		{"a seeder gets leechers", viewOf(10, 0, 5), swarm.Announce{Peer: peer4(1000), NumWant: 50}, 10, 0},
		{"a partial seed gets leechers", viewOf(10, 0, 5), swarm.Announce{Peer: peer4(900), Left: 1, Event: swarm.Paused, NumWant: 50}, 10, 0},
		{"50 by default", viewOf(100, 0, 0), swarm.Announce{Peer: peer4(1), Left: 1, NumWant: -1}, 50, 0},
		{"200 at most", viewOf(250, 0, 0), swarm.Announce{Peer: peer4(1), Left: 1, NumWant: 1 << 30}, 200, 0},
		{"none when none are wanted", viewOf(10, 0, 5), swarm.Announce{Peer: peer4(1), Left: 1}, 0, 0},
		{"none to who stops", viewOf(10, 0, 5), swarm.Announce{Peer: peer4(1), Left: 1, Event: swarm.Stopped, NumWant: 50}, 0, 0},
		{"the asker's family only", viewOf(10, 10, 0), swarm.Announce{Peer: peer4(1), Left: 1, NumWant: 50}, 9, 0},
		{"the asker's family only, IPv6", viewOf(10, 10, 0), swarm.Announce{Peer: peer6(1), Left: 1, NumWant: 50}, 0, 9},
		{"both families", viewOf(10, 10, 0), swarm.Announce{Peer: peer4(1), Left: 1, NumWant: 50, Both: true}, 9, 10},
		{"both families, exactly as many as wanted", viewOf(30, 20, 0), swarm.Announce{Peer: peer4(999), NumWant: 50, Both: true}, 30, 20},
		{"both families, the asker on IPv6", viewOf(30, 21, 0), swarm.Announce{Peer: peer6(1), Left: 1, NumWant: 50, Both: true}, 30, 20},
		{"both families, the asker on IPv4", viewOf(31, 20, 0), swarm.Announce{Peer: peer4(1), Left: 1, NumWant: 50, Both: true}, 30, 20},
		{"a quarter for the smaller family", viewOf(200, 20, 0), swarm.Announce{Peer: peer4(999), NumWant: 40, Both: true}, 30, 10},
		{"a quarter for the smaller family, IPv4", viewOf(20, 200, 0), swarm.Announce{Peer: peer4(999), NumWant: 40, Both: true}, 10, 30},
		{"all that the smaller family has", viewOf(200, 3, 0), swarm.Announce{Peer: peer4(999), NumWant: 40, Both: true}, 37, 3},
		{"parts in proportion", viewOf(100, 100, 0), swarm.Announce{Peer: peer4(999), NumWant: 40, Both: true}, 20, 20},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := announce(test.view, &test.ask)
			if n4, n6 := len(a.Peers4)/swarm.Size4, len(a.Peers6)/swarm.Size6; n4 != test.want4 || n6 != test.want6 {
				t.Errorf("handed out %d and %d peers, want %d and %d", n4, n6, test.want4, test.want6)
			}
			if a.Counts != test.view.Counts() {
				t.Errorf("counts are %+v", a.Counts)
			}
		})
	}
}

func TestIntervalsAreJittered(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 1000 {
		a := announce(viewOf(0, 0, 0), &swarm.Announce{Peer: peer4(1)})
		if a.Interval < 900*time.Second || a.Interval > policy.MaxInterval() {
			t.Fatalf("interval is %v", a.Interval)
		}
		if a.MinInterval != policy.MinInterval {
			t.Fatalf("min interval is %v", a.MinInterval)
		}
		seen[a.Interval.Truncate(10*time.Second)] = true
	}
	if len(seen) < 15 {
		t.Errorf("only %d of 20 stretches of 10 s were given", len(seen))
	}
}

func TestNobodyIsToldToComeBackAtOnce(t *testing.T) {
	for range 100 {
		if d := jittered(time.Second); d != time.Second {
			t.Fatalf("a second is jittered to %v", d)
		}
	}
}

func TestErrorsPassAndAreCounted(t *testing.T) {
	metrics := &fakeMetrics{}
	f := New(&fakeStore{err: swarm.ErrBusy}, denying{}, policy).Front(metrics)
	a := &swarm.Announce{Peer: peer4(1)}
	a.Peers4 = []byte("left from before")
	f.Announce(time.Now(), []*swarm.Announce{a, {Peer: peer4(2)}}, func([]*swarm.Announce) {})
	if a.Interval < retryInterval*9/10 || a.Interval > retryInterval*11/10 {
		t.Errorf("an error comes with an interval of %v", a.Interval)
	}
	var scrapeErr error
	f.Scrape(time.Now(), &swarm.Scrape{}, func(s *swarm.Scrape) { scrapeErr = s.Err })
	if !errors.Is(a.Err, swarm.ErrBusy) || len(a.Peers4) != 0 || !errors.Is(scrapeErr, swarm.ErrBusy) {
		t.Errorf("announce: %v, %d bytes of peers; scrape: %v", a.Err, len(a.Peers4), scrapeErr)
	}
	if *metrics != (fakeMetrics{announced: 2, failed: 2, scraped: 1}) {
		t.Errorf("counted %+v", *metrics)
	}
}

func TestAnAnnounceAllocatesNothing(t *testing.T) {
	f := New(&fakeStore{view: viewOf(100, 100, 0)}, denying{}, policy).Front(&fakeMetrics{})
	batch := []*swarm.Announce{{Peer: peer4(1), Left: 1, NumWant: 50, Both: true}}
	answered := func([]*swarm.Announce) {}
	now := time.Now()
	f.Announce(now, batch, answered)
	storetest.Allocs(t, 0, func() { f.Announce(now, batch, answered) })
}

// A batch of served and denied swarms comes back whole, and the store is asked for what is served.
func TestDeniedSwarmsAreNotServed(t *testing.T) {
	served, denied := swarm.InfoHash{1}, swarm.InfoHash{2}
	const n = 8
	for mask := range 1 << n {
		store := &fakeStore{view: viewOf(3, 0, 0)}
		metrics := &fakeMetrics{}
		f := New(store, denying{denied: true}, policy).Front(metrics)
		var batch []*swarm.Announce
		want := 0
		for i := range n {
			a := &swarm.Announce{InfoHash: served, Peer: peer4(i), Left: 1, NumWant: 50}
			if mask>>i&1 == 1 {
				a.InfoHash = denied
				a.View, a.Peers4, a.Event = viewOf(1, 0, 0), []byte("left from before"), swarm.Stopped
				want++
			}
			batch = append(batch, a)
		}
		for range 2 { // with what is kept from the first time
			back := map[*swarm.Announce]int{}
			f.Announce(time.Now(), batch, func(part []*swarm.Announce) {
				for _, a := range part {
					back[a]++
				}
			})
			for i, a := range batch {
				switch {
				case back[a] != 1:
					t.Fatalf("%b: announce %d came back %d times", mask, i, back[a])
				case a.InfoHash == served && (a.Err != nil || len(a.Peers4) == 0):
					t.Fatalf("%b: a served announce gets %v and %d bytes of peers", mask, a.Err, len(a.Peers4))
				case a.InfoHash == denied && (!errors.Is(a.Err, swarm.ErrDenied) || len(a.Peers4) > 0 || a.View != nil):
					t.Fatalf("%b: a denied announce gets %v and %d bytes of peers", mask, a.Err, len(a.Peers4))
				case a.InfoHash == denied && a.Interval < 900*time.Second:
					t.Fatalf("%b: a denied announce gets an interval of %v", mask, a.Interval)
				}
			}
		}
		if store.asked[denied] != 0 || store.asked[served] != 2*(n-want) || metrics.announced != 2*n || metrics.failed != 2*want {
			t.Fatalf("%b: the store was asked %v, counted %+v", mask, store.asked, *metrics)
		}
	}
}

func TestNothingIsServedWhileAccessIsNotKnown(t *testing.T) {
	store := &fakeStore{view: viewOf(3, 0, 0)}
	f := New(store, denying(nil), policy).Front(&fakeMetrics{})
	a, s := &swarm.Announce{Peer: peer4(1)}, &swarm.Scrape{Hashes: make([]swarm.InfoHash, 1)}
	f.Announce(time.Now(), []*swarm.Announce{a}, func([]*swarm.Announce) {})
	f.Scrape(time.Now(), s, func(*swarm.Scrape) {})
	if !errors.Is(a.Err, swarm.ErrUnavailable) || !errors.Is(s.Err, swarm.ErrUnavailable) || len(store.asked) > 0 {
		t.Errorf("announce: %v, scrape: %v, the store was asked %v", a.Err, s.Err, store.asked)
	}
	if a.Interval > retryInterval*11/10 {
		t.Errorf("the interval is %v", a.Interval)
	}
}

func TestDeniedSwarmsAreNotCounted(t *testing.T) {
	served, denied := swarm.InfoHash{1}, swarm.InfoHash{2}
	f := New(&fakeStore{view: viewOf(3, 0, 0)}, denying{denied: true}, policy).Front(&fakeMetrics{})
	s := &swarm.Scrape{Hashes: []swarm.InfoHash{denied, served, denied}}
	f.Scrape(time.Now(), s, func(*swarm.Scrape) {})
	want := []swarm.Counts{{Denied: true}, {Leechers: 3}, {Denied: true}}
	if s.Err != nil || !slices.Equal(s.Counts, want) {
		t.Errorf("%v, %+v", s.Err, s.Counts)
	}
}

func TestADeniedAnnounceAllocatesNothing(t *testing.T) {
	f := New(&fakeStore{view: viewOf(100, 100, 0)}, denying{{2}: true}, policy).Front(&fakeMetrics{})
	batch := []*swarm.Announce{{InfoHash: swarm.InfoHash{2}, Peer: peer4(1)}, {InfoHash: swarm.InfoHash{1}, Peer: peer4(2), Left: 1}}
	answered := func([]*swarm.Announce) {}
	now := time.Now()
	f.Announce(now, batch, answered)
	storetest.Allocs(t, 0, func() { f.Announce(now, batch, answered) })
}

// laterStore answers each announce from a goroutine of its own.
type laterStore struct{ fakeStore }

func (s *laterStore) Announce(_ time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce)) {
	for _, a := range batch {
		go func() {
			a.View, a.Err = s.view, nil
			answered([]*swarm.Announce{a})
		}()
	}
}

// Batches that are served in part come back whole while the store still answers others.
func TestManyBatchesAtOnce(t *testing.T) {
	served, denied := swarm.InfoHash{1}, swarm.InfoHash{2}
	f := New(&laterStore{fakeStore{view: viewOf(3, 0, 0)}}, denying{denied: true}, policy).Front(quiet{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for n := range 500 {
				batch := make([]*swarm.Announce, 1+n%5)
				var back sync.WaitGroup
				back.Add(len(batch))
				for i := range batch {
					batch[i] = &swarm.Announce{InfoHash: served, Peer: peer4(i), Left: 1}
					if (n>>i)&1 == 1 {
						batch[i].InfoHash = denied
					}
				}
				f.Announce(time.Now(), batch, func(part []*swarm.Announce) {
					for _, a := range part {
						if (a.InfoHash == denied) != errors.Is(a.Err, swarm.ErrDenied) {
							t.Errorf("%x gets %v", a.InfoHash, a.Err)
						}
						back.Done() // which panics when one comes back twice
					}
				})
				back.Wait()
			}
		})
	}
	group.Wait()
}

type quiet struct{}

func (quiet) Announced([]*swarm.Announce, time.Duration) {}
func (quiet) Scraped(error, time.Duration)               {}
