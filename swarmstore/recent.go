package swarmstore

import (
	"hash/maphash"
	"sync/atomic"
	"time"

	"swarmgate/swarmstore/swarm"
)

// recent remembers what was done a moment ago. It is a table of fixed size in which a
// newer entry takes an older one's place: soft state, without locks. A nil table
// remembers nothing.
type recent struct {
	window time.Duration
	seed   maphash.Seed
	table  [][2]atomic.Uint64
	epoch  atomic.Uint64 // part of every fingerprint: a new one forgets all
}

const (
	recentEntries = 1 << 20 // 8 MiB

	// An entry is a fingerprint of what was done and to whom, a class, and the second it
	// was done.
	recentSeconds     = 31
	recentFingerprint = 1<<64 - 1<<(recentSeconds+2)
)

// newRecent remembers for window, and nothing if that is below a second.
func newRecent(window time.Duration) *recent {
	if window < time.Second {
		return nil
	}
	return &recent{
		window: window,
		seed:   maphash.MakeSeed(),
		table:  make([][2]atomic.Uint64, recentEntries/2),
	}
}

func second(at time.Time) uint64 { return uint64(at.Unix()-scoreEpoch) & (1<<recentSeconds - 1) }

// slots are the two places that an id may have, and what it looks like there.
func (r *recent) slots(id []byte) (*[2]atomic.Uint64, uint64) {
	sum := maphash.Bytes(r.seed, id) + r.epoch.Load()*0x9e3779b97f4a7c15
	return &r.table[sum%(recentEntries/2)], sum & recentFingerprint
}

// has tells whether put was called for the id and class within the window.
func (r *recent) has(id []byte, class swarm.Class, now time.Time) bool {
	if r == nil {
		return false
	}
	slots, fingerprint := r.slots(id)
	for i := range slots {
		entry := slots[i].Load()
		if entry&recentFingerprint != fingerprint {
			continue
		}
		done, at := entry&(1<<recentSeconds-1), second(now)
		return swarm.Class(entry>>recentSeconds&3) == class &&
			at >= done && time.Duration(at-done)*time.Second < r.window
	}
	return false
}

func (r *recent) put(id []byte, class swarm.Class, now time.Time) {
	if r == nil {
		return
	}
	slots, fingerprint := r.slots(id)
	entry := fingerprint | uint64(class)<<recentSeconds | second(now)
	// In its own place, or that of the older of two others.
	first, other := slots[0].Load(), slots[1].Load()
	const age = 1<<recentSeconds - 1
	if other&recentFingerprint == fingerprint || first&recentFingerprint != fingerprint && other&age < first&age {
		slots[1].Store(entry)
		return
	}
	slots[0].Store(entry)
}

func (r *recent) forget(id []byte) {
	if r == nil {
		return
	}
	slots, fingerprint := r.slots(id)
	for i := range slots {
		if slots[i].Load()&recentFingerprint == fingerprint {
			slots[i].Store(0)
		}
	}
}

// forgetAll that was done until now.
func (r *recent) forgetAll() {
	if r != nil {
		r.epoch.Add(1)
	}
}

// forgotten counts how often all was forgotten.
func (r *recent) forgotten() uint64 {
	if r == nil {
		return 0
	}
	return r.epoch.Load()
}
