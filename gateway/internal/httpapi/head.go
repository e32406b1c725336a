package httpapi

import (
	"bytes"
	"strconv"
	"strings"
)

// maxHead bounds the heads that are read here; longer ones are unusual.
const maxHead = 4 << 10

// head is an announce's request line and what matters of its headers.
type head struct {
	query  []byte   // of the bytes that were read
	realIP [][]byte // likewise: the values of the header that tells the client's address
	old    bool     // HTTP/1.0
	close  bool     // the connection ends with the answer
}

// What the bytes of a request are.
type verdict int

const (
	incomplete verdict = iota
	plain              // an announce in a whole head of this size, without a body
	unusual            // for Fiber to decide: also all mistakes
)

const (
	method = "GET "
	verb   = method + "/announce?"
	proto  = " HTTP/1.1"
)

// read reads the head that b begins with. What it calls plain Fiber must understand the
// same way; where that takes thought, the head is unusual. Announces are answered too at paths
// that begin with under, unless that is empty. The header named realIP may tell the client's
// address.
func (h *head) read(b []byte, under, realIP string) (size int, is verdict) {
	start, is := readVerb(b, under)
	if is != plain {
		return 0, is
	}
	line, rest, is := cutLine(b)
	if is != plain {
		return 0, is
	}
	if len(line) < start+len(proto) {
		return 0, unusual
	}
	h.query = line[start : len(line)-len(proto)]
	switch string(line[start+len(h.query):]) {
	case proto:
		h.old = false
	case " HTTP/1.0":
		h.old = true
	default:
		return 0, unusual
	}
	for _, c := range h.query {
		if c <= ' ' || c == 0x7f || c == '#' {
			return 0, unusual
		}
	}
	return h.readHeaders(b, rest, realIP)
}

// readVerb finds where the query of an announce begins.
func readVerb(b []byte, under string) (size int, is verdict) {
	if size, is = readPrefix(b, verb); is != unusual || under == "" {
		return size, is
	}
	if size, is = readPrefix(b, method); is != plain {
		return 0, is
	}
	n, is := readPrefix(b[size:], under)
	if is != plain {
		return 0, is
	}
	size += n
	for n, c := range b[size:] {
		switch {
		case c == '?':
			path := b[size : size+n]
			if string(path) != "announce" && !(len(path) > len("/announce") && bytes.HasSuffix(path, []byte("/announce"))) {
				return 0, unusual
			}
			return size + n + 1, plain
		case c != '/' && c != '-' && c != '_' && !letterOrDigit(c):
			return 0, unusual
		}
	}
	return 0, incomplete
}

// readPrefix tells whether b begins with prefix, as far as b goes.
func readPrefix(b []byte, prefix string) (size int, is verdict) {
	switch n := min(len(b), len(prefix)); {
	case string(b[:n]) != prefix[:n]:
		return 0, unusual
	case n < len(prefix):
		return 0, incomplete
	default:
		return n, plain
	}
}

func letterOrDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// readHeaders reads up to the empty line.
func (h *head) readHeaders(b, rest []byte, realIP string) (size int, is verdict) {
	h.close, h.realIP = h.old, h.realIP[:0]
	var hosts, connections int
	for {
		var line []byte
		if line, rest, is = cutLine(rest); is != plain {
			return 0, is
		}
		if len(line) == 0 {
			return len(b) - len(rest), plain
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 {
			return 0, unusual
		}
		name, value := line[:colon], line[colon+1:]
		for _, c := range name {
			if !nameByte[c] {
				return 0, unusual
			}
		}
		for _, c := range value {
			if c < ' ' || c == 0x7f {
				return 0, unusual
			}
		}
		value = bytes.Trim(value, " ")
		if len(name) == len(realIP) && strings.EqualFold(string(name), realIP) {
			h.realIP = append(h.realIP, value)
		}
		switch len(name) {
		case len("Host"):
			if bytes.EqualFold(name, []byte("Host")) {
				if hosts++; hosts > 1 || !plainHost(value) {
					return 0, unusual
				}
			}
		case len("Expect"):
			if bytes.EqualFold(name, []byte("Expect")) {
				return 0, unusual
			}
		case len("Upgrade"):
			if bytes.EqualFold(name, []byte("Upgrade")) || bytes.EqualFold(name, []byte("Trailer")) {
				return 0, unusual
			}
		case len("Connection"):
			if bytes.EqualFold(name, []byte("Connection")) {
				connections++
				switch {
				case connections > 1:
					return 0, unusual
				case string(value) == "close":
					h.close = true
				case bytes.EqualFold(value, []byte("keep-alive")):
					h.close = false
				default:
					return 0, unusual
				}
			}
		case len("Content-Length"):
			if bytes.EqualFold(name, []byte("Content-Length")) {
				return 0, unusual
			}
		case len("Transfer-Encoding"):
			if bytes.EqualFold(name, []byte("Transfer-Encoding")) {
				return 0, unusual
			}
		}
	}
}

// cutLine cuts the first line from b, which is plain when it ends as it should.
func cutLine(b []byte) (line, rest []byte, is verdict) {
	switch n := bytes.IndexByte(b, '\n'); {
	case n < 0:
		return nil, nil, incomplete
	case n == 0 || b[n-1] != '\r':
		return nil, nil, unusual
	default:
		return b[:n-1], b[n+1:], plain
	}
}

// plainHost tells a name or an IPv4 address, perhaps with a port: what else a Host may
// hold can make a request one for nowhere.
func plainHost(value []byte) bool {
	name, port, _ := bytes.Cut(value, []byte{':'})
	for _, c := range name {
		if !letterOrDigit(c) && c != '.' && c != '-' {
			return false
		}
	}
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(name) > 0 || len(value) == 0
}

// nameByte tells the bytes that the name of a header is made of (RFC 9110's token).
var nameByte = func() (table [256]bool) {
	for c := range table {
		table[c] = letterOrDigit(byte(c)) || c < 0x80 && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0
	}
	return table
}()

// appendResponse appends a response with a body, as Fiber sends it.
func (h *head) appendResponse(b []byte, date, body []byte) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nDate: "...)
	b = append(b, date...)
	b = append(b, "\r\nContent-Type: text/plain\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\nCache-Control: "+noStore...)
	switch {
	case h.close:
		b = append(b, "\r\nConnection: close\r\n\r\n"...)
	case h.old:
		b = append(b, "\r\nConnection: keep-alive\r\n\r\n"...)
	default:
		b = append(b, "\r\n\r\n"...)
	}
	return append(b, body...)
}
