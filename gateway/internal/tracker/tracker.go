// Package tracker is the policy that both front ends share: which swarms are served, which peers an
// asker is handed, how many, and when it shall come back. It knows neither protocols
// nor Redis.
//
//	t := tracker.New(store, list, tracker.Policy{Interval: 30 * time.Minute, ...})
//	udp := t.Front(metrics.Front("udp")) // what a front end is given
package tracker

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"swarmgate/swarmstore/swarm"
)

// Store is what the policy needs of the store. Both calls hand back what they
// were given, once, in parts and from other goroutines.
type Store interface {
	Announce(now time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce))
	Scrape(now time.Time, scrape *swarm.Scrape, answered func(*swarm.Scrape))
	Scan(ctx context.Context, now func() time.Time, yield func([]swarm.Entry) error) error
}

// Access decides which swarms are served: Check is nil, swarm.ErrDenied, or while that is not
// known swarm.ErrUnavailable.
type Access interface {
	Check(hash swarm.InfoHash) error
}

// Policy is what an operator decides.
type Policy struct {
	Interval    time.Duration // between announces, on average; each answer gets its own
	MinInterval time.Duration
	IntervalMax time.Duration // that the interval grows to, on average, in large swarms and under load; 0: it does not grow
	Decoys      *Decoys       // nil for none
}

const (
	// DefaultPeers are handed to an asker that names no number, MaxPeers to one that names a large one.
	DefaultPeers = 50
	MaxPeers     = 200

	// jitter is the share of the interval by which answers differ up and down, so
	// that clients which came together do not come together again.
	jitter = 0.1

	// retryInterval is given with an error, which seldom lasts.
	retryInterval = 2 * time.Minute
)

// MaxInterval is the longest interval that a policy gives.
func (p Policy) MaxInterval() time.Duration {
	return time.Duration(float64(max(p.Interval, p.IntervalMax)) * (1 + jitter))
}

// Metrics is told of one front end's requests: the error they were answered with,
// nil for none, and how long they took.
type Metrics interface {
	// Announced is told of announces together, which are not its own to keep. Their NumWant
	// is what the policy made of it.
	Announced(part []*swarm.Announce, took time.Duration)
	Scraped(err error, took time.Duration)
}

// Tracker applies a policy to a store.
type Tracker struct {
	store  Store
	access Access
	policy Policy
	load   load
}

// New returns a tracker.
func New(store Store, access Access, policy Policy) *Tracker {
	return &Tracker{store: store, access: access, policy: policy}
}

// Front is the tracker as one front end has it.
type Front struct {
	*Tracker
	metrics Metrics
	pending sync.Pool // of *pending
}

// Front returns the tracker for a front end whose requests metrics is told of.
func (t *Tracker) Front(metrics Metrics) *Front {
	f := &Front{Tracker: t, metrics: metrics}
	f.pending.New = func() any {
		p := &pending{front: f}
		p.answer = p.answered
		return p
	}
	return f
}

// pending is a batch that the store has not handed back whole.
type pending struct {
	front  *Front
	now    time.Time
	start  time.Time // by the clock of the machine
	left   atomic.Int64
	hand   func([]*swarm.Announce)
	answer func([]*swarm.Announce) // p.answered, bound once

	served, refused []*swarm.Announce // of a batch that is not served whole
}

// Announce answers a batch. Each announce comes back once through answered,
// which is called once or more for the batch, from other goroutines or before
// Announce returns; the slice that it gets is valid during the call. batch is the
// caller's again when Announce returns.
func (f *Front) Announce(now time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce)) {
	if len(batch) == 0 {
		return
	}
	p := f.pending.Get().(*pending)
	p.now, p.start, p.hand = now, time.Now(), answered
	p.left.Store(int64(len(batch)))
	if !p.sift(batch) {
		f.store.Announce(now, batch, p.answer)
		return
	}
	p.left.Add(1)                                 // until its own slices are in use no more
	p.handBack(p.refused, time.Since(p.start), 0) // which tells nothing of the store's load
	if len(p.served) > 0 {
		f.store.Announce(now, p.served, p.answer)
	}
	clear(p.served)
	clear(p.refused)
	p.served, p.refused = p.served[:0], p.refused[:0]
	p.release(1)
}

// sift tells whether some of a batch is not served. Then p.refused has that, and p.served the
// rest.
func (p *pending) sift(batch []*swarm.Announce) bool {
	for i, a := range batch {
		err := p.front.check(a.InfoHash)
		switch {
		case err != nil:
			if len(p.refused) == 0 {
				p.served = append(p.served, batch[:i]...)
			}
			a.View, a.Err = nil, err
			p.refused = append(p.refused, a)
		case len(p.refused) > 0:
			p.served = append(p.served, a)
		}
	}
	return len(p.refused) > 0
}

// answered is told of what the store answered.
func (p *pending) answered(part []*swarm.Announce) {
	f, took := p.front, time.Since(p.start)
	var load time.Duration
	if f.policy.IntervalMax > 0 {
		load = f.load.add(p.start.Add(took), took)
	}
	p.handBack(part, took, load)
}

func (p *pending) handBack(part []*swarm.Announce, took, load time.Duration) {
	f, n := p.front, len(part)
	for _, a := range part {
		f.answer(a, p.now, load)
	}
	f.metrics.Announced(part, took)
	p.hand(part)
	p.release(n)
}

