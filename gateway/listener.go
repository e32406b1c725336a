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
	inherited bool                      // another process has it too, and lets the next one accept what waits
	draining  atomic.Pointer[time.Time] // when it is set, and by then at the latest
	once      sync.Once
	empty     chan struct{} // nothing waits to be accepted any more
}

const (
	// queueTime is how long a draining listener waits for one more connection.
	queueTime = 20 * time.Millisecond

	// emptyTime bounds for how long it does, where connections keep coming.
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
	for {
		if until := l.draining.Load(); until != nil {
			if l.inherited || time.Now().After(*until) && l.stopEmpty() {
				return nil, net.ErrClosed
			}
			_ = l.SetDeadline(time.Now().Add(queueTime))
		}
		c, err := l.TCPListener.Accept()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return c, err
		}
		// It may have passed before anybody looked.
		if l.inherited || l.stopEmpty() {
			return nil, net.ErrClosed
		}
	}
}

// stopEmpty stops listening if nothing waits to be accepted. There is next to no time between the look and the end,
// because where refuseNew can do nothing, who comes in it is reset.
func (l *listener) stopEmpty() bool {
	stopped := true
	if raw, err := l.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { stopped = stopEmpty(fd) })
	}
	if stopped {
		l.once.Do(func() { close(l.empty) })
	}
	return stopped
}

// Close closes the listener when whoever calls Accept has got all connections that
// clients believe to have. A client that comes meanwhile tries again, and reaches another
// gateway on the port if there is one. It may be called again, as the HTTP server does when
// it shuts down.
func (l *listener) Close() error {
	until := time.Now().Add(emptyTime)
	first := l.draining.CompareAndSwap(nil, &until)
	if l.inherited {
		if first {
			return l.SetDeadline(time.Unix(1, 0)) // it is closed when nobody looks at it any more
		}
		return l.close()
	}
	if raw, err := l.SyscallConn(); err == nil {
		_ = raw.Control(refuseNew)
	}
	if first {
		_ = l.SetDeadline(time.Now().Add(queueTime))
		select {
		case <-l.empty:
		case <-time.After(2 * emptyTime): // nobody accepts
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
