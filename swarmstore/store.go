// Package swarmstore keeps all swarms in Redis: a single server or a Redis
// Cluster, in sorted sets that expire by themselves.
//
// A front end's announces reach it in batches and come back through a callback
// once Redis has acknowledged them:
//
//	store, err := swarmstore.Open(ctx, swarmstore.Options{URLs: []string{"redis://127.0.0.1:6379"}})
//	store.Announce(time.Now(), batch, answered)
//
// For each Redis node there is a lane. While one of its pipelines is
// under way the next one fills (group commit), and what a node is slow or dead
// for waits or fails in its own lane only. Large swarms are spread over partitions on
// many nodes, and read beside the lanes. Reads are the dear half, so each
// gateway keeps a view of the swarms that it has just read. DESIGN.md says why.
package swarmstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/semaphore"

	"swarmgate/swarmstore/swarm"
)

// Options of a Store. Durations of Redis keys and scores are whole seconds.
type Options struct {
	URLs []string // redis:// or rediss://, nodes of one server or cluster

	PeerTTL      time.Duration // a peer is gone this long after its last announce
	DownloadsTTL time.Duration // downloads outlive the last look at their swarm by this
	ViewTTL      time.Duration // how long a view answers without a read; 0: each announce reads
	ViewMemory   int           // bytes that views may take
	RepeatWindow time.Duration // a repeat within it is not written again; 0: all are written
	WaitReplicas int           // replicas that must have a write before it counts
	ReadFrom     ReadFrom      // what of a cluster views are read from; empty is ReadMaster
	Hold         bool          // keep counts that follow the live ones slowly, as swarm.Counts.Held
	Renewals     bool          // sample when peers announced before, for Metrics.Renewed

	// Downloaded is told of each download that is counted, before its announce is
	// answered: it must not wait. Nil for nobody.
	Downloaded func(Download)

	// Password of the user in the URLs, asked for at each connection; nil: the URLs have it.
	Password func() (string, error)
	// TLS completes how a connection to a rediss:// URL is made, at each connection; nil: as the
	// system makes it.
	TLS func(*tls.Config) error

	Log     *slog.Logger
	Metrics Metrics
}

// Metrics is told what the store does.
type Metrics interface {
	// Exchange is one pipeline: how many announces and look-ups shared it and
	// how long it took; failed when the node did not answer.
	Exchange(ops int, took time.Duration, failed bool)
	// Refused counts an announce or a look-up that came to nothing.
	Refused()
	// Views counts look-ups answered from a view, and those that had to read.
	Views(hits, misses int)
	// Absorbed counts repeats that needed no write.
	Absorbed(n int)
	// Renewed is told of one in RenewalSample announces that were written, if it refreshed a
	// peer and Options.Renewals is set: how many whole minutes ago that peer announced before.
	Renewed(peer netip.Addr, minutes int)
}

// Store is safe for concurrent use.
type Store struct {
	opt     Options
	redis   *redis.Options // how to reach any node
	addrs   []string
	views   *views
	repeats repeats
	expired *recent // the keys whose expiry was set a moment ago

	scanHashes int // that one round of a scan keeps
	larges     larges
	backend    atomic.Pointer[backend] // nil until Redis was reached
	troubles   troubles
	nodes      sync.Map                // address -> *node
	contacts   sync.Map                // address -> *contact, of nodes that were connected to
	elsewhere  sync.Map                // address -> *redis.Client, of nodes that slots moved to
	replicas   sync.Map                // likewise, of nodes that are read from
	readers    atomic.Pointer[readers] // nil when all views are read from masters

	mu     sync.Mutex // guards closed, and that no lane starts after it
	closed bool
	stop   context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup
	once   atomic.Pointer[[16]byte] // the secret of Once, when it is known

	refusals refusals // by Once
}

// ErrURL is what Open says of an address that is none.
var ErrURL = errors.New("not a Redis address: redis://HOST:PORT, or rediss:// for TLS, with USER:PASSWORD@ before HOST if need be, in which all but letters and digits is written as %XX")

