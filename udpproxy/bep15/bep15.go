// Package bep15 is the codec of the UDP tracker protocol (BEP 15, with the options
// of BEP 41), in both directions and without sockets. A server parses requests
// and appends replies:
//
//	var r bep15.Request
//	if r.Parse(datagram) == nil && r.Action == bep15.ActionConnect {
//		reply = bep15.AppendConnectReply(reply, r.TransactionID, id)
//	}
//
// A client appends requests and parses replies. Nothing is allocated but what
// slices need to grow.
package bep15

import (
	"encoding/binary"
	"errors"

	"swarmgate/swarmstore/swarm"
)

// Action tells the kinds of requests and replies apart.
type Action uint32

const (
	ActionConnect Action = iota
	ActionAnnounce
	ActionScrape
	ActionError // replies only
)

// Magic stands in a connect request where others have their connection id.
const Magic = 0x41727101980

// Sizes in bytes.
const (
	ConnectSize       = 16 // of the request and of the reply
	AnnounceSize      = 98 // of the request without options
	AnnounceReplySize = 20 // without peers
	scrapeHeader      = 16
	scrapeReplyHeader = 8
	scrapeReplySize   = 12 // for each hash
)

// MaxScrape is how many info hashes of one scrape are read; the rest is ignored.
const MaxScrape = 74

// ErrGarbage is what Parse says of anything that the protocol does not know.
var ErrGarbage = errors.New("not a datagram of BEP 15")

// Request is any request. Which fields are set depends on the action.
type Request struct {
	Action        Action
	ConnectionID  uint64
	TransactionID uint32

	// Of an announce. The peer id and the key that it names are of no use to a tracker.
	InfoHash   swarm.InfoHash
	PeerID     [20]byte
	Downloaded uint64
	Left       uint64
	Uploaded   uint64
	Event      swarm.Event
	IP         [4]byte // that the client wishes to be known by; zeros for none, often garbage
	Key        uint32
	NumWant    int    // below 0: no wish
	Port       uint16 // 0 when the client forgot it
	URLData    []byte // path and query of the tracker's URL (BEP 41)

	// Of a scrape, at most MaxScrape.
	Hashes []swarm.InfoHash
}

// Parse reads a datagram, reusing the slices of r. What follows the last field of an
// announce are options; where they stop making sense the rest is ignored.
func (r *Request) Parse(b []byte) error {
	if len(b) < ConnectSize {
		return ErrGarbage
	}
	r.ConnectionID = binary.BigEndian.Uint64(b)
	r.Action = Action(binary.BigEndian.Uint32(b[8:]))
	r.TransactionID = binary.BigEndian.Uint32(b[12:])
	switch r.Action {
	case ActionConnect:
		if r.ConnectionID != Magic {
			return ErrGarbage
		}
		return nil
	case ActionAnnounce:
		return r.parseAnnounce(b)
	case ActionScrape:
		return r.parseScrape(b[scrapeHeader:])
	}
	return ErrGarbage
}

func (r *Request) parseAnnounce(b []byte) error {
	if len(b) < AnnounceSize {
		return ErrGarbage
	}
	copy(r.InfoHash[:], b[16:])
	copy(r.PeerID[:], b[36:])
	r.Downloaded = binary.BigEndian.Uint64(b[56:])
	r.Left = binary.BigEndian.Uint64(b[64:])
	r.Uploaded = binary.BigEndian.Uint64(b[72:])
	r.Event = swarm.None
	if e := binary.BigEndian.Uint32(b[80:]); e <= uint32(swarm.Paused) {
		r.Event = swarm.Event(e)
	}
	r.IP = [4]byte(b[84:])
	r.Key = binary.BigEndian.Uint32(b[88:])
	r.NumWant = int(int32(binary.BigEndian.Uint32(b[92:])))
	r.Port = binary.BigEndian.Uint16(b[96:])
	r.parseOptions(b[AnnounceSize:])
	return nil
}

// The options of BEP 41.
const (
	optionEnd = iota
	optionNop
	optionURLData
)

func (r *Request) parseOptions(b []byte) {
	r.URLData = r.URLData[:0]
	for len(b) > 0 {
		switch b[0] {
		case optionEnd:
			return
		case optionNop:
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return
		}
		if b[0] == optionURLData {
			r.URLData = append(r.URLData, b[2:2+int(b[1])]...)
		}
		b = b[2+int(b[1]):]
	}
}

func (r *Request) parseScrape(b []byte) error {
	r.Hashes = r.Hashes[:0]
	for len(b) >= len(swarm.InfoHash{}) && len(r.Hashes) < MaxScrape {
		r.Hashes = append(r.Hashes, swarm.InfoHash(b[:len(swarm.InfoHash{})]))
		b = b[len(swarm.InfoHash{}):]
	}
	if len(r.Hashes) == 0 {
		return ErrGarbage
	}
	return nil
}

