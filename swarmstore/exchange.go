package swarmstore

import (
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// exchange turns groups into one pipeline and its replies into views. It first
// writes all announces, then reads the swarms of which there is no fresh view,
// so that what was read includes what was written. It belongs to one lane and
// is used again and again.
type exchange struct {
	store *Store
	cmds  []redis.Cmder
	reads []read
	known map[swarm.InfoHash]int // -> index in reads
	alive map[expiring]bool      // keys that this pipeline writes; true for those whose expiry it sets
	class [swarm.Classes][]byte  // scratch: compact peers by class
	zadds []*zadd                // made so far; those that the pipeline uses come first
	used  int                    // how many it uses

	absorbed int  // repeats that the pipeline leaves out
	writes   bool // the pipeline has writes
	short    bool // they are on too few replicas
}

// expiring names a key of a swarm that lasts for the peer TTL.
type expiring struct {
	hash swarm.InfoHash
	kind byte
}

// read of one swarm.
type read struct {
	hash      swarm.InfoHash
	peers     [2]*redis.RawCmd // of IPv4, IPv6
	downloads *redis.StringCmd // when complete
	complete  bool
	view      *swarm.View
	err       error
}

// families in the order of read.peers.
var families = [2]int{swarm.Size4, swarm.Size6}

func newExchange(s *Store) *exchange {
	return &exchange{
		store: s,
		known: make(map[swarm.InfoHash]int),
		alive: make(map[expiring]bool),
	}
}

// run carries out the operations of the groups on a node and sets the view or
// the error of each. It reports false when the node did not answer.
func (x *exchange) run(n *node, groups []*group) bool {
	start := time.Now()
	forgotten := x.store.repeats.forgotten()
	ops := x.plan(groups)
	if len(x.cmds) == 0 {
		x.settle(groups)
		return true
	}
	client := n.client.Load()
	err := x.send(client)
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
		x.store.trouble(n.addr, err)
	}
	x.settle(groups)
	x.store.opt.Metrics.Exchange(ops, time.Since(start), err != nil)
	return err == nil
}

