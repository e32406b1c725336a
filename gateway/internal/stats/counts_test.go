package stats

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"testing"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// batch of n announces from as many networks, each wanting this many peers.
func batch(n, numWant int) (part []*swarm.Announce) {
	for n := range n {
		addr := netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 1})
		part = append(part, &swarm.Announce{Peer: netip.AddrPortFrom(addr, 1), NumWant: numWant})
	}
	return part
}

func TestAnnouncesAreCounted(t *testing.T) {
	c := NewCounters(false)
	part := append(batch(5, 50), batch(2, 0)...)
	part = append(part, batch(4, 200)...)
	part = append(part, batch(1, 50)...)
	part[0].Peer = netip.AddrPortFrom(client6, 1)
	part[1].Err = fmt.Errorf("so: %w", swarm.ErrBusy)
	part[2].Err, part[2].Peer = swarm.ErrFull, netip.AddrPortFrom(client6, 1)
	part[3].Err = errors.New("another")
	http, udp := c.HTTP(), c.UDP()
	http.Announced(part)
	udp.Announced(batch(3, 7))
	http.Announced(nil)

	var want Counts
	want.HTTP.Announces.IPv4 = Outcomes{OK: 8, Busy: 1, Failed: 1}
	want.HTTP.Announces.IPv6 = Outcomes{OK: 1, Full: 1}
	want.UDP.Announces.IPv4 = Outcomes{OK: 3}
	want.NumWants[50], want.NumWants[0], want.NumWants[200], want.NumWants[7] = 3, 2, 4, 3
	if got := c.Counts(); *got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestTheRestIsCounted(t *testing.T) {
	c := NewCounters(false)
	c.HTTP().Scraped(nil)
	c.UDP().Scraped(swarm.ErrUnavailable)
	c.Accepted(client4)
	c.Accepted(client6)
	c.Datagrams([2]int{5, 4}, [2]int{3, 2}, 1)
	c.InvalidUDP()
	c.Downloaded()
	c.FullScraped(1000)
	c.Renewed(client4, 30, 64)
	c.Renewed(client4, 300, 64)
	for status, n := range map[int]int{200: 1, 302: 2, 400: 3, 405: 3, 402: 4, 429: 4, 403: 5, 404: 6, 500: 7, 503: 7} {
		for range n {
			c.InvalidHTTP(status)
		}
	}
	var want Counts
	want.HTTP.Scrapes.OK, want.UDP.Scrapes.Unavailable = 1, 1
	want.HTTP.Received, want.UDP.Received, want.ConnectionIDs = Families{1, 1}, Families{5, 4}, Families{3, 2}
	want.WrongIDs, want.InvalidUDP, want.Downloads, want.FullScrapes, want.FullScrapeBytes = 1, 1, 1, 1, 1000
	want.Renewed[30], want.Renewed[44] = 64, 64
	want.Refused = Refused{Redirected: 2, Malformed: 6, Invalid: 1, TooSoon: 8, Forbidden: 5, NotFound: 6, Failed: 14}
	if got := c.Counts(); *got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if n := want.Refused.Sum(); n != 42 {
		t.Errorf("%d are refused", n)
	}
}

func TestEveryNumberAddsUp(t *testing.T) {
	numbers := func(c *Counts, f func(n *uint64)) {
		v := reflect.ValueOf(c).Elem()
		each(v, v, func(n, _ *uint64) { f(n) })
	}
	var a, b Counts
	i := uint64(0)
	numbers(&a, func(n *uint64) { i++; *n = i })
	numbers(&b, func(n *uint64) { *n = 1000 })
	a.Add(&b)
	i = 0
	numbers(&a, func(n *uint64) {
		if i++; *n != 1000+i {
			t.Errorf("number %d is %d", i, *n)
		}
	})
	if i < maxRenewed+maxNumWant {
		t.Errorf("%d numbers", i)
	}
}

func TestOneAnnounceInSomeIsSampled(t *testing.T) {
	for _, size := range []int{1, 3, 64, 100, 512} {
		c := NewCounters(true)
		f := c.HTTP()
		all := 0
		for all < 64*size {
			f.Announced(batch(size, 1))
			all += size
		}
		got := 0
		for _, n := range c.networks.busiest[0].counts {
			got += n
		}
		if got != all/networkSample*networkSample {
			t.Errorf("in parts of %d, %d announces were counted of %d", size, got, all)
		}
	}
}

func TestCountingTakesNoMemory(t *testing.T) {
	c := NewCounters(true)
	f, part := c.UDP(), batch(100, 50)
	f.Announced(part)
	storetest.Allocs(t, 0, func() {
		f.Announced(part)
		c.Datagrams([2]int{64, 0}, [2]int{1, 1}, 1)
		c.Renewed(client4, 5, 64)
	})
}

func TestCountersAreForManyGoroutines(t *testing.T) {
	c := NewCounters(true)
	f := c.HTTP()
	var counting sync.WaitGroup
	for range 4 {
		counting.Go(func() {
			for range 100 {
				f.Announced(batch(10, 50))
				c.Counts()
				c.networks.tops()
			}
		})
	}
	counting.Wait()
	if n := c.Counts().HTTP.Announced(); n != 4000 {
		t.Errorf("%d announces", n)
	}
}

func BenchmarkAnnounced(b *testing.B) {
	for _, size := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("parts of %d", size), func(b *testing.B) {
			f, part := NewCounters(true).UDP(), batch(size, 50)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					f.Announced(part)
				}
			})
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/announce")
		})
	}
}