// Append appends the request's datagram.
func (r *Request) Append(dst []byte) []byte {
	id := r.ConnectionID
	if r.Action == ActionConnect {
		id = Magic
	}
	dst = binary.BigEndian.AppendUint64(dst, id)
	dst = header(dst, r.Action, r.TransactionID)
	switch r.Action {
	case ActionAnnounce:
		dst = append(dst, r.InfoHash[:]...)
		dst = append(dst, r.PeerID[:]...)
		dst = binary.BigEndian.AppendUint64(dst, r.Downloaded)
		dst = binary.BigEndian.AppendUint64(dst, r.Left)
		dst = binary.BigEndian.AppendUint64(dst, r.Uploaded)
		dst = binary.BigEndian.AppendUint32(dst, uint32(r.Event))
		dst = append(dst, r.IP[:]...)
		dst = binary.BigEndian.AppendUint32(dst, r.Key)
		dst = binary.BigEndian.AppendUint32(dst, uint32(r.NumWant))
		dst = binary.BigEndian.AppendUint16(dst, r.Port)
		for data := r.URLData; len(data) > 0; {
			n := min(len(data), 255)
			dst = append(dst, optionURLData, byte(n))
			dst = append(dst, data[:n]...)
			data = data[n:]
		}
	case ActionScrape:
		for _, hash := range r.Hashes {
			dst = append(dst, hash[:]...)
		}
	}
	return dst
}

func header(dst []byte, action Action, transaction uint32) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(action))
	return binary.BigEndian.AppendUint32(dst, transaction)
}

// AppendConnectReply appends the reply that gives a client its connection id.
func AppendConnectReply(dst []byte, transaction uint32, id uint64) []byte {
	return binary.BigEndian.AppendUint64(header(dst, ActionConnect, transaction), id)
}

// AppendAnnounceReply appends the reply to an announce: seconds to the next one, the
// counts, and compact peers of the asker's address family.
func AppendAnnounceReply(dst []byte, transaction, interval uint32, counts swarm.Counts, peers []byte) []byte {
	dst = header(dst, ActionAnnounce, transaction)
	dst = binary.BigEndian.AppendUint32(dst, interval)
	dst = binary.BigEndian.AppendUint32(dst, uint32(counts.Incomplete()))
	dst = binary.BigEndian.AppendUint32(dst, uint32(counts.Seeders))
	return append(dst, peers...)
}

// AppendScrapeReply appends the reply to a scrape, in the order of its hashes.
func AppendScrapeReply(dst []byte, transaction uint32, counts []swarm.Counts) []byte {
	dst = header(dst, ActionScrape, transaction)
	for _, c := range counts {
		dst = binary.BigEndian.AppendUint32(dst, uint32(c.Seeders))
		dst = binary.BigEndian.AppendUint32(dst, uint32(c.Downloads))
		dst = binary.BigEndian.AppendUint32(dst, uint32(c.Incomplete()))
	}
	return dst
}

// AppendErrorReply appends the reply to any request that failed.
func AppendErrorReply(dst []byte, transaction uint32, reason string) []byte {
	return append(header(dst, ActionError, transaction), reason...)
}

// Reply is any reply. Which fields are set depends on the action.
type Reply struct {
	Action        Action
	TransactionID uint32

	ConnectionID uint64 // to a connect

	Interval uint32 // to an announce, in seconds
	Leechers uint32
	Seeders  uint32
	Peers    []byte // compact; of which size the client knows from its own address

	Counts []swarm.Counts // to a scrape; all that is incomplete counts as leechers

	Reason string // of an error
}

// Parse reads a datagram, reusing the slices of r.
func (r *Reply) Parse(b []byte) error {
	if len(b) < 8 {
		return ErrGarbage
	}
	r.Action = Action(binary.BigEndian.Uint32(b))
	r.TransactionID = binary.BigEndian.Uint32(b[4:])
	switch r.Action {
	case ActionConnect:
		if len(b) < ConnectSize {
			return ErrGarbage
		}
		r.ConnectionID = binary.BigEndian.Uint64(b[8:])
	case ActionAnnounce:
		if len(b) < AnnounceReplySize {
			return ErrGarbage
		}
		r.Interval = binary.BigEndian.Uint32(b[8:])
		r.Leechers = binary.BigEndian.Uint32(b[12:])
		r.Seeders = binary.BigEndian.Uint32(b[16:])
		r.Peers = append(r.Peers[:0], b[AnnounceReplySize:]...)
	case ActionScrape:
		if (len(b)-scrapeReplyHeader)%scrapeReplySize != 0 {
			return ErrGarbage
		}
		r.Counts = r.Counts[:0]
		for b = b[scrapeReplyHeader:]; len(b) > 0; b = b[scrapeReplySize:] {
			r.Counts = append(r.Counts, swarm.Counts{
				Seeders:   int(binary.BigEndian.Uint32(b)),
				Downloads: int(binary.BigEndian.Uint32(b[4:])),
				Leechers:  int(binary.BigEndian.Uint32(b[8:])),
			})
		}
	case ActionError:
		r.Reason = string(b[8:])
	default:
		return ErrGarbage
	}
	return nil
}
