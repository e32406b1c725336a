package tracker

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/dchest/siphash"

	"swarmgate/swarmstore/swarm"
)

// Decoys are made-up peers that are mixed into answers, so that an address in an answer proves nothing. They
// follow from the key, the info hash and the time alone: every gateway with the key makes the same ones and
// keeps nothing of them.
//
// A swarm has places for decoys, numbered from 0, of each class and address family. As many as go with its real
// peers are taken. Who is in a place stays for a while that is the place's own, half an hour to half a day; then
// somebody else is, and a leecher may turn up as the seeder with the same number.
type Decoys struct {
	ratio    float64 // of decoys to real peers
	prefixes [2][]netip.Prefix
	key      atomic.Pointer[[2]uint64]
}

// MaxDecoys is the largest share of an answer's peers that decoys may have.
const MaxDecoys = 0.25

// NewDecoys makes decoys a share of all peers of a swarm. They have addresses within the prefixes, or without
// one of a family any public unicast addresses of it. There are none, and no answers either, until SetKey.
func NewDecoys(share float64, prefixes []netip.Prefix) *Decoys {
	d := &Decoys{ratio: share / (1 - share)}
	for _, p := range prefixes {
		f := family4
		if p.Addr().Is6() {
			f = family6
		}
		d.prefixes[f] = append(d.prefixes[f], p.Masked())
	}
	return d
}

// SetKey sets what all decoys follow from. Gateways that share swarms have to have the same.
func (d *Decoys) SetKey(key [16]byte) {
	d.key.Store(&[2]uint64{binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])})
}

// ready says whether SetKey was called. Answers without decoys before would tell them apart from peers later.
func (d *Decoys) ready() bool { return d == nil || d.key.Load() != nil }

// Address families.
const (
	family4 = iota
	family6
)

var sizes = [2]int{swarm.Size4, swarm.Size6}

// What is drawn by chance from the key.
const (
	drawNumber byte = iota
	drawStay
	drawBecomes
	drawPeer
)

// draw is a random number that follows from the key and its arguments.
func (d *Decoys) draw(what byte, hash *swarm.InfoHash, family int, class swarm.Class, place int, epoch int64, n int) uint64 {
	var text [len(hash) + 4 + 8 + 8]byte
	copy(text[:], hash[:])
	text[20], text[21], text[22], text[23] = what, byte(family), byte(class), byte(n)
	binary.LittleEndian.PutUint64(text[24:], uint64(place))
	binary.LittleEndian.PutUint64(text[32:], uint64(epoch))
	key := d.key.Load()
	return siphash.Hash(key[0], key[1], text[:])
}

// fraction makes a random number one from 0 to 1.
func fraction(n uint64) float64 { return float64(n>>11) / (1 << 53) }

// below makes a random number one from 0 to most-1.
func below(n uint64, most int) int {
	hi, _ := bits.Mul64(n, uint64(most))
	return int(hi)
}

// number of decoys of each class that go with the real peers of a swarm. Who is alone has none.
func (d *Decoys) number(hash *swarm.InfoHash, real swarm.Counts) (n [swarm.Classes]int) {
	if real.Seeders+real.Incomplete() < 2 {
		return n
	}
	for class := range swarm.Class(swarm.Classes) {
		if peers := *real.Of(class); peers > 0 {
			n[class] = int(d.ratio*float64(peers) + fraction(d.draw(drawNumber, hash, 0, class, 0, 0, 0)))
		}
	}
	return n
}

// counted are the counts of a swarm with its decoys.
func (d *Decoys) counted(hash *swarm.InfoHash, real swarm.Counts) swarm.Counts {
	for class, n := range d.number(hash, real) {
		*real.Of(swarm.Class(class)) += n
	}
	return real
}

const (
	shortestStay = 30 * time.Minute
	longestStay  = 12 * time.Hour
)

