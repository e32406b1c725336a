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
	verb  = "GET /announce?"
	proto = " HTTP/1.1"
)

// read reads the head that b begins with, where the header named realIP may tell the client's
// address. What it calls plain Fiber must understand the same way; where that takes thought,
// the head is unusual.
func (h *head) read(b []byte, realIP string) (size int, is verdict) {
	if n := min(len(b), len(verb)); string(b[:n]) != verb[:n] {
		return 0, unusual
	}
	line, rest, is := cutLine(b)
	if is != plain {
		return 0, is
	}
	if len(line) < len(verb)+len(proto) {
		return 0, unusual
	}
	h.query = line[len(verb) : len(line)-len(proto)]
	switch string(line[len(verb)+len(h.query):]) {
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
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && c != '.' && c != '-' {
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
		table[c] = '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' && c < 0x80 || c < 0x80 && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0
	}
	return table
}()

// appendResponse appends a response with a body, as Fiber sends it.
func (h *head) appendResponse(b []byte, date, body []byte) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nDate: "...)
	b = append(b, date...)
	b = append(b, "\r\nContent-Type: text/plain\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
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
