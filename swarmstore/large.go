package swarmstore

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/semaphore"

	"swarmgate/swarmstore/swarm"
)

// large is what a gateway knows of a large swarm: where its peers are, and a view of
// the partitions that it holds. Its lanes write; all reading is done beside them, as
// partitions are on many nodes.
type large struct {
	view     *swarm.View
	shape    atomic.Pointer[shape]
	read     atomic.Int64  // when it was last read, in Unix nanoseconds
	answered atomic.Int64  // announces since
	wanted   atomic.Uint32 // the layout that it should have, as a power of two

	// Of the one who refreshes it:
	told    time.Time     // when its layout was read
	passed  time.Time     // when all partitions were read
	peers   int           // how many there were then
	since   int64         // announces answered since
	took    time.Duration // what reading them took
	trimmed time.Time     // when stale peers were removed
	grows   float64       // peers a second, as seen by the last two passes
	next    int           // the part of the view that was read first
}

// shape is a layout, and which of the partitions that peers belong to the view holds: some that
// follow each other, the first following the last.
type shape struct {
	layout
	first, held int
}

// part of the view that holds a peer's partition, or below 0.
func (h *shape) part(compact [swarm.Size6]byte, size int) int {
	if i := h.rank(compact[:size]); i < h.held {
		return i
	}
	return -1
}

// rank counts the partitions from the first held to a peer's.
func (h *shape) rank(compact []byte) int {
	n := 1 << h.to
	return (h.place(compact) - h.first + n) % n
}

const (
	// maxHeld bounds the partitions that a view holds, and heldPeers the peers in them, roughly.
	maxHeld   = 4096
	heldPeers = 1 << 15

	// A view is read anew in as many of its partitions as pay for it: one for so many
	// announces answered, and two at least: a fleet has many views of one swarm, most of which answer
	// few announces each. If they changed by more than those of a swarm do that neither grows nor shrinks, by a peer each
	// where they are few, all are read.
	rereadAfter = 16
	minReread   = 2
	steady      = 0.015
	steadyPeers = 8

	// passEvery is how long a partition may go unread, and passAfter how many announces for
	// each partition may be answered meanwhile: then others are held.
	passEvery = 2 * time.Minute
	passAfter = 64
	trimEvery = time.Minute

	// passShare is the part of the time that may go to reading all partitions again and again while
	// peers are being moved, when reading some would tell little.
	passShare = 16

	// passChunk is how many partitions one pipeline reads.
	passChunk = 256

	// partitionHead is how much of a partition is read, which is all unless the
	// swarm has far outgrown its layout. Then it is counted, and a sample read.
	partitionHead = 4096

	// toldEnough is how long a layout is taken to last whose node is away: longer than a failover.
	toldEnough = 30 * time.Second

	maxRefreshes = 256 // under way at a time
	maxErrands   = 256 // pipelines whose announces have some, likewise
)

// largeTTL is the age at which the view of a large swarm is read anew. One that is twice
// as old answers nobody.
func (s *Store) largeTTL() time.Duration { return max(s.opt.ViewTTL, 100*time.Millisecond) }

func (l *large) age(now time.Time) time.Duration { return now.Sub(time.Unix(0, l.read.Load())).Abs() }

func (l *large) stale(now time.Time, ttl time.Duration) bool { return l.age(now) >= 2*ttl }

// large is what is known of a swarm that is a large one, or nil.
func (s *Store) large(hash swarm.InfoHash, now time.Time) *large {
	if !s.larges.maybe(hash) {
		return nil
	}
	l := s.views.get(hash).large
	if l == nil {
		return nil
	}
	l.answered.Add(1)
	if age := l.age(now); age > s.largeTTL()*3/4 && age < 2*s.largeTTL() {
		s.refresh(hash, now, nil)
	}
	return l
}

func (o *op) route(l *large) {
	var buf [swarm.Size6]byte
	o.large, o.layout = l, l.shape.Load().layout
	o.partition = o.layout.place(swarm.AppendCompact(buf[:0], o.announce.Peer))
}

// larges are the large swarms that are being read.
type larges struct {
	mu       sync.Mutex
	reading  map[swarm.InfoHash]*reading
	queue    []swarm.InfoHash    // of those that wait for room
	room     *semaphore.Weighted // of maxRefreshes
	errands  *semaphore.Weighted // of maxErrands
	resizing *semaphore.Weighted // of maxResizes
	sweeping *semaphore.Weighted // of maxSweeps

	// A bit for each swarm that ever was large, shared by a few, spares the others a look
	// into the views.
	seen [largeBits / 32]atomic.Uint32
}