// Open starts a store. It fails on addresses that make no sense; when Redis is
// away it logs so, keeps trying, and answers swarm.ErrUnavailable meanwhile.
func Open(ctx context.Context, opt Options) (*Store, error) {
	s := &Store{opt: opt, scanHashes: scanHashes}
	if err := s.parseURLs(); err != nil {
		return nil, err
	}
	var err error
	if s.views, err = newViews(opt.ViewTTL, opt.ViewMemory); err != nil {
		return nil, fmt.Errorf("views: %w", err)
	}
	// An absorbed repeat does not refresh its peer: a window that is long against
	// the peer TTL would let peers expire that are there.
	s.repeats = newRepeats(min(opt.RepeatWindow, opt.PeerTTL/10))
	s.expired = newRecent(opt.PeerTTL / expirySlack)
	s.troubles.lasting = map[[2]string]*lasting{}
	s.larges.reading = map[swarm.InfoHash]*reading{}
	s.larges.room = semaphore.NewWeighted(maxRefreshes)
	s.larges.errands = semaphore.NewWeighted(maxErrands)
	s.larges.resizing = semaphore.NewWeighted(maxResizes)
	s.larges.sweeping = semaphore.NewWeighted(maxSweeps)

	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.connect(ctx)
	s.wg.Go(s.watch)
	return s, nil
}

// Close fails what still waits and ends the store's connections.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
	s.nodes.Range(func(_, n any) bool {
		n.(*node).lane.drain() // what readings put there at the end
		return true
	})
	if b := s.backend.Load(); b != nil {
		_ = b.client.Close()
	}
	for _, clients := range []*sync.Map{&s.elsewhere, &s.replicas} {
		clients.Range(func(_, client any) bool {
			_ = client.(*redis.Client).Close()
			return true
		})
	}
	s.views.close()
}

// Announce stores a batch of announces and sets the View or the Err of each.
// Each comes back once through answered, which is called once or more for the
// batch, from other goroutines or before Announce returns; the slice that it gets
// is valid during the call. batch is the caller's again when Announce returns.
func (s *Store) Announce(now time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce)) {
	var few [8]*group
	groups := few[:0]
	for _, a := range batch {
		a.View, a.Err = nil, nil
		o := op{hash: a.InfoHash, announce: a}
		if l := s.large(a.InfoHash, now); l != nil {
			if l.stale(now, s.largeTTL()) {
				g := newGroup(nil, now)
				g.answered = answered
				g.add(o)
				s.refresh(a.InfoHash, now, g)
				continue
			}
			o.route(l)
		}
		g := groupFor(&groups, s.lane(o.hash, o.partition), now)
		g.add(o)
	}
	for _, g := range groups {
		g.answered = answered
		g.lane.put(g)
	}
}

// Scrape reads the counts of swarms and hands the scrape back through answered,
// once, from another goroutine or before Scrape returns.
func (s *Store) Scrape(now time.Time, scrape *swarm.Scrape, answered func(*swarm.Scrape)) {
	scrape.Err = nil
	scrape.Counts = append(scrape.Counts[:0], make([]swarm.Counts, len(scrape.Hashes))...)
	part := &scraping{Scrape: scrape, answered: answered}
	part.left.Store(1) // until all of it is under way
	var groups []*group
	for i, hash := range scrape.Hashes {
		o := op{hash: hash, index: i}
		if l := s.large(hash, now); l != nil {
			if !l.stale(now, s.largeTTL()) {
				scrape.Counts[i] = l.view.Counts()
				continue
			}
			g := newGroup(nil, now)
			g.scraping = part
			g.add(o)
			part.left.Add(1)
			s.refresh(hash, now, g)
			continue
		}
		groupFor(&groups, s.lane(hash, 0), now).add(o)
	}
	part.left.Add(int32(len(groups)))
	for _, g := range groups {
		g.scraping = part
		g.lane.put(g)
	}
	part.finish(nil)
}

// nodeOf a partition of a swarm, or nil when there is none.
func (s *Store) nodeOf(hash swarm.InfoHash, partition int) *node {
	b := s.backend.Load()
	if b == nil {
		return nil
	}
	client, err := b.master(s.ctx, hash, partition)
	if err != nil {
		s.complain("", troubleOf(err), "error", err)
		return nil
	}
	return s.node(client)
}

