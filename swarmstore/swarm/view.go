package swarm

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"unsafe"
)

// ViewPeers bounds the peers of one address family that a part of a View lists: far more
// than a small swarm or a partition has, but for a moment.
const ViewPeers = 1024

// Part is some of a swarm's peers: all of a small swarm, or one partition of a large one.
// Peers are flat bytes, which the garbage collector does not scan.
type Part struct {
	peers [2][]byte          // compact, by address family (0 is IPv4, 1 is IPv6), in the order of classes
	n     [2][Classes]uint16 // how many of each class are listed
	More  [Classes]int       // how many there are beyond the listed, which then are a sample
}

// Place tells the part of a View that a compact peer of size bytes belongs to, or below 0 if that is
// not held. The peer is passed by value, so that it needs no memory of its own.
type Place func(compact [Size6]byte, size int) int

// View is what a gateway knows of one swarm for a moment: its counts, and its peers or
// a fair part of them. A View may be used by many goroutines at once.
type View struct {
	Complete bool // its counts tell the downloads; set before it is shared

	mu        sync.Mutex
	downloads int
	slow      Held
	parts     []Part
	place     Place            // which part a peer belongs to; nil: to the only one
	held      [Classes]int     // peers of the parts, listed or not
	base      [Classes]float64 // the counts are base + scale * held
	scale     float64
	listed    [2][2]int // peers of each family in the lists: leechers, and all
	rows      []row     // the same of each part
	added     int       // peers that Put was told of and the store had not known

	noting bool
	notes  []note

	onePart [1]Part
	oneRow  [1]row
}

// row is how many peers of each address family a part lists: leechers, and all.
type row [2][2]uint16

// note is a change while the store was being read.
type note struct {
	peer  netip.AddrPort
	class Class
	drop  bool
}

// maxNotes bounds what a View notes while it is read anew.
const maxNotes = 1 << 14

// NewView returns the view of a swarm of which part is all there is. It keeps part.
func NewView(part Part, downloads int) *View {
	v := &View{downloads: downloads, scale: 1}
	v.onePart[0] = part
	v.take(v.onePart[:], v.oneRow[:], nil)
	return v
}

// Renew replaces all that the view knows: its parts, of which place tells where a peer
// belongs, and the counts of the whole swarm, of which the parts are one in scale.
func (v *View) Renew(parts []Part, place Place, counts Counts, scale float64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.downloads, v.scale, v.added = counts.Downloads, scale, 0
	v.take(parts, make([]row, len(parts)), place)
	for class := range v.base {
		v.base[class] = 0
		if scale != 1 {
			v.base[class] = float64(*counts.Of(Class(class))) - scale*float64(v.held[class])
		}
	}
	v.replay()
}

// Replace puts parts that were read anew in the places of parts i, i+1 and so on, the
// first following the last; nil ones were not read.
func (v *View) Replace(i int, parts []*Part, downloads int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.downloads = downloads
	for n, part := range parts {
		if part != nil {
			at := (i + n) % len(v.parts)
			v.count(at, -1)
			v.parts[at] = *part
			v.count(at, 1)
		}
	}
	v.replay()
}

func (v *View) take(parts []Part, rows []row, place Place) {
	v.parts, v.rows, v.place = parts, rows, place
	v.held, v.listed = [Classes]int{}, [2][2]int{}
	for i := range parts {
		v.count(i, 1)
	}
}

// count adds or takes away a part's peers from what is held, and sets its row.
func (v *View) count(i, sign int) {
	for class, n := range v.parts[i].Counts() {
		v.held[class] += sign * n
	}
	v.setRow(i, 0)
	v.setRow(i, 1)
}

func (v *View) setRow(i, f int) {
	r, n := &v.rows[i][f], &v.parts[i].n[f]
	now := [2]uint16{n[Leecher], n[Leecher] + n[PartialSeed] + n[Seeder]}
	for k := range now {
		v.listed[f][k] += int(now[k]) - int(r[k])
	}
	*r = now
}

