package swarmstore

import (
	"errors"
	"net/netip"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// exchange turns groups into one pipeline and its replies into views. It first
// writes all announces, then reads the small swarms of which there is no fresh view,
// so that what was read includes what was written. It belongs to one lane and
// is used again and again.
type exchange struct {
	store  *Store
	cmds   []redis.Cmder
	reads  []read
	known  map[swarm.InfoHash]int // -> index in reads
	alive  map[expiring]bool      // keys that this pipeline writes; true for those whose expiry it sets
	peers  peers
	zadds  []*zadd  // made so far; those that the pipeline uses come first
	used   int      // how many it uses
	heads  []*zhead // likewise
	headed int

	expiries []expiry // that the pipeline sets

	apart   *reader       // that is read from in place of the master, if one is
	reading []redis.Cmder // the reads then

	written int       // announces that were planned, ever: one in RenewalSample is sampled
	renewed []renewal // those of this pipeline that are

	absorbed int  // repeats that the pipeline leaves out
	writes   bool // the pipeline has writes
	short    bool // they are on too few replicas
}

// expiring names a key of a swarm that lasts for the peer TTL.
type expiring struct {
	hash      swarm.InfoHash
	kind      byte
	partition int
}

// expiry is a key and the command that makes it last.
type expiry struct {
	key expiring
	cmd redis.Cmder
}

// read of one small swarm.
type read struct {
	hash      swarm.InfoHash
	head      *redis.RawCmd
	downloads *redis.StringCmd // when complete
	held      *redis.StringCmd // with Options.Hold
	complete  bool
	view      *swarm.View
	large     bool // it turned out to be none of the small
	err       error
}

// smallSwarm is how many peers a swarm has at most that is read whole and written to one
// key: fewer by some than the 128 up to which Redis keeps a set in a compact form.
const smallSwarm = 112

func newExchange(s *Store) *exchange {
	return &exchange{
		store: s,
		known: make(map[swarm.InfoHash]int),
		alive: make(map[expiring]bool),
		peers: peers{ttl: s.opt.PeerTTL},
	}
}

// run carries out the operations of the groups on a node and sets the view or
// the error of each.
func (x *exchange) run(n *node, groups []*group) {
	start := time.Now()
	forgotten := x.store.repeats.forgotten()
	x.apart = x.store.reader(n.addr)
	ops := x.plan(groups)
	if len(x.cmds)+len(x.reading) == 0 {
		x.settle(groups)
		return
	}
	client := n.client.Load()
	err := x.sendAndRead(client)
	if err == nil && x.absorbed > 0 && x.store.repeats.forgotten() != forgotten {
		// The node is another one than those repeats were stored on.
		x.planAbsorbed(groups)
		err = x.send(client)
	}
	if err == nil {
		err = x.finish(client, groups)
	}
	if err != nil {
		x.short = x.store.opt.WaitReplicas > 0
		for i := range x.reads {
			x.reads[i].err = err
		}
		x.store.failed(n.addr, err)
	}
	x.settle(groups)
	x.tellRenewed()
	x.store.opt.Metrics.Exchange(ops, time.Since(start), err != nil)
}

func (x *exchange) send(client *redis.Client) error {
	short, err := x.store.send(client, x.cmds, x.writes)
	x.short = x.short || short
	return err
}

// sendAndRead sends what was planned, and reads from the reader meanwhile, if there is one. What that fails to read the master is
// asked for.
func (x *exchange) sendAndRead(master *redis.Client) error {
	if len(x.reading) == 0 {
		return x.send(master)
	}
	read := make(chan bool, 1)
	go func() { read <- x.store.readApart(x.apart, x.reading) }()
	var err error
	if len(x.cmds) > 0 {
		err = x.send(master)
	}
	if !<-read && err == nil {
		_, err = x.store.send(master, x.reading, false)
	}
	return err
}

// plan fills cmds with what the groups need of Redis.
func (x *exchange) plan(groups []*group) (ops int) {
	x.cmds, x.reading, x.reads, x.expiries, x.renewed, x.used, x.headed = x.cmds[:0], x.reading[:0], x.reads[:0], x.expiries[:0], x.renewed[:0], 0, 0
	clear(x.known)
	clear(x.alive)
	x.writes, x.short = false, false
	x.absorbed = 0
	hits := 0
	for _, g := range groups {
		ops += len(g.ops)
		late := time.Since(g.queued) > queueTime
		for i := range g.ops {
			o := &g.ops[i]
			o.read = noRead
			var seen seen
			if o.large == nil {
				seen = x.store.views.get(o.hash)
			}
			if seen.large != nil || o.large != nil && late {
				o.again = true // it became large while this waited, or changed perhaps
				continue
			}
			if o.announce != nil && !x.planWrite(o, g.now) {
				x.absorbed++
			}
			complete := o.announce == nil || o.announce.Complete
			if o.large != nil {
				o.view = o.large.view
			} else if x.store.views.fresh(seen, g.now) && (seen.view.Complete || !complete) {
				o.view = seen.view
			}
			if o.view != nil {
				hits++
				continue
			}
			at, ok := x.known[o.hash]
			if !ok {
				at = len(x.reads)
				x.known[o.hash] = at
				x.reads = append(x.reads, read{hash: o.hash})
			}
			o.read = at
			// Where a key's expiry is set, that of the downloads is too, by looking at them.
			x.reads[at].complete = x.reads[at].complete || complete || x.alive[o.key()]
		}
	}
	x.planExpiry()
	for i := range x.reads {
		x.planRead(&x.reads[i])
	}
	x.store.opt.Metrics.Views(hits, ops-hits)
	x.store.opt.Metrics.Absorbed(x.absorbed)
	return ops
}

// planAbsorbed fills cmds with the writes that plan left out as repeats, but for those of peers
// of which the pipeline has written something else.
func (x *exchange) planAbsorbed(groups []*group) {
	x.cmds, x.expiries = x.cmds[:0], x.expiries[:0]
	clear(x.alive)
	written := map[peerID]bool{}
	id := func(a *swarm.Announce) (b peerID) {
		b.of(a)
		return b
	}
	for _, g := range groups {
		for i := range g.ops {
			if o := &g.ops[i]; o.write != nil {
				written[id(o.announce)] = true
			}
		}
	}
	for _, g := range groups {
		for i := range g.ops {
			if o := &g.ops[i]; o.announce != nil && o.write == nil && !o.again && !written[id(o.announce)] {
				o.late = x.planWrite(o, g.now)
			}
		}
	}
	x.planExpiry()
}

// expirySlack is the part of the peer TTL by which keys may outlive their last peer, so
// that a key whose expiry was set within that time need not have it set again.
const expirySlack = 16

// planExpiry makes the sets that are written expire: after all writes, because the last
// peer to leave takes its key along, and the next to come makes a new one.
func (x *exchange) planExpiry() {
	for e, set := range x.alive {
		if set {
			x.expiries = append(x.expiries, expiry{e, x.store.expire(e)})
			x.cmds = append(x.cmds, x.expiries[len(x.expiries)-1].cmd)
			if x.apart != nil && e == (expiring{hash: e.hash, kind: kindPeers}) {
				x.cmds = append(x.cmds, x.store.keepDownloads(e.hash)) // as reading does where it is done here
			}
		}
	}
}

// expire is the command that makes a key last for the peer TTL.
func (s *Store) expire(e expiring) redis.Cmder {
	return redis.NewIntCmd(s.ctx, "expire", appendKey(make([]byte, 0, keyLen), e.hash, e.kind, e.partition), keySeconds(s.opt.PeerTTL+s.opt.PeerTTL/expirySlack))
}

// wrote notes that a pipeline writes a key. Its expiry was set a moment ago, for longer
// than its content lasts, unless it is or may be new.
func (x *exchange) wrote(e expiring, mayBeNew bool, now time.Time) {
	if !x.alive[e] {
		var id expiringID
		x.alive[e] = mayBeNew || !x.store.expired.has(e.id(&id), 0, now)
	}
}

type expiringID [len(swarm.InfoHash{}) + 1 + 2]byte

func (e expiring) id(b *expiringID) []byte {
	return append(append(b[:0], e.hash[:]...), e.kind, byte(e.partition>>8), byte(e.partition))
}

// planWrite adds the writes of an announce; false means that it needs none.
func (x *exchange) planWrite(o *op, now time.Time) bool {
	a := o.announce
	if a.Event == swarm.None || a.Event == swarm.Paused {
		// Who starts may have stopped through another gateway; the rest repeats itself.
		if x.store.repeats.has(a, now) {
			return false
		}
	}
	x.writes = true
	if a.Event == swarm.Stopped {
		x.store.repeats.forget(a) // now: a repeat of it may follow in this pipeline
		o.write = redis.NewIntCmd(x.store.ctx, "zrem", peersKey(a.InfoHash, o.partition), swarm.AppendCompact(nil, a.Peer))
		x.wrote(o.key(), true, now)
		x.cmds = append(x.cmds, o.write)
		x.planMark(o)
		return true
	}
	z := x.zadd(a, o.partition, score(a.Class(), now))
	if x.written++; x.store.opt.Renewals && x.written%RenewalSample == 0 {
		x.cmds = append(x.cmds, x.sample(z, a.Peer.Addr(), now))
	}
	o.write = z.cmd
	x.cmds = append(x.cmds, o.write)
	x.wrote(o.key(), a.Event == swarm.Started, now)
	if a.Event == swarm.Completed && o.large == nil {
		var cmds [2]redis.Cmder
		cmds, o.completed = x.store.remember(a, now)
		x.cmds = append(x.cmds, cmds[:]...)
		x.wrote(expiring{hash: a.InfoHash, kind: kindCompleted}, true, now)
		x.planMark(o)
	} else if x.apart != nil {
		x.planMark(o) // a replica may not know yet that the swarm is large
	}
	return true
}

// planMark looks whether a swarm that was small when it was last seen is large by now. Another gateway that knows
// may have written the peer elsewhere, and there it would stay as it is, while other writes can wait for the mover.
func (x *exchange) planMark(o *op) {
	if o.large == nil {
		o.mark = x.store.mark(o.hash)
		x.cmds = append(x.cmds, o.mark)
	}
}

// mark is the command that reads the layout of a swarm.
func (s *Store) mark(hash swarm.InfoHash) *redis.FloatCmd {
	return redis.NewFloatCmd(s.ctx, "zscore", peersKey(hash, 0), layoutMember)
}

// remember are the commands that add a peer to those whose download was counted. Whoever
// was not among them, as added tells then, is to be counted.
func (s *Store) remember(a *swarm.Announce, now time.Time) (cmds [2]redis.Cmder, added *redis.IntCmd) {
	counted := key(a.InfoHash, kindCompleted)
	added = redis.NewIntCmd(s.ctx, "zadd", counted, now.Unix(), swarm.AppendCompact(nil, a.Peer))
	return [2]redis.Cmder{
		redis.NewIntCmd(s.ctx, "zremrangebyscore", counted, "-inf", now.Add(-s.opt.PeerTTL).Unix()-1),
		added,
	}, added
}

// countDownload are the commands that count one more download.
func (s *Store) countDownload(hash swarm.InfoHash) [2]redis.Cmder {
	downloads := key(hash, kindDownloads)
	return [2]redis.Cmder{
		redis.NewIntCmd(s.ctx, "incr", downloads),
		s.keepDownloads(hash),
	}
}

// keepDownloads is the command that makes them last.
func (s *Store) keepDownloads(hash swarm.InfoHash) *redis.IntCmd {
	return redis.NewIntCmd(s.ctx, "expire", key(hash, kindDownloads), keySeconds(s.opt.DownloadsTTL))
}

// zadd is a ZADD of one peer whose command and arguments are used again in later pipelines, so
// that an announce which only refreshes its peer allocates none.
type zadd struct {
	cmd   *redis.IntCmd
	args  [4]any // of cmd: "zadd", the key, the score, and one of peers
	peers [2]any // the peer, by address family
	key   [keyLen]byte
	score int64
	peer  [swarm.Size6]byte

	previous *redis.RawCmd // ZSCORE of the peer, made when it is sampled first
	asks     [3]any        // of previous
}

// zadd adds the asker to a partition of its swarm.
func (x *exchange) zadd(a *swarm.Announce, partition int, score int64) *zadd {
	if x.used == len(x.zadds) {
		z := &zadd{}
		z.peers = [2]any{z.peer[:swarm.Size4], z.peer[:swarm.Size6]}
		z.args = [4]any{"zadd", z.key[:], &z.score, nil}
		z.cmd = redis.NewIntCmd(x.store.ctx, z.args[:]...)
		x.zadds = append(x.zadds, z)
	}
	z := x.zadds[x.used]
	x.used++
	appendKey(z.key[:0], a.InfoHash, kindPeers, partition)
	z.score = score
	z.args[3] = z.peers[0]
	if len(swarm.AppendCompact(z.peer[:0], a.Peer)) == swarm.Size6 {
		z.args[3] = z.peers[1]
	}
	return z
}

// RenewalSample is of how many announces one is sampled.
const RenewalSample = 64

// renewal is a sampled announce.
type renewal struct {
	peer     netip.Addr
	at       time.Time
	previous *redis.RawCmd
}

// sample is the command that asks, before a peer is written, when it was before.
func (x *exchange) sample(z *zadd, peer netip.Addr, now time.Time) redis.Cmder {
	if z.previous == nil {
		z.asks = [3]any{"zscore", z.args[1], nil}
		z.previous = redis.NewRawCmd(x.store.ctx, z.asks[:]...)
	}
	z.asks[2] = z.args[3]
	x.renewed = append(x.renewed, renewal{peer, now, z.previous})
	return z.previous
}

// tellRenewed tells of the sampled peers that were there.
func (x *exchange) tellRenewed() {
	for _, r := range x.renewed {
		if cmdError(r.previous) != nil {
			continue
		}
		text, _, known := bulk(r.previous.Val())
		score, err := strconv.ParseInt(string(text), 10, 64)
		if !known || err != nil {
			continue
		}
		if ago := r.at.Sub(announcedAt(score)); ago < x.store.opt.PeerTTL {
			x.store.opt.Metrics.Renewed(r.peer, int(max(ago, 0)/time.Minute))
		}
	}
}

// zhead is the ZRANGE of a small swarm, used again likewise.
type zhead struct {
	cmd *redis.RawCmd
	key [keyLen]byte
}

// keySeconds is the expiry of a key whose content lasts for ttl: whole seconds,
// and one more so that the key never goes first.
func keySeconds(ttl time.Duration) int64 { return int64((ttl+time.Second-1)/time.Second) + 1 }

// planRead adds the reads of a swarm: all of a small one, as far as it shows that a swarm
// is large, and the downloads, which live on as long as somebody asks.
func (x *exchange) planRead(r *read) {
	ctx := x.store.ctx
	if x.headed == len(x.heads) {
		h := &zhead{}
		h.cmd = redis.NewRawCmd(ctx, "zrange", h.key[:], 0, smallSwarm, "withscores")
		x.heads = append(x.heads, h)
	}
	h := x.heads[x.headed]
	x.headed++
	appendKey(h.key[:0], r.hash, kindPeers, 0)
	cmds := &x.cmds
	if x.apart != nil {
		cmds = &x.reading
	}
	r.head = h.cmd
	*cmds = append(*cmds, r.head)
	if r.complete {
		r.downloads = x.store.downloads(r.hash)
		if x.apart != nil {
			r.downloads = redis.NewStringCmd(ctx, "get", key(r.hash, kindDownloads))
		}
		*cmds = append(*cmds, r.downloads)
	}
	if x.store.opt.Hold {
		r.held = x.store.getHeld(r.hash)
		*cmds = append(*cmds, r.held)
	}
}

// downloads is the command that reads them, and keeps them.
func (s *Store) downloads(hash swarm.InfoHash) *redis.StringCmd {
	return redis.NewStringCmd(s.ctx, "getex", key(hash, kindDownloads), "ex", keySeconds(s.opt.DownloadsTTL))
}

// settle gives each operation its view or its error, and keeps what was learnt.
func (x *exchange) settle(groups []*group) {
	for i := range x.reads {
		if r := &x.reads[i]; r.err == nil && !r.large {
			x.store.views.put(r.hash, seen{view: r.view, at: latest(groups)})
		}
	}
	for _, g := range groups {
		for i := range g.ops {
			o := &g.ops[i]
			o.err = o.failed()
			if o.err == nil && x.short && o.write != nil {
				o.err = errReplicas
			}
			if o.err == nil && o.read != noRead {
				r := &x.reads[o.read]
				o.view, o.again, o.err = r.view, r.large, r.err
			}
			if o.err == nil && o.mark != nil {
				if o.err = o.mark.Err(); o.err == redis.Nil {
					o.err = nil
				} else {
					o.again = o.err == nil
				}
			}
			if o.err != nil {
				o.again = false
				o.err = x.store.explain(o.err)
				continue
			}
			if o.announce != nil && !o.again {
				x.learn(o, g.now)
			}
		}
	}
	x.store.tellDownloads(groups)
}

// errReplicas says that a write is on fewer replicas than it must be.
var errReplicas = errors.New("too few replicas acknowledged the writes (--wait-replicas)")

// failed is the error of an operation's own write.
func (o *op) failed() error {
	if o.write == nil {
		return nil
	}
	return o.write.Err()
}

// added tells whether the write made a peer known.
func (o *op) added() bool {
	return o.write != nil && o.announce.Event != swarm.Stopped && o.write.Err() == nil && o.write.Val() > 0
}

// downloaded tells whether a download is to be counted: of a peer that is stored, and was
// not among the counted. One that cannot be told is not counted.
func (o *op) downloaded() bool {
	return o.completed != nil && o.failed() == nil && o.completed.Err() == nil && o.completed.Val() > 0
}

// learn notes an acknowledged write among the repeats, and in a view that was
// read before it.
func (x *exchange) learn(o *op, now time.Time) {
	a := o.announce
	if a.Event == swarm.Stopped {
		x.store.repeats.forget(a)
	} else if o.write != nil {
		x.store.repeats.put(a, now)
	}
	if o.downloaded() {
		o.view.Downloaded() // counted after the view was read
	}
	if o.write == nil || o.read != noRead && !o.late && x.apart == nil {
		return // the view was read after it
	}
	changed := o.write.Val() > 0
	if a.Event == swarm.Stopped {
		o.view.Drop(a.Peer, a.Class(), changed)
		return
	}
	o.view.Put(a.Peer, a.Class(), changed)
	if changed && o.large == nil {
		if c := o.view.Counts(); c.Seeders+c.Incomplete() > smallSwarm {
			x.store.refresh(a.InfoHash, now, nil) // it is large now
		}
	}
}

// finish makes views of what was read. What the first pipeline left to do it does in a
// second one: count downloads, make keys expire that may be new, remove stale peers, hold counts.
func (x *exchange) finish(client *redis.Client, groups []*group) error {
	now := latest(groups)
	x.cmds = x.cmds[:0]
	var id expiringID
	for _, e := range x.expiries {
		if e.cmd.Err() == nil {
			x.store.expired.put(e.key.id(&id), 0, now)
		}
	}
	for _, g := range groups {
		for i := range g.ops {
			o := &g.ops[i]
			if o.added() && !x.alive[o.key()] {
				x.alive[o.key()] = true // the key may be new, against all expectation
				x.cmds = append(x.cmds, x.store.expire(o.key()))
			}
			if o.downloaded() {
				cmds := x.store.countDownload(o.hash)
				x.cmds = append(x.cmds, cmds[:]...)
			}
		}
	}
	for i := range x.reads {
		r := &x.reads[i]
		var downloads int
		if r.complete {
			if downloads, r.err = number(r.downloads); r.err != nil {
				continue
			}
		}
		if r.err = x.peers.read(r.head, now, nil); r.err != nil {
			continue
		}
		if x.peers.stale {
			cmds := x.store.trim(peersKey(r.hash, 0), now)
			x.cmds = append(x.cmds, cmds[:]...)
		}
		if r.large = x.peers.marked || x.peers.held > smallSwarm; r.large {
			continue
		}
		r.view = swarm.NewView(x.peers.part(), downloads)
		r.view.Complete = r.complete
		if r.held != nil {
			r.err = x.hold(r, now)
		}
	}
	if len(x.cmds) == 0 {
		return nil
	}
	x.writes = false
	return x.send(client)
}

// hold gives a view its held counts, and stores them if they are new.
func (x *exchange) hold(r *read, now time.Time) error {
	h, err := held(r.held)
	if err == nil && lookAgain(&h, now, r.view.Counts(), r.view.Counts6()) {
		x.cmds = append(x.cmds, x.store.setHeld(r.hash, h, now))
	}
	r.view.Hold(h)
	return err
}

func latest(groups []*group) time.Time {
	now := groups[0].now
	for _, g := range groups[1:] {
		if g.now.After(now) {
			now = g.now
		}
	}
	return now
}

// number that a key holds; none is no error.
func number(cmd *redis.StringCmd) (int, error) {
	text, err := cmd.Result()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, foreign(cmd)
	}
	return n, nil
}
