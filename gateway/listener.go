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
	draining atomic.Bool
	once     sync.Once
	empty    chan struct{} // nothing waits to be accepted any more
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
		lc.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) { err = sharePort(fd) }), err)
		}
	}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &listener{TCPListener: l.(*net.TCPListener), empty: make(chan struct{})}, nil
}

// Accept says net.ErrClosed when a draining listener's queue is empty.
func (l *listener) Accept() (net.Conn, error) {
	if l.draining.Load() {
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
	if err := l.TCPListener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
