package tracker

import (
	"bytes"
	"cmp"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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

// networks that clients were seen in; their first 16 bits of IPv4, 32 of IPv6.
const (
	networks4 = "2.28 2.86 5.12 5.57 5.144 14.139 24.5 24.62 24.130 27.32 31.4 31.18 31.208 36.68 37.4 37.110 39.32 41.34 41.68 41.140 42.2 45.64 46.5 46.98 46.189 " +
		"49.36 49.144 50.4 58.27 59.88 60.48 61.6 62.4 62.98 62.210 64.53 65.92 66.65 67.80 67.170 68.4 68.62 69.112 70.24 71.62 71.190 72.77 73.15 73.162 74.96 75.73 " +
		"76.20 76.169 77.20 77.162 77.248 78.8 78.62 78.156 79.8 79.116 79.176 80.2 80.94 80.216 81.4 81.96 81.200 82.4 82.66 82.131 82.217 83.8 83.160 83.233 84.3 84.112 " +
		"84.192 85.23 85.102 85.180 85.246 86.3 86.80 86.140 87.1 87.78 87.144 88.6 88.67 88.130 88.207 89.1 89.64 89.134 89.212 90.0 90.184 91.5 91.96 91.180 92.10 92.73 " +
		"92.129 92.222 93.7 93.103 93.200 94.3 94.64 94.132 94.211 95.19 95.90 95.165 96.22 97.88 98.30 98.207 99.224 101.98 103.21 105.98 106.51 108.20 109.60 109.130 " +
		"109.252 110.174 111.92 112.134 113.161 114.76 115.84 116.15 117.192 118.69 119.30 121.6 122.161 123.18 124.122 125.160 126.72 128.68 131.93 136.55 138.75 141.85 " +
		"145.53 150.101 151.30 154.70 157.32 160.2 162.156 168.227 171.76 173.54 174.21 175.107 176.12 176.63 176.199 177.32 178.2 178.84 178.164 179.24 180.92 181.46 182.64 " +
		"183.83 184.60 185.5 185.107 186.18 187.16 188.4 188.80 188.171 189.4 190.16 191.32 193.32 194.9 195.46 196.64 197.26 200.43 201.17 202.62 203.82 212.10 213.22 217.64 220.88"
	networks6 = "2001:569 2001:861 2001:b07 2001:1a06 2003:c1 2003:e4 2400:4050 2401:4900 2405:201 2408:8207 2600:1700 2601:1c0 2601:600 2603:7000 2604:2d80 2607:fea8 " +
		"2800:810 2804:14c 2a00:23c4 2a00:1370 2a01:cb00 2a01:e0a 2a02:8109 2a02:a31 2a02:c7f 2a04:cec0 2a09:bac1 2c0f:f248"
)

// newClient is an address as a client has it, from another model than that of decoys.
func newClient(rnd *rand.Rand, family int) netip.AddrPort {
	var addr netip.Addr
	if family == family4 {
		var b [4]byte
		list := strings.Fields(networks4)
		first, second, _ := strings.Cut(list[rnd.IntN(len(list))], ".")
		n1, _ := strconv.Atoi(first)
		n2, _ := strconv.Atoi(second)
		b = [4]byte{byte(n1), byte(n2), byte(rnd.IntN(256)), byte(1 + rnd.IntN(254))}
		addr = netip.AddrFrom4(b)
	} else {
		list := strings.Fields(networks6)
		b := netip.MustParseAddr(list[rnd.IntN(len(list))] + "::").As16()
		for i := 4; i < 16; i++ {
			b[i] = byte(rnd.IntN(256))
		}
		addr = netip.AddrFrom16(b)
	}
	ports := []uint16{6881, 6881, 51413, 51413, 6889, 16881, 8999, 45682, 443}
	if rnd.IntN(3) == 0 {
		return netip.AddrPortFrom(addr, ports[rnd.IntN(len(ports))])
	}
	return netip.AddrPortFrom(addr, uint16(1025+rnd.IntN(1<<16-1025)))
}

// crowd is a swarm of real peers. Askers are in it too.
type crowd struct {
	view  *swarm.View
	peers map[netip.AddrPort]swarm.Class
}

func newCrowd(leechers4, leechers6, seeders4 int) *crowd {
	c := &crowd{swarm.NewView(swarm.Part{}, 0), map[netip.AddrPort]swarm.Class{}}
	rnd := rand.New(rand.NewPCG(1, 2))
	add := func(n, family int, class swarm.Class) {
		for range max(n, 0) {
			c.put(newClient(rnd, family), class)
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
	c.hold(decoyTime)
	return c
}

func (c *crowd) put(peer netip.AddrPort, class swarm.Class) {
	c.peers[peer] = class
	c.view.Put(peer, class, true)
}

// hold counts as the store does that looks at a swarm for the first time, or goes on from what it held.
func (c *crowd) hold(at time.Time) {
	live, live6 := c.view.Counts(), c.view.Counts6()
	h := swarm.Held{Since: at.Unix(), Until: at.Add(90 * time.Minute).Unix()}
	for class := range swarm.Class(swarm.Classes) {
		h.To[class], h.To6[class] = int32(*live.Of(class)), int32(live6[class])
		from, from6 := live.Held.At(class, at)
		h.From[class], h.From6[class] = int32(from+0.5), int32(from6+0.5)
	}
	if live.Held == (swarm.Held{}) {
		h.From, h.From6 = h.To, h.To6
	}
	c.view.Hold(h)
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
			seen := f.Counts(hash, decoyTime, swarm.Counts{Leechers: 1, Seeders: peers - 1})
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
			if a.Counts.Seeders != real.Seeders || a.Counts.Leechers != real.Leechers {
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
		if err := f.Scan(t.Context(), func() time.Time { return decoyTime }, func(part []swarm.Entry) error {
			seen += len(part)
			return nil
		}); err != nil || seen != want {
			t.Errorf("%d swarms are seen, want %d: %v", seen, want, err)
		}
	}
	if err := New(&fakeStore{view: view}, denying(nil), policy).Scan(t.Context(), func() time.Time { return decoyTime }, func([]swarm.Entry) error { return nil }); err != swarm.ErrUnavailable {
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

// Every answer has as many peers as one without decoys; these come on top, as likely as each of the peers.
func TestNoDecoyTakesThePlaceOfAPeer(t *testing.T) {
	for _, test := range []struct {
		leechers4, leechers6, want, room int
		both                             bool
		peers                            int // that are to be in the answer
	}{
		{2, 0, 50, 0, false, 1},
		{50, 0, 50, 0, false, 49},
		{51, 0, 50, 0, false, 50},
		{300, 0, 50, 0, false, 50},
		{201, 0, 200, 202, false, 200},
		{201, 0, 200, 230, false, 200},
		{100, 0, 10, 12, false, 10},
		{60, 4, 50, 0, true, 50},
		{30, 10, 50, 0, true, 39},
		{30, 10, 0, 0, true, 0},
	} {
		c := newCrowd(test.leechers4, test.leechers6, 0)
		f := gatewayOf(c, MaxDecoys)
		all, askings := decoysOf(f, c), 400
		sum := 0.0
		for range askings {
			got := peersOf(t, ask(f, decoyTime, swarm.Announce{Left: 1, NumWant: test.want, Room: test.room, Both: test.both}))
			peers := 0
			for _, peer := range got {
				if c.real(peer) {
					peers++
				}
			}
			if peers != test.peers || test.room > 0 && len(got) > test.room {
				t.Fatalf("%+v: %d peers among %d", test, peers, len(got))
			}
			sum += float64(len(got) - peers)
		}
		want := all * float64(test.peers) / float64(test.leechers4+test.leechers6-1)
		if test.room > 0 {
			want = min(want, float64(test.room-test.peers))
		}
		if mean := sum / float64(askings); math.Abs(mean-want) > 0.15+want/20 {
			t.Errorf("%+v: %.2f decoys in an answer, want %.2f", test, mean, want)
		}
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
	if err := f.Scan(t.Context(), func() time.Time { return decoyTime }, func(part []swarm.Entry) error {
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
		{"few on IPv6", 60, 4, 20},
	} {
		t.Run(size.name, func(t *testing.T) {
			c := newCrowd(size.leechers4, size.leechers6, size.seeds)
			f := gatewayOf(c, MaxDecoys)
			type seen struct{ times, places, toSeeders, firstHalf float64 }
			addresses := map[netip.AddrPort]*seen{}
			const rounds = 4000
			for round := range rounds {
				for _, a := range []swarm.Announce{leecher, {NumWant: 50, Both: true}} {
					got := peersOf(t, ask(f, decoyTime, a))
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
		})
	}
}

func decoysOf(f *Front, c *crowd) float64 {
	real := c.view.Counts()
	seen := f.Counts(decoyHash, decoyTime, real)
	return float64(seen.Seeders + seen.Leechers - real.Seeders - real.Leechers)
}

// everybodyAt is who is handed out to an asker that wants all of a swarm that fits into an answer.
func everybodyAt(t testing.TB, f *Front, at time.Time) map[netip.AddrPort]bool {
	all := map[netip.AddrPort]bool{}
	for _, peer := range peersOf(t, ask(f, at, swarm.Announce{Left: 1, NumWant: MaxPeers, Both: true})) {
		all[peer] = true
	}
	return all
}

// Who watches a swarm must not tell decoys by how they come and go: peers have exponential lives, and some come back.
func TestDecoysComeAndGoAsPeersDo(t *testing.T) {
	c := newCrowd(1, 0, 0)
	f := gatewayOf(c, MaxDecoys)
	rnd := rand.New(rand.NewPCG(3, 4))
	const (
		step  = 10 * time.Second
		days  = 6
		peers = 40
		life  = 2 * time.Hour
		away  = 30 * time.Minute
	)
	soon := func(mean time.Duration) time.Duration { return time.Duration(rnd.ExpFloat64() * float64(mean)) }
	type event struct {
		at    time.Time
		peer  netip.AddrPort
		class swarm.Class
		come  bool
	}
	var events []event
	end := decoyTime.Add(days * 24 * time.Hour)
	arrive := func(at time.Time) {
		peer := newClient(rnd, family4)
		class := swarm.Leecher
		for at.Before(end) {
			leaves := at.Add(soon(life))
			events = append(events, event{at, peer, class, true}, event{leaves, peer, class, false})
			if class == swarm.Leecher && rnd.IntN(2) == 0 { // and goes on as a seeder
				class, at = swarm.Seeder, leaves
				continue
			}
			if rnd.IntN(3) > 0 {
				return
			}
			at = leaves.Add(soon(away))
		}
	}
	for at := decoyTime.Add(-8 * time.Hour); at.Before(end); at = at.Add(soon(life * 9 / 4 / peers)) {
		arrive(at)
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })

	type watch struct{ ends, withAnother, returns float64 }
	var of [2]watch // of peers, of decoys
	kind := func(peer netip.AddrPort) int {
		if c.real(peer) {
			return 0
		}
		return 1
	}
	var before map[netip.AddrPort]bool
	gone, ever := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	for at := decoyTime; at.Before(end); at = at.Add(step) {
		for len(events) > 0 && !events[0].at.After(at) {
			if e := events[0]; e.come {
				c.put(e.peer, e.class)
			} else {
				c.view.Drop(e.peer, e.class, true)
			}
			events = events[1:]
		}
		if h := c.view.Counts().Held; at.Unix() >= h.Until || h.To == [swarm.Classes]int32{1} {
			c.hold(at)
		}
		now := everybodyAt(t, f, at)
		comes := false
		for peer := range now {
			comes = comes || !before[peer]
			if gone[peer] {
				of[kind(peer)].returns++
				delete(gone, peer)
			}
			ever[peer] = true
		}
		for peer := range before {
			if !now[peer] {
				gone[peer] = true
				w := &of[kind(peer)]
				w.ends++
				if comes {
					w.withAnother++
				}
			}
		}
		before = now
	}
	if of[1].ends < 200 {
		t.Fatalf("only %v decoys left", of[1].ends)
	}
	z := func(a, b float64) float64 { // of the rates of decoys over those of peers
		n, m := of[0].ends, of[1].ends
		p := (a + b) / (n + m)
		return (b/m - a/n) / math.Sqrt(p*(1-p)*(1/n+1/m))
	}
	t.Logf("of peers %+v, of decoys %+v, %d ever", of[0], of[1], len(ever))
	if z := z(of[0].withAnother, of[1].withAnother); math.Abs(z) > 4 {
		t.Errorf("that another comes as one leaves tells decoys by %.1f standard deviations", z)
	}
	if z := z(of[0].returns, of[1].returns); z > 4 {
		t.Errorf("that one comes back tells decoys by %.1f standard deviations", z)
	}
}

// Who joins with peers of his own must not see anybody come but them, and nobody go: all decoys would be told
// apart at once.
func TestPeersWhoJoinBringNoDecoys(t *testing.T) {
	for _, before := range []int{3, 30} {
		quiet, joined := newCrowd(before, 2, before), newCrowd(before, 2, before)
		own := map[netip.AddrPort]bool{}
		for n := range 100 {
			for _, peer := range []netip.AddrPort{peer4(n), peer6(n + 1000)} {
				own[peer] = true
				joined.view.Put(peer, swarm.Class(n%2*2), true)
			}
		}
		f, attacked := gatewayOf(quiet, MaxDecoys), gatewayOf(joined, MaxDecoys)
		for at := decoyTime; at.Before(decoyTime.Add(90 * time.Minute)); at = at.Add(9 * time.Minute) {
			want := everybodyAt(t, f, at)
			got := map[netip.AddrPort]bool{}
			for range 60 {
				maps.Copy(got, everybodyAt(t, attacked, at))
			}
			maps.DeleteFunc(got, func(peer netip.AddrPort, _ bool) bool { return own[peer] })
			if !maps.Equal(got, want) {
				t.Fatalf("after %v there are %d besides the attacker's, %d without him", at.Sub(decoyTime), len(got), len(want))
			}
		}
		// Once the swarm is looked at again their number grows little by little.
		joined.hold(decoyTime.Add(90 * time.Minute))
		live := joined.view.Counts()
		most, last, first := 0, 0, 0
		for minute := range 90 {
			told := attacked.Counts(decoyHash, decoyTime.Add(time.Duration(90+minute)*time.Minute), live)
			n := told.Seeders + told.Incomplete() - live.Seeders - live.Incomplete()
			if minute == 0 {
				first = n
			} else {
				most = max(most, n-last)
			}
			last = n
		}
		if last-first < 40 || most > 6 {
			t.Errorf("%d decoys come after 200 peers, %d of them in a minute", last-first, most)
		}
	}
}

// A swarm whose size moves a little keeps its decoys.
func TestDecoysDoNotFlicker(t *testing.T) {
	f := gatewayOf(newCrowd(40, 0, 20), MaxDecoys)
	live := f.store.(*fakeStore).view.Counts()
	want := f.Counts(decoyHash, decoyTime, live)
	for _, more := range []int{-12, -5, -1, 1, 7, 60} {
		moved := live
		moved.Leechers += more
		moved.Seeders += more / 2
		got := f.Counts(decoyHash, decoyTime, moved)
		if got.Leechers-more != want.Leechers || got.Seeders-more/2 != want.Seeders {
			t.Errorf("with %d more there are %+v instead of %+v", more, got, want)
		}
	}
}

// The counts that are told are those of who can be handed out, whenever one looks.
func TestCountsAreOfWhoIsHandedOut(t *testing.T) {
	c := newCrowd(60, 4, 30)
	f := gatewayOf(c, MaxDecoys)
	sizes := map[int]bool{}
	for at := decoyTime; at.Before(decoyTime.Add(48 * time.Hour)); at = at.Add(4 * time.Minute) {
		a := ask(f, at, swarm.Announce{Left: 1, NumWant: MaxPeers, Both: true})
		n := len(peersOf(t, a)) + 1
		if told := a.Counts.Seeders + a.Counts.Incomplete(); n != told {
			t.Fatalf("at %v %d are handed out with the asker, %d counted", at, n, told)
		}
		if scraped := f.Counts(decoyHash, at, c.view.Counts()); scraped != a.Counts {
			t.Fatalf("at %v a scrape tells %+v, an announce %+v", at, scraped, a.Counts)
		}
		if n := len(peersOf(t, ask(f, at, swarm.Announce{NumWant: MaxPeers, Both: true}))); n != a.Counts.Leechers {
			t.Fatalf("at %v seeders are handed %d of %d leechers", at, n, a.Counts.Leechers)
		}
		sizes[n] = true
	}
	if len(sizes) < 5 {
		t.Errorf("in two days there were %d numbers of peers", len(sizes))
	}
}

// A few peers of one family have decoys too, as many as go with them.
func TestTheSmallerFamilyHasDecoys(t *testing.T) {
	c := newCrowd(60, 4, 0)
	f := gatewayOf(c, MaxDecoys)
	var n [2]int
	const swarms = 300
	for i := range swarms {
		a := ask(f, decoyTime, swarm.Announce{InfoHash: swarm.InfoHash{byte(i), byte(i >> 8)}, Left: 1, NumWant: MaxPeers, Both: true})
		n[family4] += len(a.Peers4)/swarm.Size4 - 59
		n[family6] += len(a.Peers6)/swarm.Size6 - 4
	}
	for family, peers := range []int{60, 4} {
		if mean, want := float64(n[family])/swarms, float64(peers)/3; math.Abs(mean-want) > 0.1*want {
			t.Errorf("family %d has %.2f decoys, want %.2f", family, mean, want)
		}
	}
}

// Over two days decoys are many, none twice at a time, and some become seeders.
func TestDecoysChange(t *testing.T) {
	for _, peers := range []int{300, 3000} { // the more of which have places that are never vacant
		d := gatewayOf(newCrowd(1, 0, 1), MaxDecoys).policy.Decoys
		lasted, classes := map[string]time.Duration{}, map[string]int{}
		const step = 5 * time.Minute
		alive := 0
		for at := decoyTime; at.Before(decoyTime.Add(48 * time.Hour)); at = at.Add(step) {
			var p places
			d.look(&p, &decoyHash, at, &swarm.Counts{Leechers: peers, Seeders: peers})
			now := map[string]bool{}
			i := 0
			for class := range swarm.Class(swarm.Classes) {
				list := p.here[i : i+p.n[class]]
				i += p.n[class]
				for n := range p.n[class] + p.more[class] {
					place := watched + 2*(n-len(list))
					if n < len(list) {
						place = int(list[n])
					}
					peer := string(d.appendPeer(nil, p.chance, at, family4, class, place))
					if now[peer] {
						t.Fatal("a decoy is there twice")
					}
					now[peer] = true
					lasted[peer] += step
					classes[peer] |= 1 << class
				}
			}
			alive = len(now)
		}
		both := 0
		for peer := range lasted {
			if classes[peer] == 1<<swarm.Leecher|1<<swarm.Seeder {
				both++
			}
		}
		if want := 2 * peers / 3; math.Abs(float64(alive-want)) > 0.15*float64(want) || len(lasted) < 5*alive {
			t.Errorf("of %d decoys at a time, for which %d are wanted, %d were there in two days", alive, want, len(lasted))
		}
		if both < len(lasted)/10 {
			t.Errorf("of %d decoys %d have become seeders", len(lasted), both)
		}
	}
}

func TestDecoysAreSpreadAsClientsAre(t *testing.T) {
	d := gatewayOf(newCrowd(1, 0, 1), MaxDecoys).policy.Decoys
	firsts, ports, networks := map[byte]int{}, map[uint16]int{}, map[string]int{}
	const n = 20000
	for place := range n {
		compact := d.appendPeer(nil, d.chance(&decoyHash), decoyTime, family4, swarm.Leecher, place)
		addr := netip.AddrFrom4([4]byte(compact))
		if !addr.IsGlobalUnicast() || addr.IsPrivate() || reserved(addr) {
			t.Fatalf("a decoy has the address %v", addr)
		}
		firsts[compact[0]]++
		networks[string(compact[:2])]++
		ports[uint16(compact[4])<<8|uint16(compact[5])]++
		compact = d.appendPeer(nil, d.chance(&decoyHash), decoyTime, family6, swarm.Leecher, place)
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
	var p places
	d.look(&p, &decoyHash, decoyTime, &swarm.Counts{Leechers: 40})
	n := p.n[swarm.Leecher]
	c := newCrowd(0, 0, 0)
	for _, place := range p.here[:n] { // real peers that have the decoys' very addresses
		b := d.appendPeer(nil, p.chance, decoyTime, family4, swarm.Leecher, int(place))
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
