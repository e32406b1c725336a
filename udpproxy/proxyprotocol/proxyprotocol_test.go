package proxyprotocol

import (
	"bufio"
	"bytes"
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"swarmgate/swarmstore/storetest"
)

const (
	v4 = "\xc0\x00\x02\x01\x0a\x00\x00\x01\x13\x88\x1b\x39"
	v6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x13\x88\x1b\x39"
	mapped = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x01\x13\x88\x1b\x39"
)

// whole are headers, and the source that each names, if any.
var whole = []struct{ header, source string }{
	{"PROXY TCP4 192.0.2.1 10.0.0.1 5000 6969\r\n", "192.0.2.1"},
	{"PROXY TCP6 2001:db8::9 2001:db8::1 0 65535\r\n", "2001:db8::9"},
	{"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", "192.0.2.1"},
	{"PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n", "192.0.2.1"},
	{"PROXY UNKNOWN\r\n", ""},
	{"PROXY UNKNOWN ffff::1 and so on\r\n", ""},
	{signature2 + "\x21\x11\x00\x0c" + v4, "192.0.2.1"},
	{signature2 + "\x21\x12\x00\x0c" + v4, "192.0.2.1"},
	{signature2 + "\x21\x11\x00\x10" + v4 + "\x04\x00\x01x", "192.0.2.1"},
	{signature2 + "\x21\x21\x00\x24" + v6, "2001:db8::9"},
	{signature2 + "\x21\x22\x00\x24" + v6, "2001:db8::9"},
	{signature2 + "\x21\x21\x00\x24" + mapped, "192.0.2.1"},
	{signature2 + "\x21\x11\x0f\xf0" + v4 + strings.Repeat("x", MaxSize-fixed2-len(v4)), "192.0.2.1"},
	{signature2 + "\x20\x00\x00\x00", ""},
	{signature2 + "\x20\x11\x00\x0c" + v4, ""},
	{signature2 + "\x20\x11\x00\x01x", ""},
}

var malformed = []string{
	"PROXY \r\n",
	"PROXY\r\n",
	"PROXY TCP4 192.0.2.1 10.0.0.1 5000 6969\n",
	"PROXY\n",
	"PROXYX TCP4 192.0.2.1 10.0.0.1 5000 6969\r\n",
	"PROXY  TCP4 192.0.2.1 10.0.0.1 5000 6969\r\n",
	"PROXY TCP5 192.0.2.1 10.0.0.1 5000 6969\r\n",
	"PROXY TCP4 192.0.2.256 10.0.0.1 5000 6969\r\n",
	"PROXY TCP4 192.0.2.1 here 5000 6969\r\n",
	"PROXY TCP4 192.0.2.1 10.0.0.1 5000\r\n",
	"PROXY TCP4 192.0.2.1 10.0.0.1 5000 65536\r\n",
	"PROXY TCP4 192.0.2.1 10.0.0.1 5000 6969 \r\n",
	"PROXY TCP4 192.0.2.1 10.0.0.1 -1 6969\r\n",
	"PROXY TCP4 0.0.0.0 10.0.0.1 5000 6969\r\n",
	"PROXY TCP6 ff02::1 ::1 5000 6969\r\n",
	"PROXY " + strings.Repeat("x", 120),
	signature2 + "\x21\x00\x00\x0c" + v4,
	signature2 + "\x21\x13\x00\x0c" + v4,
	signature2 + "\x11\x11\x00\x0c" + v4,
	signature2 + "\x22\x11\x00\x0c" + v4,
	signature2 + "\x21\x11\x00\x0b" + v4,
	signature2 + "\x21\x21\x00\x0c" + v4,
	signature2 + "\x21\x31\x00\xd8" + strings.Repeat("x", 216),
	signature2 + "\x21\x11\x0f\xf1" + v4,
	signature2 + "\x21\x11\x00\x0c" + strings.Repeat("\x00", 12),
	signature2 + "\x21\x11\x00\x0c\xe0" + v4[1:],
}

func TestParse(t *testing.T) {
	for _, test := range whole {
		for _, rest := range []string{"", "GET / HTTP/1.1\r\n\r\n"} {
			source, size, err := Parse([]byte(test.header + rest))
			if err != nil || size != len(test.header) || source.IsValid() != (test.source != "") || source.IsValid() && source.String() != test.source {
				t.Errorf("%.60q: %v, %d bytes, %v", test.header, source, size, err)
			}
		}
		for n := range len(test.header) - 1 {
			if _, _, err := Parse([]byte(test.header[:n])); !errors.Is(err, ErrIncomplete) {
				t.Errorf("%d bytes of %.60q: %v", n, test.header, err)
			}
		}
	}
	for _, header := range malformed {
		if source, size, err := Parse([]byte(header)); !errors.Is(err, ErrMalformed) || source.IsValid() || size != 0 {
			t.Errorf("%.60q: %v, %d bytes, %v", header, source, size, err)
		}
	}
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\n\r\n", "\r\n\r\nGET", "\r\n\r\n\x00\r\nQUIT\r", "proxy TCP4"} {
		if _, _, err := Parse([]byte(text)); !errors.Is(err, ErrNone) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	for _, test := range whole {
		header := []byte(test.header)
		storetest.Allocs(t, 0, func() {
			if _, _, err := Parse(header); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// FuzzParse compares with the library that many proxies and servers use.
func FuzzParse(f *testing.F) {
	proxyproto.V1AcceptIPv4InTCP6 = true
	proxyproto.MaxV2HeaderSize = MaxSize - fixed2
	for _, test := range whole {
		f.Add([]byte(test.header))
	}
	for _, header := range malformed {
		f.Add([]byte(header))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		source, size, err := Parse(b)
		if err != nil && (source.IsValid() || size != 0) || err == nil && (size < len(signature1) || size > len(b) || size > MaxSize) {
			t.Fatalf("%q: %v, %d bytes, %v", b, source, size, err)
		}
		r := bytes.NewReader(b)
		buffered := bufio.NewReaderSize(r, 2*MaxSize)
		h, theirs := proxyproto.Read(buffered)
		if theirs != nil {
			if err == nil && !laxer(b[:size]) {
				t.Fatalf("%q: %v, the library says %v", b, source, theirs)
			}
			return
		}
		var want netip.Addr
		if ip, _, ok := h.IPs(); ok && !h.Command.IsLocal() {
			want, _ = netip.AddrFromSlice(ip)
			want = want.Unmap()
		}
		switch {
		case err == nil && size == len(b)-r.Len()-buffered.Buffered() && source == want:
		case err != nil && (want.IsUnspecified() || want.IsMulticast() || h.TransportProtocol.IsUnix()):
		default:
			t.Fatalf("%q: %v, %d bytes, %v; the library says %v", b, source, size, err, want)
		}
	})
}

// laxer tells the headers that Parse takes and the library does not: a LOCAL one of any family, and
// of version 1 those with zeros before a port, a zone or an IPv6 address for TCP4.
func laxer(header []byte) bool {
	return header[0] == signature2[0] && header[12] == local || line1.Match(header)
}

var line1 = regexp.MustCompile(`^PROXY TCP[46] [0-9a-fA-F:.]+(%[^ ]+)? [0-9a-fA-F:.]+(%[^ ]+)? [0-9]+ [0-9]+\r\n$`)
