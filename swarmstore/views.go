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
}

type seen struct {
	view *swarm.View
	at   time.Time
}

func newViews(ttl time.Duration, memory int) (*views, error) {
	cache, err := otter.New(&otter.Options[swarm.InfoHash, seen]{
		MaximumWeight: uint64(max(memory, 1)),
		Weigher:       func(_ swarm.InfoHash, s seen) uint32 { return uint32(viewOverhead + s.view.Bytes()) },
	})
	return &views{ttl: ttl, cache: cache}, err
}

// viewOverhead is what the cache itself needs for an entry, in bytes.
const viewOverhead = 200

// get returns the view of a swarm if it is fresh, or nil.
func (v *views) get(hash swarm.InfoHash, now time.Time) *swarm.View {
	if v.ttl <= 0 {
		return nil
	}
	s, ok := v.cache.GetIfPresent(hash)
	if !ok || now.Sub(s.at) >= v.ttl || s.at.After(now.Add(v.ttl)) {
		return nil
	}
	return s.view
}

func (v *views) put(hash swarm.InfoHash, view *swarm.View, now time.Time) {
	if v.ttl > 0 {
		v.cache.Set(hash, seen{view, now})
	}
}

func (v *views) close() { v.cache.StopAllGoroutines() }
