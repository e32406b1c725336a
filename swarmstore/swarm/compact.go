package swarm

import (
	"encoding/binary"
	"net/netip"
)

// Sizes of a compact peer in bytes: address, then port, in network order
// (BEP 23 for IPv4, BEP 7 for IPv6).
const (
	Size4 = 4 + 2
	Size6 = 16 + 2
)

// Size of the compact form of a peer of addr's family.
func Size(addr netip.Addr) int {
	if addr.Is4() {
		return Size4
	}
	return Size6
}

// AppendCompact appends the compact form of peer.
func AppendCompact(dst []byte, peer netip.AddrPort) []byte {
	if addr := peer.Addr(); addr.Is4() {
		a := addr.As4()
		dst = append(dst, a[:]...)
	} else {
		a := addr.As16()
		dst = append(dst, a[:]...)
	}
	return binary.BigEndian.AppendUint16(dst, peer.Port())
}

// FromCompact reads the one compact peer that b holds; ok is false when b is of
// neither size.
func FromCompact(b []byte) (peer netip.AddrPort, ok bool) {
	addr, ok := netip.AddrFromSlice(b[:max(0, len(b)-2)])
	if !ok {
		return peer, false
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[len(b)-2:])), true
}
