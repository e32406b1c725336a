package swarm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func TestCompactForms(t *testing.T) {
	for _, test := range []struct {
		peer string
		want string
	}{
		{"1.2.3.4:6881", "\x01\x02\x03\x04\x1a\xe1"},
		{"[2001:db8::1]:80", "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50"},
	} {
		peer := netip.MustParseAddrPort(test.peer)
		got := AppendCompact(nil, peer)
		if string(got) != test.want || len(got) != Size(peer.Addr()) {
			t.Errorf("%s is %q, want %q", test.peer, got, test.want)
		}
		if back, ok := FromCompact(got); !ok || back != peer {
			t.Errorf("%s comes back as %v", test.peer, back)
		}
	}
}

func FuzzFromCompact(f *testing.F) {
	f.Add([]byte("\x01\x02\x03\x04\x1a\xe1"))
	f.Add([]byte("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		peer, ok := FromCompact(b)
		if ok != (len(b) == Size4 || len(b) == Size6) {
			t.Fatalf("%d bytes: %v", len(b), ok)
		}
		if ok && !bytes.Equal(AppendCompact(nil, peer), b) {
			t.Fatalf("%x becomes %v", b, peer)
		}
	})
}

func TestClassOfAnnounce(t *testing.T) {
	for _, test := range []struct {
		event Event
		left  uint64
		want  Class
	}{
		{None, 0, Seeder}, {None, 1, Leecher}, {None, UnknownLeft, Leecher}, {Started, 0, Seeder},
		{Completed, 0, Seeder}, {Completed, 5, Seeder}, {Paused, 5, PartialSeed}, {Paused, 0, Seeder},
	} {
		if got := (&Announce{Event: test.event, Left: test.left}).Class(); got != test.want {
			t.Errorf("event %d with %d left is class %d, want %d", test.event, test.left, got, test.want)
		}
	}
}

func TestReasonHidesDetails(t *testing.T) {
	seen := map[string]bool{}
	for _, err := range []error{ErrUnavailable, ErrBusy, ErrFull, errors.New("dial 10.0.0.1")} {
		got := Reason(fmt.Errorf("10.0.0.1:6379: %w", err))
		if got != Reason(err) || strings.Contains(got, "10.") || seen[got] {
			t.Errorf("%v reads %q, wrapped %q", err, Reason(err), got)
		}
		seen[got] = true
	}
}

func peer(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 6881)
}

// picks are the peers that an asker is handed, by number.
func picks(t *testing.T, v *View, asker netip.AddrPort, class Class, n int, seed uint64) map[int]bool {
	t.Helper()
	got := map[int]bool{}
	for b := v.Pick(nil, Size4, asker, class, n, seed); len(b) > 0; b = b[Size4:] {
		n := int(b[2])<<8 | int(b[3])
		if got[n] {
			t.Fatalf("peer %d was handed out twice", n)
		}
		got[n] = true
	}
	return got
}

func TestViewFollowsWrites(t *testing.T) {
	var part Part
	part.Add(AppendCompact(nil, peer(1)), Seeder)
	part.Add(AppendCompact(nil, peer(2)), Leecher)
	v := NewView(part, 0)
	want := func(c Counts, peers ...int) {
		t.Helper()
		if v.Counts() != c {
			t.Errorf("counts are %+v, want %+v", v.Counts(), c)
		}
		got := picks(t, v, peer(99), Leecher, 50, 1)
		for _, p := range peers {
			if !got[p] {
				t.Errorf("peer %d is missing", p)
			}
		}
		if len(got) != len(peers) {
			t.Errorf("peers are %v, want %v", got, peers)
		}
	}
	want(Counts{Seeders: 1, Leechers: 1}, 1, 2)
	v.Put(peer(3), Leecher, true)
	want(Counts{Seeders: 1, Leechers: 2}, 1, 2, 3)
	v.Put(peer(3), Leecher, false)
	want(Counts{Seeders: 1, Leechers: 2}, 1, 2, 3)
	v.Put(peer(2), Seeder, false)
	want(Counts{Seeders: 2, Leechers: 1}, 1, 2, 3)
	if got := picks(t, v, peer(99), Seeder, 50, 1); len(got) != 1 || !got[3] {
		t.Errorf("a seeder is handed %v", got)
	}
	v.Drop(peer(1), Leecher, true)
	want(Counts{Seeders: 1, Leechers: 1}, 2, 3)
	v.Drop(peer(1), Leecher, false)
	want(Counts{Seeders: 1, Leechers: 1}, 2, 3)
	v.Put(peer(7), Seeder, false) // another gateway told the store
	want(Counts{Seeders: 2, Leechers: 1}, 2, 3, 7)
	v.Drop(peer(7), Seeder, false)
	want(Counts{Seeders: 1, Leechers: 1}, 2, 3)
	v.Drop(peer(8), Leecher, true)
	v.Drop(peer(9), Leecher, true)
	want(Counts{Seeders: 1, Leechers: 1}, 2, 3) // of a whole view nobody drops whom it does not know
	v.Downloaded()
	want(Counts{Seeders: 1, Leechers: 1, Downloads: 1}, 2, 3)
}