// Note makes the view remember what is put and dropped until it is renewed or replaced:
// what is being read meanwhile may lack it.
func (v *View) Note() {
	v.mu.Lock()
	v.noting, v.notes = true, v.notes[:0]
	v.mu.Unlock()
}

func (v *View) replay() {
	if !v.noting {
		return
	}
	v.noting = false
	for _, n := range v.notes {
		if n.drop {
			v.drop(n.peer, n.class, false)
		} else {
			v.put(n.peer, n.class, false)
		}
	}
	v.notes = v.notes[:0]
}

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
	c := Counts{Downloads: v.downloads, Held: v.slow}
	for class, held := range v.held {
		*c.Of(Class(class)) = max(0, int(math.Round(v.base[class]+v.scale*float64(held))))
	}
	return c
}

// Hold sets the held counts of the swarm.
func (v *View) Hold(h Held) {
	v.mu.Lock()
	v.slow = h
	v.mu.Unlock()
}

// Counts6 are the peers of each class on IPv6, as far as the lists tell: they may be a sample.
func (v *View) Counts6() (n [Classes]int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var listed, listed6 [Classes]int
	for i := range v.parts {
		for class := range n {
			listed6[class] += int(v.parts[i].n[1][class])
			listed[class] += int(v.parts[i].n[0][class]) + int(v.parts[i].n[1][class])
		}
	}
	for class, held := range v.held {
		if listed[class] > 0 {
			peers := max(0, v.base[class]+v.scale*float64(held))
			n[class] = int(math.Round(peers * float64(listed6[class]) / float64(listed[class])))
		}
	}
	return n
}

// PartPeers counts the peers of part i.
func (v *View) PartPeers(i int) (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, of := range v.parts[i].Counts() {
		n += of
	}
	return n
}

// Added counts the peers put since the view was renewed that the store had not known.
func (v *View) Added() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.added
}

// Bytes of memory that the view takes, about.
func (v *View) Bytes() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := int(unsafe.Sizeof(*v)) + len(v.parts)*int(unsafe.Sizeof(Part{})+unsafe.Sizeof(row{})) + cap(v.notes)*int(unsafe.Sizeof(note{}))
	for i := range v.parts {
		for _, list := range v.parts[i].peers {
			n += cap(list)
		}
	}
	return n
}

// Put notes that peer was stored with this class; added says that the store had
// not known it.
func (v *View) Put(peer netip.AddrPort, class Class, added bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.note(note{peer: peer, class: class})
	v.put(peer, class, added)
	if added {
		v.added++
	}
}

func (v *View) note(n note) {
	if v.noting && len(v.notes) < maxNotes {
		v.notes = append(v.notes, n)
	}
}

func (v *View) put(peer netip.AddrPort, class Class, added bool) {
	buf, size, i := v.locate(peer)
	if i < 0 {
		return
	}
	compact, f, part := buf[:size], familyOf(size), &v.parts[i]
	was, at := part.find(f, compact)
	switch {
	case at >= 0 && was == class:
		return
	case at >= 0:
		part.cut(f, was, at)
		v.held[was]--
	case !added && part.More != [Classes]int{}:
		return // known to the store and outside the sample: there it stays
	}
	v.held[class]++
	if part.listed(f) < ViewPeers {
		part.insert(f, compact, class)
	} else {
		// A full sample stays a fair one: the newcomer takes the place of another
		// of its class as often as it would have been drawn.
		part.More[class]++
		if n := int(part.n[f][class]); n > 0 && rand.IntN(n+part.More[class]) < n {
			copy(part.peers[f][(part.first(f, class)+rand.IntN(n))*len(compact):], compact)
		}
	}
	v.setRow(i, f)
}

// Drop notes that peer left; class is what it was if the view does not know
// better, removed says that the store had known it.
func (v *View) Drop(peer netip.AddrPort, class Class, removed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.note(note{peer: peer, class: class, drop: true})
	v.drop(peer, class, removed)
}