const largeBits = 1 << 18

func (l *larges) bit(hash swarm.InfoHash) (*atomic.Uint32, uint32) {
	n := binary.LittleEndian.Uint32(hash[16:]) % largeBits
	return &l.seen[n/32], 1 << (n % 32)
}

func (l *larges) maybe(hash swarm.InfoHash) bool {
	word, bit := l.bit(hash)
	return word.Load()&bit != 0
}

func (l *larges) mark(hash swarm.InfoHash) {
	word, bit := l.bit(hash)
	word.Or(bit)
}

// reading of a swarm, and who waits for it.
type reading struct {
	now     time.Time
	waiting []*group
}

// refresh reads a large swarm, once for all who ask. waiting, if there is one, is a group of one operation
// that goes on when it is read.
func (s *Store) refresh(hash swarm.InfoHash, now time.Time, waiting *group) {
	s.larges.mu.Lock()
	r := s.larges.reading[hash]
	if r != nil {
		if waiting != nil {
			r.waiting = append(r.waiting, waiting)
		}
		s.larges.mu.Unlock()
		return
	}
	room := s.larges.room.TryAcquire(1)
	if room || waiting != nil {
		r = &reading{now: now}
		if waiting != nil {
			r.waiting = append(r.waiting, waiting)
		}
		s.larges.reading[hash] = r
		if !room {
			s.larges.queue = append(s.larges.queue, hash) // whose length the requests under way bound
		}
	}
	s.larges.mu.Unlock()
	if room {
		s.start(hash, r)
	}
}

// start a reading for which there is room.
func (s *Store) start(hash swarm.InfoHash, r *reading) {
	if !s.goes(func() { s.readAndGoOn(hash, r) }) {
		s.goOn(hash, r, nil, swarm.ErrUnavailable)
	}
}

