package httpapi

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// handOver gives Fiber a connection on which in was read and out is still to be sent.
func (c *conn) handOver(in, out []byte) {
	if c.polled {
		_ = c.loop.control(unix.EPOLL_CTL_DEL, c.fd, nil)
	}
	h := &handed{front: c.loop.front, until: c.deadline}
	h.clientConn = clientConn{server: h.front.Server, in: bytes.Clone(in), opened: c.opened}
	if c.opened {
		h.remote = &net.TCPAddr{IP: c.addr.AsSlice()}
	}
	fd, l := c.fd, c.loop
	c.state.Store(closed)
	out = bytes.Clone(out)
	go func() { // it may take long
		defer l.open.Add(-1)
		file := os.NewFile(uintptr(fd), "")
		var err error
		h.Conn, err = net.FileConn(file)
		_ = file.Close()
		if err != nil {
			h.front.clients.Add(-1)
			return
		}
		if len(out) > 0 {
			_ = h.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := h.Write(out); err != nil {
				_ = h.Close()
				return
			}
		}
		h.front.hand(h)
	}()
}

// take gives Fiber a connection that was accepted while the loops end.
func (f *front) take(c net.Conn) {
	f.Metrics.Accepted(addrOf(c.RemoteAddr()))
	if !f.admit() {
		_, _ = c.Write(refusal(*f.date.Load()))
		_ = c.Close()
		return
	}
	f.hand(&handed{front: f, clientConn: clientConn{Conn: c, server: f.Server}})
}

// admit counts a connection, unless there are too many.
func (f *front) admit() bool {
	if f.clients.Add(1) > int64(f.MaxClients) {
		f.clients.Add(-1)
		return false
	}
	return true
}

// refusal is what Fiber sends to one client too many.
func refusal(date []byte) []byte {
	const text = "The connection cannot be served because Server.Concurrency limit exceeded"
	return fmt.Appendf(nil, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nDate: %s\r\n"+
		"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", date, len(text), text)
}

func (f *front) hand(h *handed) {
	select {
	case f.handed <- h:
	case <-f.drained:
		_ = h.Close()
	}
}

// Accept, Close and Addr make the front the listener that Fiber has.
func (f *front) Accept() (net.Conn, error) {
	select {
	case h := <-f.handed:
		return h, nil
	case <-f.drained:
		return nil, net.ErrClosed
	}
}

func (f *front) Close() error {
	<-f.drained
	return nil
}

func (f *front) Addr() net.Addr { return f.listener.Addr() }

// handed is a connection that is Fiber's.
type handed struct {
	clientConn
	front *front
	until time.Time // the time that the first request has left, when set
	once  sync.Once
}

// SetReadDeadline does not begin anew with a request that is half read.
func (h *handed) SetReadDeadline(t time.Time) error {
	if !h.until.IsZero() {
		t, h.until = h.until, time.Time{}
	}
	return h.Conn.SetReadDeadline(t)
}

func (h *handed) Close() error {
	h.once.Do(func() { h.front.clients.Add(-1) })
	return h.Conn.Close()
}
