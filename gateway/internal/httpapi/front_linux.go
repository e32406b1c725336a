package httpapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"swarmgate/swarmstore/swarm"
)

// front accepts connections and answers plain announces on them without Fiber, whose
// goroutine and timers for each connection cost more than the announce. A connection
// on which something else comes it hands over, with what it has read, and for
// good (handover_linux.go).
type front struct {
	*Server
	listener net.Listener
	raw      syscall.RawConn // of the listener
	loops    []*loop
	clients  atomic.Int64 // connections, of Fiber too
	closing  atomic.Bool
	giveUp   atomic.Bool // do not wait for clients any more
	date     atomic.Pointer[[]byte]
	answered func([]*swarm.Announce) // answerAnnounces, bound once

	handed  chan net.Conn // to Fiber
	ended   chan struct{} // the loops have
	drained chan struct{} // all connections are gone or Fiber's
	once    sync.Once     // closes drained
}

// loop waits for connections and requests, with epoll(7), and collects what is ready into
// batches for the tracker.
//
// A connection belongs to its loop until the loop gives its announce to the tracker,
// then to the goroutine that has the answer, and when that was sent to the loop again.
// Who has it reads, writes and closes it, nobody else; so a file descriptor is
// never used for what it meant before. What epoll says is but a hint to read: one about
// a descriptor's earlier life does no harm.
type loop struct {
	front     *front
	epoll     *os.File
	raw       syscall.RawConn
	accepting bool
	next      time.Time    // when to sweep
	conns     []*conn      // by file descriptor
	open      atomic.Int64 // connections
	in        [maxHead]byte
	batch     []*swarm.Announce
	events    [maxEvents]unix.EpollEvent
	count     int // of them
	name      unix.RawSockaddrInet6

	// Functions bound once.
	wait   func(fd uintptr) (done bool)
	accept func(fd uintptr)
	poll   func(fd uintptr)
	polled *conn // by poll

	mu   sync.Mutex
	back []*conn // that may have more to read
}

const (
	// maxEvents bounds what one turn of a loop takes on.
	maxEvents = 128

	// tick is how often timeouts are looked at, and when closing, idle connections.
	tick        = time.Second
	closingTick = 10 * time.Millisecond

	// theListener stands for it among the file descriptors that epoll tells.
	theListener = -1
)

// conn is a connection. Its fields are for who has it.
type conn struct {
	loop     *loop
	fd       int
	state    atomic.Uint32
	addr     netip.Addr
	opened   bool // it has begun with a PROXY header, which addr is from, or with none
	head     head
	request  *announce // that is with the tracker
	in       []byte    // read, and not yet a request
	polled   bool      // epoll knows it
	unread   bool      // the socket may hold more, for all that is known
	all      bool      // read until the socket is empty: its end may follow
	served   bool      // requests came before
	deadline time.Time // of the request that is being read, or of idleness
}

// The states of a connection.
const (
	closed uint32 = iota
	reading
	asking     // its announce is with the tracker
	askingMore // likewise, and when it is back there may be more to read
)

// Serve answers on a listener until Shutdown.
func (s *Server) Serve(l net.Listener) error {
	f, err := newFront(s, l)
	if errors.Is(err, errors.ErrUnsupported) {
		s.front.Store(&front{}) // none
		return s.app.Listener(clientListener{l, s})
	}
	if err != nil {
		return err
	}
	go f.run()
	if !s.front.CompareAndSwap(nil, f) { // shut down already
		f.once.Do(func() { close(f.drained) }) // Fiber takes nothing
		return f.drain(context.Background())
	}
	err = s.app.Listener(f)
	<-f.ended
	return err
}

// Shutdown closes the listener, ends idle connections, and waits for the answers
// to requests in flight, as long as ctx lasts.
func (s *Server) Shutdown(ctx context.Context) error {
	if s.front.CompareAndSwap(nil, &front{}) {
		return nil // and Serve ends at once
	}
	f := s.front.Load()
	if f.listener == nil {
		return s.app.ShutdownWithContext(ctx)
	}
	drained := make(chan error, 1)
	go func() { drained <- f.drain(ctx) }()
	err := s.app.ShutdownWithContext(ctx)
	return errors.Join(<-drained, err)
}

