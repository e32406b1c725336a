package main

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// listener is the HTTP front end's. Closing a net.TCPListener breaks the connections that the
// kernel has made and nobody has accepted yet; this one lets them be accepted first.
type listener struct {
	*net.TCPListener
	inherited bool // another process has it too, and lets the next one accept what waits
	draining  atomic.Bool
	once      sync.Once
	empty     chan struct{} // nothing waits to be accepted any more
}

const (
	// queueTime is how long a draining listener waits for one more connection.
	queueTime = 20 * time.Millisecond

	// emptyTime bounds how long a queue may take to become empty.
	emptyTime = time.Second
)

// listenTCP listens, with share so that other gateways on this host may too.
func listenTCP(ctx context.Context, addr string, share bool) (*listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // whose sockets take no filter, and are dearer
	if share {
		lc.Control = controlSharePort
	}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return newListener(l.(*net.TCPListener), false), nil
}

// controlSharePort lets other sockets have the same address.
func controlSharePort(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = sharePort(fd) }), err)
}

func newListener(l *net.TCPListener, inherited bool) *listener {
	return &listener{TCPListener: l, inherited: inherited, empty: make(chan struct{})}
}

// Accept says net.ErrClosed when a draining listener's queue is empty.
func (l *listener) Accept() (net.Conn, error) {
	if l.draining.Load() {
		if l.inherited {
			return nil, net.ErrClosed
		}
		_ = l.SetDeadline(time.Now().Add(queueTime))
	}
	c, err := l.TCPListener.Accept()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.once.Do(func() { close(l.empty) })
		return nil, net.ErrClosed
	}
	return c, err
}

// Close closes the listener when whoever calls Accept has got all connections that
// clients believe to have. A client that comes meanwhile tries again, and reaches another
// gateway on the port if there is one. It may be called again, as the HTTP server does when
// it shuts down.
func (l *listener) Close() error {
	if l.inherited && !l.draining.Swap(true) {
		return l.SetDeadline(time.Unix(1, 0)) // it is closed when nobody looks at it any more
	}
	if l.inherited {
		return l.close()
	}
	if raw, err := l.SyscallConn(); err == nil {
		_ = raw.Control(refuseNew)
	}
	if !l.draining.Swap(true) {
		_ = l.SetDeadline(time.Now().Add(queueTime))
		select {
		case <-l.empty:
		case <-time.After(emptyTime):
		}
	}
	return l.close()
}

func (l *listener) close() error {
	if err := l.TCPListener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
