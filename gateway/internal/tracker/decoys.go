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
// A swarm has places for decoys of each class, numbered from 0. How many there are follows its held counts, so that peers
// who come at once bring no decoys with them. A place has a period of its own, half an hour to half a day. In
// each there is somebody for a part of it, mostly somebody new: a leecher may turn up as the seeder with the same
// number, and some leave and come back. Whoever is in one of the first places, whatever comes after, is the same.
type Decoys struct {
	ratio    float64 // of decoys to real peers
	prefixes [2][]netip.Prefix
	key      atomic.Pointer[[2]uint64]
}

// MaxDecoys is the largest share that NewDecoys may be given.
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
	drawMore
	drawPeriod
	drawStay
	drawFamily
	drawBecomes
	drawReturns
	drawPeer4
	drawPeer6
)

// chance is where the random numbers of one swarm come from.
type chance struct{ k0, k1 uint64 }

func (d *Decoys) chance(hash *swarm.InfoHash) chance {
	key := d.key.Load()
	k0, k1 := siphash.Hash128(key[0], key[1], hash[:])
	return chance{k0, k1}
}

// draw is a random number that follows from the key, the swarm and its arguments.
func (c chance) draw(what byte, class swarm.Class, place int, epoch int64, n int) uint64 {
	var text [16]byte
	text[0], text[1] = what, byte(class)
	binary.LittleEndian.PutUint16(text[2:], uint16(n))
	binary.LittleEndian.PutUint32(text[4:], uint32(place))
	binary.LittleEndian.PutUint64(text[8:], uint64(epoch))
	return siphash.Hash(c.k0, c.k1, text[:])
}

// fraction makes a random number one from 0 to 1.
func fraction(n uint64) float64 { return float64(n>>11) / (1 << 53) }

// below makes a random number one from 0 to most-1.
func below(n uint64, most int) int {
	hi, _ := bits.Mul64(n, uint64(most))
	return int(hi)
}

const (
	// watched is how many places of a class are vacant at times. Of more decoys than they hold nobody
	// can tell that one comes in the very second another leaves; those have places that never are.
	watched = 256

	shortestPeriod = 30 * time.Minute
	longestPeriod  = 12 * time.Hour

	// maxLate is the largest part of a period that a place is vacant at its begin, and at its end.
	maxLate = 0.2
)

// presence is the part of the time that somebody is in a watched place. Who becomes a seeder, half of the leechers, leaves
// no vacancy in between.
var presence = [swarm.Classes]float64{
	swarm.Leecher: 1 - maxLate*3/4, swarm.PartialSeed: 1 - maxLate, swarm.Seeder: 1 - maxLate*3/4,
}

// periods are the lengths of periods in seconds, as many short ones as long ones by the logarithm.
var periods = func() (list [256]int64) {
	for i := range list {
		list[i] = int64(shortestPeriod.Seconds() * math.Pow(longestPeriod.Seconds()/shortestPeriod.Seconds(), float64(i)/float64(len(list)-1)))
	}
	return list
}()

// period of a place: how many there were before that at now, how far it has come, and how long it is, both in seconds. It is the same for all
// classes.
func (c chance) period(place int, now time.Time) (epoch, at, length int64) {
	n := c.draw(drawPeriod, 0, place, 0, 0)
	length = periods[n>>56]
	at = now.Unix() + int64(n<<8>>8)%length
	return at / length, at % length, length
}

// becomes says that the leecher of the period before is the seeder of this one.
func (c chance) becomes(place int, epoch int64) bool {
	return c.draw(drawBecomes, 0, place, epoch, 0)&1 == 0
}

// present says whether somebody is in a watched place.
func (c chance) present(class swarm.Class, place int, now time.Time) bool {
	epoch, at, length := c.period(place, now)
	n := c.draw(drawStay, class, place, epoch, 0)
	late := func(n uint64) int64 { return int64(maxLate * float64(length) * float64(n&0xffff) / 0x10000) }
	switch {
	case at < late(n):
		return class == swarm.Seeder && c.becomes(place, epoch)
	case at >= length-late(n>>16):
		return class == swarm.Leecher && c.becomes(place, epoch+1)
	}
	return true
}

// places of a swarm at some time.
type places struct {
	chance
	now   time.Time
	here  [swarm.Classes * watched]uint16 // the watched places that are not vacant, class by class
	n     [swarm.Classes]int              // how many those are of each class
	more  [swarm.Classes]int              // places beyond the watched
	part6 [swarm.Classes]float64          // of them that are on IPv6
}

