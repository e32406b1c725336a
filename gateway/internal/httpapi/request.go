package httpapi

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"slices"

	"swarmgate/swarmstore/swarm"
)

// maxScrape is how many info hashes a scrape may name.
const maxScrape = 100

// parse reads the parameters of an announce from the client at addr, which may name another
// address or not, and returns the reason why they make no sense. Of a parameter that comes
// twice the last counts.
func (r *announce) parse(query []byte, addr netip.Addr, mayName bool) (reason string) {
	*r = announce{
		Announce: swarm.Announce{Left: swarm.UnknownLeft, NumWant: -1, Both: true, Complete: true, Answer: swarm.Answer{Peers4: r.Peers4, Peers6: r.Peers6}},
		compact:  true,
		batch:    r.batch, answered: r.answered, done: r.done, scratch: r.scratch, body: r.body,
	}
	hashes, ports := 0, 0
	var names named
	var port uint64
	var key, value []byte
	for len(query) > 0 && reason == "" {
		key, value, query = nextParameter(query, &r.scratch)
		var n uint64
		switch string(key) {
		case "info_hash":
			hashes++
			if !readHash(&r.InfoHash, value) {
				reason = reasonHashSize
			}
		case "port":
			ports++
			var negative bool
			var err error
			if port, negative, err = number(value); err != nil || negative || port == 0 || port > math.MaxUint16 {
				reason = reasonPort
			}
		case "left":
			r.Left, reason = amount("left", value)
		case "uploaded":
			_, reason = amount("uploaded", value)
		case "downloaded":
			_, reason = amount("downloaded", value)
		case "numwant":
			n, reason = amount("numwant", value)
			if r.NumWant = -1; n != swarm.UnknownLeft {
				r.NumWant = int(min(n, math.MaxInt32))
			}
		case "event":
			r.Event = event(value)
		case "compact":
			r.compact = string(value) != "0"
		case "ip", "ipv4", "ipv6":
			switch {
			case len(value) == 0:
			case mayName:
				reason = names.read(key, value)
			default:
				r.forged = true
			}
		}
	}
	switch {
	case reason != "":
		return reason
	case hashes == 0:
		return reasonNoHash
	case hashes > 1:
		return reasonHashes
	case ports == 0:
		return reasonNoPort
	case !addr.IsValid():
		return reasonAddress
	}
	if mayName {
		addr = names.instead(addr)
	}
	r.Peer = netip.AddrPortFrom(addr, uint16(port))
	return ""
}

// named are the addresses that an announce names (BEP 3 and 7).
type named struct{ ip, ipv4, ipv6 netip.Addr }

// read reads the address of a parameter, and returns the reason when it is none of its kind.
func (n *named) read(parameter, value []byte) (reason string) {
	addr := parseAddr(value)
	switch kind := string(parameter); {
	case kind == "ip" && addr.IsValid():
		n.ip = addr
	case kind == "ipv4" && addr.Is4():
		n.ipv4 = addr
	case kind == "ipv6" && addr.Is6():
		n.ipv6 = addr
	default:
		return about(reasonNamed, string(parameter))
	}
	return ""
}

// instead is the address that the announce of an asker counts for. An announce is one peer, so
// of both families the asker's own goes first.
func (n *named) instead(asker netip.Addr) netip.Addr {
	own, other := n.ipv4, n.ipv6
	if asker.Is6() {
		own, other = other, own
	}
	for _, addr := range []netip.Addr{n.ip, own, other} {
		if addr.IsValid() {
			return addr
		}
	}
	return asker
}

func event(value []byte) swarm.Event {
	switch string(value) {
	case "started":
		return swarm.Started
	case "completed":
		return swarm.Completed
	case "stopped":
		return swarm.Stopped
	case "paused":
		return swarm.Paused
	}
	return swarm.None
}