// appendPeer appends the compact form of who is in a place at now.
func (d *Decoys) appendPeer(dst []byte, now time.Time, hash *swarm.InfoHash, family int, class swarm.Class, place int) []byte {
	n := d.draw(drawStay, hash, family, 0, place, 0, 0)
	stay := int64(shortestStay.Seconds() * math.Pow(longestStay.Seconds()/shortestStay.Seconds(), fraction(n)))
	epoch := (now.Unix() + int64(n%uint64(stay))) / stay
	if class == swarm.Seeder && d.draw(drawBecomes, hash, family, class, place, epoch, 0)&1 == 0 {
		class, epoch = swarm.Leecher, epoch-1 // who was the leecher with that number
	}
	for try := 0; ; try++ {
		random := func(n int) uint64 { return d.draw(drawPeer, hash, family, class, place, epoch, 4*try+n) }
		prefixes := d.prefixes[family]
		given := len(prefixes) > 0
		if !given {
			prefixes = public[family]
		}
		addr := within(prefixes[below(random(0), len(prefixes))], random(1), random(2))
		if given || !reserved(addr) {
			return swarm.AppendCompact(dst, netip.AddrPortFrom(addr, port(random(3))))
		}
	}
}

// within makes two random numbers an address within a prefix.
func within(prefix netip.Prefix, high, low uint64) netip.Addr {
	var random [16]byte
	binary.BigEndian.PutUint64(random[:], high)
	binary.BigEndian.PutUint64(random[8:], low)
	addr := prefix.Addr().AsSlice()
	for i := range addr {
		fixed := min(max(prefix.Bits()-8*i, 0), 8)
		addr[i] |= random[i] & byte(0xff>>fixed)
	}
	a, _ := netip.AddrFromSlice(addr)
	return a
}

// port is one of those that clients listen on: the old ones of BitTorrent, transmission's, or any.
func port(random uint64) uint16 {
	n := below(random<<8, 1<<16-1024)
	switch kind := random >> 56; {
	case kind < 20:
		return 6881
	case kind < 32:
		return uint16(6882 + n%8)
	case kind < 52:
		return 51413
	default:
		return uint16(1024 + n)
	}
}

// public are the ranges that hold addresses of clients: of IPv4 all, of IPv6 those that the regional registries give out.
var public = [2][]netip.Prefix{
	{netip.MustParsePrefix("0.0.0.0/0")},
	{
		netip.MustParsePrefix("2400::/12"), netip.MustParsePrefix("2600::/12"), netip.MustParsePrefix("2800::/12"),
		netip.MustParsePrefix("2a00::/12"), netip.MustParsePrefix("2c00::/12"),
	},
}

// unused are parts of IPv4 that no client has: reserved for special purposes (RFC 6890), or not on the Internet.
var unused = func() (set []netip.Prefix) {
	for _, text := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/3",
		"6.0.0.0/7", "11.0.0.0/8", "21.0.0.0/8", "22.0.0.0/8", "26.0.0.0/8", "28.0.0.0/7", "30.0.0.0/8", "33.0.0.0/8", "55.0.0.0/8",
		"214.0.0.0/7",
	} {
		set = append(set, netip.MustParsePrefix(text))
	}
	return set
}()

// reserved says that an address is none that a client has.
func reserved(addr netip.Addr) bool {
	if !addr.Is4() {
		return false // public IPv6 ranges have no such parts
	}
	for _, p := range unused {
		if p.Contains(addr) {
			return true
		}
	}
	last := addr.As4()[3]
	return last == 0 || last == 255
}

// mixture is what an asker can be handed of one address family: peers of a view, and decoys.
type mixture struct {
	peers  int // in the swarm, which may be more than the view lists; without the asker
	decoys [swarm.Classes]int
	all    int // decoys
}

