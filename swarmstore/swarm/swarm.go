// Package swarm is the vocabulary that all rooms of the tracker share: info
// hashes, peers, announces and their answers, and the view of a swarm that
// peers are picked from. It holds values only: no sockets, no Redis, no clock.
//
// A front end fills the question half of an [Announce] and hands it to the
// tracker; the store sets its View; the tracker picks peers from the view into
// the answer half; the front end encodes that.
package swarm

import (
	"errors"
	"net/netip"
	"time"
)

// InfoHash names a swarm (BEP 3; a version 2 hash arrives cut to 20 bytes, BEP 52).
type InfoHash [20]byte

// Event says why a client announces. The numbers are those of BEP 15.
type Event uint8

const (
	None Event = iota
	Completed
	Started
	Stopped
	Paused // BEP 21: a partial seed, which wants nothing more of what it lacks
)

// Class tells the kinds of peers in a swarm apart.
type Class uint8

const (
	Leecher Class = iota
	PartialSeed
	Seeder
	Classes = 3 // how many there are
)

// UnknownLeft stands in Announce.Left when the client did not say what it lacks.
const UnknownLeft = ^uint64(0)

// Announce is one announce on its way through the tracker: the question, and
// when it comes back, the answer. It may be reused after it has come back.
type Announce struct {
	InfoHash InfoHash
	Peer     netip.AddrPort // of the asker, never a 4-in-6 address
	Event    Event
	Left     uint64 // bytes that the asker lacks, or UnknownLeft
	NumWant  int    // how many peers it wants; below 0: as many as the policy gives
	Room     int    // how many peers fit into the answer; 0: any number
	Both     bool   // hand out peers of both address families, not the asker's only
	Complete bool   // the counts shall tell the downloads, which costs a look-up of its own
	Origin   any    // the front end's own; nobody else looks at it

	View *View // set by the store when Err is nil

	Answer
}

// Answer is what an asker is told.
type Answer struct {
	Err         error // one of this package's errors; the rest but Interval is void then
	Counts      Counts
	Interval    time.Duration
	MinInterval time.Duration
	Peers4      []byte // compact peers, Size4 bytes each
	Peers6      []byte // compact peers, Size6 bytes each
}

// Class of the asker: what it lacks and whether it still wants it.
func (a *Announce) Class() Class {
	switch {
	case a.Left == 0 || a.Event == Completed:
		return Seeder
	case a.Event == Paused:
		return PartialSeed
	default:
		return Leecher
	}
}

// Scrape asks for the counts of some swarms (BEP 48).
type Scrape struct {
	Hashes []InfoHash
	Origin any // the front end's own; nobody else looks at it

	Counts []Counts // one for each hash, zeros for an unknown swarm
	Err    error    // one of this package's errors; Counts is void then
}

// Counts of one swarm, over both address families.
type Counts struct {
	Seeders      int
	Leechers     int // that want more; without the partial seeds
	PartialSeeds int
	Downloads    int // completed ones, ever

	Denied bool // the access list does not permit the swarm: the numbers are zeros

	Held Held // zero unless the store keeps it
}

// Held are counts of a swarm that follow the live ones slowly: from those of one look at it to those of
// the next, in the time between.
type Held struct {
	Since, Until int64 // when it was last looked at, and when it is to be again, in Unix seconds
	From, To     [Classes]int32
	From6, To6   [Classes]int32 // of them on IPv6
}

// At are the peers of a class that are held at a time, and how many of them are on IPv6.
func (h *Held) At(class Class, now time.Time) (peers, peers6 float64) {
	part := 1.0
	if h.Until > h.Since {
		part = min(max(float64(now.Unix()-h.Since)/float64(h.Until-h.Since), 0), 1)
	}
	between := func(from, to int32) float64 { return float64(from) + part*float64(to-from) }
	return between(h.From[class], h.To[class]), between(h.From6[class], h.To6[class])
}

// Incomplete counts the peers that lack something (BEP 3's incomplete).
func (c Counts) Incomplete() int { return c.Leechers + c.PartialSeeds }

// Of counts the peers of one class.
func (c *Counts) Of(class Class) *int {
	switch class {
	case Seeder:
		return &c.Seeders
	case PartialSeed:
		return &c.PartialSeeds
	default:
		return &c.Leechers
	}
}

// Entry is one swarm in a list of them.
type Entry struct {
	InfoHash InfoHash
	Counts
}

// Why an announce or a scrape gets no answer.
var (
	ErrUnavailable = errors.New("store is away")
	ErrBusy        = errors.New("store is overloaded")
	ErrFull        = errors.New("store takes no new swarms")
	ErrDenied      = errors.New("the access list does not permit the swarm")
)

// Reason is the text that a client sees for err. It is fixed; details go to the log.
func Reason(err error) string {
	switch {
	case errors.Is(err, ErrUnavailable):
		return "The tracker's store is away, please try again later."
	case errors.Is(err, ErrBusy):
		return "The tracker is overloaded, please try again later."
	case errors.Is(err, ErrFull):
		return "The tracker is full, it takes nothing new just now. Please try again later."
	case errors.Is(err, ErrDenied):
		return "Requested download is not authorized for use with this tracker."
	default:
		return "The tracker made a mistake, please try again later."
	}
}
