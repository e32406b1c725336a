// Package proxyprotocol reads headers of the PROXY protocol, versions 1 and 2, that stand
// before a connection or a datagram (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
// It has no sockets and allocates nothing: clients behind a proxy come with a connection, and
// so with a header, for each announce.
package proxyprotocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"
)

// What Parse says of bytes that are no header.
var (
	ErrNone       = errors.New("no PROXY header")
	ErrIncomplete = errors.New("a part of a PROXY header")
	ErrMalformed  = errors.New("a malformed PROXY header")
)

// MaxSize is how many bytes a header may have.
const MaxSize = 4096

const (
	signature1 = "PROXY"
	maxSize1   = 107
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"
	fixed2     = 16 // the signature, version and command, family and transport, length of the rest

	// Version and command.
	local, proxy = 0x20, 0x21
)

// Parse reads the header that b begins with: its size in bytes, and the source that it
// names. That is not valid where the header is about the proxy's own connection
// (LOCAL, UNKNOWN).
func Parse(b []byte) (source netip.Addr, size int, err error) {
	switch {
	case isPrefix(b, signature1):
		return parse1(b)
	case isPrefix(b, signature2):
		return parse2(b)
	}
	return netip.Addr{}, 0, ErrNone
}

// isPrefix says whether b begins with a signature, or is its beginning.
func isPrefix(b []byte, signature string) bool {
	n := min(len(b), len(signature))
	return string(b[:n]) == signature[:n]
}

// parse1 reads PROXY TCP4 SOURCE DESTINATION PORT PORT, or PROXY UNKNOWN and whatever. The
// addresses may be of either family, as some proxies have them.
func parse1(b []byte) (source netip.Addr, size int, err error) {
	end := bytes.IndexByte(b[:min(len(b), maxSize1)], '\n')
	switch {
	case end < 0 && len(b) < maxSize1:
		return source, 0, ErrIncomplete
	case end < 1 || b[end-1] != '\r':
		return source, 0, ErrMalformed
	}
	line := unsafe.String(unsafe.SliceData(b), end-1) // nothing of it is kept
	_, rest, _ := strings.Cut(line, " ")
	protocol, rest, _ := strings.Cut(rest, " ")
	from, rest, _ := strings.Cut(rest, " ")
	to, rest, _ := strings.Cut(rest, " ")
	fromPort, toPort, _ := strings.Cut(rest, " ")
	switch {
	case !strings.HasPrefix(line, signature1+" "):
		return source, 0, ErrMalformed
	case protocol == "UNKNOWN":
		return source, end + 1, nil
	case protocol != "TCP4" && protocol != "TCP6", !isPort(fromPort), !isPort(toPort):
		return source, 0, ErrMalformed
	}
	source, err1 := netip.ParseAddr(from)
	_, err2 := netip.ParseAddr(to)
	if err1 != nil || err2 != nil {
		return netip.Addr{}, 0, ErrMalformed
	}
	return client(source, end+1)
}

func isPort(text string) bool {
	_, err := strconv.ParseUint(text, 10, 16)
	return err == nil
}

// parse2 reads a header whose lengths and addresses are binary.
func parse2(b []byte) (source netip.Addr, size int, err error) {
	if len(b) < fixed2 {
		return source, 0, ErrIncomplete
	}
	command, family := b[12], b[13]
	size = fixed2 + int(binary.BigEndian.Uint16(b[14:]))
	if size > MaxSize || command != local && command != proxy {
		return source, 0, ErrMalformed
	}
	if len(b) < size {
		return source, 0, ErrIncomplete
	}
	addresses := b[fixed2:size]
	switch {
	case command == local:
		return source, size, nil
	case (family == 0x11 || family == 0x12) && len(addresses) >= 12:
		return client(netip.AddrFrom4([4]byte(addresses[:4])), size)
	case (family == 0x21 || family == 0x22) && len(addresses) >= 36:
		return client(netip.AddrFrom16([16]byte(addresses[:16])), size)
	}
	return source, 0, ErrMalformed
}

// client refuses addresses that nobody can have.
func client(source netip.Addr, size int) (netip.Addr, int, error) {
	source = source.Unmap().WithZone("")
	if source.IsUnspecified() || source.IsMulticast() {
		return netip.Addr{}, 0, ErrMalformed
	}
	return source, size, nil
}
