package httpapi

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"time"

	"swarmgate/swarmstore/swarm"
)

// appendAnswer appends the bencoded answer to an announce. The keys of a dictionary
// are sorted, which strict clients insist on.
func (r *announce) appendAnswer(b []byte) []byte {
	if r.Err != nil {
		return appendRetry(b, r.Err, r.Interval)
	}
	b = append(b, 'd')
	b = appendInt(b, "complete", r.Counts.Seeders)
	b = appendInt(b, "downloaded", r.Counts.Downloads)
	if addr := r.Peer.Addr(); addr.Is4() {
		a := addr.As4()
		b = appendBytes(b, "external ip", a[:])
	} else {
		a := addr.As16()
		b = appendBytes(b, "external ip", a[:])
	}
	b = appendInt(b, "incomplete", r.Counts.Incomplete())
	b = appendInt(b, "interval", seconds(r.Interval))
	b = appendInt(b, "min interval", seconds(r.MinInterval))
	if !r.compact {
		b = append(b, "5:peersl"...)
		b = appendPeers(b, r.Peers4, swarm.Size4)
		b = appendPeers(b, r.Peers6, swarm.Size6)
		return append(b, "ee"...)
	}
	b = appendBytes(b, "peers", r.Peers4)
	if len(r.Peers6) > 0 {
		b = appendBytes(b, "peers6", r.Peers6)
	}
	return append(b, 'e')
}

// appendPeers appends a dictionary for each compact peer, without its id, which is
// nobody's business.
func appendPeers(b, compact []byte, size int) []byte {
	for ; len(compact) >= size; compact = compact[size:] {
		addr, _ := netip.AddrFromSlice(compact[:size-2])
		var text [len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]byte
		b = append(b, 'd')
		b = appendBytes(b, "ip", addr.AppendTo(text[:0]))
		b = appendInt(b, "port", int(binary.BigEndian.Uint16(compact[size-2:])))
		b = append(b, 'e')
	}
	return b
}

// appendAnswer appends the bencoded answer to a scrape (BEP 48, BEP 21).
func (r *scrape) appendAnswer(b []byte) []byte {
	if r.Err != nil {
		return appendFailure(b, swarm.Reason(r.Err))
	}
	b = append(b, "d5:filesd"...)
	for i := range r.Hashes {
		if r.Counts[i].Denied {
			continue
		}
		b = append(b, "20:"...)
		b = append(b, r.Hashes[i][:]...)
		b = append(b, 'd')
		b = appendInt(b, "complete", r.Counts[i].Seeders)
		b = appendInt(b, "downloaded", r.Counts[i].Downloads)
		b = appendInt(b, "downloaders", r.Counts[i].Leechers)
		b = appendInt(b, "incomplete", r.Counts[i].Incomplete())
		b = append(b, 'e')
	}
	return append(b, "ee"...)
}

func appendFailure(b []byte, reason string) []byte {
	b = append(b, 'd')
	b = appendString(b, "failure reason")
	b = appendString(b, reason)
	return append(b, 'e')
}

// appendRetry appends a failure with when to come back, in the two ways that clients read: in
// minutes, or never (BEP 31), and in seconds.
func appendRetry(b []byte, err error, wait time.Duration) []byte {
	b = append(b, 'd')
	b = appendString(b, "failure reason")
	b = appendString(b, swarm.Reason(err))
	b = appendInt(b, "interval", seconds(wait))
	if errors.Is(err, swarm.ErrDenied) {
		b = appendString(appendString(b, "retry in"), "never")
	} else {
		b = appendInt(b, "retry in", int((wait+time.Minute-1)/time.Minute))
	}
	return append(b, 'e')
}

func seconds(d time.Duration) int { return int(d / time.Second) }

func appendInt(b []byte, key string, n int) []byte {
	b = append(appendString(b, key), 'i')
	return append(strconv.AppendInt(b, int64(n), 10), 'e')
}

func appendBytes(b []byte, key string, value []byte) []byte {
	b = strconv.AppendInt(appendString(b, key), int64(len(value)), 10)
	return append(append(b, ':'), value...)
}

func appendString(b []byte, s string) []byte {
	b = strconv.AppendInt(b, int64(len(s)), 10)
	return append(append(b, ':'), s...)
}