func (v *View) drop(peer netip.AddrPort, class Class, removed bool) {
	buf, size, i := v.locate(peer)
	if i < 0 {
		return
	}
	compact, f, part := buf[:size], familyOf(size), &v.parts[i]
	if was, at := part.find(f, compact); at >= 0 {
		part.cut(f, was, at)
		v.held[was]--
		v.setRow(i, f)
	} else if removed && part.More[class] > 0 {
		part.More[class]--
		v.held[class]--
	}
}

// Downloaded notes one more completed download.
func (v *View) Downloaded() {
	v.mu.Lock()
	v.downloads++
	v.mu.Unlock()
}

// Offer counts the peers of each family that Pick can choose from for an asker
// of this class; the asker may be among them.
func (v *View) Offer(asker Class) (peers4, peers6 int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := kindsFor(asker)
	return v.listed[0][k], v.listed[1][k]
}

// kindsFor says which number of a row counts the peers that an asker is handed: who wants
// nothing more is of use to leechers only.
func kindsFor(asker Class) int {
	if asker == Leecher {
		return 1
	}
	return 0
}

// classesFor says how many of the classes, in their order, that are.
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
	f, k := familyOf(size), kindsFor(class)

	v.mu.Lock()
	defer v.mu.Unlock()
	// The peers stand in a row, part by part. The asker is left out by counting around it.
	total := v.listed[f][k]
	asking := v.rank(f, asker, class)
	if asking >= 0 {
		total--
	}
	// The total is cut into runs, of which each gives one peer; turning them by a
	// random offset makes up for runs that are longer by one.
	runs := min(n, total)
	if runs <= 0 {
		return dst
	}
	rnd := splitMix(seed)
	offset := rnd.intN(total)
	step := (uint64(total)<<32 + uint64(runs) - 1) / uint64(runs) // the length of a run, times 2^32
	dst = slices.Grow(dst, runs*size)
	part, before, in := 0, 0, int(v.rows[0][f][k]) // the part under way, how many peers stand before it, and in it
	lo := 0
	for i := range runs {
		hi := int(uint64(i+1) * step >> 32)
		at := lo + rnd.intN(hi-lo) + offset
		lo = hi
		if at >= total {
			at -= total
		}
		if asking >= 0 && at >= asking {
			at++
		}
		if at < before {
			part, before, in = 0, 0, int(v.rows[0][f][k])
		}
		for at >= before+in {
			before += in
			part++
			in = int(v.rows[part][f][k])
		}
		list := v.parts[part].peers[f]
		at = (at - before) * size
		// Copies of a known size need no call.
		n := len(dst)
		dst = dst[:n+size]
		if size == Size4 {
			*(*[Size4]byte)(dst[n:]) = [Size4]byte(list[at:])
		} else {
			*(*[Size6]byte)(dst[n:]) = [Size6]byte(list[at:])
		}
	}
	return dst
}

// rank is how many of the peers that Pick chooses from stand before the asker, or below 0 when
// it is not among them.
func (v *View) rank(f int, asker netip.AddrPort, class Class) int {
	own, size, i := v.locate(asker)
	if i < 0 || size != sizes[f] {
		return -1
	}
	was, rank := v.parts[i].find(f, own[:size])
	if rank < 0 || int(was) >= classesFor(class) {
		return -1
	}
	for j := range i {
		rank += int(v.rows[j][f][kindsFor(class)])
	}
	return rank
}

// locate is the compact form of a peer, size bytes of it, and the part that it belongs to, or below 0.
func (v *View) locate(peer netip.AddrPort) (compact [Size6]byte, size, part int) {
	size = len(AppendCompact(compact[:0], peer))
	if v.place != nil {
		part = v.place(compact, size)
	}
	return compact, size, part
}