// run ends when all loops do.
func (f *front) run() {
	var loops sync.WaitGroup
	for _, l := range f.loops {
		loops.Go(l.run)
	}
	loops.Wait()
	close(f.ended)
}

// drain accepts what waits until the listener is closed, and lets the loops end.
func (f *front) drain(ctx context.Context) error {
	f.closing.Store(true)
	f.wake()
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := f.listener.Accept()
			if err != nil {
				return
			}
			f.take(c)
		}
	}()
	err := f.listener.Close()
	<-accepted
	defer context.AfterFunc(ctx, func() {
		f.giveUp.Store(true)
		f.wake()
	})()
	<-f.ended
	f.once.Do(func() { close(f.drained) })
	if f.giveUp.Load() {
		err = errors.Join(err, context.Cause(ctx))
	}
	return err
}

func (f *front) wake() {
	for _, l := range f.loops {
		l.wake()
	}
}

func newFront(s *Server, l net.Listener) (*front, error) {
	sys, ok := l.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return nil, err
	}
	f := &front{Server: s, listener: l, raw: raw, handed: make(chan net.Conn), ended: make(chan struct{}), drained: make(chan struct{})}
	f.answered = f.answerAnnounces
	f.setDate()
	for range runtime.GOMAXPROCS(0) {
		l, err := newLoop(f)
		if err != nil {
			for _, l := range f.loops {
				_ = l.epoll.Close()
			}
			return nil, err
		}
		f.loops = append(f.loops, l)
	}
	return f, nil
}

func newLoop(f *front) (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	_ = unix.SetNonblock(fd, true) // so that Go waits for it as for sockets
	l := &loop{front: f, epoll: os.NewFile(uintptr(fd), "epoll")}
	l.wait, l.accept, l.poll = l.epollWait, l.acceptSome, l.epollAdd
	if l.raw, err = l.epoll.SyscallConn(); err == nil {
		err = l.listen()
		l.accepting = true
	}
	if err != nil {
		_ = l.epoll.Close()
		return nil, err
	}
	return l, nil
}

// listen lets connections that wait to be accepted wake the loop, one loop each.
func (l *loop) listen() error {
	var err error
	return errors.Join(l.front.raw.Control(func(fd uintptr) {
		// Accepted connections inherit it.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		err = l.control(unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: theListener})
	}), err)
}

func (l *loop) control(op, fd int, event *unix.EpollEvent) error {
	var err error
	return errors.Join(l.raw.Control(func(epoll uintptr) {
		err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(int(epoll), op, fd, event))
	}), err)
}

// setDate makes the Date of responses, which may be a second old.
func (f *front) setDate() {
	date := time.Now().UTC().AppendFormat(nil, http.TimeFormat)
	f.date.Store(&date)
}

func (l *loop) run() {
	f := l.front
	defer l.epoll.Close()
	l.next = time.Now().Add(tick)
	for err := os.ErrDeadlineExceeded; ; {
		if err != nil { // it is time to sweep, or wake was called, after it had a reason
			_ = l.epoll.SetReadDeadline(l.next)
			if l.closing() {
				return
			}
			l.resume()
			l.ask()
		}
		if err = l.raw.Read(l.wait); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		for _, e := range l.events[:l.count] {
			if e.Fd == theListener {
				_ = f.raw.Control(l.accept)
			} else {
				l.ready(l.conns[e.Fd], e.Events&^unix.EPOLLIN != 0)
			}
		}
		l.count = 0
		l.ask()
		if now := time.Now(); !now.Before(l.next) {
			l.next = now.Add(tick)
			f.setDate()
			l.sweep(now)
			if !l.accepting && !f.closing.Load() {
				l.accepting = l.listen() == nil
			}
		}
	}
}

// closing tells whether the loop has nothing more to do when the front ends.
func (l *loop) closing() bool {
	f := l.front
	if !f.closing.Load() {
		return false
	}
	l.deafen()
	now := time.Now()
	l.sweep(now)
	l.next = now.Add(closingTick)
	_ = l.epoll.SetReadDeadline(l.next)
	return l.open.Load() == 0 || f.giveUp.Load()
}