// parse reads the parameters of a scrape. Its hashes come out sorted, each
// once, as the keys of the answer have to.
func (r *scrape) parse(query []byte) (reason string) {
	r.Hashes = r.Hashes[:0]
	var key, value []byte
	for len(query) > 0 {
		if key, value, query = nextParameter(query, &r.scratch); string(key) != "info_hash" {
			continue
		}
		var hash swarm.InfoHash
		if !readHash(&hash, value) {
			return reasonHashSize
		}
		if len(r.Hashes) == maxScrape {
			return reasonScrapes
		}
		r.Hashes = append(r.Hashes, hash)
	}
	if len(r.Hashes) == 0 {
		return reasonNoScrape
	}
	slices.SortFunc(r.Hashes, func(a, b swarm.InfoHash) int { return bytes.Compare(a[:], b[:]) })
	r.Hashes = slices.Compact(r.Hashes)
	return ""
}

// nextParameter cuts the first parameter from a query and decodes it into scratch.
func nextParameter(query []byte, scratch *[]byte) (key, value, rest []byte) {
	parameter, rest, _ := bytes.Cut(query, []byte{'&'})
	rawKey, rawValue, _ := bytes.Cut(parameter, []byte{'='})
	b := unescape((*scratch)[:0], rawKey)
	n := len(b)
	b = unescape(b, rawValue)
	*scratch = b
	return b[:n], b[n:], rest
}

// unescape appends what src stands for: %xx in either case, + for a space. An
// escape that is none stands for itself.
func unescape(dst, src []byte) []byte {
	for i := 0; i < len(src); i++ {
		switch c := src[i]; {
		case c == '+':
			dst = append(dst, ' ')
		case c == '%' && i+2 < len(src) && hexDigit[src[i+1]] >= 0 && hexDigit[src[i+2]] >= 0:
			dst = append(dst, byte(hexDigit[src[i+1]]<<4|hexDigit[src[i+2]]))
			i += 2
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// hexDigit is the value of each byte as a hexadecimal digit, or -1.
var hexDigit = func() (table [256]int16) {
	for c := range table {
		switch {
		case '0' <= c && c <= '9':
			table[c] = int16(c - '0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			table[c] = int16(c | 0x20 - 'a' + 10)
		default:
			table[c] = -1
		}
	}
	return table
}()

// readHash reads an info hash. Some clients escape theirs twice.
func readHash(hash *swarm.InfoHash, value []byte) bool {
	if len(value) > len(hash) {
		var twice [3 * len(hash)]byte
		if len(value) > len(twice) {
			return false
		}
		value = unescape(twice[:0], value)
	}
	return copy(hash[:], value) == len(hash) && len(value) == len(hash)
}

// amount reads the number of a parameter that counts something, or the reason why
// it is none. What is empty or below zero is unknown, which some clients send.
func amount(parameter string, value []byte) (n uint64, reason string) {
	if len(value) == 0 {
		return swarm.UnknownLeft, ""
	}
	n, negative, err := number(value)
	switch {
	case errors.Is(err, errOverflow):
		return 0, about(reasonOverflow, parameter)
	case err != nil:
		return 0, about(reasonNumber, parameter)
	case negative:
		return swarm.UnknownLeft, ""
	}
	return n, ""
}

var (
	errOverflow  = errors.New("does not fit 64 bits")
	errNotNumber = errors.New("not a number")
)

// number reads a decimal number, of which negative says whether it is below zero.
func number(value []byte) (n uint64, negative bool, err error) {
	if digits, ok := bytes.CutPrefix(value, []byte{'-'}); ok {
		value, negative = digits, true
	}
	if len(value) == 0 {
		return 0, false, errNotNumber
	}
	overflow := false
	for _, c := range value {
		d := uint64(c - '0')
		if d > 9 {
			return 0, false, errNotNumber
		}
		overflow = overflow || n > (math.MaxUint64-d)/10
		n = n*10 + d
	}
	if overflow {
		return 0, false, errOverflow
	}
	return n, negative && n > 0, nil
}
