package udpproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsgConn moves datagrams by recvmmsg and sendmmsg.
type mmsgConn struct {
	udp       *net.UDPConn
	raw       syscall.RawConn
	is6       bool
	inherited bool // another process has it too, and lets the next one receive what comes
	stopped   atomic.Bool
	lost      uint32 // the kernel's count of datagrams it dropped, as last seen
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

const (
	nameSize    = unix.SizeofSockaddrInet6
	controlSize = 128 // room for packet info and the count of drops
)

// kernelBuffers are what the kernel reads and writes beside the datagrams.
type kernelBuffers struct {
	hdrs    [batchSize]mmsghdr
	iovs    [batchSize]unix.Iovec
	names   [batchSize][nameSize]byte
	control [batchSize][controlSize]byte

	// The call under way: what of the batch it is for, and what came of it. The
	// functions that make it are bound once.
	receive     func(fd uintptr) (done bool)
	send        func(fd uintptr)
	first, last int
	count       int
	errno       syscall.Errno
}

// listen binds as many sockets as asked for to one address.
func listen(ctx context.Context, o Options) ([]conn, error) {
	if o.Socket != nil {
		c, err := inherit(o.Socket)
		if err != nil {
			return nil, err
		}
		return []conn{c}, nil
	}
	host, port, err := net.SplitHostPort(o.Addr)
	if err != nil {
		return nil, err
	}
	if !o.SharePort && port != "0" {
		// SO_REUSEPORT, which the sockets need among themselves, would not notice
		// another process of this user on the address.
		probe, err := new(net.ListenConfig).ListenPacket(ctx, "udp", o.Addr)
		if err != nil {
			return nil, err
		}
		_ = probe.Close()
	}
	var conns []conn
	for range max(1, o.Sockets) {
		c, err := listenOne(ctx, net.JoinHostPort(host, port))
		if err != nil {
			for _, c := range conns {
				_ = c.close()
			}
			return nil, err
		}
		conns = append(conns, c)
		port = strconv.Itoa(int(c.localAddr().Port())) // the same one, when it was 0
	}
	return conns, nil
}

func listenOne(ctx context.Context, addr string) (*mmsgConn, error) {
	var is6 bool
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { is6, err = setOptions(int(fd)) }), err)
	}}
	p, err := lc.ListenPacket(ctx, "udp", addr)
	if err != nil {
		return nil, err
	}
	return newConn(p.(*net.UDPConn), is6)
}

// inherit takes a socket that was bound elsewhere.
func inherit(udp *net.UDPConn) (*mmsgConn, error) {
	c, err := newConn(udp, false)
	if err != nil {
		return nil, err
	}
	c.inherited = true
	if err := errors.Join(c.raw.Control(func(fd uintptr) { c.is6, err = setOptions(int(fd)) }), err); err != nil {
		_ = udp.Close()
		return nil, err
	}
	return c, nil
}

func newConn(udp *net.UDPConn, is6 bool) (*mmsgConn, error) {
	c := &mmsgConn{udp: udp, is6: is6}
	_ = udp.SetReadBuffer(readBuffer)
	var err error
	if c.raw, err = udp.SyscallConn(); err != nil {
		_ = udp.Close()
		return nil, err
	}
	return c, nil
}

func setOptions(fd int) (is6 bool, err error) {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return false, err
	}
	is6 = family == unix.AF_INET6
	options := []struct{ level, name int }{
		{unix.SOL_SOCKET, unix.SO_REUSEPORT},
		{unix.SOL_SOCKET, unix.SO_RXQ_OVFL},
		{unix.IPPROTO_IP, unix.IP_PKTINFO},
	}
	if is6 {
		options[2].level, options[2].name = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, 1); err != nil {
			return is6, os.NewSyscallError("setsockopt", err)
		}
	}
	return is6, nil
}

func (c *mmsgConn) localAddr() netip.AddrPort { return c.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

func (c *mmsgConn) close() error { return c.udp.Close() }

// stop connects the socket to an address that nothing comes from, so that the kernel
// gives it nothing more, and ends a receive that waits. An inherited one goes on to hold what comes.
func (c *mmsgConn) stop() error {
	c.stopped.Store(true)
	if c.inherited {
		return c.udp.SetReadDeadline(time.Unix(1, 0))
	}
	var nowhere unix.Sockaddr = &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
	if c.is6 {
		nowhere = &unix.SockaddrInet6{Port: 9, Addr: netip.IPv6Loopback().As16()}
		if local := c.localAddr().Addr(); local.Is4In6() {
			nowhere = &unix.SockaddrInet6{Port: 9, Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}
		}
	}
	// Where it cannot be done, datagrams that come until the socket closes are lost.
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Connect(int(fd), nowhere) })
	return c.udp.SetReadDeadline(time.Unix(1, 0))
}

func (c *mmsgConn) receive(in *incoming) (int, error) {
	k := &in.kernel
	if k.receive == nil {
		k.receive = k.recvmmsg
	}
	for i := range k.hdrs {
		k.prepare(i, in.data[i][:maxDatagram], nameSize, controlSize)
	}
	for {
		err := c.raw.Read(k.receive)
		if c.stopped.Load() && err != nil {
			if c.inherited {
				return 0, errStopped
			}
			// The poller is shut; what the socket still holds is read past it.
			k.errno = syscall.EAGAIN
			_ = c.raw.Control(func(fd uintptr) { k.receive(fd) })
			if k.errno == syscall.EAGAIN {
				return 0, errStopped
			}
		} else if err != nil {
			return 0, err
		}
		switch k.errno {
		case 0:
			c.read(in)
			return k.count, nil
		case syscall.EINTR, syscall.ECONNREFUSED: // the latter is news of an earlier datagram
		default:
			return 0, os.NewSyscallError("recvmmsg", k.errno)
		}
	}
}