// mixtures for an asker by address family, of what a view lists.
func (d *Decoys) mixtures(a *swarm.Announce, real swarm.Counts) (m [2]mixture) {
	var listed [2][2]int // of leechers and of all, by family
	listed[0][0], listed[0][1] = a.View.Offer(swarm.Seeder)
	listed[1][0], listed[1][1] = a.View.Offer(swarm.Leecher)
	number := d.number(&a.InfoHash, real)
	for class := range swarm.Class(visible(a.Class())) {
		of4, of6 := listed[0][0], listed[0][1]
		if class != swarm.Leecher {
			of4, of6 = listed[1][0]-of4, listed[1][1]-of6
		}
		if of4+of6 == 0 {
			continue
		}
		part := func(n int) int { return (2*n*of6 + of4 + of6) / (2 * (of4 + of6)) } // which is IPv6, rounded
		n, peers := number[class], *real.Of(class)
		m[family6].decoys[class], m[family4].decoys[class] = part(n), n-part(n)
		m[family6].peers += part(peers)
		m[family4].peers += peers - part(peers)
	}
	own := family4
	if a.Peer.Addr().Is6() {
		own = family6
	}
	if a.Class() == swarm.Leecher && m[own].peers > 0 {
		m[own].peers--
	}
	for f := range m {
		for _, n := range m[f].decoys {
			m[f].all += n
		}
	}
	return m
}

// visible says how many of the classes, in their order, an asker is handed.
func visible(asker swarm.Class) int {
	if asker == swarm.Leecher {
		return swarm.Classes
	}
	return int(swarm.Leecher) + 1
}

// hand fills in the peers that an asker is handed, decoys among them. Where all peers of a family fit into what is wanted, its decoys
// come on top of them, so that they are seen as often as peers are and take the place of none.
func (d *Decoys) hand(a *swarm.Announce, now time.Time, want int) {
	m := d.mixtures(a, a.View.Counts())
	of4, of6 := &m[family4], &m[family6]
	want4, want6 := want, want
	switch {
	case !a.Both && a.Peer.Addr().Is4():
		want6 = 0
	case !a.Both:
		want4 = 0
	case of4.peers+of6.peers > want:
		want4 = share4(of4.peers+of4.all, of6.peers+of6.all, want)
		want6 = want - want4
	}
	a.Peers4 = d.pick(a.Peers4, family4, a, now, of4, want4)
	a.Peers6 = d.pick(a.Peers6, family6, a, now, of6, want6)
}

// pick appends peers and decoys of one family, in no order: each as likely as the next.
func (d *Decoys) pick(dst []byte, family int, a *swarm.Announce, now time.Time, m *mixture, want int) []byte {
	size, total := sizes[family], m.peers+m.all
	switch {
	case want == 0:
		return dst
	case want >= m.peers && a.Room == 0:
		want = total
	case want >= m.peers:
		want = min(total, a.Room)
	}
	var own [swarm.Size6]byte
	decoys := 0
	for i := range want {
		if rand.IntN(total-i) < m.all-decoys {
			decoys++
		}
	}
	dst = a.View.Pick(dst, size, a.Peer, a.Class(), want-decoys, rand.Uint64())
	// The decoys stand in a row, which is cut into runs, of which each gives one.
	offset, lo := 0, 0
	if decoys > 0 {
		offset = rand.IntN(m.all)
	}
	for i := range decoys {
		hi := (i + 1) * m.all / decoys
		place := (lo + rand.IntN(hi-lo) + offset) % m.all
		lo = hi
		class := swarm.Leecher
		for ; place >= m.decoys[class]; class++ {
			place -= m.decoys[class]
		}
		n := len(dst)
		dst = d.appendPeer(dst, now, &a.InfoHash, family, class, place)
		if peer := dst[n:]; among(dst[:n], peer) || bytes.Equal(peer, swarm.AppendCompact(own[:0], a.Peer)) {
			dst = dst[:n] // narrow prefixes can have a peer's address
		}
	}
	rand.Shuffle(len(dst)/size, func(i, j int) {
		var hold [swarm.Size6]byte
		copy(hold[:], dst[i*size:(i+1)*size])
		copy(dst[i*size:(i+1)*size], dst[j*size:(j+1)*size])
		copy(dst[j*size:(j+1)*size], hold[:size])
	})
	return dst
}

// among says whether a compact peer is in a list of them.
func among(list, peer []byte) bool {
	for ; len(list) > 0; list = list[len(peer):] {
		if bytes.Equal(list[:len(peer)], peer) {
			return true
		}
	}
	return false
}