// deafen ends accepting.
func (l *loop) deafen() {
	if l.accepting {
		_ = l.front.raw.Control(func(fd uintptr) { _ = l.control(unix.EPOLL_CTL_DEL, int(fd), nil) })
		l.accepting = false
	}
}

// sweep ends what took too long, or when the front ends, what is idle.
func (l *loop) sweep(now time.Time) {
	closing, giveUp := l.front.closing.Load(), l.front.giveUp.Load()
	for _, c := range l.conns {
		if c == nil || c.state.Load() != reading {
			continue
		}
		idle := c.served && len(c.in) == 0
		switch late := now.After(c.deadline); {
		case giveUp, idle && (late || closing):
			c.close()
		case late:
			c.handOver(c.in, nil) // Fiber finds it late too, and says so
		}
	}
}

// epollWait is run by Go's poller when there is something, or first of all.
func (l *loop) epollWait(fd uintptr) (done bool) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&l.events[0])), maxEvents, 0, 0, 0)
	if errno != 0 {
		n = 0
	}
	l.count = int(n)
	return n > 0
}

// wake ends the loop's wait.
func (l *loop) wake() { _ = l.epoll.SetReadDeadline(time.Unix(1, 0)) }

// resume goes on with connections that were asking.
func (l *loop) resume() {
	l.mu.Lock()
	back := l.back
	l.back = nil
	l.mu.Unlock()
	for _, c := range back {
		l.ready(c, true)
	}
}

// ask gives the tracker what has come together.
func (l *loop) ask() {
	if len(l.batch) > 0 {
		l.front.Tracker.Announce(l.front.Now(), l.batch, l.front.answered)
		l.batch = l.batch[:0]
	}
}

// acceptSome accepts what waits; the rest wakes the loop again.
func (l *loop) acceptSome(listener uintptr) {
	for range maxEvents {
		size := uint32(unsafe.Sizeof(l.name))
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, listener, uintptr(unsafe.Pointer(&l.name)), uintptr(unsafe.Pointer(&size)),
			unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			l.add(int(fd))
		case syscall.EINTR, syscall.ECONNABORTED:
		case syscall.EAGAIN:
			return
		default: // no file descriptor or memory is left: try again at the next tick
			l.deafen()
			return
		}
	}
}

// add begins with a connection.
func (l *loop) add(fd int) {
	client := remoteOf(&l.name)
	l.front.Metrics.Accepted(client)
	if !l.front.admit() {
		_, _ = sendTo(fd, refusal(*l.front.date.Load()))
		_ = unix.Close(fd)
		return
	}
	for len(l.conns) <= fd {
		l.conns = append(l.conns, nil)
	}
	if l.conns[fd] == nil {
		l.conns[fd] = &conn{loop: l, fd: fd}
	}
	c := l.conns[fd]
	c.addr = client
	c.in, c.opened, c.polled, c.served = nil, false, false, false
	c.deadline = time.Now().Add(readTimeout)
	l.open.Add(1)
	c.state.Store(reading)
	l.ready(c, false)
}

// remoteOf is the address in a sockaddr_in or sockaddr_in6, by ip(7) and ipv6(7).
func remoteOf(name *unix.RawSockaddrInet6) netip.Addr {
	if name.Family == unix.AF_INET {
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr)
	}
	return netip.AddrFrom16(name.Addr).Unmap()
}

// ready is called for a connection that may have something to read; all says that it may
// have ended too.
func (l *loop) ready(c *conn, all bool) {
	for {
		switch c.state.Load() {
		case reading:
			c.unread, c.all = true, all
			l.read(c)
			return
		case asking:
			if c.state.CompareAndSwap(asking, askingMore) {
				return
			}
		default:
			return
		}
	}
}

