package swarmstore

import (
	"time"

	"github.com/maypok86/otter/v2"

	"swarmgate/swarmstore/swarm"
)

// views are the swarms that this gateway has just read, bounded in memory. Soft
// state: losing one costs a read.
type views struct {
	ttl   time.Duration
	cache *otter.Cache[swarm.InfoHash, seen]
	asked *recent // swarms that were read a moment ago: it pays to keep what is asked for again
}

// seen is what was read of a swarm.
type seen struct {
	view  *swarm.View
	at    time.Time
	large *large // nil for a small swarm
}

func newViews(ttl time.Duration, memory int) (*views, error) {
	cache, err := otter.New(&otter.Options[swarm.InfoHash, seen]{
		MaximumWeight: uint64(max(memory, 1)),
		Weigher:       func(_ swarm.InfoHash, s seen) uint32 { return uint32(viewOverhead + s.view.Bytes()) },
	})
	return &views{ttl: ttl, cache: cache, asked: newRecent(2*ttl + time.Second)}, err
}

// viewOverhead is what the cache itself needs for an entry, in bytes.
const viewOverhead = 200

// get what was read of a swarm; nothing, if that is unknown.
func (v *views) get(hash swarm.InfoHash) seen {
	s, _ := v.cache.GetIfPresent(hash)
	return s
}

// fresh tells whether the view of a small swarm needs no read.
func (v *views) fresh(s seen, now time.Time) bool {
	return s.view != nil && now.Sub(s.at) < v.ttl && s.at.Before(now.Add(v.ttl))
}

// put keeps what was read of a swarm. A small one is kept when it is read for the second
// time, as most are not before their view is old.
func (v *views) put(hash swarm.InfoHash, s seen) {
	if s.large == nil {
		if v.ttl <= 0 {
			return
		}
		if !v.asked.has(hash[:], 0, s.at) {
			v.asked.put(hash[:], 0, s.at)
			return
		}
		v.asked.put(hash[:], 0, s.at)
	}
	v.cache.Set(hash, s)
}

func (v *views) drop(hash swarm.InfoHash) { v.cache.Invalidate(hash) }

func (v *views) close() { v.cache.StopAllGoroutines() }
