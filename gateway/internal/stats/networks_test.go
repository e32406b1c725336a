package stats

import (
	"net/netip"
	"slices"
	"testing"
)

func TestTheBusiestNetworksAreFound(t *testing.T) {
	n := newNetworks()
	busy4, busy6 := netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8:1:2:3::9")
	const strangers = 10 * maxNetworks
	for i := range strangers {
		n.announced(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)
		n.announced(netip.AddrFrom4([4]byte{byte(11 + i%100), byte(i >> 16), byte(i >> 8), byte(i)}), 1)
		n.announced(netip.AddrFrom16([16]byte{0xfd, byte(i >> 16), byte(i >> 8), byte(i)}), 1)
		if i%100 == 0 {
			n.announced(busy4, 1)
			n.announced(busy6, 1)
		}
	}
	busiest, woodpeckers := n.tops()
	for i, want := range []struct {
		bits    int
		network string
	}{{28, "192.0.2.64"}, {24, "192.0.2.0"}, {64, "2001:db8:1:2::"}, {48, "2001:db8:1::"}} {
		list := busiest[i]
		at := slices.IndexFunc(list.Top, func(n Network) bool { return n.Addr == netip.MustParseAddr(want.network) })
		if list.Bits != want.bits || len(list.Top) > topNetworks || at < 0 || list.Top[at].Count > strangers/100 {
			t.Errorf("list %d, /%d, has %s at place %d", i, list.Bits, want.network, at)
		}
		if !slices.IsSortedFunc(list.Top, func(a, b Network) int { return b.Count - a.Count }) {
			t.Errorf("/%d is not sorted", list.Bits)
		}
	}
	for _, l := range n.busiest {
		if len(l.counts) > maxNetworks {
			t.Errorf("%d networks are kept", len(l.counts))
		}
	}
	for _, l := range woodpeckers {
		if len(l.Top) > 0 {
			t.Errorf("who announced once is a woodpecker: %v", l)
		}
	}
}

func TestWoodpeckersComeBackTooSoon(t *testing.T) {
	n := newNetworks()
	for minutes := range 60 {
		n.renewed(client4, minutes, 1)
		n.renewed(client6, minutes, 2)
	}
	_, woodpeckers := n.tops()
	if len(woodpeckers) != 2 || len(woodpeckers[0].Top) != 1 || len(woodpeckers[1].Top) != 1 ||
		woodpeckers[0].Top[0] != (Network{netip.MustParseAddr("192.0.2.0"), 19}) ||
		woodpeckers[1].Top[0] != (Network{netip.MustParseAddr("2001:db8::"), 38}) {
		t.Errorf("%v", woodpeckers)
	}
}

func TestWhatWasCountedFades(t *testing.T) {
	n := newNetworks()
	n.announced(client4, 64)
	n.announced(client4, 1_000_000)
	n.announced(netip.MustParseAddr("198.51.100.1"), 64)
	for range 24 {
		n.decay()
	}
	busiest, _ := n.tops()
	if top := busiest[0].Top; len(top) == 0 || top[0].Count > 400_000 || top[0].Count < 300_000 {
		t.Errorf("after a day %v", top)
	}
	for range 24 * 30 {
		n.decay()
	}
	if busiest, _ := n.tops(); len(busiest[0].Top) != 0 {
		t.Errorf("after a month %v", busiest[0].Top)
	}
}
