package tracker

import (
	"bytes"
	"cmp"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

var (
	decoyHash = swarm.InfoHash{1, 2, 3}
	decoyTime = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	asker     = netip.MustParseAddrPort("198.18.0.1:6881") // where no decoy is; a leecher
	asker6    = netip.MustParseAddrPort("[fd00::1]:6881")
	seeding   = netip.MustParseAddrPort("198.18.0.2:6881")
)

// crowd is a swarm of real peers, who are anywhere on the Internet as decoys are. Askers are in it too.
type crowd struct {
	view  *swarm.View
	peers map[netip.AddrPort]swarm.Class
}

func newCrowd(leechers4, leechers6, seeders4 int) *crowd {
	c := &crowd{swarm.NewView(swarm.Part{}, 0), map[netip.AddrPort]swarm.Class{}}
	rnd := rand.New(rand.NewPCG(1, 2))
	add := func(n, family int, class swarm.Class) {
		for range max(n, 0) {
			prefix := public[family][rnd.IntN(len(public[family]))]
			addr := within(prefix, rnd.Uint64(), rnd.Uint64())
			for reserved(addr) {
				addr = within(prefix, rnd.Uint64(), rnd.Uint64())
			}
			peer := netip.AddrPortFrom(addr, port(rnd.Uint64()))
			c.peers[peer] = class
			c.view.Put(peer, class, true)
		}
	}
	if leechers4 > 0 {
		c.view.Put(asker, swarm.Leecher, true)
	}
	if leechers6 > 0 {
		c.view.Put(asker6, swarm.Leecher, true)
	}
	add(leechers4-1, family4, swarm.Leecher)
	add(leechers6-1, family6, swarm.Leecher)
	add(seeders4, family4, swarm.Seeder)
	return c
}

func (c *crowd) real(peer netip.AddrPort) bool {
	_, is := c.peers[peer]
	return is || peer == asker || peer == asker6
}

// gatewayOf the crowd, with decoys.
func gatewayOf(c *crowd, share float64, prefixes ...netip.Prefix) *Front {
	p := policy
	p.Decoys = NewDecoys(share, prefixes)
	p.Decoys.SetKey([16]byte{7})
	return New(&fakeStore{view: c.view}, denying{}, p).Front(&fakeMetrics{})
}

func ask(f *Front, at time.Time, a swarm.Announce) *swarm.Announce {
	if !a.Peer.IsValid() {
		if a.Peer = asker; a.Left == 0 {
			a.Peer = seeding
		}
	}
	if a.InfoHash == (swarm.InfoHash{}) {
		a.InfoHash = decoyHash
	}
	f.Announce(at, []*swarm.Announce{&a}, func([]*swarm.Announce) {})
	return &a
}

// peersOf an answer.
func peersOf(t testing.TB, a *swarm.Announce) (peers []netip.AddrPort) {
	t.Helper()
	if a.Err != nil {
		t.Fatal(a.Err)
	}
	for b := a.Peers4; len(b) > 0; b = b[swarm.Size4:] {
		peers = append(peers, netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), uint16(b[4])<<8|uint16(b[5])))
	}
	for b := a.Peers6; len(b) > 0; b = b[swarm.Size6:] {
		peers = append(peers, netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), uint16(b[16])<<8|uint16(b[17])))
	}
	return peers
}

// everybody that asking often enough tells of, and the asker.
func everybody(t testing.TB, f *Front, at time.Time, a swarm.Announce) map[netip.AddrPort]bool {
	all := map[netip.AddrPort]bool{a.Peer: true}
	delete(all, netip.AddrPort{})
	for range 300 {
		for _, peer := range peersOf(t, ask(f, at, a)) {
			all[peer] = true
		}
	}
	return all
}

var leecher = swarm.Announce{Left: 1, NumWant: 50, Both: true}

func TestDecoysAreAShareOfAllPeers(t *testing.T) {
	for _, peers := range []int{2, 3, 10, 1000} {
		f := gatewayOf(newCrowd(1, 0, peers-1), 0.2)
		total := 0
		const swarms = 2000
		for n := range swarms {
			hash := swarm.InfoHash{byte(n), byte(n >> 8)}
			seen := f.Counts(hash, swarm.Counts{Leechers: 1, Seeders: peers - 1})
			total += seen.Seeders + seen.Leechers
		}
		if share := 1 - float64(peers*swarms)/float64(total); math.Abs(share-0.2) > 0.02 {
			t.Errorf("in swarms of %d a share of %.3f is made up", peers, share)
		}
	}
}

