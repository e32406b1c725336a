package stats

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// networks are those that announce most. They are this gateway's own knowledge, and go
// nowhere: no address is kept longer than it takes to cut it to its network.
type networks struct {
	mu          sync.Mutex
	busiest     []*busiest // of all announces
	woodpeckers []*busiest // of peers that announce again too soon
}

// networkBits are the lengths of the prefixes by which networks are told apart: those of
// opentracker, and for IPv6 what one client has, and what one customer has at most.
var networkBits = [...]int{28, 24, 64, 48}

// Who announces again within so many minutes is a woodpecker.
const woodpeckerMinutes = 20

func newNetworks() *networks {
	n := &networks{}
	for _, bits := range networkBits {
		n.busiest = append(n.busiest, newBusiest(bits))
	}
	n.woodpeckers = append(n.woodpeckers, newBusiest(28), newBusiest(64))
	return n
}

func (n *networks) announced(peer netip.Addr, times int) { n.add(n.busiest, peer, times) }

func (n *networks) renewed(peer netip.Addr, minutes, times int) {
	if 1 <= minutes && minutes < woodpeckerMinutes {
		n.add(n.woodpeckers, peer, times)
	}
}

func (n *networks) add(lists []*busiest, peer netip.Addr, times int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range lists {
		if peer.Is4() == (l.bits <= 32) {
			l.add(peer, times)
		}
	}
}

// decay lets what was counted fade: within a day most of it is gone.
func (n *networks) decay() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range slices.Concat(n.busiest, n.woodpeckers) {
		for network, count := range l.counts {
			l.set(network, count*23/24)
		}
	}
}

const decayEvery = time.Hour

// busiest finds the networks that most counts are of, of any number, in bounded memory
// (Misra and Gries, 1982): a count is too low by a share of all counts at most, of one in maxNetworks.
type busiest struct {
	bits   int
	counts map[netip.Prefix]int
}

const maxNetworks = 4096

func newBusiest(bits int) *busiest { return &busiest{bits, map[netip.Prefix]int{}} }

func (b *busiest) add(peer netip.Addr, times int) {
	network, err := peer.Prefix(b.bits)
	if err != nil {
		return
	}
	if _, known := b.counts[network]; known || len(b.counts) < maxNetworks {
		b.counts[network] += times
		return
	}
	for network, count := range b.counts {
		b.set(network, count-times)
	}
}

func (b *busiest) set(network netip.Prefix, count int) {
	if count <= 0 {
		delete(b.counts, network)
	} else {
		b.counts[network] = count
	}
}

// Networks is a list of the busiest.
type Networks struct {
	Bits int       `json:"prefix_length"`
	Top  []Network `json:"top"` // the busiest first
}

// Network and how many announces it made, an estimate.
type Network struct {
	Addr  netip.Addr `json:"network"`
	Count int        `json:"announces"`
}

// topNetworks are shown of a list.
const topNetworks = 128

func (b *busiest) top() Networks {
	top := make([]Network, 0, len(b.counts))
	for network, count := range b.counts {
		top = append(top, Network{network.Addr(), count})
	}
	slices.SortFunc(top, func(x, y Network) int {
		return cmp.Or(cmp.Compare(y.Count, x.Count), x.Addr.Compare(y.Addr))
	})
	return Networks{b.bits, top[:min(topNetworks, len(top))]}
}

// tops of both kinds, none when networks are not known.
func (n *networks) tops() (busiest, woodpeckers []Networks) {
	if n == nil {
		return nil, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.busiest {
		busiest = append(busiest, l.top())
	}
	for _, l := range n.woodpeckers {
		woodpeckers = append(woodpeckers, l.top())
	}
	return busiest, woodpeckers
}