// read makes datagrams and routes of what the kernel wrote.
func (c *mmsgConn) read(in *incoming) {
	k := &in.kernel
	in.dropped = 0
	for i := range k.count {
		h := &k.hdrs[i].hdr
		in.data[i] = in.data[i][:min(k.hdrs[i].n, maxDatagram)]
		name := k.names[i][:min(h.Namelen, nameSize)]
		var lost uint32
		in.from[i], lost = readRoute(name, k.control[i][:min(int(h.Controllen), controlSize)])
		if more := int32(lost - c.lost); lost != 0 && more > 0 {
			in.dropped += int(more)
			c.lost = lost
		}
	}
}

// prepare points the header of one datagram to its buffers.
func (k *kernelBuffers) prepare(i int, data []byte, name uint32, control int) {
	k.iovs[i].Base = unsafe.SliceData(data)
	k.iovs[i].SetLen(len(data))
	h := &k.hdrs[i].hdr
	h.Iov = &k.iovs[i]
	h.SetIovlen(1)
	h.Name, h.Namelen = &k.names[i][0], name
	h.Control = &k.control[i][0]
	h.SetControllen(control)
}

func (k *kernelBuffers) recvmmsg(fd uintptr) (done bool) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&k.hdrs[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
	k.count, k.errno = int(n), errno
	return errno != syscall.EAGAIN
}

func (k *kernelBuffers) sendmmsg(fd uintptr) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&k.hdrs[k.first])), uintptr(k.last-k.first), unix.MSG_DONTWAIT, 0, 0)
	k.count, k.errno = int(n), errno
}

func (c *mmsgConn) send(out *outgoing) (dropped int) {
	k := &out.kernel
	if k.send == nil {
		k.send = k.sendmmsg
	}
	for i := range out.n {
		k.prepare(i, out.data[i], c.putName(&k.names[i], &out.to[i]), c.putControl(&k.control[i], &out.to[i]))
	}
	for k.first, k.last = 0, out.n; k.first < k.last; {
		if c.raw.Control(k.send) != nil {
			return k.last - k.first // closed
		}
		switch k.errno {
		case 0:
			k.first += k.count
		case syscall.EINTR:
		case syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM:
			return k.last - k.first
		default:
			k.first++ // this one cannot be sent; the rest can
		}
	}
	return 0
}

// sockaddr_in and sockaddr_in6 of ip(7) and ipv6(7), by their offsets.

func (c *mmsgConn) putName(b *[nameSize]byte, r *route) (size uint32) {
	port := r.client.Port()
	if !c.is6 {
		binary.NativeEndian.PutUint16(b[0:], unix.AF_INET)
		binary.BigEndian.PutUint16(b[2:], port)
		a := r.client.Addr().As4()
		copy(b[4:8], a[:])
		clear(b[8:unix.SizeofSockaddrInet4])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(b[0:], unix.AF_INET6)
	binary.BigEndian.PutUint16(b[2:], port)
	clear(b[4:8])
	a := r.client.Addr().As16()
	copy(b[8:24], a[:])
	binary.NativeEndian.PutUint32(b[24:], r.zone)
	return unix.SizeofSockaddrInet6
}

// putControl asks for the source address: IP_PKTINFO with the index of an interface, the
// address, and one that does not matter; or IPV6_PKTINFO with the address and the
// index. Without an index the routes decide.
func (c *mmsgConn) putControl(b *[controlSize]byte, r *route) int {
	if !r.local.IsValid() {
		return 0
	}
	level, kind, size := int32(unix.IPPROTO_IP), int32(unix.IP_PKTINFO), unix.SizeofInet4Pktinfo
	data := b[unix.CmsgLen(0):]
	if c.is6 {
		level, kind, size = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo
		a := r.local.As16()
		copy(data, a[:])
		binary.NativeEndian.PutUint32(data[16:], r.zone)
	} else {
		a := r.local.As4()
		clear(data[:4])
		copy(data[4:], a[:])
		clear(data[8:12])
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	return unix.CmsgSpace(size)
}

// readRoute reads a client's address, the address that it sent to, and the count of
// datagrams that were dropped so far, 0 when there is none. A route that makes no
// sense comes out without a port.
func readRoute(name, control []byte) (r route, lost uint32) {
	if len(name) < unix.SizeofSockaddrInet4 {
		return r, 0
	}
	port := binary.BigEndian.Uint16(name[2:])
	switch family := binary.NativeEndian.Uint16(name); {
	case family == unix.AF_INET:
		r.client = netip.AddrPortFrom(netip.AddrFrom4([4]byte(name[4:8])), port)
	case family == unix.AF_INET6 && len(name) >= unix.SizeofSockaddrInet6:
		addr := netip.AddrFrom16([16]byte(name[8:24])).Unmap()
		r.client = netip.AddrPortFrom(addr, port)
		r.zone = binary.NativeEndian.Uint32(name[24:])
	default:
		return r, 0
	}
	for header := unix.CmsgLen(0); len(control) >= header; {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		size := int(h.Len) - header
		if size < 0 || size > len(control)-header {
			break
		}
		data := control[header : header+size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && size >= unix.SizeofInet4Pktinfo:
			r.local = netip.AddrFrom4([4]byte(data[4:8]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && size >= unix.SizeofInet6Pktinfo:
			r.local = netip.AddrFrom16([16]byte(data[:16]))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && size >= 4:
			lost = binary.NativeEndian.Uint32(data)
		}
		control = control[min(len(control), unix.CmsgSpace(size)):]
	}
	return r, lost
}