func TestAnEmptySwarmHasNoDecoys(t *testing.T) {
	for n := range 200 {
		hash := swarm.InfoHash{byte(n), 9}
		for _, real := range []swarm.Counts{{}, {Leechers: 1}, {Seeders: 1}} {
			c := newCrowd(real.Leechers, 0, real.Seeders)
			f := gatewayOf(c, MaxDecoys)
			a := ask(f, decoyTime, swarm.Announce{InfoHash: hash, Left: 1, NumWant: 50})
			for _, peer := range peersOf(t, a) {
				if !c.real(peer) {
					t.Fatalf("with %+v a decoy is handed out", real)
				}
			}
			if a.Counts != real {
				t.Fatalf("of %+v are counted %+v", real, a.Counts)
			}
		}
	}
}

func TestDeniedSwarmsAreInNoScan(t *testing.T) {
	view := newCrowd(10, 0, 10).view
	for want, access := range []Access{denying{decoyHash: true}, denying{}} {
		seen := 0
		f := New(&fakeStore{view: view}, access, policy)
		if err := f.Scan(t.Context(), nil, func(part []swarm.Entry) error {
			seen += len(part)
			return nil
		}); err != nil || seen != want {
			t.Errorf("%d swarms are seen, want %d: %v", seen, want, err)
		}
	}
	if err := New(&fakeStore{view: view}, denying(nil), policy).Scan(t.Context(), nil, func([]swarm.Entry) error { return nil }); err != swarm.ErrUnavailable {
		t.Errorf("before the list is known a scan ends with %v", err)
	}
}

func TestNoDecoysBeforeTheKeyIsKnown(t *testing.T) {
	p := policy
	p.Decoys = NewDecoys(0.2, nil)
	f := New(&fakeStore{view: newCrowd(10, 0, 10).view}, denying{}, p).Front(&fakeMetrics{})
	if a := ask(f, decoyTime, leecher); a.Err != swarm.ErrUnavailable || len(a.Peers4) > 0 {
		t.Errorf("answered with %d bytes of peers and %v", len(a.Peers4), a.Err)
	}
	f.Scrape(decoyTime, &swarm.Scrape{Hashes: []swarm.InfoHash{decoyHash}, Counts: make([]swarm.Counts, 1)}, func(s *swarm.Scrape) {
		if s.Err != swarm.ErrUnavailable {
			t.Errorf("the scrape ends with %v", s.Err)
		}
	})
}

func TestNoDecoyTakesTheRoomOfAPeer(t *testing.T) {
	for _, peers := range []int{2, 30, 45, 50} {
		c := newCrowd(peers-1, 0, 1)
		f := gatewayOf(c, MaxDecoys)
		for range 50 {
			got := peersOf(t, ask(f, decoyTime, leecher))
			for peer := range c.peers {
				if !slices.Contains(got, peer) {
					t.Fatalf("one of %d peers is missing among %d", peers, len(got))
				}
			}
			if a := ask(f, decoyTime, leecher); len(got)+1 != a.Counts.Seeders+a.Counts.Leechers {
				t.Fatalf("%d are handed out, %+v counted with the asker", len(got), a.Counts)
			}
		}
	}
}

func TestAnAnswerHasRoomForDecoys(t *testing.T) {
	f := gatewayOf(newCrowd(200, 0, 0), MaxDecoys)
	if n := len(peersOf(t, ask(f, decoyTime, swarm.Announce{Left: 1, NumWant: 202, Room: 202}))); n != 202 {
		t.Errorf("%d peers are handed out where 202 fit", n)
	}
	f = gatewayOf(newCrowd(300, 0, 0), MaxDecoys)
	if n := len(peersOf(t, ask(f, decoyTime, leecher))); n != 50 {
		t.Errorf("%d peers are handed out of many, 50 were wanted", n)
	}
}

