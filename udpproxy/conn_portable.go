package udpproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// packetConn moves one datagram at a time, for platforms without a faster way. Each
// is for one address family, because only so do all platforms tell the address
// that a datagram was sent to.
type packetConn struct {
	udp     *net.UDPConn
	p4      *ipv4.PacketConn // one of the two is set
	p6      *ipv6.PacketConn
	stopped atomic.Bool
}

const (
	// drainTime is how long a stopped socket is read for what it holds.
	drainTime = 100 * time.Millisecond

	// maxFailures in a row end a socket. Single ones are news of earlier datagrams.
	maxFailures = 100
)

// listenPortable binds one socket for each family that the address stands for.
func listenPortable(_ context.Context, o Options) ([]conn, error) {
	if o.Socket != nil {
		return nil, fmt.Errorf("a socket that was passed on: %w", errors.ErrUnsupported)
	}
	addr, err := net.ResolveUDPAddr("udp", o.Addr)
	if err != nil {
		return nil, err
	}
	networks := []string{"udp4", "udp6"}
	switch {
	case addr.IP.To4() != nil:
		networks = networks[:1]
	case addr.IP != nil && !addr.IP.IsUnspecified():
		networks = networks[1:]
	}
	var conns []conn
	var errs []error
	for _, network := range networks {
		udp, err := net.ListenUDP(network, addr)
		if err != nil {
			errs = append(errs, err)
			if errors.Is(err, syscall.EADDRINUSE) {
				break
			}
			continue // a machine may have one family only
		}
		_ = udp.SetReadBuffer(readBuffer)
		c := &packetConn{udp: udp}
		if network == "udp4" {
			c.p4 = ipv4.NewPacketConn(udp)
			_ = c.p4.SetControlMessage(ipv4.FlagDst, true) // where the platform can
		} else {
			c.p6 = ipv6.NewPacketConn(udp)
			_ = c.p6.SetControlMessage(ipv6.FlagDst, true)
		}
		conns = append(conns, c)
		addr.Port = int(c.localAddr().Port())
	}
	if err := errors.Join(errs...); len(conns) == 0 || errors.Is(err, syscall.EADDRINUSE) {
		for _, c := range conns {
			_ = c.close()
		}
		return nil, err
	}
	return conns, nil
}

func (c *packetConn) localAddr() netip.AddrPort { return c.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

func (c *packetConn) close() error { return c.udp.Close() }

func (c *packetConn) stop() error {
	c.stopped.Store(true)
	return c.udp.SetReadDeadline(time.Now().Add(drainTime))
}

func (c *packetConn) receive(in *incoming) (int, error) {
	for failures := 0; ; failures++ {
		data := in.data[0][:maxDatagram]
		n, local, src, err := c.read(data)
		switch {
		case err == nil:
			client, _ := src.(*net.UDPAddr)
			from := client.AddrPort()
			in.data[0] = data[:n]
			in.from[0] = route{
				client: netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port()),
				local:  local,
				zone:   zoneIndex(from.Addr().Zone()),
			}
			return 1, nil
		case c.stopped.Load():
			return 0, errStopped
		case errors.Is(err, net.ErrClosed) || failures == maxFailures:
			return 0, err
		}
	}
}

func (c *packetConn) read(b []byte) (n int, local netip.Addr, src net.Addr, err error) {
	if c.p4 != nil {
		var cm *ipv4.ControlMessage
		if n, cm, src, err = c.p4.ReadFrom(b); cm != nil {
			local, _ = netip.AddrFromSlice(cm.Dst.To4())
		}
		return n, local, src, err
	}
	var cm *ipv6.ControlMessage
	if n, cm, src, err = c.p6.ReadFrom(b); cm != nil {
		local, _ = netip.AddrFromSlice(cm.Dst.To16())
	}
	return n, local, src, err
}

func (c *packetConn) send(out *outgoing) (dropped int) {
	for i := range out.n {
		to := &out.to[i]
		dst := net.UDPAddrFromAddrPort(to.client)
		dst.Zone = zoneName(to.zone)
		if c.p4 != nil {
			_, _ = c.p4.WriteTo(out.data[i], &ipv4.ControlMessage{Src: to.local.AsSlice()}, dst)
		} else {
			_, _ = c.p6.WriteTo(out.data[i], &ipv6.ControlMessage{Src: to.local.AsSlice()}, dst)
		}
	}
	return 0
}

// zoneIndex and zoneName turn the zone of a link-local address into the index of its
// interface and back; none is 0 and "".
func zoneIndex(name string) uint32 {
	if name == "" {
		return 0
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return uint32(i.Index)
}

func zoneName(index uint32) string {
	if index == 0 {
		return ""
	}
	i, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return ""
	}
	return i.Name
}