// release lets go of p when n more of its batch, the last ones, are answered.
func (p *pending) release(n int) {
	if p.left.Add(-int64(n)) == 0 {
		p.hand = nil
		p.front.pending.Put(p)
	}
}

// answer fills in the answer from the view that the store found. load is what announces take.
func (f *Front) answer(a *swarm.Announce, now time.Time, load time.Duration) {
	a.Peers4, a.Peers6 = a.Peers4[:0], a.Peers6[:0]
	if a.Err != nil {
		wait := min(retryInterval, f.policy.Interval)
		if errors.Is(a.Err, swarm.ErrDenied) { // which lasts
			wait = f.policy.Interval
		}
		a.Interval = jittered(wait)
		return
	}
	a.Counts = a.View.Counts()
	if decoys := f.policy.Decoys; decoys != nil {
		f.disguise(decoys, a, now)
	} else {
		f.pick(a)
	}
	a.Interval = jittered(f.policy.interval(a.Counts.Seeders+a.Counts.Incomplete(), load))
	a.MinInterval = min(f.policy.MinInterval, a.Interval)
}

// pick hands the asker peers of the view, if it goes on.
func (f *Front) pick(a *swarm.Announce) {
	if a.NumWant < 0 {
		a.NumWant = DefaultPeers
	}
	a.NumWant = min(a.NumWant, MaxPeers)
	if a.Event == swarm.Stopped {
		return
	}
	want := a.NumWant
	pick4 := func(n int) int {
		a.Peers4 = a.View.Pick(a.Peers4, swarm.Size4, a.Peer, a.Class(), n, rand.Uint64())
		return len(a.Peers4) / swarm.Size4
	}
	pick6 := func(n int) int {
		a.Peers6 = a.View.Pick(a.Peers6, swarm.Size6, a.Peer, a.Class(), n, rand.Uint64())
		return len(a.Peers6) / swarm.Size6
	}
	// The asker's own family first: where the asker was counted among those to hand out,
	// the other family makes up for it.
	have4, have6 := a.View.Offer(a.Class())
	switch is4 := a.Peer.Addr().Is4(); {
	case is4 && a.Both:
		pick6(want - pick4(share4(have4, have6, want)))
	case is4:
		pick4(want)
	case a.Both:
		pick4(want - pick6(want-share4(have4, have6, want)))
	default:
		pick6(want)
	}
}

// disguise does so and mixes decoys in, and into the counts.
func (f *Front) disguise(decoys *Decoys, a *swarm.Announce, now time.Time) {
	var p places
	live := a.Counts
	decoys.look(&p, &a.InfoHash, now, &live)
	a.Counts = p.counted(live)
	if f.pick(a); a.NumWant > 0 && a.Event != swarm.Stopped {
		decoys.hand(a, &live, &p)
	}
}

// Counts are those of a swarm as clients are told them at now.
func (t *Tracker) Counts(hash swarm.InfoHash, now time.Time, real swarm.Counts) swarm.Counts {
	if t.policy.Decoys == nil {
		return real
	}
	return t.policy.Decoys.counted(&hash, now, real)
}

// jittered gives whole seconds, and one at least: nobody may be told to come back at once.
func jittered(d time.Duration) time.Duration {
	d = time.Duration(float64(d) * (1 - jitter + 2*jitter*rand.Float64()))
	return max(d.Round(time.Second), time.Second)
}

// share4 is how many of the wanted peers may be IPv4 ones: as many as there are, unless
// both families have more than is wanted together. Then each gets its part, and a
// quarter at least if it has as many.
func share4(have4, have6, want int) int {
	if have4+have6 <= want {
		return have4
	}
	n4 := want * have4 / (have4 + have6)
	n4 = max(n4, min(want/4, have4), want-have6)
	return min(n4, want-min(want/4, have6))
}

// check says why a swarm is not served, if it is not.
func (t *Tracker) check(hash swarm.InfoHash) error {
	if !t.policy.Decoys.ready() {
		return swarm.ErrUnavailable
	}
	return t.access.Check(hash)
}

// Scan hands on every swarm that is served, as the store's does, with the counts that clients are told.
func (t *Tracker) Scan(ctx context.Context, now func() time.Time, yield func([]swarm.Entry) error) error {
	return t.store.Scan(ctx, now, func(part []swarm.Entry) error {
		served, at := part[:0], now()
		for _, e := range part {
			switch err := t.check(e.InfoHash); {
			case err == nil:
				e.Counts = t.Counts(e.InfoHash, at, e.Counts)
				served = append(served, e)
			case !errors.Is(err, swarm.ErrDenied):
				return err
			}
		}
		if len(served) == 0 {
			return nil
		}
		return yield(served)
	})
}

// Scrape reads the counts of swarms and hands the scrape back through answered.
func (f *Front) Scrape(now time.Time, scrape *swarm.Scrape, answered func(*swarm.Scrape)) {
	start := time.Now()
	f.store.Scrape(now, scrape, func(s *swarm.Scrape) {
		for i := 0; i < len(s.Hashes) && s.Err == nil; i++ {
			switch err := f.check(s.Hashes[i]); {
			case errors.Is(err, swarm.ErrDenied):
				s.Counts[i] = swarm.Counts{Denied: true}
			case err != nil:
				s.Err = err
			default:
				s.Counts[i] = f.Counts(s.Hashes[i], now, s.Counts[i])
			}
		}
		f.metrics.Scraped(s.Err, time.Since(start))
		answered(s)
	})
}
