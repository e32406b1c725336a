// Package networks reads the networks that flags name, and tells whose addresses lie in them.
package networks

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"go4.org/netipx"
)

// ErrNetwork is what Parse says of anything but networks and addresses.
var ErrNetwork = errors.New("neither a network (10.0.0.0/8) nor an address")

// Set is a set of networks, and the value of a flag (pflag.Value). The zero Set is empty.
type Set struct {
	text string
	set  *netipx.IPSet // nil when empty
}

// Parse reads networks in CIDR notation and addresses, with commas between. No text is the
// empty Set. What is wrong is an ErrNetwork.
func Parse(text string) (Set, error) {
	if text == "" {
		return Set{}, nil
	}
	var b netipx.IPSetBuilder
	for part := range strings.SplitSeq(text, ",") {
		prefix, err := parsePrefix(strings.TrimSpace(part))
		if err != nil {
			return Set{}, fmt.Errorf("%q is %w", part, ErrNetwork)
		}
		b.AddPrefix(prefix)
	}
	set, err := b.IPSet()
	return Set{text, set}, err
}

func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, ErrNetwork
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err == nil && prefix.Addr().Is4In6() {
		prefix, err = prefix.Addr().Unmap().Prefix(prefix.Bits() - 96)
	}
	return prefix, err
}

// Contains says whether an address lies in one of the networks. 4-in-6 addresses count as
// IPv4 ones, and zones do not matter.
func (s Set) Contains(addr netip.Addr) bool {
	return s.set != nil && s.set.Contains(addr.Unmap().WithZone(""))
}

// Prefixes are the fewest that make up the set.
func (s Set) Prefixes() []netip.Prefix {
	if s.set == nil {
		return nil
	}
	return s.set.Prefixes()
}

// Empty says that the set contains nothing.
func (s Set) Empty() bool { return s.set == nil }

// Set, String and Type make it the value of a flag.
func (s *Set) Set(text string) (err error) {
	*s, err = Parse(text)
	return err
}

func (s *Set) String() string { return s.text }

func (s *Set) Type() string { return "list of networks" }
