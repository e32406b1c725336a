package swarmstore

import (
	"time"

	"swarmgate/swarmstore/swarm"
)

// repeats remembers which announces were stored a moment ago, so that a client that
// hammers is answered without a write.
type repeats struct{ *recent }

func newRepeats(window time.Duration) repeats { return repeats{newRecent(window)} }

// peerID is a peer of a swarm.
type peerID [len(swarm.InfoHash{}) + swarm.Size6]byte

func (b *peerID) of(a *swarm.Announce) []byte {
	return swarm.AppendCompact(append(b[:0], a.InfoHash[:]...), a.Peer)
}

// has tells whether the same announce was stored within the window.
func (r repeats) has(a *swarm.Announce, now time.Time) bool {
	var id peerID
	return r.recent.has(id.of(a), a.Class(), now)
}

// put notes that an announce was stored.
func (r repeats) put(a *swarm.Announce, now time.Time) {
	var id peerID
	r.recent.put(id.of(a), a.Class(), now)
}

// forget that a peer was stored.
func (r repeats) forget(a *swarm.Announce) {
	var id peerID
	r.recent.forget(id.of(a))
}