// look sets the places that go with a swarm's live counts and those it is held to. Who is alone has none, nor
// has a class of which there is no peer.
func (d *Decoys) look(p *places, hash *swarm.InfoHash, now time.Time, live *swarm.Counts) {
	p.chance, p.now = d.chance(hash), now
	if live.Seeders+live.Incomplete() < 2 {
		return
	}
	held := live.Held != (swarm.Held{})
	here := p.here[:0]
	for class := range swarm.Class(swarm.Classes) {
		peers := float64(*live.Of(class))
		if peers == 0 {
			continue
		}
		most := 2*d.ratio*peers + 1 // while a swarm shrinks faster than its held counts
		if held {
			slow, slow6 := live.Held.At(class, now)
			p.part6[class] = slow6 / max(slow, 1)
			peers = slow
		}
		want := d.ratio * peers
		random := fraction(p.draw(drawNumber, class, 0, 0, 0))
		for place := range int(min(want/presence[class], most, watched) + random) {
			if place < watched && p.present(class, place, now) {
				here = append(here, uint16(place))
				p.n[class]++
			}
		}
		if want = min(want, most) - watched*presence[class]; want > 0 {
			p.more[class] = int(want + fraction(p.draw(drawMore, class, 0, 0, 0)))
		}
	}
}

// counted are the counts of a swarm with its decoys, as clients are told them.
func (p *places) counted(live swarm.Counts) swarm.Counts {
	for class := range swarm.Class(swarm.Classes) {
		*live.Of(class) += p.n[class] + p.more[class]
	}
	live.Held = swarm.Held{}
	return live
}

// counted likewise.
func (d *Decoys) counted(hash *swarm.InfoHash, now time.Time, live swarm.Counts) swarm.Counts {
	var p places
	d.look(&p, hash, now, &live)
	return p.counted(live)
}