// goes runs f unless the store is closed.
func (s *Store) goes(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

func (s *Store) readAndGoOn(hash swarm.InfoHash, r *reading) {
	now := r.now
	known := s.views.get(hash)
	l, strays, err := s.readLarge(hash, now, known.large)
	if err != nil {
		err = s.explain(err)
	}
	var to layout
	if err == nil {
		to = l.shape.Load().layout
		s.mayResize(hash, l, now, known)
	}
	s.goOn(hash, r, l, err) // and it may be read again
	if m := s.mover(hash, now); len(strays) > 0 && m.take() {
		s.repair(hash, to, strays, now)
		m.release()
	}
}

// goOn with what waited for a reading.
func (s *Store) goOn(hash swarm.InfoHash, r *reading, l *large, err error) {
	s.larges.mu.Lock()
	waiting := r.waiting
	delete(s.larges.reading, hash)
	var next *reading // which gets the room of this one
	var nextHash swarm.InfoHash
	if len(s.larges.queue) > 0 {
		nextHash = s.larges.queue[0]
		s.larges.queue = s.larges.queue[1:]
		next = s.larges.reading[nextHash]
	}
	s.larges.mu.Unlock()
	if next != nil {
		defer s.start(nextHash, next)
	} else {
		s.larges.room.Release(1)
	}
	for _, g := range waiting {
		o := &g.ops[0]
		switch {
		case err != nil:
			g.fail(err)
		case l.stale(g.now, s.largeTTL()):
			s.refresh(hash, g.now, g) // it came much later than who began
		case o.announce == nil:
			o.view, o.err = l.view, nil
			g.finish()
		default:
			o.route(l)
			g.lane = s.lane(o.hash, o.partition)
			g.lane.put(g)
		}
	}
}

// readLarge reads a large swarm, of which l is known already if it is not nil: its layout, and some of its partitions
// or all. strays are partitions with peers that belong elsewhere.
func (s *Store) readLarge(hash swarm.InfoHash, now time.Time, l *large) (_ *large, strays []int, err error) {
	p := &peers{ttl: s.opt.PeerTTL}
	downloads, h, err := s.readLayout(p, hash, now)
	switch {
	case err == nil && l != nil:
		l.told = now
	case err != nil && (l == nil || now.Sub(l.told).Abs() > toldEnough):
		return nil, nil, err
	case err != nil: // its node is away; those of other partitions may be there
		c := l.view.Counts()
		p.layout, downloads, h = l.shape.Load().layout, c.Downloads, c.Held
	}
	if l != nil && p.layout == l.shape.Load().layout {
		l.view.Hold(h)
		l.read.Store(now.UnixNano()) // so that it answers while a node keeps the rest waiting
		done := false
		if strays, done = s.readSome(p, hash, now, l, downloads); done {
			s.views.put(hash, seen{view: l.view, at: now, large: l})
			s.hold(hash, l.view, h, now)
			return l, strays, nil
		}
	}
	if l == nil {
		l = &large{view: swarm.NewView(swarm.Part{}, 0), told: now}
		l.view.Complete = true
	}
	l.view.Hold(h)
	strays, err = s.pass(p, hash, now, l, downloads)
	if err != nil {
		return nil, nil, err
	}
	s.hold(hash, l.view, h, now)
	return l, strays, nil
}

// hold makes the held counts of a large swarm follow what was read, if it is time.
func (s *Store) hold(hash swarm.InfoHash, v *swarm.View, h swarm.Held, now time.Time) {
	if s.opt.Hold && lookAgain(&h, now, v.Counts(), v.Counts6()) {
		s.sendAll([]routed{{hash, 0, s.setHeld(hash, h, now)}}, false)
		v.Hold(h)
	}
}

// readLayout reads where the peers of a swarm are into p, its downloads, and its held counts.
func (s *Store) readLayout(p *peers, hash swarm.InfoHash, now time.Time) (downloads int, h swarm.Held, err error) {
	head := redis.NewRawCmd(s.ctx, "zrange", peersKey(hash, 0), 0, 0, "withscores")
	get := s.downloads(hash)
	cmds := []routed{{hash, 0, head}, {hash, 0, get}}
	first := expiring{hash: hash, kind: kindPeers}
	var id expiringID
	expire := !s.expired.has(first.id(&id), 0, now)
	lasting := s.expire(first) // the layout has to outlive all partitions
	if expire {
		cmds = append(cmds, routed{hash, 0, lasting})
	}
	var slow *redis.StringCmd
	if s.opt.Hold {
		slow = s.getHeld(hash)
		cmds = append(cmds, routed{hash, 0, slow})
	}
	s.sendAll(cmds, false)
	if err := p.read(head, now, nil); err != nil {
		return 0, h, err
	}
	if expire && lasting.Err() == nil {
		s.expired.put(first.id(&id), 0, now)
	}
	if slow != nil {
		if h, err = held(slow); err != nil {
			return 0, h, err
		}
	}
	downloads, err = number(get)
	return downloads, h, err
}

// readSome reads some partitions anew, if that is enough to know what has changed.
func (s *Store) readSome(p *peers, hash swarm.InfoHash, now time.Time, l *large, downloads int) (strays []int, done bool) {
	h, since := l.shape.Load(), now.Sub(l.passed).Abs()
	answered := l.answered.Swap(0)
	l.since += answered
	if !h.settled() {
		return nil, since < passShare*l.took
	}
	some := make([]bucket, min(max(answered/rereadAfter, minReread), int64(h.held)))
	if since >= passEvery || len(some) == h.partitions() || l.since >= passAfter*int64(h.partitions()) {
		return nil, false
	}
	for i := range some {
		some[i].partition = (h.first + l.next + i) % h.partitions()
	}
	l.view.Note()
	s.sendAll(s.planBuckets(nil, hash, some, now), false)
	s.readBuckets(p, hash, h.layout, some)
	return straying(nil, some), l.replace(some, downloads)
}

// replace puts partitions that were read anew into the view, unless the swarm has changed so
// much that all have to be read.
func (l *large) replace(some []bucket, downloads int) bool {
	parts := make([]*swarm.Part, len(some))
	before, after := 0, 0
	for i := range some {
		if some[i].err == nil {
			parts[i] = &some[i].part
			before += l.view.PartPeers((l.next + i) % l.shape.Load().held)
			parts[i].Sample()
			after += total(parts[i].Counts())
		}
	}
	if change := after - before; float64(max(change, -change)) > max(steady*float64(before), float64(min(len(some), steadyPeers))) {
		return false
	}
	l.view.Replace(l.next, parts, downloads)
	l.next = (l.next + len(some)) % l.shape.Load().held
	return true
}

func total(n [swarm.Classes]int) (sum int) {
	for _, n := range n {
		sum += n
	}
	return sum
}

// pass reads all partitions, counts them, and keeps some.
func (s *Store) pass(p *peers, hash swarm.InfoHash, now time.Time, l *large, downloads int) (straysAt []int, err error) {
	start := time.Now()
	h := &shape{layout: p.layout}
	n, belong := h.partitions(), 1<<h.to
	h.first, h.held = rand.IntN(belong), min(belong, maxHeld)
	l.view.Note()
	l.answered.Store(0)
	held := h.held
	if !h.settled() {
		held = belong // to tell strays from those that are where they belong too
	}
	parts := make([]swarm.Part, held)
	var sum [swarm.Classes]int
	var strays []stray
	var lastErr error
	read := 0
	trim := now.Sub(l.trimmed).Abs() >= trimEvery
	if trim {
		l.trimmed = now
	}
	buckets := make([]bucket, min(n, passChunk))
	for from := 0; from < n; from += passChunk {
		clear(buckets)
		for i := range buckets {
			if buckets[i].partition = from + i; from+i < belong {
				buckets[i].partition = (h.first + from + i) % belong
			}
		}
		cmds := s.planBuckets(nil, hash, buckets, now)
		if trim {
			for i := range buckets {
				for _, cmd := range s.trim(peersKey(hash, buckets[i].partition), now) {
					cmds = append(cmds, routed{hash, buckets[i].partition, cmd})
				}
			}
		}
		s.sendAll(cmds, false)
		more := s.readBuckets(p, hash, h.layout, buckets)
		if h.settled() {
			straysAt = straying(straysAt, buckets)
		} else {
			strays = append(strays, more...)
		}
		for i := range buckets {
			b := &buckets[i]
			if b.err != nil {
				lastErr = b.err
				continue
			}
			read++
			if from+i < held {
				parts[from+i] = b.part
			}
			for class, n := range b.part.Counts() {
				sum[class] += n
			}
		}
	}
	if read == 0 {
		return nil, lastErr
	}
	if !h.settled() {
		for _, m := range strays {
			if parts[h.rank(m.peer)].Add(m.peer, m.class) {
				sum[m.class]++
			}
		}
	}
	h.held = min(h.held, max(1, belong*heldPeers/max(1, total(sum)*n/read)))
	parts = parts[:h.held]
	for i := range parts {
		parts[i].Sample()
	}
	counts := swarm.Counts{Downloads: downloads}
	for class, peers := range sum {
		*counts.Of(swarm.Class(class)) = peers * n / read // those of nodes that are away are like the rest
	}
	l.view.Renew(parts, h.part, counts, float64(belong)/float64(h.held))
	l.shape.Store(h)
	all := counts.Seeders + counts.Incomplete()
	if took := now.Sub(l.passed).Seconds(); took > 0 && took < passEvery.Seconds() {
		l.grows = float64(all-l.peers) / max(took, 0.05)
	} else {
		l.grows = 0
	}
	l.passed, l.peers, l.since, l.next, l.took = now, all, 0, 0, time.Since(start)
	l.read.Store(now.UnixNano())
	s.larges.mark(hash)
	s.views.put(hash, seen{view: l.view, at: now, large: l})
	return straysAt, nil
}

// bucket is a partition that is read: a range of members for each class, as Redis takes longer to
// print a score than to find a peer.
type bucket struct {
	partition int
	heads     [swarm.Classes]*redis.RawCmd
	counts    [swarm.Classes]*redis.IntCmd // of one that is larger than its heads
	sample    *redis.RawCmd

	part  swarm.Part
	stray bool // some peers belong elsewhere
	err   error
}

func (s *Store) planBuckets(cmds []routed, hash swarm.InfoHash, buckets []bucket, now time.Time) []routed {
	cmds = slices.Grow(cmds, len(buckets)*swarm.Classes)
	var from, to [swarm.Classes]any
	for class := range swarm.Class(swarm.Classes) {
		from[class], to[class] = classStart(class), oldest(class, now, s.opt.PeerTTL)
	}
	for i := range buckets {
		b := &buckets[i]
		var key any = peersKey(hash, b.partition)
		for class := range b.heads {
			b.heads[class] = redis.NewRawCmd(s.ctx, "zrangebyscore", key, from[class], to[class], "limit", 0, partitionHead)
			cmds = append(cmds, routed{hash, b.partition, b.heads[class]})
		}
	}
	return cmds
}

// readBuckets makes parts of what planBuckets asked for, without the strays.
func (s *Store) readBuckets(p *peers, hash swarm.InfoHash, l layout, buckets []bucket) (strays []stray) {
	var more []routed
	for i := range buckets {
		b := &buckets[i]
		before := len(strays)
		if strays, b.err = p.readClasses(b, l, strays); b.err != nil {
			strays = strays[:before]
			continue
		}
		if p.most < partitionHead {
			b.part, b.stray = p.part(), len(strays) > before
			continue
		}
		strays = strays[:before]
		key := peersKey(hash, b.partition)
		for class := range swarm.Class(swarm.Classes) {
			b.counts[class] = redis.NewIntCmd(s.ctx, "zcount", key, classStart(class), classStart(class+1)-1)
			more = append(more, routed{hash, b.partition, b.counts[class]})
		}
		b.sample = redis.NewRawCmd(s.ctx, "zrandmember", key, swarm.ViewPeers, "withscores")
		more = append(more, routed{hash, b.partition, b.sample})
	}
	if len(more) == 0 {
		return strays
	}
	s.sendAll(more, false)
	for i := range buckets {
		b := &buckets[i]
		if b.err != nil || b.sample == nil {
			continue
		}
		before := len(strays)
		if strays, b.err = p.readPartition(b.sample, time.Time{}, l, b.partition, strays); b.err != nil {
			continue
		}
		b.part, b.stray = p.part(), len(strays) > before
		listed := b.part.Counts()
		for _, m := range strays[before:] {
			listed[m.class]++
		}
		for class, n := range b.counts {
			b.err = errors.Join(b.err, n.Err())
			b.part.More[class] = max(0, int(n.Val())-listed[class])
		}
	}
	return strays
}

// repair moves the strays of partitions in which a reader of a settled layout saw some.
func (s *Store) repair(hash swarm.InfoHash, l layout, partitions []int, now time.Time) {
	partitions = partitions[:min(len(partitions), moveChunk)]
	heads := make([]*redis.RawCmd, len(partitions))
	var cmds []routed
	for i, at := range partitions {
		heads[i] = redis.NewRawCmd(s.ctx, "zrange", peersKey(hash, at), 0, partitionHead-1, "withscores")
		cmds = append(cmds, routed{hash, at, heads[i]})
	}
	s.sendAll(cmds, false)
	p := &peers{ttl: s.opt.PeerTTL}
	var strays []stray
	for i, at := range partitions {
		strays, _ = p.readPartition(heads[i], now, l, at, strays)
	}
	for len(strays) > 0 {
		n := min(len(strays), moveBatch)
		s.move(hash, l, strays[:n], now)
		strays = strays[n:]
	}
}

// straying are the partitions that hold strays.
func straying(at []int, buckets []bucket) []int {
	for i := range buckets {
		if buckets[i].stray {
			at = append(at, buckets[i].partition)
		}
	}
	return at
}

// errand tells whether an announce that is stored leaves something to do on another node than
// its peer's: to see that the layout is still the one that it was routed by, a download to count, or a peer that
// stopped to remove from where it may stand yet. Who lives is moved by who has the mover's key, and nobody else.
func (o *op) errand() bool {
	if o.large == nil || o.announce == nil || o.write == nil {
		return false
	}
	return o.announce.Event == swarm.Completed || o.announce.Event == swarm.Stopped
}

// elsewhere are the partitions that a peer which stopped has to be removed from, besides its own: where it may stand yet while peers are
// moved, and the first one, where a gateway that did not know the swarm may have written it before it wrote it where it belongs.
func (o *op) elsewhere() (partitions []int) {
	if o.announce.Event != swarm.Stopped {
		return nil
	}
	add := func(at int) {
		if at != o.partition && !slices.Contains(partitions, at) {
			partitions = append(partitions, at)
		}
	}
	l := o.layout
	compact := swarm.AppendCompact(nil, o.announce.Peer)
	for k := min(l.from, l.to); k <= max(l.from, l.to); k++ { // the mover may have aimed lower at first
		add((layout{k, k}).place(compact))
	}
	add(0)
	return partitions
}

// must tells whether the peer has not stopped before it is removed from a partition elsewhere: from the first one of a settled
// swarm it is in case that it stands there, which the node's being away is no reason to refuse it for.
func (o *op) must(partition int) bool { return partition != 0 || o.stray || !o.layout.settled() }

// runErrands does that and gives the group back. A download that cannot be counted is left; a peer that
// cannot be removed has not stopped.
func (s *Store) runErrands(g *group) {
	done := func() {
		for i := range g.ops {
			g.ops[i].large = nil // no errand any more
		}
		g.finish()
	}
	refuse := func(err error) {
		for i := range g.ops {
			if o := &g.ops[i]; slices.ContainsFunc(o.elsewhere(), o.must) {
				o.err = err
			}
		}
		done()
	}
	if !s.larges.errands.TryAcquire(1) {
		refuse(swarm.ErrBusy)
		return
	}
	if !s.goes(func() {
		defer s.larges.errands.Release(1)
		s.checkLayouts(g.ops)
		s.removeElsewhere(g.ops)
		s.countDownloads(g.ops, g.now)
		done()
	}) {
		s.larges.errands.Release(1)
		refuse(swarm.ErrUnavailable)
	}
}

// checkLayouts lets announces be done again that were routed by a layout that is no more: another gateway that knew
// may have written the peer elsewhere. Where the layout cannot be read, its node is away and nobody changes it.
func (s *Store) checkLayouts(ops []op) {
	marks := make([]*redis.FloatCmd, len(ops))
	cmds := make([]routed, len(ops))
	for i := range ops {
		marks[i] = s.mark(ops[i].hash)
		cmds[i] = routed{ops[i].hash, 0, marks[i]}
	}
	s.sendAll(cmds, false)
	for i, mark := range marks {
		if mark.Err() == nil || mark.Err() == redis.Nil { // that of a small swarm, which has none, is zero
			l, _ := layoutOf(int64(mark.Val()))
			o := &ops[i]
			o.again = l.to != o.layout.to || !l.settled() && l != o.layout
		}
	}
}

// removeElsewhere removes peers from where they stood before, and from where they belong again: the mover may have
// brought them there meanwhile.
func (s *Store) removeElsewhere(ops []op) {
	var before, again []routed
	var of []*op // each command of both
	remove := func(o *op, at int) routed {
		of = append(of, o)
		return routed{o.hash, at, redis.NewIntCmd(s.ctx, "zrem", peersKey(o.hash, at), swarm.AppendCompact(nil, o.announce.Peer))}
	}
	for i := range ops {
		for _, at := range ops[i].elsewhere() {
			before = append(before, remove(&ops[i], at))
		}
	}
	for _, o := range slices.Compact(slices.Clone(of)) {
		again = append(again, remove(o, o.partition))
	}
	short := s.sendAll(before, true)
	short = s.sendAll(again, true) || short
	for i, r := range append(before, again...) {
		err := r.cmd.Err()
		if err == nil && short {
			err = errReplicas
		}
		if err != nil && of[i].err == nil && of[i].must(r.partition) {
			of[i].err = s.explain(err)
		}
	}
}

// countDownloads counts those of large swarms.
func (s *Store) countDownloads(ops []op, now time.Time) {
	var cmds []routed
	added := make([]*redis.IntCmd, len(ops))
	for i := range ops {
		if o := &ops[i]; o.announce.Event == swarm.Completed {
			var remember [2]redis.Cmder
			remember, added[i] = s.remember(o.announce, now)
			expire := s.expire(expiring{hash: o.hash, kind: kindCompleted})
			cmds = append(cmds, routed{o.hash, 0, remember[0]}, routed{o.hash, 0, remember[1]}, routed{o.hash, 0, expire})
		}
	}
	s.sendAll(cmds, true)
	cmds = cmds[:0]
	for i, cmd := range added {
		if cmd != nil && cmd.Err() == nil && cmd.Val() > 0 {
			count := s.countDownload(ops[i].hash)
			cmds = append(cmds, routed{ops[i].hash, 0, count[0]}, routed{ops[i].hash, 0, count[1]})
			ops[i].view.Downloaded()
			s.tellDownload(&ops[i], now)
		}
	}
	s.sendAll(cmds, true)
}