// lane that the operations on a partition of a swarm go through, one after the other, or nil
// when there is none.
func (s *Store) lane(hash swarm.InfoHash, partition int) *lane {
	n := s.nodeOf(hash, partition)
	if n == nil {
		return nil
	}
	return n.lane
}

// groupFor finds or starts the group of a lane.
func groupFor(groups *[]*group, lane *lane, now time.Time) *group {
	for _, g := range *groups {
		if g.lane == lane {
			return g
		}
	}
	g := newGroup(lane, now)
	*groups = append(*groups, g)
	return g
}

func newGroup(lane *lane, now time.Time) *group {
	g := groupPool.Get().(*group)
	g.lane, g.now = lane, now
	return g
}

func (g *group) add(o op) {
	g.ops = append(g.ops, o)
	if o.announce != nil {
		g.announces = append(g.announces, o.announce)
	}
}

// group is what of one batch goes through one lane.
type group struct {
	lane   *lane
	now    time.Time
	queued time.Time // by the clock of the machine
	ops    []op

	announces []*swarm.Announce // with answered
	answered  func([]*swarm.Announce)
	scraping  *scraping // or of a scrape
}

var groupPool = sync.Pool{New: func() any { return new(group) }}

// op is one announce, or one look-up of a swarm when announce is nil.
type op struct {
	hash     swarm.InfoHash
	announce *swarm.Announce
	index    int // of a look-up in its scrape

	view *swarm.View
	err  error

	large     *large // nil for a small swarm, or one that was not seen yet
	layout    layout // of a large one, as far as is known
	partition int
	again     bool // it turned out to be large: to be done anew, when that is known
	stray     bool // and so was written to the first partition

	write     *redis.IntCmd   // ZADD or ZREM, when there is something to write
	completed *redis.IntCmd   // ZADD to the peers whose download was counted, likewise
	mark      *redis.FloatCmd // ZSCORE of the layout, where it must be none
	read      int             // index of the read that fills its view, or noRead
	late      bool            // written after that read
}

// key of the set that the operation writes.
func (o *op) key() expiring { return expiring{o.hash, kindPeers, o.partition} }

const noRead = -1

// scraping joins the groups of one scrape.
type scraping struct {
	*swarm.Scrape
	answered func(*swarm.Scrape)
	left     atomic.Int32
	err      atomic.Pointer[error]
}

// fail gives all of the group back with err.
func (g *group) fail(err error) {
	for i := range g.ops {
		g.ops[i].err = err
	}
	g.finish()
}

// finish gives the group back to who asked. What has to wait for more goes on in groups
// of its own.
func (g *group) finish() {
	done := g.ops[:0]
	announces := g.announces[:0]
	var errands *group
	for i := range g.ops {
		o := &g.ops[i]
		switch {
		case o.again:
			s := g.lane.node.store
			s.refresh(o.hash, g.now, g.part(op{hash: o.hash, announce: o.announce, index: o.index, stray: o.write != nil}))
		case o.err == nil && o.errand():
			if errands == nil {
				errands = g.part(*o)
			} else {
				errands.add(*o)
			}
		default:
			done = append(done, *o)
			if o.announce != nil {
				o.announce.View, o.announce.Err = o.view, o.err
				announces = append(announces, o.announce)
			}
		}
	}
	switch {
	case g.scraping != nil:
		g.scraping.finish(done)
	case len(announces) > 0:
		g.answered(announces)
	}
	if errands != nil {
		g.lane.node.store.runErrands(errands)
	}
	clear(g.ops)
	clear(g.announces)
	*g = group{ops: g.ops[:0], announces: g.announces[:0]}
	groupPool.Put(g)
}

// part is one operation of a group on its own.
func (g *group) part(o op) *group {
	p := newGroup(g.lane, g.now)
	p.answered, p.scraping = g.answered, g.scraping
	if p.scraping != nil {
		p.scraping.left.Add(1)
	}
	p.add(o)
	return p
}

func (s *scraping) finish(ops []op) {
	for i := range ops {
		if err := ops[i].err; err != nil {
			s.err.Store(&err)
		} else {
			s.Counts[ops[i].index] = ops[i].view.Counts()
		}
	}
	if s.left.Add(-1) > 0 {
		return
	}
	if err := s.err.Load(); err != nil {
		s.Err = *err
	}
	s.answered(s.Scrape)
}