// NewPart lists compact peers, by address family and class, of which it keeps a copy.
func NewPart(compact *[2][Classes][]byte) (p Part) {
	for f := range compact {
		n := 0
		for class, list := range compact[f] {
			n += len(list)
			p.n[f][class] = uint16(len(list) / sizes[f])
		}
		if n == 0 {
			continue
		}
		p.peers[f] = make([]byte, 0, n)
		for _, list := range compact[f] {
			p.peers[f] = append(p.peers[f], list...)
		}
	}
	return p
}

// Counts of the peers of each class, listed or not.
func (p *Part) Counts() (counts [Classes]int) {
	for class := range counts {
		counts[class] = p.More[class] + int(p.n[0][class]) + int(p.n[1][class])
	}
	return counts
}

// listed counts the peers of a family in the list.
func (p *Part) listed(f int) int { return len(p.peers[f]) / sizes[f] }

// first is where the peers of a class begin.
func (p *Part) first(f int, class Class) (at int) {
	for _, n := range p.n[f][:class] {
		at += int(n)
	}
	return at
}

// find returns the class of a peer and its place in the list, or below 0.
func (p *Part) find(f int, compact []byte) (Class, int) {
	list, at := p.peers[f], -1
	if f == 0 {
		host, port := binary.NativeEndian.Uint32(compact), binary.NativeEndian.Uint16(compact[4:])
		for i := 0; i+Size4 <= len(list); i += Size4 {
			if binary.NativeEndian.Uint32(list[i:]) == host && binary.NativeEndian.Uint16(list[i+4:]) == port {
				at = i / Size4
				break
			}
		}
	} else {
		for i := 0; i+Size6 <= len(list); i += Size6 {
			if [Size6]byte(list[i:]) == [Size6]byte(compact) {
				at = i / Size6
				break
			}
		}
	}
	if at < 0 {
		return 0, -1
	}
	class := Leecher
	for at >= p.first(f, class+1) {
		class++
	}
	return class, at
}

// Add lists a compact peer, unless it is listed.
func (p *Part) Add(compact []byte, class Class) bool {
	f := familyOf(len(compact))
	if _, at := p.find(f, compact); at >= 0 {
		return false
	}
	p.insert(f, compact, class)
	return true
}

// insert a peer: the first of each later class makes room for it.
func (p *Part) insert(f int, compact []byte, class Class) {
	size, list := len(compact), append(p.peers[f], compact...)
	hole := len(list) - size
	for later := Class(Classes - 1); later > class; later-- {
		first := p.first(f, later) * size
		copy(list[hole:hole+size], list[first:first+size])
		hole = first
	}
	copy(list[hole:], compact)
	p.peers[f] = list
	p.n[f][class]++
}

// cut takes out the peer of a class at a place: the last of its and of each later class fills the hole.
func (p *Part) cut(f int, class Class, at int) {
	size, list := sizes[f], p.peers[f]
	for later := class; later < Classes; later++ {
		last := p.first(f, later+1) - 1
		copy(list[at*size:(at+1)*size], list[last*size:])
		at = last
	}
	p.peers[f] = list[:len(list)-size]
	p.n[f][class]--
}

// Sample cuts the lists down to what a View may list, by chance.
func (p *Part) Sample() {
	for f, size := range sizes {
		all := p.listed(f)
		if all <= ViewPeers {
			continue
		}
		kept := make([]byte, 0, ViewPeers*size)
		list := p.peers[f]
		for class := range p.n[f] {
			n := int(p.n[f][class])
			keep := n * ViewPeers / all
			var hold [Size6]byte
			for i := range keep {
				j := i + rand.IntN(n-i)
				copy(hold[:], list[i*size:(i+1)*size])
				copy(list[i*size:(i+1)*size], list[j*size:(j+1)*size])
				copy(list[j*size:(j+1)*size], hold[:size])
			}
			kept = append(kept, list[:keep*size]...)
			list = list[n*size:]
			p.n[f][class] = uint16(keep)
			p.More[class] += n - keep
		}
		p.peers[f] = kept
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
