package swarmstore

import (
	"crypto/rand"
	"math/bits"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// A swarm that outgrows its layout, or shrinks far below it, gets another one. Whoever sees that takes
// the mover's key and
//
//  1. writes the new layout beside the old one: who reads that writes peers by the
//     new one, and looks for them by both;
//  2. waits until every gateway must have read it, as no older view answers any more;
//  3. moves the peers that stand where they do not belong;
//  4. writes that the layout is settled.
//
// If it dies on the way, the mover's key expires, and who next reads the swarm goes on.
const (
	fewPeers  = 16 // a partition on average, below which a swarm gets fewer of them
	goodPeers = 64 // above which a new layout has not
	manyPeers = 80 // above which it gets more; few partitions then have more than 128

	// A swarm that grows is given room for as many peers as it may have this much later,
	// but for no more than so many times its peers.
	lookAhead      = 4 * time.Second
	lookAheadTimes = 15

	maxResizes = 1024 // under way at a time, most of them waiting
	maxSweeps  = 16
	moverTTL   = 15 * time.Second
	moverStep  = 500 * time.Millisecond
	moveChunk  = 128 // partitions that one pipeline looks through
	moveBatch  = 256 // peers that are moved at a time: who reads meanwhile may see these twice

	// listpackEntries is how many members Redis keeps in the compact form by default. A set that had
	// more does not return to it by itself.
	listpackEntries = 128
)

// layoutFor is the number of partitions, as a power of two, for so many peers.
func layoutFor(peers int) uint8 {
	if peers <= smallSwarm {
		return 0
	}
	return uint8(min(bits.Len(uint((peers-1)/goodPeers)), maxLayout))
}

// mayResize changes the layout of a swarm that has just been read, if it has to be.
func (s *Store) mayResize(hash swarm.InfoHash, l *large, now time.Time, before seen) {
	h := l.shape.Load()
	grows := max(l.grows, 0)
	if before.view != nil && before.large == nil {
		grows = float64(before.view.Added()) / max(now.Sub(before.at).Abs().Seconds(), 0.001)
	}
	to := h.to
	later := l.peers + min(int(grows*lookAhead.Seconds()), l.peers*lookAheadTimes)
	switch {
	case l.peers > manyPeers<<h.to && layoutFor(l.peers) > h.to, h.to == 0 && l.peers > smallSwarm:
		to = layoutFor(later)
	case h.to > 0 && max(l.peers, later) < fewPeers<<h.to:
		to = layoutFor(max(l.peers, later))
	}
	l.wanted.Store(uint32(to))
	if h.settled() && to == h.to {
		if h.to == 0 && l.peers <= smallSwarm {
			s.views.drop(hash) // it is a small one again
		}
		return
	}
	if !s.larges.resizing.TryAcquire(1) {
		return // who reads it next may
	}
	if !s.goes(func() {
		defer s.larges.resizing.Release(1)
		m := s.mover(hash, now)
		if !m.take() {
			return
		}
		m.resize(to)
		m.release()
	}) {
		s.larges.resizing.Release(1)
	}
}

// mover moves the peers of one swarm, as the only one in the fleet.
type mover struct {
	store *Store
	hash  swarm.InfoHash
	began time.Time
	clock time.Time // when that was
	token string
}

func (s *Store) mover(hash swarm.InfoHash, now time.Time) *mover {
	return &mover{store: s, hash: hash, began: now, clock: time.Now(), token: rand.Text()}
}

func (m *mover) now() time.Time { return m.began.Add(time.Since(m.clock)) }

func (m *mover) do(cmd redis.Cmder) redis.Cmder {
	if m.store.sendAll([]routed{{m.hash, 0, cmd}}, true) && cmd.Err() == nil {
		cmd.SetErr(errReplicas)
	}
	return cmd
}

func (m *mover) take() bool {
	cmd := redis.NewStatusCmd(m.store.ctx, "set", key(m.hash, kindMover), m.token, "nx", "px", moverTTL.Milliseconds())
	return m.do(cmd).Err() == nil
}

// holds tells whether this is still the mover, and makes it so for longer.
func (m *mover) holds() bool {
	ctx, k := m.store.ctx, key(m.hash, kindMover)
	get := redis.NewStringCmd(ctx, "get", k)
	if m.do(get).Err() != nil || get.Val() != m.token {
		return false
	}
	return m.do(redis.NewIntCmd(ctx, "pexpire", k, moverTTL.Milliseconds())).Err() == nil
}

func (m *mover) release() {
	if m.holds() {
		m.do(redis.NewIntCmd(m.store.ctx, "del", key(m.hash, kindMover)))
	}
}

// resize brings the swarm to a layout, or to the one that somebody else had begun with.
func (m *mover) resize(to uint8) {
	s := m.store
	head := redis.NewRawCmd(s.ctx, "zrange", peersKey(m.hash, 0), 0, 0, "withscores")
	p := &peers{ttl: s.opt.PeerTTL}
	if m.do(head); p.read(head, m.now(), nil) != nil {
		return
	}
	l := p.layout
	if l.settled() {
		if l.to == to {
			return
		}
		if l.to = to; !m.write(l) {
			return
		}
	}
	s.refresh(m.hash, m.now(), nil)
	if !m.wait(&l) {
		return
	}
	if s.larges.sweeping.Acquire(s.ctx, 1) != nil {
		return
	}
	defer s.larges.sweeping.Release(1)
	if m.sweep(l) && m.write(layout{l.to, l.to}) {
		s.refresh(m.hash, m.now(), nil)
	}
}

// wait until no gateway knows an older layout than l. If the swarm grows faster than was to be seen,
// l is aimed higher meanwhile: in the first second it is looked at often, so that few peers are written by a layout
// that does not last.
func (m *mover) wait(l *layout) bool {
	s, began, step := m.store, time.Now(), moverStep/5
	for since := began; time.Since(since) < 2*s.largeTTL()+queueTime+readTimeout; {
		select {
		case <-s.ctx.Done():
			return false
		case <-time.After(step):
		}
		if step < moverStep {
			s.refresh(m.hash, m.now(), nil)
			if time.Since(began) > 2*moverStep {
				step = moverStep
			}
		}
		if seen := s.views.get(m.hash); l.to > l.from && seen.large != nil && uint8(seen.large.wanted.Load()) > l.to {
			l.to, since = uint8(seen.large.wanted.Load()), time.Now()
			if !m.write(*l) {
				return false
			}
			s.refresh(m.hash, m.now(), nil)
		} else if step == moverStep && !m.holds() {
			return false
		}
	}
	return true
}

// write the layout of the swarm.
func (m *mover) write(l layout) bool {
	ctx, k := m.store.ctx, peersKey(m.hash, 0)
	if !m.holds() {
		return false
	}
	if l == (layout{}) {
		return m.do(redis.NewIntCmd(ctx, "zrem", k, layoutMember)).Err() == nil
	}
	if m.do(redis.NewIntCmd(ctx, "zadd", k, l.score(), layoutMember)).Err() != nil {
		return false
	}
	return m.do(m.store.expire(expiring{hash: m.hash, kind: kindPeers})).Err() == nil
}

// sweep moves all peers of a swarm to where they belong.
func (m *mover) sweep(l layout) bool {
	for from := 0; from < l.partitions(); from += moveChunk {
		if !m.sweepChunk(l, from, min(moveChunk, l.partitions()-from)) {
			return false
		}
	}
	return true
}

// swept is how far a partition is.
type swept struct {
	partition int
	head      *redis.RawCmd
	kept      int  // members at its beginning that stay
	found     bool // some that do not, since its beginning
	large     bool // it had more members than the compact form takes
	done      bool
}

func (m *mover) sweepChunk(l layout, from, n int) bool {
	s, p := m.store, &peers{ttl: m.store.opt.PeerTTL}
	chunk := make([]swept, n)
	for i := range chunk {
		chunk[i].partition = from + i
	}
	for {
		if !m.holds() {
			return false
		}
		var cmds []routed
		for i := range chunk {
			if c := &chunk[i]; !c.done {
				c.head = redis.NewRawCmd(s.ctx, "zrange", peersKey(m.hash, c.partition), c.kept, c.kept+partitionHead-1, "withscores")
				cmds = append(cmds, routed{m.hash, c.partition, c.head})
			}
		}
		if len(cmds) == 0 {
			break
		}
		s.sendAll(cmds, false)
		var strays []stray
		for i := range chunk {
			c := &chunk[i]
			if c.done {
				continue
			}
			before := len(strays)
			var err error
			if strays, err = p.readPartition(c.head, m.now(), l, c.partition, strays); err != nil {
				return false
			}
			moving := len(strays) - before
			c.found = c.found || moving > 0
			c.large = c.large || c.kept+p.held >= listpackEntries
			switch {
			case p.held >= partitionHead-1:
				c.kept += p.held - moving
			case c.kept == 0 || !c.found:
				c.done = true
			default: // members may have changed places between two reads
				c.kept, c.found = 0, false
			}
		}
		for len(strays) > 0 {
			n := min(len(strays), moveBatch)
			if !s.move(m.hash, l, strays[:n], m.now()) {
				return false
			}
			strays = strays[n:]
		}
	}
	var again []routed
	for i := range chunk {
		if c := &chunk[i]; c.large {
			// Rewriting a set brings it back to the compact form.
			k := peersKey(m.hash, c.partition)
			again = append(again, routed{m.hash, c.partition, redis.NewIntCmd(s.ctx, "zrangestore", k, k, 0, -1)},
				routed{m.hash, c.partition, s.expire(expiring{m.hash, kindPeers, c.partition})})
		}
	}
	s.sendAll(again, true)
	return true
}

// stray is a peer that stands in another partition than it belongs to.
type stray struct {
	partition int
	peer      []byte // compact
	class     swarm.Class
	score     int64
}

// move strays to where they belong: first added there, unless it is there, and then
// removed, so that none is ever missing.
func (s *Store) move(hash swarm.InfoHash, l layout, strays []stray, now time.Time) bool {
	if len(strays) == 0 {
		return true
	}
	ok := true
	targets := map[int]bool{}
	added := make([]*redis.IntCmd, len(strays))
	removed := make([]*redis.IntCmd, len(strays))
	cmds := make([]routed, 0, len(strays)+l.partitions())
	for i, m := range strays {
		to := l.place(m.peer)
		added[i] = redis.NewIntCmd(s.ctx, "zadd", peersKey(hash, to), "nx", m.score, m.peer)
		cmds = append(cmds, routed{hash, to, added[i]})
		targets[to] = true
	}
	for to := range targets {
		cmds = append(cmds, routed{hash, to, s.expire(expiring{hash, kindPeers, to})})
	}
	if s.sendAll(cmds, true) {
		return false // too few replicas know it
	}
	cmds = cmds[:0]
	for i, m := range strays {
		if added[i].Err() != nil {
			ok = false
			continue
		}
		removed[i] = redis.NewIntCmd(s.ctx, "zrem", peersKey(hash, m.partition), m.peer)
		cmds = append(cmds, routed{hash, m.partition, removed[i]})
	}
	s.sendAll(cmds, true)
	cmds = cmds[:0]
	for i, m := range strays {
		switch {
		case removed[i] == nil:
		case removed[i].Err() != nil:
			ok = false
		case added[i].Val() == 1 && removed[i].Val() == 0:
			// It stopped meanwhile.
			to := l.place(m.peer)
			cmds = append(cmds, routed{hash, to, redis.NewIntCmd(s.ctx, "zrem", peersKey(hash, to), m.peer)})
		}
	}
	s.sendAll(cmds, true)
	return ok
}
