package swarmstore

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/semaphore"

	"swarmgate/swarmstore/swarm"
)

const (
	// maxExchange bounds the operations of one pipeline, softly: a batch is never split.
	maxExchange = 512

	// maxWaiting bounds the operations that wait for a lane.
	maxWaiting = 4096

	// patience is how long an announce may wait for room in a full lane. Longer
	// than a loaded node needs for a pipeline, shorter than a client notices.
	patience = 100 * time.Millisecond

	// A lane lets time pass from the beginning of one pipeline to that of the next, so that it fills,
	// which costs all sides less: until so many operations are there, as the last ones came, but within
	// these bounds. Where only a few come at a time none waits.
	fullEnough = 16
	few        = 4
	minPace    = time.Millisecond
	maxPace    = 4 * time.Millisecond

	// queueTime is how old a lane may let the news get where a large swarm's peers belong.
	queueTime = time.Second
)

// node is one Redis master.
type node struct {
	store   *Store
	addr    string
	client  atomic.Pointer[redis.Client]
	lane    *lane
	contact *contact
}

// lane carries the operations on a node's swarms, one pipeline at a time.
type lane struct {
	store   *Store
	node    *node
	queue   chan *group
	room    *semaphore.Weighted // of maxWaiting
	stalled atomic.Bool         // somebody ran out of patience during this pipeline
}

// node finds or starts what belongs to a client of the cluster's, or nil when
// the store is closed.
func (s *Store) node(client *redis.Client) *node {
	addr := client.Options().Addr
	if n, ok := s.nodes.Load(addr); ok {
		n := n.(*node)
		n.client.Store(client)
		return n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if n, ok := s.nodes.Load(addr); ok {
		return n.(*node)
	}
	n := &node{store: s, addr: addr, contact: s.contact(addr)}
	n.client.Store(client)
	n.lane = &lane{
		store: s, node: n,
		queue: make(chan *group, maxWaiting),
		room:  semaphore.NewWeighted(maxWaiting),
	}
	s.wg.Go(n.lane.run)
	s.nodes.Store(addr, n)
	return n
}

// put queues a group, or fails it when the lane takes no more. A nil lane stands
// for a node that is not known.
func (l *lane) put(g *group) {
	if l == nil || l.store.ctx.Err() != nil {
		g.fail(swarm.ErrUnavailable)
		return
	}
	if l.node.contact.err() != nil {
		l.store.lookAround()
		g.fail(swarm.ErrUnavailable)
		return
	}
	g.queued = time.Now()
	n := int64(len(g.ops))
	if !l.room.TryAcquire(n) {
		if l.stalled.Load() {
			g.fail(swarm.ErrBusy)
			return
		}
		ctx, cancel := context.WithTimeout(l.store.ctx, patience)
		err := l.room.Acquire(ctx, n)
		cancel()
		if err != nil {
			l.stalled.Store(true)
			g.fail(swarm.ErrBusy)
			return
		}
	}
	// A group has one operation at least: with room for it there is a place in
	// the queue.
	l.queue <- g
}

func (l *lane) run() {
	x := newExchange(l.store)
	groups := make([]*group, 0, maxExchange)
	last := time.Now() // when the last pipeline began
	pace := time.Duration(0)
	for {
		select {
		case g := <-l.queue:
			groups = append(groups[:0], g)
		case <-l.store.ctx.Done():
			l.drain()
			return
		}
		if early := pace - time.Since(last); early > 0 {
			time.Sleep(early)
		}
		now := time.Now()
		gap := now.Sub(last)
		last = now
		n := len(groups[0].ops)
	fill:
		for n < maxExchange {
			select {
			case g := <-l.queue:
				groups = append(groups, g)
				n += len(g.ops)
			default:
				break fill
			}
		}
		pace = 0
		if n >= few {
			pace = min(max(min(gap, time.Second)*fullEnough/time.Duration(n), minPace), maxPace)
		}
		l.room.Release(int64(n))
		l.stalled.Store(false)

		if l.node.contact.err() != nil {
			for _, g := range groups {
				g.fail(swarm.ErrUnavailable)
			}
			continue
		}
		x.run(l.node, groups)
		for _, g := range groups {
			g.finish()
		}
	}
}

// drain fails what still waits when the store closes. Callers end first.
func (l *lane) drain() {
	for {
		select {
		case g := <-l.queue:
			g.fail(swarm.ErrUnavailable)
		default:
			return
		}
	}
}