func TestViewIsBounded(t *testing.T) {
	v := NewView(Part{}, 0)
	for n := range 10 * ViewPeers {
		v.Put(peer(n), Leecher, true)
	}
	if n, _ := v.Offer(Leecher); n != ViewPeers {
		t.Errorf("holds %d peers", n)
	}
	if c := v.Counts(); c.Leechers != 10*ViewPeers {
		t.Errorf("counts %d", c.Leechers)
	}
	late := 0
	for n := range picks(t, v, peer(9999), Leecher, ViewPeers, 1) {
		if n >= 5*ViewPeers {
			late++
		}
	}
	if late < ViewPeers/4 || late > 3*ViewPeers/4 {
		t.Errorf("%d of %d sampled peers came in the second half", late, ViewPeers)
	}
	v.Put(peer(12345), Leecher, false)
	v.Drop(peer(12346), Leecher, true)
	if c := v.Counts(); c.Leechers != 10*ViewPeers-1 {
		t.Errorf("counts %d after one of those that are not listed left", c.Leechers)
	}
}

// Each peer is handed out about equally often: chi-square over many picks, for
// sizes around and above the number wanted.
func TestPicksAreUniform(t *testing.T) {
	const rounds = 20000
	for _, test := range []struct{ peers, want int }{{20, 10}, {51, 50}, {75, 50}, {101, 50}, {256, 50}} {
		t.Run(fmt.Sprint(test.peers), func(t *testing.T) {
			v := NewView(Part{}, 0)
			for n := range test.peers {
				v.Put(peer(n), Class(n%Classes), true)
			}
			counts := make([]float64, test.peers)
			for round := range rounds {
				for n := range picks(t, v, peer(0), Leecher, test.want, uint64(round)) {
					counts[n]++
				}
			}
			if counts[0] != 0 {
				t.Fatal("the asker was handed out")
			}
			// Without replacement the variance is below Poisson's: chi-square stays below its mean.
			expected := float64(rounds*test.want) / float64(test.peers-1)
			chi := 0.0
			for _, c := range counts[1:] {
				chi += (c - expected) * (c - expected) / expected
			}
			if limit := 1.4 * float64(test.peers); chi > limit {
				t.Errorf("chi-square is %.1f, above %.1f", chi, limit)
			}
		})
	}
}

func compactOf(n int) (b [Size6]byte) {
	AppendCompact(b[:0], peer(n))
	return b
}

// split spreads leechers 0 to n over parts by their number, and keeps the first held parts.
func split(n, parts, held int) ([]Part, Place) {
	kept := make([]Part, held)
	place := func(compact [Size6]byte, _ int) int {
		if at := int(compact[3]) % parts; at < held {
			return at
		}
		return -1
	}
	for i := range n {
		if at := place(compactOf(i), Size4); at >= 0 {
			kept[at].Add(AppendCompact(nil, peer(i)), Class(i/parts%Classes))
		}
	}
	return kept, place
}

func TestPartsAreOneSwarm(t *testing.T) {
	for _, test := range []struct{ peers, parts, held int }{{1000, 16, 16}, {1000, 16, 4}, {10, 8, 8}, {10, 16, 16}} {
		parts, place := split(test.peers, test.parts, test.held)
		v := NewView(Part{}, 0)
		v.Renew(parts, place, Counts{Leechers: test.peers, Downloads: 7}, float64(test.parts)/float64(test.held))
		if c := v.Counts(); test.held < test.parts && c != (Counts{Leechers: test.peers, Downloads: 7}) {
			t.Errorf("%+v: counts are %+v", test, c)
		}
		there, _ := v.Offer(Leecher)
		for asker := range test.peers {
			want := there
			if place(compactOf(asker), Size4) >= 0 {
				want--
			}
			got := picks(t, v, peer(asker), Leecher, 1000, uint64(asker))
			if len(got) != want || got[asker] {
				t.Fatalf("%+v: %d is handed %d of %d peers", test, asker, len(got), want)
			}
		}
		before := v.Counts()
		v.Put(peer(2560), Leecher, true) // to the first part
		v.Put(peer(2560), Leecher, false)
		if got, want := v.Counts().Leechers, before.Leechers+test.parts/test.held; got != want {
			t.Errorf("%+v: with one more %d leechers, want %d", test, got, want)
		}
		v.Drop(peer(2560), Leecher, true)
		if got := v.Counts(); got != before {
			t.Errorf("%+v: without it again %+v", test, got)
		}
	}
}

