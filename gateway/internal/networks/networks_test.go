package networks

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/spf13/pflag"

	"swarmgate/swarmstore/storetest"
)

var _ pflag.Value = (*Set)(nil)

func TestContains(t *testing.T) {
	for _, test := range []struct {
		text    string
		in, out []string
	}{
		{"", nil, []string{"0.0.0.0", "127.0.0.1", "::"}},
		{"10.0.0.0/8", []string{"10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"}, []string{"9.255.255.255", "11.0.0.0", "::10.1.2.3"}},
		{"10.1.2.3/8", []string{"10.0.0.1"}, []string{"11.0.0.0"}},
		{"192.0.2.1", []string{"192.0.2.1"}, []string{"192.0.2.2"}},
		{"2001:db8::/32, 127.0.0.1", []string{"2001:db8:ffff::1", "2001:db8::1%eth0", "127.0.0.1"}, []string{"2001:db9::", "127.0.0.2"}},
		{"10.0.0.0/8,10.1.0.0/16,9.0.0.0/8", []string{"9.9.9.9", "10.1.0.0", "10.2.0.0"}, []string{"8.0.0.0", "11.0.0.0"}},
		{"::ffff:10.0.0.0/104,::ffff:192.0.2.1", []string{"10.1.2.3", "192.0.2.1"}, []string{"11.0.0.0", "::1"}},
		{"0.0.0.0/0", []string{"1.2.3.4", "::ffff:1.2.3.4"}, []string{"::1"}},
		{"::/0", []string{"::1"}, []string{"1.2.3.4"}},
	} {
		s, err := Parse(test.text)
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
		}
		if s.Empty() != (test.text == "") || s.String() != test.text {
			t.Errorf("%q is %q", test.text, s.String())
		}
		for _, addr := range test.in {
			if !s.Contains(netip.MustParseAddr(addr)) {
				t.Errorf("%q lacks %s", test.text, addr)
			}
		}
		for _, addr := range test.out {
			if s.Contains(netip.MustParseAddr(addr)) {
				t.Errorf("%q contains %s", test.text, addr)
			}
		}
		if s.Contains(netip.Addr{}) {
			t.Errorf("%q contains no address at all", test.text)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "[]",
		"10.0.0.0/8, 10.1.0.0/16, ::1":  "[10.0.0.0/8 ::1/128]",
		"192.0.2.128/25,192.0.2.7/25":   "[192.0.2.0/24]",
		"2001:db8::/32,::ffff:10.0.0.1": "[10.0.0.1/32 2001:db8::/32]",
	} {
		if s, err := Parse(text); err != nil || fmt.Sprint(s.Prefixes()) != want {
			t.Errorf("%q is %v, %v", text, s.Prefixes(), err)
		}
	}
}

func TestWhatIsNoNetwork(t *testing.T) {
	for _, text := range []string{",", "10.0.0.0/8,", "10.0.0.0/33", "10.0.0/8", "localhost", "fe80::1%eth0", "fe80::%eth0/64", "::ffff:10.0.0.0/8", "10.0.0.1:80", "10.0.0.0/08", " "} {
		var s Set
		if err := s.Set(text); !errors.Is(err, ErrNetwork) || !s.Empty() {
			t.Errorf("%q: %v, %q", text, err, s.String())
		}
	}
}

func TestContainsAllocatesNothing(t *testing.T) {
	s, err := Parse("10.0.0.0/8,192.168.0.0/16,2001:db8::/32")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("192.168.7.7")
	storetest.Allocs(t, 0, func() {
		if !s.Contains(addr) {
			t.Fatal("not contained")
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("10.0.0.0/8, 2001:db8::/32,192.0.2.1", "10.1.2.3")
	f.Add("::ffff:10.0.0.0/104", "::ffff:10.0.0.1")
	f.Fuzz(func(t *testing.T, text, addr string) {
		s, err := Parse(text)
		a, noAddr := netip.ParseAddr(addr)
		if noAddr != nil {
			return
		}
		if contains := s.Contains(a); contains && err != nil {
			t.Errorf("%q is wrong (%v), and contains %v", text, err, a)
		}
		if one, err := Parse(a.Unmap().WithZone("").String()); err != nil || !one.Contains(a) {
			t.Errorf("%v does not contain itself: %v", a, err)
		}
	})
}