// appendPeer appends the compact form of who is in a place.
func (d *Decoys) appendPeer(dst []byte, c chance, now time.Time, family int, class swarm.Class, place int) []byte {
	epoch, _, _ := c.period(place, now)
	const chain = 16 // bounds how often somebody comes back
	for again := true; again; {
		switch {
		case class == swarm.Seeder && c.becomes(place, epoch):
			class, epoch = swarm.Leecher, epoch-1
		case class == swarm.Leecher && c.becomes(place, epoch): // who was there is a seeder now
			again = false
		case c.draw(drawReturns, class, place, epoch, 0)%4 == 0 && epoch%chain != 0:
			epoch--
		default:
			again = false
		}
	}
	what := drawPeer4 + byte(family)
	for try := 0; ; try++ {
		random := func(n int) uint64 { return c.draw(what, class, place, epoch, 4*try+n) }
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

// port is one of those that clients listen on: the old ones of BitTorrent, transmission's, those of other services, or any.
func port(random uint64) uint16 {
	n := below(random<<8, 1<<16-1024)
	switch kind := random >> 56; {
	case kind < 20:
		return 6881
	case kind < 32:
		return uint16(6882 + n%8)
	case kind < 52:
		return 51413
	case kind < 55:
		return [...]uint16{443, 80, 53, 993, 443, 80, 21, 110}[n%8]
	default:
		return uint16(1024 + n)
	}
}

// public are the ranges that hold addresses of clients: of IPv4 all, of IPv6 those that the regional registries give out
// (IANA's "IPv6 Global Unicast Address Assignments"), the large ones eight times as often.
var public = [2][]netip.Prefix{
	{netip.MustParsePrefix("0.0.0.0/0")},
	func() (set []netip.Prefix) {
		for _, text := range []string{
			"2001:200::/23", "2001:400::/23", "2001:600::/23", "2001:800::/22", "2001:c00::/23", "2001:e00::/23", "2001:1200::/23",
			"2001:1400::/22", "2001:1800::/23", "2001:1a00::/23", "2001:1c00::/22", "2001:2000::/19", "2001:4000::/23", "2001:4400::/23",
			"2001:4600::/23", "2001:4800::/23", "2001:8000::/19", "2001:a000::/20", "2001:b000::/20", "2003::/18",
			"2400::/12", "2600::/12", "2800::/12", "2a00::/12", "2c00::/12",
		} {
			p := netip.MustParsePrefix(text)
			set = append(set, p)
			for range 7 {
				if p.Bits() <= 18 {
					set = append(set, p)
				}
			}
		}
		return set
	}(),
}

// unused are parts that no client has: reserved for special purposes (RFC 6890), or not on the Internet.
var unused = func() (set []netip.Prefix) {
	for _, text := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/3",
		"6.0.0.0/7", "11.0.0.0/8", "21.0.0.0/8", "22.0.0.0/8", "26.0.0.0/8", "28.0.0.0/7", "30.0.0.0/8", "33.0.0.0/8", "55.0.0.0/8",
		"214.0.0.0/7", "2001:db8::/32",
	} {
		set = append(set, netip.MustParsePrefix(text))
	}
	return set
}()

// reserved says that an address is none that a client has.
func reserved(addr netip.Addr) bool {
	for _, p := range unused {
		if p.Contains(addr) {
			return true
		}
	}
	if !addr.Is4() {
		return false
	}
	last := addr.As4()[3]
	return last == 0 || last == 255
}

// visible says how many of the classes, in their order, an asker is handed.
func visible(asker swarm.Class) int {
	if asker == swarm.Leecher {
		return swarm.Classes
	}
	return int(swarm.Leecher) + 1
}

// mixture is what an asker can be handed of one address family.
type mixture struct {
	peers  int                         // in the swarm, which may be more than the view lists; without the asker
	places [swarm.Classes * watched]id // of decoys, of the watched
	n      int
	more   [swarm.Classes]int // decoys in places beyond the watched
	all    int                // decoys
}

type id struct {
	class swarm.Class
	place uint8
}

// mix sets what there is of both families for an asker.
func (p *places) mix(m *[2]mixture, a *swarm.Announce, live *swarm.Counts) {
	var listed [2][2]int // of leechers and of all, by family
	listed[0][0], listed[0][1] = a.View.Offer(swarm.Seeder)
	listed[1][0], listed[1][1] = a.View.Offer(swarm.Leecher)
	at := 0
	for class := range swarm.Class(visible(a.Class())) {
		of4, of6 := listed[0][0], listed[0][1]
		if class != swarm.Leecher {
			of4, of6 = listed[1][0]-of4, listed[1][1]-of6
		}
		part6 := p.part6[class]
		if of4+of6 > 0 {
			n := *live.Of(class)
			peers6 := (2*n*of6 + of4 + of6) / (2 * (of4 + of6)) // rounded
			m[family6].peers += peers6
			m[family4].peers += n - peers6
			if live.Held == (swarm.Held{}) {
				part6 = float64(of6) / float64(of4+of6)
			}
		}
		for _, place := range p.here[at : at+p.n[class]] {
			f := family4
			if part6 > 0 && fraction(p.draw(drawFamily, 0, int(place), 0, 0)) < part6 {
				f = family6
			}
			m[f].places[m[f].n] = id{class, uint8(place)}
			m[f].n++
		}
		at += p.n[class]
		more6 := int(part6*float64(p.more[class]) + 0.5)
		m[family6].more[class], m[family4].more[class] = more6, p.more[class]-more6
	}
	own := family4
	if a.Peer.Addr().Is6() {
		own = family6
	}
	if a.Class() == swarm.Leecher && m[own].peers > 0 {
		m[own].peers--
	}
	for f := range m {
		m[f].all = m[f].n
		for _, n := range m[f].more {
			m[f].all += n
		}
	}
}

// hand mixes decoys into an answer that has its peers, as far as there is room. They come on top of them and take the place of none; each is as
// likely in it as each peer is. live are the counts of peers.
func (d *Decoys) hand(a *swarm.Announce, live *swarm.Counts, p *places) {
	var m [2]mixture
	p.mix(&m, a, live)
	room := math.MaxInt
	if a.Room > 0 {
		room = max(0, a.Room-len(a.Peers4)/swarm.Size4-len(a.Peers6)/swarm.Size6)
	}
	if a.Both || a.Peer.Addr().Is4() {
		before := len(a.Peers4)
		a.Peers4 = d.mingle(a.Peers4, family4, a, p, &m[family4], room)
		room -= (len(a.Peers4) - before) / swarm.Size4
	}
	if a.Both || a.Peer.Addr().Is6() {
		a.Peers6 = d.mingle(a.Peers6, family6, a, p, &m[family6], room)
	}
}

// mingle adds decoys of one family to the peers of an answer.
func (d *Decoys) mingle(dst []byte, family int, a *swarm.Announce, p *places, m *mixture, room int) []byte {
	size, decoys := sizes[family], m.all
	if peers := len(dst) / size; peers < m.peers {
		decoys = int(float64(m.all)*float64(peers)/float64(m.peers) + rand.Float64())
	}
	decoys = min(decoys, m.all, room, a.NumWant)
	if decoys <= 0 {
		return dst
	}
	var own [swarm.Size6]byte
	// The decoys stand in a row, which is cut into runs, of which each gives one.
	offset, lo := rand.IntN(m.all), 0
	for i := range decoys {
		hi := (i + 1) * m.all / decoys
		at := (lo + rand.IntN(hi-lo) + offset) % m.all
		lo = hi
		class, place := m.at(at, family)
		n := len(dst)
		dst = d.appendPeer(dst, p.chance, p.now, family, class, place)
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

// at is the decoy at a place in the row of a family's. Those beyond the watched have every other number of a place: each family its own.
func (m *mixture) at(n, family int) (swarm.Class, int) {
	if n < m.n {
		return m.places[n].class, int(m.places[n].place)
	}
	n -= m.n
	class := swarm.Leecher
	for ; n >= m.more[class]; class++ {
		n -= m.more[class]
	}
	return class, watched + 2*n + family
}

// among says whether a compact peer is in a list of them.
func among(list, peer []byte) bool {
	first := binary.NativeEndian.Uint32(peer)
	for ; len(list) > 0; list = list[len(peer):] {
		if binary.NativeEndian.Uint32(list) == first && bytes.Equal(list[:len(peer)], peer) {
			return true
		}
	}
	return false
}
