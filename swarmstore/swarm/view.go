package swarm

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"sync"
	"unsafe"
)

// ViewPeers bounds the peers of one address family that a View keeps: several
// answers' worth, so that two askers are seldom told the same.
const ViewPeers = 256

// View is what a gateway knows of one swarm for a moment: its counts, and its
// peers or a sample of them. Peers are kept as flat bytes, which the garbage
// collector does not scan. A View may be used by many goroutines at once.
type View struct {
	Complete bool // its counts tell the downloads; set before it is shared

	mu     sync.Mutex
	counts Counts
	peers  [2][Classes][]byte // compact, by family and class
}

// NewView returns a view of a swarm with these counts and no peers yet.
func NewView(counts Counts) *View { return &View{counts: counts} }

// familyOf peers of a size: 0 is IPv4, 1 is IPv6.
func familyOf(size int) int {
	if size == Size4 {
		return 0
	}
	return 1
}

var sizes = [2]int{Size4, Size6}

// Counts of the swarm.
func (v *View) Counts() Counts {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.counts
}

// Fill adds compact peers of one class and of size bytes each that were read from
// the store, up to ViewPeers a family. It leaves the counts to Add.
func (v *View) Fill(size int, class Class, compact []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := familyOf(size)
	room := (ViewPeers - v.held(f)) * size
	v.peers[f][class] = append(v.peers[f][class], compact[:min(len(compact), room)]...)
}

// Add counts peers of each class that were read from the store.
func (v *View) Add(counts [Classes]int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for class, n := range counts {
		*v.counts.Of(Class(class)) += n
	}
}

// Bytes of memory that the view takes, about.
func (v *View) Bytes() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := int(unsafe.Sizeof(*v))
	for _, lists := range v.peers {
		for _, list := range lists {
			n += cap(list)
		}
	}
	return n
}

// Put notes that peer was stored with this class; added says that the store had
// not known it.
func (v *View) Put(peer netip.AddrPort, class Class, added bool) {
	var buf [Size6]byte
	compact := AppendCompact(buf[:0], peer)
	f := familyOf(len(compact))

	v.mu.Lock()
	defer v.mu.Unlock()
	was, at := v.find(f, compact)
	switch {
	case added:
		*v.counts.Of(class)++
	case at >= 0 && was != class:
		v.decrement(was)
		*v.counts.Of(class)++
	}
	switch {
	case at >= 0 && was == class:
		return
	case at >= 0:
		v.cut(f, was, at)
	case !added:
		// Known to the store and outside the sample: there it stays.
		return
	}
	list := &v.peers[f][class]
	if v.held(f) < ViewPeers {
		*list = append(*list, compact...)
		return
	}
	// A full sample stays a fair one: the newcomer takes the place of another
	// of its class as often as it would have been drawn.
	if n := len(*list) / len(compact); n > 0 && rand.IntN(max(n, *v.counts.Of(class))) < n {
		copy((*list)[rand.IntN(n)*len(compact):], compact)
	}
}

// Drop notes that peer left; class is what it was if the view does not know
// better, removed says that the store had known it.
func (v *View) Drop(peer netip.AddrPort, class Class, removed bool) {
	var buf [Size6]byte
	compact := AppendCompact(buf[:0], peer)
	f := familyOf(len(compact))

	v.mu.Lock()
	defer v.mu.Unlock()
	was, at := v.find(f, compact)
	if at >= 0 {
		v.cut(f, was, at)
		class = was
	}
	if removed {
		v.decrement(class)
	}
}

// Downloaded notes one more completed download.
func (v *View) Downloaded() {
	v.mu.Lock()
	v.counts.Downloads++
	v.mu.Unlock()
}

// Offer counts the peers of each family that Pick can choose from for an asker
// of this class; the asker may be among them.
func (v *View) Offer(asker Class) (peers4, peers6 int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.offer(0, asker), v.offer(1, asker)
}

func (v *View) offer(f int, asker Class) int {
	n := 0
	for _, list := range v.peers[f][:classesFor(asker)] {
		n += len(list)
	}
	return n / sizes[f]
}

// classesFor says how many of the classes, in their order, an asker is handed:
// who wants nothing more is of use to leechers only.
func classesFor(asker Class) int {
	if asker == Leecher {
		return Classes
	}
	return int(Leecher) + 1
}

// Pick appends to dst the compact forms of at most n peers of one family, size
// bytes each, for an asker of this class: each peer is as likely as the next,
// none comes twice, and the asker is not among them. The same seed picks the
// same peers from the same view.
func (v *View) Pick(dst []byte, size int, asker netip.AddrPort, class Class, n int, seed uint64) []byte {
	f := familyOf(size)
	var buf [Size6]byte
	own := AppendCompact(buf[:0], asker)

	v.mu.Lock()
	defer v.mu.Unlock()
	// The asker is left out by counting around it.
	total, asking := v.offer(f, class), -1
	if was, at := v.find(f, own); at >= 0 && int(was) < classesFor(class) {
		for _, list := range v.peers[f][:was] {
			at += len(list)
		}
		total, asking = total-1, at/size
	}
	// The total is cut into runs, of which each gives one peer; turning them by a
	// random offset makes up for runs that are longer by one.
	runs := min(n, total)
	if runs <= 0 {
		return dst
	}
	rnd := splitMix(seed)
	offset := rnd.intN(total)
	for i := range runs {
		lo, hi := i*total/runs, (i+1)*total/runs
		at := lo + rnd.intN(hi-lo) + offset
		if at >= total {
			at -= total
		}
		if asking >= 0 && at >= asking {
			at++
		}
		at *= size
		list := 0
		for at >= len(v.peers[f][list]) {
			at -= len(v.peers[f][list])
			list++
		}
		dst = append(dst, v.peers[f][list][at:at+size]...)
	}
	return dst
}

// held counts the peers of a family in the view.
func (v *View) held(f int) int {
	n := 0
	for _, list := range v.peers[f] {
		n += len(list)
	}
	return n / sizes[f]
}

// find returns the class of a peer and its offset in that list, or below 0.
func (v *View) find(f int, compact []byte) (Class, int) {
	if len(compact) != sizes[f] {
		return 0, -1
	}
	for class, list := range v.peers[f] {
		for from := 0; from < len(list); {
			at := bytes.Index(list[from:], compact)
			if at < 0 {
				break
			}
			if at += from; at%len(compact) == 0 {
				return Class(class), at
			}
			from = at + 1 // bytes of two neighbours that look like it
		}
	}
	return 0, -1
}

// cut takes out the peer at an offset, the last one taking its place.
func (v *View) cut(f int, class Class, at int) {
	list := &v.peers[f][class]
	last := len(*list) - sizes[f]
	copy((*list)[at:], (*list)[last:])
	*list = (*list)[:last]
}

func (v *View) decrement(class Class) {
	if n := v.counts.Of(class); *n > 0 {
		*n--
	}
}

// splitMix is Vigna's SplitMix64: a generator that fits a register, so that
// picking neither locks nor allocates.
type splitMix uint64

func (s *splitMix) intN(n int) int {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return int((z ^ z>>31) >> 32 * uint64(n) >> 32)
}