// plan fills cmds with what the groups need of Redis.
func (x *exchange) plan(groups []*group) (ops int) {
	x.cmds, x.reads, x.used = x.cmds[:0], x.reads[:0], 0
	clear(x.known)
	clear(x.alive)
	x.writes, x.short = false, false
	x.absorbed = 0
	hits := 0
	for _, g := range groups {
		ops += len(g.ops)
		for i := range g.ops {
			o := &g.ops[i]
			if o.announce != nil && !x.planWrite(o, g.now) {
				x.absorbed++
			}
			complete := o.announce == nil || o.announce.Complete
			if o.view = x.store.views.get(o.hash, g.now); o.view != nil && (o.view.Complete || !complete) {
				o.read = noRead
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
			x.reads[at].complete = x.reads[at].complete || complete || x.alive[expiring{o.hash, o.kind}]
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

// planAbsorbed fills cmds with the writes that plan left out as repeats.
func (x *exchange) planAbsorbed(groups []*group) {
	x.cmds = x.cmds[:0]
	clear(x.alive)
	for _, g := range groups {
		for i := range g.ops {
			if o := &g.ops[i]; o.announce != nil && o.write == nil {
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
			x.expire(e)
		}
	}
}

func (x *exchange) expire(e expiring) {
	x.cmds = append(x.cmds, redis.NewIntCmd(x.store.ctx, "expire", key(e.hash, e.kind), keySeconds(x.store.opt.PeerTTL+x.store.opt.PeerTTL/expirySlack)))
}

// wrote notes that a pipeline writes a key. Its expiry was set a moment ago, for longer
// than its content lasts, unless it is or may be new.
func (x *exchange) wrote(e expiring, mayBeNew bool, now time.Time) {
	if !x.alive[e] {
		var id expiringID
		x.alive[e] = mayBeNew || !x.store.expired.has(e.id(&id), 0, now)
	}
}

type expiringID [len(swarm.InfoHash{}) + 1]byte

func (e expiring) id(b *expiringID) []byte { return append(append(b[:0], e.hash[:]...), e.kind) }

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
	ctx := x.store.ctx
	kind := peersKind(swarm.Size(a.Peer.Addr()))
	o.kind = kind
	if a.Event == swarm.Stopped {
		peers, peer := key(a.InfoHash, kind), swarm.AppendCompact(nil, a.Peer)
		x.store.repeats.forget(a) // now: a repeat of it may follow in this pipeline
		o.write = redis.NewIntCmd(ctx, "zrem", peers, peer)
		x.wrote(expiring{a.InfoHash, kind}, true, now)
		x.cmds = append(x.cmds, o.write)
		return true
	}
	o.write = x.zadd(a, kind, score(a.Class(), now))
	x.cmds = append(x.cmds, o.write)
	x.wrote(expiring{a.InfoHash, kind}, a.Event == swarm.Started, now)
	if a.Event == swarm.Completed {
		// Whoever was not among the counted is counted in the next pipeline.
		counted := key(a.InfoHash, kindCompleted)
		o.completed = x.zadd(a, kindCompleted, now.Unix())
		x.cmds = append(x.cmds,
			redis.NewIntCmd(ctx, "zremrangebyscore", counted, "-inf", now.Add(-x.store.opt.PeerTTL).Unix()-1),
			o.completed)
		x.wrote(expiring{a.InfoHash, kindCompleted}, true, now)
	}
	return true
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
}

// zadd adds the asker to a set of its swarm.
func (x *exchange) zadd(a *swarm.Announce, kind byte, score int64) *redis.IntCmd {
	if x.used == len(x.zadds) {
		z := &zadd{}
		z.peers = [2]any{z.peer[:swarm.Size4], z.peer[:swarm.Size6]}
		z.args = [4]any{"zadd", z.key[:], &z.score, nil}
		z.cmd = redis.NewIntCmd(x.store.ctx, z.args[:]...)
		x.zadds = append(x.zadds, z)
	}
	z := x.zadds[x.used]
	x.used++
	appendKey(z.key[:0], a.InfoHash, kind)
	z.score = score
	z.args[3] = z.peers[0]
	if len(swarm.AppendCompact(z.peer[:0], a.Peer)) == swarm.Size6 {
		z.args[3] = z.peers[1]
	}
	return z.cmd
}

// keySeconds is the expiry of a key whose content lasts for ttl: whole seconds,
// and one more so that the key never goes first.
func keySeconds(ttl time.Duration) int64 { return int64((ttl+time.Second-1)/time.Second) + 1 }

// planRead adds the reads of a swarm: the head of both sets, which is all of a
// small one, and the downloads, which live on as long as somebody asks.
func (x *exchange) planRead(r *read) {
	ctx := x.store.ctx
	for f, size := range families {
		r.peers[f] = redis.NewRawCmd(ctx, "zrange", key(r.hash, peersKind(size)), 0, swarm.ViewPeers-1, "withscores")
		x.cmds = append(x.cmds, r.peers[f])
	}
	if !r.complete {
		return
	}
	r.downloads = redis.NewStringCmd(ctx, "getex", key(r.hash, kindDownloads), "ex", keySeconds(x.store.opt.DownloadsTTL))
	x.cmds = append(x.cmds, r.downloads)
}

// send runs x.cmds as one pipeline and sets x.short when its writes are on too few
// replicas. What a node sends elsewhere, as it does while slots move, is sent
// there. An error means that a node did not answer; what a single command failed
// with stands in it.
func (x *exchange) send(client *redis.Client) error {
	if err := x.pipeline(client, x.cmds, false); err != nil {
		return err
	}
	for range maxRedirects {
		type target struct {
			addr string
			ask  bool
		}
		elsewhere := map[target][]redis.Cmder{}
		for _, cmd := range x.cmds {
			if addr, ask, ok := redirection(cmd); ok {
				to := target{addr, ask}
				elsewhere[to] = append(elsewhere[to], cmd)
			}
		}
		if len(elsewhere) == 0 {
			return nil
		}
		x.store.rerouted()
		for to, cmds := range elsewhere {
			// That another node does not answer is no fault of this one's.
			if err := x.pipeline(x.store.redirected(to.addr), cmds, to.ask); err != nil {
				for _, cmd := range cmds {
					cmd.SetErr(err)
				}
				x.store.trouble(to.addr, err)
			}
		}
	}
	return nil
}

const (
	// maxRedirects bounds how often one pipeline follows moving slots.
	maxRedirects = 3

	// replicaTimeout bounds the wait for replicas, below the read timeout.
	replicaTimeout = readTimeout / 2
)

func (x *exchange) pipeline(client *redis.Client, cmds []redis.Cmder, ask bool) error {
	ctx := x.store.ctx
	pipe := client.Pipeline()
	for _, cmd := range cmds {
		cmd.SetErr(nil)
		if ask {
			_ = pipe.Process(ctx, redis.NewStatusCmd(ctx, "asking"))
		}
		_ = pipe.Process(ctx, cmd)
	}
	want := x.store.opt.WaitReplicas
	var acks *redis.IntCmd
	if want > 0 && x.writes {
		acks = redis.NewIntCmd(ctx, "wait", want, replicaTimeout.Milliseconds())
		_ = pipe.Process(ctx, acks)
	}
	_, err := pipe.Exec(ctx)
	var reply redis.Error
	if err != nil && !errors.As(err, &reply) {
		return err
	}
	if acks != nil && int(acks.Val()) < want {
		x.short = true
	}
	return nil
}

// redirection tells where a command was sent on to, by "MOVED slot addr", or for
// this once "ASK slot addr".
func redirection(cmd redis.Cmder) (addr string, ask, ok bool) {
	err := cmd.Err()
	if raw, is := cmd.(*redis.RawCmd); is && err == nil {
		err = replyError(raw.Val())
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return "", false, false
	}
	words := strings.Fields(reply.Error())
	if len(words) != 3 || words[0] != "MOVED" && words[0] != "ASK" {
		return "", false, false
	}
	return words[2], words[0] == "ASK", true
}

// settle gives each operation its view or its error, and keeps what was learnt.
func (x *exchange) settle(groups []*group) {
	for _, g := range groups {
		for i := range g.ops {
			o := &g.ops[i]
			o.err = o.failed()
			if o.err == nil && x.short && o.write != nil {
				o.err = errReplicas
			}
			if o.err == nil && o.read != noRead {
				r := &x.reads[o.read]
				o.view, o.err = r.view, r.err
			}
			if o.err != nil {
				o.err = x.store.explain(o.err)
				continue
			}
			if o.announce != nil {
				x.learn(o, g.now)
			}
		}
	}
	for i := range x.reads {
		if r := &x.reads[i]; r.err == nil {
			x.store.views.put(r.hash, r.view, latest(groups))
		}
	}
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
	if o.write == nil || o.read != noRead && !o.late {
		return
	}
	changed := o.write.Val() > 0
	if a.Event == swarm.Stopped {
		o.view.Drop(a.Peer, a.Class(), changed)
		return
	}
	o.view.Put(a.Peer, a.Class(), changed)
}

// more is what the head of a set left open: stale peers to trim, and for a set
// that is larger than the head, its counts and a sample of it.
type more struct {
	read   *read
	size   int
	counts [swarm.Classes]*redis.IntCmd
	sample *redis.RawCmd
	// In a swarm of seeders the sample holds too few leechers for a seeder: these are
	// windows of them at random ranks.
	leechers [leecherWindows]*redis.RawCmd
}

const (
	// viewLeechers is how many leechers a view of a large swarm holds at least, if
	// there are about as many: two answers' worth.
	viewLeechers   = 100
	leecherWindows = 4
)

// planLeechers reads windows of leechers, which have the first ranks, when the sample
// holds too few.
func (m *more) planLeechers(x *exchange, now time.Time) {
	const width = viewLeechers / leecherWindows
	if _, _, err := x.sort(m.sample, m.size, now); err != nil || m.counts[swarm.Leecher].Err() != nil {
		return // fill tells
	}
	all := int(m.counts[swarm.Leecher].Val())
	if held := len(x.class[swarm.Leecher]) / m.size; held >= viewLeechers || held >= all {
		return
	}
	part := (all + leecherWindows - 1) / leecherWindows
	for i := range m.leechers {
		from := i*part + rand.IntN(max(1, part-width+1))
		m.leechers[i] = redis.NewRawCmd(x.store.ctx, "zrange", key(m.read.hash, peersKind(m.size)), from, from+min(width, part)-1, "withscores")
		x.cmds = append(x.cmds, m.leechers[i])
	}
}

// finish makes views of what was read. What the first pipeline left to do it does in a
// second one: count downloads, and where a set was larger than its head or held stale
// peers, read and trim the rest.
func (x *exchange) finish(client *redis.Client, groups []*group) error {
	ctx, now := x.store.ctx, latest(groups)
	var rest []more
	x.cmds = x.cmds[:0]
	var id expiringID
	for e, set := range x.alive {
		if set {
			x.store.expired.put(e.id(&id), 0, now)
		}
	}
	for _, g := range groups {
		for i := range g.ops {
			o := &g.ops[i]
			if e := (expiring{o.hash, o.kind}); o.added() && !x.alive[e] {
				x.alive[e] = true // the key may be new, against all expectation
				x.expire(e)
			}
			if o.downloaded() {
				downloads := key(o.hash, kindDownloads)
				x.cmds = append(x.cmds, redis.NewIntCmd(ctx, "incr", downloads),
					redis.NewIntCmd(ctx, "expire", downloads, keySeconds(x.store.opt.DownloadsTTL)))
			}
		}
	}
	for i := range x.reads {
		r := &x.reads[i]
		var downloads int
		if r.complete {
			if downloads, r.err = count(r.downloads); r.err != nil {
				continue
			}
		}
		r.view = swarm.NewView(swarm.Counts{Downloads: downloads})
		r.view.Complete = r.complete
		for f, size := range families {
			held, stale, err := x.sort(r.peers[f], size, now)
			if err != nil {
				r.err = err
				break
			}
			m := more{read: r, size: size}
			peers := key(r.hash, peersKind(size))
			if stale || held == swarm.ViewPeers {
				for class := range swarm.Class(swarm.Classes) {
					x.cmds = append(x.cmds, redis.NewIntCmd(ctx, "zremrangebyscore", peers,
						oldest(class, now, x.store.opt.PeerTTL)+1, classStart(class+1)-1))
				}
			}
			if held < swarm.ViewPeers {
				x.fill(r.view, size, true)
				continue
			}
			for class := range swarm.Class(swarm.Classes) {
				m.counts[class] = redis.NewIntCmd(ctx, "zcount", peers, classStart(class), classStart(class+1)-1)
				x.cmds = append(x.cmds, m.counts[class])
			}
			m.sample = redis.NewRawCmd(ctx, "zrandmember", peers, swarm.ViewPeers, "withscores")
			x.cmds = append(x.cmds, m.sample)
			rest = append(rest, m)
		}
	}
	if len(x.cmds) == 0 {
		return nil
	}
	x.writes = false
	if err := x.send(client); err != nil {
		return err
	}
	return x.fillLarge(client, rest, now)
}

// fillLarge makes the views of sets that are larger than their heads.
func (x *exchange) fillLarge(client *redis.Client, rest []more, now time.Time) error {
	x.cmds = x.cmds[:0]
	for i := range rest {
		rest[i].planLeechers(x, now)
	}
	if len(x.cmds) > 0 {
		if err := x.send(client); err != nil {
			return err
		}
	}
	for _, m := range rest {
		m.fill(x, now)
	}
	return nil
}

// fill makes the view of a set that is larger than its head.
func (m *more) fill(x *exchange, now time.Time) {
	r := m.read
	var counts [swarm.Classes]int
	for class, cmd := range m.counts {
		if cmd.Err() != nil {
			r.err = cmd.Err()
			return
		}
		counts[class] = int(cmd.Val())
	}
	var leechers []byte
	for _, window := range m.leechers {
		if window == nil {
			break
		}
		if _, _, err := x.sort(window, m.size, now); err != nil {
			r.err = err
			return
		}
		leechers = append(leechers, x.class[swarm.Leecher]...)
	}
	if _, _, err := x.sort(m.sample, m.size, now); err != nil {
		r.err = err
		return
	}
	if len(leechers) > 0 {
		x.class[swarm.Leecher] = leechers
	}
	x.fill(r.view, m.size, false)
	r.view.Add(counts)
}

// sort reads the reply to a ZRANGE or ZRANDMEMBER with scores into x.class,
// without the stale peers.
func (x *exchange) sort(cmd *redis.RawCmd, size int, now time.Time) (held int, stale bool, err error) {
	for class := range x.class {
		x.class[class] = x.class[class][:0]
	}
	if cmd.Err() != nil {
		return 0, false, cmd.Err()
	}
	if err := replyError(cmd.Val()); err != nil {
		return 0, false, err
	}
	err = parsePeers(cmd.Val(), func(peer []byte, score int64) {
		held++
		class, ok := classOf(score)
		if !ok || len(peer) != size {
			return
		}
		if score > oldest(class, now, x.store.opt.PeerTTL) {
			stale = true
			return
		}
		x.class[class] = append(x.class[class], peer...)
	})
	return held, stale, err
}

// fill moves x.class into a view, and into its counts too when it is all there is.
func (x *exchange) fill(view *swarm.View, size int, all bool) {
	var counts [swarm.Classes]int
	for class, peers := range x.class {
		counts[class] = len(peers) / size
		view.Fill(size, swarm.Class(class), peers)
	}
	if all {
		view.Add(counts)
	}
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

// count of downloads; none are no error.
func count(cmd *redis.StringCmd) (int, error) {
	n, err := cmd.Int()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return n, err
}