func TestDecoysAreTheSameEverywhere(t *testing.T) {
	c := newCrowd(60, 20, 40)
	f := gatewayOf(c, MaxDecoys)
	leecher := leecher
	leecher.Peer = asker
	http := everybody(t, f, decoyTime, leecher)
	if again := everybody(t, gatewayOf(c, MaxDecoys), decoyTime.Add(time.Second), leecher); !maps.Equal(http, again) {
		t.Error("another gateway tells of others")
	}
	udp := everybody(t, f, decoyTime, swarm.Announce{Peer: asker, Left: 1, NumWant: 50, Room: 202})
	maps.Copy(udp, everybody(t, f, decoyTime, swarm.Announce{Peer: asker6, Left: 1, NumWant: 50, Room: 66}))
	if !maps.Equal(http, udp) {
		t.Errorf("one transport tells of %d, the other of %d", len(http), len(udp))
	}
	a := ask(f, decoyTime, leecher)
	if n := a.Counts.Seeders + a.Counts.Leechers; n != len(http) {
		t.Errorf("%d are counted, there are %d", n, len(http))
	}
	toSeeders := everybody(t, f, decoyTime, swarm.Announce{NumWant: 50, Both: true})
	if len(toSeeders) != a.Counts.Leechers {
		t.Errorf("seeders are told of %d leechers, %d are counted", len(toSeeders), a.Counts.Leechers)
	}
	if err := f.Scan(t.Context(), nil, func(part []swarm.Entry) error {
		if part[0].Counts != a.Counts {
			t.Errorf("a full scrape tells %+v, an announce %+v", part[0].Counts, a.Counts)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	s := &swarm.Scrape{Hashes: []swarm.InfoHash{decoyHash}, Counts: []swarm.Counts{c.view.Counts()}}
	f.Scrape(decoyTime, s, func(s *swarm.Scrape) {
		if s.Counts[0] != a.Counts {
			t.Errorf("a scrape tells %+v, an announce %+v", s.Counts[0], a.Counts)
		}
	})
}

// rankSum is how many standard deviations the mean rank of one sample is off what chance
// makes it (Mann and Whitney's test).
func rankSum(a, b []float64) float64 {
	type value struct {
		x     float64
		first bool
	}
	var all []value
	for _, x := range a {
		all = append(all, value{x, true})
	}
	for _, x := range b {
		all = append(all, value{x, false})
	}
	slices.SortFunc(all, func(a, b value) int { return cmp.Compare(a.x, b.x) })
	sum := 0.0
	for i := 0; i < len(all); {
		j := i
		for ; j < len(all) && all[j].x == all[i].x; j++ {
		}
		for _, v := range all[i:j] {
			if v.first {
				sum += float64(i+j+1) / 2
			}
		}
		i = j
	}
	n, m := float64(len(a)), float64(len(b))
	return (sum - n*(n+m+1)/2) / math.Sqrt(n*m*(n+m+1)/12)
}

// What an observer can measure of an address must not tell decoys from peers.
func TestDecoysCannotBeToldFromPeers(t *testing.T) {
	for _, size := range []struct {
		name                        string
		leechers4, leechers6, seeds int
	}{
		{"all fit", 30, 0, 15},
		{"twice as many as fit", 60, 0, 40},
		{"many", 600, 200, 400},
	} {
		t.Run(size.name, func(t *testing.T) {
			c := newCrowd(size.leechers4, size.leechers6, size.seeds)
			f := gatewayOf(c, MaxDecoys)
			type seen struct{ times, places, toSeeders, firstHalf float64 }
			addresses := map[netip.AddrPort]*seen{}
			const rounds = 4000
			decoysSquared, decoysMean, like := 0.0, 0.0, 0.0
			for round := range rounds {
				for _, a := range []swarm.Announce{leecher, {NumWant: 50, Both: true}} {
					got := peersOf(t, ask(f, decoyTime, a))
					decoys := 0.0
					for i, peer := range got {
						s := addresses[peer]
						if s == nil {
							s = &seen{}
							addresses[peer] = s
						}
						if a.Left == 0 {
							s.toSeeders++
							continue
						}
						s.times++
						at := i
						if list := len(a.Peers4) / swarm.Size4; at >= list {
							at -= list
						}
						s.places += float64(at)
						if round < rounds/2 {
							s.firstHalf++
						}
						if !c.real(peer) {
							decoys++
						}
					}
					if a.Left != 0 {
						total := float64(len(c.peers)) + decoysOf(f, c)
						share := decoysOf(f, c) / total
						n := float64(len(got))
						like += n * share * (1 - share) * (total - n) / (total - 1)
						decoysMean += decoys
						decoysSquared += (decoys - n*share) * (decoys - n*share)
					}
				}
			}
			var of [2][4][]float64
			for peer, s := range addresses {
				kind := 0
				if !c.real(peer) {
					kind = 1
				}
				for i, x := range []float64{s.times, s.places / max(1, s.times), s.firstHalf / max(1, s.times)} {
					of[kind][i] = append(of[kind][i], x)
				}
				if s.toSeeders > 0 {
					of[kind][3] = append(of[kind][3], s.toSeeders)
				}
			}
			for i, what := range []string{"how often it comes", "where in the list", "when it comes", "how often seeders see it"} {
				if len(of[1][i]) < 5 {
					t.Fatalf("only %d decoys were seen", len(of[1][i]))
				}
				if z := rankSum(of[0][i], of[1][i]); math.Abs(z) > 4 {
					t.Errorf("%s tells decoys by %.1f standard deviations", what, z)
				}
			}
			if n := len(of[1][0]); float64(n) != decoysOf(f, c) {
				t.Errorf("%v decoys are seen, %v counted", n, decoysOf(f, c))
			}
			if like > 0 && math.Abs(decoysSquared/like-1) > 0.15 {
				t.Errorf("the number of decoys in an answer varies %.2f times as much as that of as many peers would", decoysSquared/like)
			}
		})
	}
}

func decoysOf(f *Front, c *crowd) float64 {
	real := c.view.Counts()
	seen := f.Counts(decoyHash, real)
	return float64(seen.Seeders + seen.Leechers - real.Seeders - real.Leechers)
}

func TestDecoysComeAndGo(t *testing.T) {
	c := newCrowd(300, 0, 300)
	f := gatewayOf(c, MaxDecoys)
	d := f.policy.Decoys
	const step = 5 * time.Minute
	lasted := map[netip.AddrPort]time.Duration{}
	classes := map[netip.AddrPort]int{}
	var before map[netip.AddrPort]bool
	most := 0
	n := d.number(&decoyHash, c.view.Counts())
	for at := decoyTime; at.Before(decoyTime.Add(48 * time.Hour)); at = at.Add(step) {
		now := map[netip.AddrPort]bool{}
		for class := range swarm.Class(swarm.Classes) {
			for place := range n[class] {
				compact := d.appendPeer(nil, at, &decoyHash, family4, class, place)
				peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte(compact)), uint16(compact[4])<<8|uint16(compact[5]))
				if now[peer] {
					t.Fatalf("a decoy is there twice")
				}
				now[peer] = true
				lasted[peer] += step
				classes[peer] |= 1 << class
			}
		}
		gone := 0
		for peer := range before {
			if !now[peer] {
				gone++
			}
		}
		most = max(most, gone)
		before = now
	}
	both := 0
	for peer, d := range lasted {
		if d > 2*longestStay+step {
			t.Fatalf("a decoy stays for %v", d)
		}
		if classes[peer] == 1<<swarm.Leecher|1<<swarm.Seeder {
			both++
		}
	}
	if alive := len(before); most > alive/5 || len(lasted) < 5*alive {
		t.Errorf("of %d decoys at a time %d leave within %v, and %d were there in two days", alive, most, step, len(lasted))
	}
	if both < len(lasted)/10 {
		t.Errorf("of %d decoys %d have become seeders", len(lasted), both)
	}
}

func TestDecoysAreSpreadAsClientsAre(t *testing.T) {
	d := gatewayOf(newCrowd(1, 0, 1), MaxDecoys).policy.Decoys
	firsts, ports, networks := map[byte]int{}, map[uint16]int{}, map[string]int{}
	const n = 20000
	for place := range n {
		compact := d.appendPeer(nil, decoyTime, &decoyHash, family4, swarm.Leecher, place)
		addr := netip.AddrFrom4([4]byte(compact))
		if !addr.IsGlobalUnicast() || addr.IsPrivate() || reserved(addr) {
			t.Fatalf("a decoy has the address %v", addr)
		}
		firsts[compact[0]]++
		networks[string(compact[:2])]++
		ports[uint16(compact[4])<<8|uint16(compact[5])]++
		compact = d.appendPeer(nil, decoyTime, &decoyHash, family6, swarm.Leecher, place)
		if addr := netip.AddrFrom16([16]byte(compact)); !netip.MustParsePrefix("2000::/3").Contains(addr) {
			t.Fatalf("a decoy has the address %v", addr)
		}
	}
	// Of 256 first bytes those that clients have come about equally often.
	chi, expected := 0.0, float64(n)/float64(len(firsts))
	for _, times := range firsts {
		chi += (float64(times) - expected) * (float64(times) - expected) / expected
	}
	if len(firsts) < 190 || chi > 2*float64(len(firsts)) {
		t.Errorf("%d first bytes, chi-square %.0f", len(firsts), chi)
	}
	if len(networks) < n*8/10 {
		t.Errorf("%d networks for %d decoys", len(networks), n)
	}
	if ports[6881] < n/20 || ports[51413] < n/20 || len(ports) < n/3 || ports[0] > 0 {
		t.Errorf("%d ports, %d times 6881, %d times 51413", len(ports), ports[6881], ports[51413])
	}
}

func TestDecoysFromPrefixes(t *testing.T) {
	narrow := netip.MustParsePrefix("203.0.113.64/30")
	c := newCrowd(30, 10, 10)
	f := gatewayOf(c, MaxDecoys, narrow, netip.MustParsePrefix("2001:db8:5::/48"))
	in4, in6 := 0, 0
	for peer := range everybody(t, f, decoyTime, leecher) {
		if c.real(peer) {
			continue
		}
		switch {
		case narrow.Contains(peer.Addr()):
			in4++
		case netip.MustParsePrefix("2001:db8:5::/48").Contains(peer.Addr()):
			in6++
		default:
			t.Errorf("a decoy is outside the prefixes")
		}
	}
	if in4 < 5 || in6 == 0 {
		t.Errorf("%d and %d decoys within the prefixes", in4, in6)
	}
}

func TestADecoyIsNobodyElse(t *testing.T) {
	d := gatewayOf(newCrowd(1, 0, 1), MaxDecoys).policy.Decoys
	n := d.number(&decoyHash, swarm.Counts{Leechers: 40})[swarm.Leecher]
	c := newCrowd(0, 0, 0)
	for place := range n { // real peers that have the decoys' very addresses
		b := d.appendPeer(nil, decoyTime, &decoyHash, family4, swarm.Leecher, place)
		c.view.Put(netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), uint16(b[4])<<8|uint16(b[5])), swarm.Leecher, true)
	}
	for n := range 40 - n {
		c.view.Put(peer4(n), swarm.Leecher, true)
	}
	for range 20 {
		b := ask(gatewayOf(c, MaxDecoys), decoyTime, leecher).Peers4
		for i := 0; i < len(b); i += swarm.Size4 {
			if j := bytes.Index(b[i+swarm.Size4:], b[i:i+swarm.Size4]); j >= 0 && j%swarm.Size4 == 0 {
				t.Fatal("an address comes twice")
			}
		}
	}
}

func TestDecoysAllocateNothing(t *testing.T) {
	f := gatewayOf(newCrowd(100, 100, 100), MaxDecoys)
	batch := []*swarm.Announce{{InfoHash: decoyHash, Peer: asker, Left: 1, NumWant: 50, Both: true}}
	answered := func([]*swarm.Announce) {}
	f.Announce(decoyTime, batch, answered)
	storetest.Allocs(t, 0, func() { f.Announce(decoyTime, batch, answered) })
}

func BenchmarkAnnounceWithDecoys(b *testing.B) {
	for name, f := range map[string]*Front{
		"without": New(&fakeStore{view: newCrowd(100, 0, 100).view}, denying{}, policy).Front(&fakeMetrics{}),
		"with":    gatewayOf(newCrowd(100, 0, 100), MaxDecoys),
	} {
		b.Run(name, func(b *testing.B) {
			batch := []*swarm.Announce{{InfoHash: decoyHash, Peer: asker, Left: 1, NumWant: 50}}
			answered := func([]*swarm.Announce) {}
			for b.Loop() {
				f.Announce(decoyTime, batch, answered)
			}
		})
	}
}