// What is put while a view is read anew stays in it.
func TestViewKeepsWhatCameMeanwhile(t *testing.T) {
	parts, place := split(100, 4, 4)
	v := NewView(Part{}, 0)
	v.Renew(parts, place, Counts{}, 1)
	for _, renew := range []func(){
		func() { p, place := split(100, 4, 4); v.Renew(p, place, Counts{}, 1) },
		func() { p, _ := split(100, 4, 4); v.Replace(3, []*Part{&p[3], nil, &p[1], &p[2]}, 0) },
		func() { p, _ := split(100, 4, 4); v.Replace(0, []*Part{&p[0], &p[1], &p[2], &p[3]}, 0) },
	} {
		v.Note()
		v.Put(peer(300), Leecher, true)
		v.Drop(peer(5), Leecher, true)
		renew()
		got := picks(t, v, peer(999), Leecher, 1000, 1)
		if c := v.Counts(); !got[300] || got[5] || len(got) != 100 || c.Seeders+c.Incomplete() != 100 {
			t.Errorf("%d peers of %+v, of which the new one %v, the old one %v", len(got), c, got[300], got[5])
		}
		v.Drop(peer(300), Leecher, true)
		renew()
	}
}

func TestSampleIsFair(t *testing.T) {
	const rounds, peers = 400, 3 * ViewPeers
	counts := make([]float64, peers)
	for range rounds {
		var compact [2][Classes][]byte
		for n := range peers {
			class := Leecher
			if n%3 == 0 {
				class = Seeder
			}
			compact[0][class] = AppendCompact(compact[0][class], peer(n))
		}
		part := NewPart(&compact)
		part.Sample()
		v := NewView(part, 0)
		if n, _ := v.Offer(Leecher); n > ViewPeers || n < ViewPeers-Classes {
			t.Fatalf("a sample of %d", n)
		}
		if c := v.Counts(); c.Seeders != peers/3 || c.Leechers != peers/3*2 {
			t.Fatalf("counts are %+v", c)
		}
		for n := range picks(t, v, peer(9999), Leecher, ViewPeers, 1) {
			counts[n]++
		}
	}
	chi, expected := 0.0, float64(rounds)*ViewPeers/peers
	for _, c := range counts {
		chi += (c - expected) * (c - expected) / expected
	}
	if chi > 1.1*peers {
		t.Errorf("chi-square is %.1f over %d", chi, peers)
	}
}

func TestPickGivesAllThatIsWantedAndThere(t *testing.T) {
	for peers := range 12 {
		v := NewView(Part{}, 0)
		for n := range peers {
			v.Put(peer(n), Leecher, true)
		}
		for want := range 12 {
			for seed := range uint64(20) {
				if got := len(picks(t, v, peer(0), Leecher, want, seed)); got != min(want, max(peers-1, 0)) {
					t.Fatalf("%d of %d peers, want %d", got, peers, want)
				}
				if got := len(picks(t, v, peer(999), Leecher, want, seed)); got != min(want, peers) {
					t.Fatalf("a stranger is handed %d of %d peers, want %d", got, peers, want)
				}
			}
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{40, 100, 20_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			parts := (n + 63) / 64
			kept := make([]Part, parts)
			place := func(compact [Size6]byte, _ int) int { return (int(compact[2])<<8 + int(compact[3])) % parts }
			for i := range n {
				kept[i%parts].Add(AppendCompact(nil, peer(i)), Class(i/parts%Classes))
			}
			v := NewView(Part{}, 0)
			v.Renew(kept, place, Counts{}, 1)
			var dst []byte
			for i := 0; b.Loop(); i++ {
				dst = v.Pick(dst[:0], Size4, peer(i%n), Leecher, 50, uint64(i))
			}
		})
	}
}

// A part is what a map would be, whatever is added and cut.
func TestPartKeepsItsOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	v := NewView(Part{}, 0)
	want := map[netip.AddrPort]Class{}
	for range 20_000 {
		p := peer(rnd.IntN(60))
		if rnd.IntN(2) == 0 {
			p = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(rnd.IntN(30))}), 80)
		}
		if class := Class(rnd.IntN(Classes)); rnd.IntN(3) > 0 {
			v.Put(p, class, rnd.IntN(2) == 0)
			want[p] = class
		} else {
			v.Drop(p, class, true)
			delete(want, p)
		}
		var counts Counts
		for p, class := range want {
			*counts.Of(class)++
			var compact [Size6]byte
			f := familyOf(Size(p.Addr()))
			if got, at := v.parts[0].find(f, AppendCompact(compact[:0], p)); at < 0 || got != class {
				t.Fatalf("%v is of class %d at %d, want class %d", p, got, at, class)
			}
		}
		if v.Counts() != counts {
			t.Fatalf("counts are %+v, want %+v", v.Counts(), counts)
		}
	}
}

func TestViewsTakeNoMemoryForAnAnnounce(t *testing.T) {
	parts, place := split(1000, 16, 16)
	v := NewView(Part{}, 0)
	v.Renew(parts, place, Counts{}, 1)
	dst := make([]byte, 0, 1000)
	p, n := peer(5), uint64(0)
	if got := testing.AllocsPerRun(1000, func() {
		n++
		v.Put(p, Leecher, false)
		dst = v.Pick(dst[:0], Size4, p, Leecher, 50, n)
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}
