// Package udpproxy is the UDP front end (BEP 15). Sockets that share one address
// give and take datagrams in batches (conn.go and its platforms); the handler makes
// replies and announces of them (handler.go) without a socket; connection ids prove
// that a client can receive where it says it is (connectionid.go).
//
//	s, err := udpproxy.Listen(ctx, udpproxy.Options{Addr: ":6969", Tracker: t, ...})
//	go s.Serve()
//	...
//	s.Shutdown(ctx)
//
// What is held at once is bounded: when all requests wait for their answers the
// kernel's buffer holds the rest, and drops and counts what it cannot.
package udpproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"swarmgate/swarmstore/swarm"
)

// Tracker is who answers. Both calls hand back what they were given, once, in parts
// and perhaps from other goroutines; batch is the caller's again when Announce returns.
type Tracker interface {
	Announce(now time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce))
	Scrape(now time.Time, scrape *swarm.Scrape, answered func(*swarm.Scrape))
}

// Metrics is told what the tracker does not see.
type Metrics interface {
	// Received is one batch that the kernel gave.
	Received(Batch)
	// Dropped counts datagrams lost in full buffers of the kernel, in and out.
	Dropped(datagrams int)
	// Invalid counts a datagram that was met with silence or an error.
	Invalid()
	// ForgedProxy counts a PROXY header from who may send none.
	ForgedProxy()
}

// Batch tells what some datagrams were. Arrays are by the family of the sender's address, IPv4 first.
type Batch struct {
	Datagrams [2]int
	GotID     [2]int // those that asked for a connection id
	WrongID   int    // those that came with a wrong or an old one
}

// Networks tells whether an address lies in some networks.
type Networks interface{ Contains(netip.Addr) bool }

// Options of a Server.
type Options struct {
	Addr      string       // HOST:PORT; without a host all addresses of both families
	Socket    *net.UDPConn // in place of Addr one that is bound, and that another process keeps; on Linux
	SharePort bool         // other processes may answer on the same address
	Sockets   int          // that share the address, where the platform can; a loop each
	IDs       *ConnectionIDs
	Tracker   Tracker
	Metrics   Metrics
	Now       func() time.Time

	// Proxies may begin a datagram with a PROXY header, which names the client that it is from;
	// the answer goes to the proxy without one. MayName are clients whose announces may name
	// another IPv4 address. Nil is nobody.
	Proxies, MayName Networks
}

// Server is the front end.
type Server struct {
	handler *handler
	conns   []conn
	begun   atomic.Bool
	ended   chan struct{} // when all loops have, after they began
}

// Listen binds the sockets. Nothing is answered until Serve.
func Listen(ctx context.Context, o Options) (*Server, error) { return listenWith(ctx, o, listen) }

func listenWith(ctx context.Context, o Options, listen func(context.Context, Options) ([]conn, error)) (*Server, error) {
	conns, err := listen(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("udp: %w", err)
	}
	return &Server{handler: newHandler(o), conns: conns, ended: make(chan struct{})}, nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.conns[0].localAddr() }

// Serve answers until Shutdown, or until a socket fails.
func (s *Server) Serve() error {
	s.begun.Store(true)
	defer close(s.ended)
	var group errgroup.Group
	for _, c := range s.conns {
		group.Go(func() error {
			err := s.loop(c)
			if err != nil {
				_ = s.stop() // a half of the sockets would lose half of the clients
				return fmt.Errorf("udp: %w", err)
			}
			return nil
		})
	}
	return group.Wait()
}

// loop receives and handles until the socket is stopped and what it held is read.
func (s *Server) loop(c conn) error {
	in, out := newIncoming(), newOutgoing()
	h := s.handler
	var spare []*request
	var batch []*swarm.Announce
	var scrapes []*request
	defer func() { h.requests.give(spare) }()
	for {
		spare = h.requests.take(spare, batchSize)
		n, err := c.receive(in)
		if errors.Is(err, errStopped) {
			return nil
		}
		if err != nil {
			return err
		}
		if in.dropped > 0 {
			h.Metrics.Dropped(in.dropped)
		}
		now := h.Now()
		var held Batch
		for i := range n {
			family := 0
			if !in.from[i].client.Addr().Is4() {
				family = 1
			}
			held.Datagrams[family]++
			switch r := spare[len(spare)-1]; h.handle(now, in.data[i], in.from[i], r, out) {
			case toAnnounce:
				r.conn = c
				batch = append(batch, &r.announce)
				spare = spare[:len(spare)-1]
			case toScrape:
				r.conn = c
				scrapes = append(scrapes, r)
				spare = spare[:len(spare)-1]
			case gotID:
				held.GotID[family]++
			case wrongID:
				held.WrongID++
			}
		}
		h.Metrics.Received(held)
		h.flush(c, out)
		if len(batch) > 0 {
			h.Tracker.Announce(now, batch, h.announced)
			batch = batch[:0]
		}
		for _, r := range scrapes {
			h.Tracker.Scrape(now, &r.scrape, h.scraped)
		}
		scrapes = scrapes[:0]
	}
}

func (s *Server) stop() error {
	var errs []error
	for _, c := range s.conns {
		errs = append(errs, c.stop())
	}
	return errors.Join(errs...)
}

// Shutdown stops receiving, answers what the sockets still hold and what is in
// flight, as long as ctx lasts, and closes them. What comes for the address
// meanwhile goes to other processes that share it.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.stop()
	if s.begun.Load() { // what the sockets hold is read by the loops
		select {
		case <-s.ended:
		case <-ctx.Done():
		}
	}
	if e := s.handler.requests.idle(ctx); e != nil {
		err = errors.Join(err, fmt.Errorf("udp: requests in flight: %w", e))
	}
	for _, c := range s.conns {
		err = errors.Join(err, c.close())
	}
	return err
}