// read reads requests until one is with the tracker or the next is not there.
func (l *loop) read(c *conn) {
	b := l.in[:copy(l.in[:], c.in)]
	for {
		size, is := 0, incomplete
		if len(b) > 0 && !c.opened {
			var header int
			c.addr, header, c.opened = l.front.open(b, c.addr)
			b = l.in[:copy(l.in[:], b[header:])]
		}
		if len(b) > 0 && c.opened {
			size, is = c.head.read(b, l.front.under, l.front.RealIPHeader)
		}
		switch {
		case is == plain:
			if !l.request(c, b[size:]) {
				return
			}
			b = l.in[:copy(l.in[:], b[size:])]
		case is == unusual || len(b) == maxHead:
			c.handOver(b, nil)
			return
		case !c.unread:
			l.await(c, b)
			return
		default:
			n, errno := recvFrom(c.fd, l.in[len(b):])
			switch {
			case errno == syscall.EAGAIN:
				c.unread = false
			case errno != 0, n == 0 && len(b) == 0:
				c.close()
				return
			case n == 0:
				c.handOver(b, nil) // a request that ends too early
				return
			default:
				if len(b) == 0 && c.served {
					c.deadline = time.Now().Add(readTimeout)
				}
				c.unread = c.all || n == maxHead-len(b)
				b = l.in[:len(b)+n]
			}
		}
	}
}

// await lets epoll tell of more.
func (l *loop) await(c *conn, b []byte) {
	if c.in = append(c.in[:0], b...); len(b) == 0 {
		c.in = nil
	}
	l.watch(c)
}

// watch makes epoll know a connection.
func (l *loop) watch(c *conn) {
	if !c.polled {
		l.polled = c
		_ = l.raw.Control(l.poll)
	}
}

func (l *loop) epollAdd(epoll uintptr) {
	c := l.polled
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(c.fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_ADD, uintptr(c.fd), uintptr(unsafe.Pointer(&event)), 0, 0)
	c.polled = errno == 0
}

// request reads the announce in c.head, and what follows it. It is answered at once when
// it makes no sense; then kept says that the connection stays the loop's.
func (l *loop) request(c *conn, rest []byte) (kept bool) {
	f := l.front
	r := f.announces.Get().(*announce)
	c.request = r
	if c.in = append(c.in[:0], rest...); len(rest) == 0 {
		c.in = nil
	}
	if reason := f.read(r, c.head.query, f.client(c.addr, c.head.realIP)); reason != "" {
		f.Metrics.Invalid(http.StatusOK)
		r.body = appendFailure(r.body[:0], reason)
		return c.answer()
	}
	r.Origin = c
	if !c.head.close {
		l.watch(c)
	}
	if len(rest) > 0 || c.unread {
		c.state.Store(askingMore)
	} else {
		c.state.Store(asking)
	}
	l.batch = append(l.batch, &r.Announce)
	return false
}

// answerAnnounces sends the answers to announces that the tracker hands back.
func (f *front) answerAnnounces(part []*swarm.Announce) {
	for _, a := range part {
		c := a.Origin.(*conn)
		c.request.body = c.request.appendAnswer(c.request.body[:0])
		if c.answer() && !c.state.CompareAndSwap(asking, reading) {
			l := c.loop
			c.state.Store(reading)
			l.mu.Lock()
			l.back = append(l.back, c)
			l.mu.Unlock()
			l.wake()
		}
	}
}

// answer sends the body that c.request has. Unless the connection is kept it is
// nobody's then.
func (c *conn) answer() (kept bool) {
	f, r := c.loop.front, c.request
	c.head.close = c.head.close || f.closing.Load() || f.leaving.Load()
	r.scratch = c.head.appendResponse(r.scratch[:0], *f.date.Load(), r.body)
	c.request = nil
	defer f.announces.Put(r)
	n, errno := sendTo(c.fd, r.scratch)
	switch {
	case errno == syscall.EAGAIN, errno == 0 && n < len(r.scratch):
		c.handOver(c.in, r.scratch[n:])
		return false
	case errno != 0 || c.head.close:
		c.close()
		return false
	}
	c.served = true
	c.deadline = time.Now().Add(idleTimeout)
	return true
}

// close ends a connection. Its file descriptor, and so c, may have another life at once.
func (c *conn) close() {
	l := c.loop
	c.state.Store(closed)
	l.front.clients.Add(-1)
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(c.fd), 0, 0)
	l.open.Add(-1)
}

func recvFrom(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		n = 0
	}
	return int(n), errno
}

func sendTo(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		n = 0
	}
	return int(n), errno
}
