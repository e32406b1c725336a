package httpapi

import (
	"bytes"
	"errors"
	"math"
	"net"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/gofiber/fiber/v2"

	"swarmgate/udpproxy/proxyprotocol"
)

// Where a client is: at the other end of its connection (peer), unless that is a trusted proxy,
// which says so in a PROXY header before the connection, then in an HTTP header of each
// request. What anybody else says of addresses changes nothing and is counted.

// headerOfHops is the one header that holds more than an address: each proxy adds whom it got
// the request from.
const headerOfHops = "X-Forwarded-For"

func among(networks Networks, addr netip.Addr) bool {
	return networks != nil && networks.Contains(addr)
}

// remote is the address of the client that sent a request, not valid where a trusted proxy's
// header makes no sense.
func (s *Server) remote(c *fiber.Ctx) netip.Addr {
	return s.client(addrOf(c.Context().RemoteAddr()), c.Request().Header.PeekAll(s.RealIPHeader))
}

func addrOf(addr net.Addr) netip.Addr {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// client is the address of the client whose request came from peer, with these values of the
// header, one a line. Of hops it is the last that is not trusted, or where all are, the
// first.
func (s *Server) client(peer netip.Addr, values [][]byte) (client netip.Addr) {
	switch {
	case len(values) == 0, s.RealIPHeader == "":
		return peer
	case !among(s.Trusted, peer):
		s.Metrics.ForgedHeader()
		return peer
	case s.RealIPHeader != headerOfHops && len(values) == 1:
		return parseAddr(values[0])
	case s.RealIPHeader != headerOfHops: // of which the client may have sent one
		return client
	}
	for _, value := range slices.Backward(values) {
		for comma := len(value); comma >= 0; {
			comma = bytes.LastIndexByte(value, ',')
			hop := bytes.Trim(value[comma+1:], " \t")
			value = value[:max(comma, 0)]
			if len(hop) == 0 {
				continue
			}
			if client = parseAddr(hop); !s.Trusted.Contains(client) {
				return client
			}
		}
	}
	return client
}

// parseAddr reads an address, perhaps in brackets and with a port. It is not valid when it is
// none, or one that nobody can have.
func parseAddr(text []byte) netip.Addr {
	text = bytes.Trim(text, " \t")
	var port []byte
	withPort := false
	if inside, ok := bytes.CutPrefix(text, []byte{'['}); ok {
		if text, port, ok = bytes.Cut(inside, []byte{']'}); !ok || bytes.IndexByte(text, ':') < 0 {
			return netip.Addr{}
		}
		if port, withPort = bytes.CutPrefix(port, []byte{':'}); !withPort && len(port) > 0 {
			return netip.Addr{}
		}
	} else if host, after, ok := bytes.Cut(text, []byte{':'}); ok && bytes.IndexByte(after, ':') < 0 {
		text, port, withPort = host, after, true
	}
	if withPort {
		if n, negative, err := number(port); err != nil || negative || n > math.MaxUint16 {
			return netip.Addr{}
		}
	}
	// A string of its own would be an allocation; the address keeps nothing of this one.
	addr, err := netip.ParseAddr(unsafe.String(unsafe.SliceData(text), len(text)))
	if addr = addr.Unmap().WithZone(""); err != nil || addr.IsUnspecified() || addr.IsMulticast() {
		return netip.Addr{}
	}
	return addr
}

// read reads an announce from a client.
func (s *Server) read(r *announce, query []byte, client netip.Addr) (reason string) {
	reason = r.parse(query, client, among(s.MayName, client))
	if r.forged {
		s.Metrics.ForgedQuery()
	}
	return reason
}

// open looks for a PROXY header in the first bytes of a connection from peer. It returns the
// address that the connection counts as one from, and the size of the header to pass over,
// unless the bytes are too few to tell. A header that nobody may send, or that is malformed,
// is not passed over: it makes the request nonsense.
func (s *Server) open(first []byte, peer netip.Addr) (addr netip.Addr, size int, opened bool) {
	source, size, err := proxyprotocol.Parse(first)
	switch {
	case errors.Is(err, proxyprotocol.ErrIncomplete):
		return peer, 0, false
	case errors.Is(err, proxyprotocol.ErrNone):
		return peer, 0, true
	case !s.ProxyProtocol || !among(s.Trusted, peer):
		s.Metrics.ForgedProxy()
		return peer, 0, true
	case !source.IsValid(): // the proxy's own connection, or malformed
		return peer, size, true
	}
	return source, size, true
}

// clientConn is a connection that Fiber has.
type clientConn struct {
	net.Conn
	server *Server
	in     []byte   // read, and given before the rest
	opened bool     // in does not begin with what may be a PROXY header
	remote net.Addr // when it is not the connection's own
}

func (c *clientConn) Read(b []byte) (int, error) {
	for !c.opened {
		n := len(c.in)
		c.in = slices.Grow(c.in, bytes.MinRead)
		more, err := c.Conn.Read(c.in[n:cap(c.in)])
		peer := addrOf(c.Conn.RemoteAddr())
		addr, header, opened := c.server.open(c.in[:n+more], peer)
		c.in = c.in[header : n+more]
		c.opened = opened || err != nil // what is a part of a header for good, is nonsense
		if addr != peer {
			c.remote = &net.TCPAddr{IP: addr.AsSlice()}
		}
	}
	if len(c.in) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.in)
	if c.in = c.in[n:]; len(c.in) == 0 {
		c.in = nil
	}
	return n, nil
}

func (c *clientConn) RemoteAddr() net.Addr {
	if c.remote != nil {
		return c.remote
	}
	return c.Conn.RemoteAddr()
}

// clientListener accepts the connections of a Fiber that nothing stands in front of.
type clientListener struct {
	net.Listener
	server *Server
}

func (l clientListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.server.Metrics.Accepted(addrOf(c.RemoteAddr()))
	return &clientConn{Conn: c, server: l.server}, nil
}
