package swarmstore

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"
	"time"

	"swarmgate/swarmstore/swarm"
)

// repeats remembers which announces were stored a moment ago, so that a client
// that hammers is answered without a write. It is a table of fixed size in which a
// newer announce takes an older one's place: soft state, without locks. A nil
// table remembers nothing.
type repeats struct {
	window time.Duration
	seed   maphash.Seed
	table  []atomic.Uint64
	epoch  atomic.Uint64 // part of every fingerprint: a new one forgets all
}

const (
	repeatEntries = 1 << 20 // 8 MiB

	// An entry is a fingerprint of peer and swarm, the class, and the second it
	// was stored.
	repeatSeconds     = 31
	repeatFingerprint = 1<<64 - 1<<(repeatSeconds+2)
)

func newRepeats(window time.Duration) *repeats {
	if window < time.Second {
		return nil
	}
	return &repeats{
		window: window,
		seed:   maphash.MakeSeed(),
		table:  make([]atomic.Uint64, repeatEntries),
	}
}

func second(at time.Time) uint64 { return uint64(at.Unix()-scoreEpoch) & (1<<repeatSeconds - 1) }

func (r *repeats) slot(a *swarm.Announce) (*atomic.Uint64, uint64) {
	var buf [8 + len(a.InfoHash) + swarm.Size6]byte
	id := binary.LittleEndian.AppendUint64(buf[:0], r.epoch.Load())
	id = append(id, a.InfoHash[:]...)
	sum := maphash.Bytes(r.seed, swarm.AppendCompact(id, a.Peer))
	return &r.table[sum%repeatEntries], sum & repeatFingerprint
}

// has tells whether the same announce was stored within the window.
func (r *repeats) has(a *swarm.Announce, now time.Time) bool {
	if r == nil {
		return false
	}
	slot, fingerprint := r.slot(a)
	entry := slot.Load()
	stored, at := entry&(1<<repeatSeconds-1), second(now)
	return entry&repeatFingerprint == fingerprint &&
		swarm.Class(entry>>repeatSeconds&3) == a.Class() &&
		at >= stored && time.Duration(at-stored)*time.Second < r.window
}

// put notes that an announce was stored.
func (r *repeats) put(a *swarm.Announce, now time.Time) {
	if r == nil {
		return
	}
	slot, fingerprint := r.slot(a)
	slot.Store(fingerprint | uint64(a.Class())<<repeatSeconds | second(now))
}

// forget that a peer was stored.
func (r *repeats) forget(a *swarm.Announce) {
	if r == nil {
		return
	}
	if slot, fingerprint := r.slot(a); slot.Load()&repeatFingerprint == fingerprint {
		slot.Store(0)
	}
}

// forgotten counts how often all was forgotten.
func (r *repeats) forgotten() uint64 {
	if r == nil {
		return 0
	}
	return r.epoch.Load()
}

// forgetAll that was stored until now: a node that failed may have lost it.
func (r *repeats) forgetAll() {
	if r != nil {
		r.epoch.Add(1)
	}
}
