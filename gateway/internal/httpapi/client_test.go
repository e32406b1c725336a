package httpapi

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"swarmgate/swarmstore/storetest"
)

// proxyHeader is the PROXY header of a connection from source, or without one of the proxy's own.
func proxyHeader(t *testing.T, version byte, source string) string {
	t.Helper()
	h := &proxyproto.Header{Version: version, Command: proxyproto.LOCAL}
	if source != "" {
		from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(source), 5000))
		h = proxyproto.HeaderProxyFromAddrs(version, from, from)
	}
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// proxies are networks of one address each.
type proxies []string

func (p proxies) Contains(addr netip.Addr) bool { return slices.Contains(p, addr.String()) }

func TestParseAddr(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1":              "192.0.2.1",
		" 192.0.2.1\t":           "192.0.2.1",
		"192.0.2.1:567":          "192.0.2.1",
		"2001:db8::1":            "2001:db8::1",
		"[2001:DB8::1]":          "2001:db8::1",
		"[2001:db8::1]:80":       "2001:db8::1",
		"fe80::1%eth0":           "fe80::1",
		"[fe80::1%eth0]:65535":   "fe80::1",
		"::ffff:192.0.2.1":       "192.0.2.1",
		"[::ffff:192.0.2.1]:1":   "192.0.2.1",
		"127.0.0.1":              "127.0.0.1",
		"":                       "",
		"unknown":                "",
		"_hidden":                "",
		"192.0.2":                "",
		"192.0.2.256":            "",
		"192.0.2.1:":             "",
		"192.0.2.1:65536":        "",
		"192.0.2.1:-1":           "",
		"192.0.2.1:x":            "",
		"192.0.2.1, 192.0.2.2":   "",
		"[192.0.2.1]:80":         "",
		"[2001:db8::1":           "",
		"[2001:db8::1]80":        "",
		"[2001:db8::1]:":         "",
		"[]":                     "",
		"0.0.0.0":                "",
		"::":                     "",
		"::ffff:0.0.0.0":         "",
		"224.0.0.1":              "",
		"[ff02::1]:80":           "",
		"::ffff:239.255.255.255": "",
		"\"[2001:db8::1]\"":      "",
	} {
		if got := parseAddr([]byte(text)); got.IsValid() != (want != "") || want != "" && got.String() != want {
			t.Errorf("%q is %v, want %q", text, got, want)
		}
	}
}

func FuzzParseAddr(f *testing.F) {
	for _, text := range []string{"192.0.2.1:567", "[2001:db8::1]:80", "fe80::1%eth0", "::ffff:192.0.2.1"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		addr := parseAddr(text)
		if !addr.IsValid() {
			if plain, err := netip.ParseAddr(string(text)); err == nil && plain.Zone() == "" && !plain.Unmap().IsUnspecified() && !plain.Unmap().IsMulticast() {
				t.Errorf("%q is none", text)
			}
			return
		}
		if addr.Is4In6() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			t.Errorf("%q is %v", text, addr)
		}
		for _, again := range []string{addr.String(), netip.AddrPortFrom(addr, 80).String(), " " + addr.String()} {
			if parseAddr([]byte(again)) != addr {
				t.Errorf("%q is %v, which as %q is another", text, addr, again)
			}
		}
	})
}

func TestTheAddressInAHeader(t *testing.T) {
	trusted := proxies{"10.0.0.1", "10.0.0.2", "2001:db8::1"}
	for _, test := range []struct {
		name, header, peer string
		lines              []string
		want               string // nothing for none that makes sense
		forged             int64
	}{
		{"none", headerOfHops, "10.0.0.1", nil, "10.0.0.1", 0},
		{"one hop", headerOfHops, "10.0.0.1", []string{"192.0.2.1"}, "192.0.2.1", 0},
		{"from elsewhere", headerOfHops, "192.0.2.9", []string{"192.0.2.1"}, "192.0.2.9", 1},
		{"the client's own hop", headerOfHops, "10.0.0.1", []string{"8.8.8.8, 192.0.2.1"}, "192.0.2.1", 0},
		{"trusted hops", headerOfHops, "10.0.0.1", []string{"8.8.8.8, 192.0.2.1:5, [2001:db8::1]:80,10.0.0.2"}, "192.0.2.1", 0},
		{"lines", headerOfHops, "10.0.0.1", []string{"8.8.8.8", "192.0.2.1, 10.0.0.2", "2001:db8::1"}, "192.0.2.1", 0},
		{"a client on a trusted network", headerOfHops, "10.0.0.1", []string{"10.0.0.2, 2001:db8::1"}, "10.0.0.2", 0},
		{"empty hops", headerOfHops, "10.0.0.1", []string{", 192.0.2.1 ,, ", ""}, "192.0.2.1", 0},
		{"no hop", headerOfHops, "10.0.0.1", []string{""}, "", 0},
		{"nonsense", headerOfHops, "10.0.0.1", []string{"192.0.2.1, unknown"}, "", 0},
		{"nonsense before trusted hops", headerOfHops, "10.0.0.1", []string{"192.0.2.1, unknown, 10.0.0.2"}, "", 0},
		{"nonsense of the client", headerOfHops, "10.0.0.1", []string{"unknown, 192.0.2.1"}, "192.0.2.1", 0},
		{"nobody", headerOfHops, "10.0.0.1", []string{"192.0.2.1, 0.0.0.0"}, "", 0},
		{"whole value", "X-Real-IP", "10.0.0.1", []string{"192.0.2.1"}, "192.0.2.1", 0},
		{"whole value that is trusted", "CF-Connecting-IP", "10.0.0.1", []string{"10.0.0.2"}, "10.0.0.2", 0},
		{"no list", "True-Client-IP", "10.0.0.1", []string{"192.0.2.1, 192.0.2.2"}, "", 0},
		{"no lines", "X-Real-IP", "10.0.0.1", []string{"192.0.2.1", "192.0.2.1"}, "", 0},
		{"no value", "X-Real-IP", "10.0.0.1", []string{""}, "", 0},
		{"another from elsewhere", "X-Real-IP", "192.0.2.9", []string{"192.0.2.1", "x"}, "192.0.2.9", 1},
	} {
		metrics := &fakeMetrics{}
		s := New(Options{Metrics: metrics, Trusted: trusted, RealIPHeader: test.header})
		var lines [][]byte
		for _, line := range test.lines {
			lines = append(lines, []byte(line))
		}
		got := s.client(netip.MustParseAddr(test.peer), lines)
		if got.IsValid() != (test.want != "") || test.want != "" && got.String() != test.want {
			t.Errorf("%s: %v, want %q", test.name, got, test.want)
		}
		if n := metrics.header.Load(); n != test.forged {
			t.Errorf("%s: %d are counted as forged", test.name, n)
		}
	}
	s := New(Options{Metrics: &fakeMetrics{}, Trusted: netip.MustParsePrefix("10.0.0.0/8"), RealIPHeader: headerOfHops})
	peer, lines := netip.MustParseAddr("10.0.0.1"), [][]byte{[]byte("8.8.8.8, [2001:db8::1]:80, 10.0.0.1"), []byte("10.0.0.2")}
	storetest.Allocs(t, 0, func() { s.client(peer, lines) })
}

// FuzzHops compares with the definition: the last hop that is not trusted.
func FuzzHops(f *testing.F) {
	f.Add("8.8.8.8, 192.0.2.1:5", "[::1]:80,10.0.0.2")
	f.Add(" ,unknown", "10.0.0.3,\t10.0.0.4,")
	s := New(Options{Metrics: &fakeMetrics{}, Trusted: netip.MustParsePrefix("10.0.0.0/8"), RealIPHeader: headerOfHops})
	f.Fuzz(func(t *testing.T, line1, line2 string) {
		var want netip.Addr
		first := true
		for hop := range strings.SplitSeq(line1+","+line2, ",") {
			if hop = strings.Trim(hop, " \t"); hop == "" {
				continue
			}
			if addr := parseAddr([]byte(hop)); first || !s.Trusted.Contains(addr) {
				want, first = addr, false
			}
		}
		if got := s.client(netip.MustParseAddr("10.0.0.1"), [][]byte{[]byte(line1), []byte(line2)}); got != want {
			t.Errorf("%q and %q: %v, want %v", line1, line2, got, want)
		}
	})
}

func TestTheAddressInAQuery(t *testing.T) {
	for _, test := range []struct{ client, query, want string }{
		{"10.9.8.7", "", "10.9.8.7"},
		{"10.9.8.7", "&ip=&ipv4=&ipv6=", "10.9.8.7"},
		{"10.9.8.7", "&ip=203.0.113.1", "203.0.113.1"},
		{"10.9.8.7", "&ip=2001%3adb8::1", "2001:db8::1"},
		{"10.9.8.7", "&ipv4=203.0.113.1&ipv6=2001:db8::1", "203.0.113.1"},
		{"10.9.8.7", "&ipv6=%5b2001:db8::1%5d:6881", "2001:db8::1"},
		{"::1", "&ipv4=203.0.113.1:6881&ipv6=2001:db8::1", "2001:db8::1"},
		{"::1", "&ipv4=203.0.113.1", "203.0.113.1"},
		{"::1", "&ipv4=203.0.113.1&ip=203.0.113.2&ipv6=2001:db8::1", "203.0.113.2"},
		{"10.9.8.7", "&ip=203.0.113.1&ip=203.0.113.2", "203.0.113.2"},
	} {
		query, client := []byte("info_hash=aaaaaaaaaaaaaaaaaaaa&port=6881"+test.query), netip.MustParseAddr(test.client)
		r := newAnnounce()
		if reason := r.parse(query, client, true); reason != "" || r.Peer.String() != netip.AddrPortFrom(netip.MustParseAddr(test.want), 6881).String() || r.forged {
			t.Errorf("%s%s: %q, %v", test.client, test.query, reason, r.Peer)
		}
		named := strings.Contains(strings.ReplaceAll(test.query, "=&", "&"), "=2") || strings.Contains(test.query, "=%")
		if reason := r.parse(query, client, false); reason != "" || r.Peer.Addr() != client || r.forged != named {
			t.Errorf("%s%s from elsewhere: %q, %v, forged %v", test.client, test.query, reason, r.Peer, r.forged)
		}
	}
	for query, parameter := range map[string]string{
		"&ip=home.example": "ip", "&ip=0.0.0.0": "ip", "&ip=224.0.0.1": "ip", "&ipv4=2001:db8::1": "ipv4", "&ipv6=203.0.113.1": "ipv6", "&ipv6=::ffff:1.2.3.4": "ipv6",
	} {
		r := newAnnounce()
		if reason := r.parse([]byte("info_hash=aaaaaaaaaaaaaaaaaaaa&port=6881"+query), netip.MustParseAddr("::1"), true); reason != about(reasonNamed, parameter) {
			t.Errorf("%s: %q", query, reason)
		}
	}
}

// Over both paths: what is plain, and with an Expect what Fiber gets.
func TestClientsBehindProxies(t *testing.T) {
	for _, test := range []struct {
		name, begin, header, query string
		o                          Options
		client                     string // or the reason
		forged                     [3]int64
	}{
		{name: "a header", header: "X-Forwarded-For: 198.51.100.7", o: Options{Trusted: proxies{"127.0.0.1"}}, client: "198.51.100.7"},
		{name: "a forged header", header: "X-Forwarded-For: 198.51.100.7", o: Options{Trusted: proxies{"127.0.0.2"}}, client: "127.0.0.1", forged: [3]int64{1, 0, 0}},
		{name: "a header where nobody is trusted", header: "x-forwarded-for: 198.51.100.7", client: "127.0.0.1", forged: [3]int64{1, 0, 0}},
		{name: "another header", header: "X-Real-IP: 198.51.100.7", o: Options{Trusted: proxies{"127.0.0.1"}}, client: "127.0.0.1"},
		{name: "nonsense", header: "X-Forwarded-For: you", o: Options{Trusted: proxies{"127.0.0.1"}}, client: reasonAddress},
		{name: "PROXY 1", begin: proxyHeader(t, 1, "198.51.100.7"), o: Options{Trusted: proxies{"127.0.0.1"}, ProxyProtocol: true}, client: "198.51.100.7"},
		{name: "PROXY 2", begin: proxyHeader(t, 2, "198.51.100.7"), o: Options{Trusted: proxies{"127.0.0.1"}, ProxyProtocol: true}, client: "198.51.100.7"},
		{name: "PROXY LOCAL", begin: proxyHeader(t, 2, ""), o: Options{Trusted: proxies{"127.0.0.1"}, ProxyProtocol: true}, client: "127.0.0.1"},
		{name: "PROXY of a proxy", begin: proxyHeader(t, 2, "192.0.2.1"), header: "X-Forwarded-For: 198.51.100.7",
			o: Options{Trusted: proxies{"127.0.0.1", "192.0.2.1"}, ProxyProtocol: true}, client: "198.51.100.7"},
		{name: "a forged header behind PROXY", begin: proxyHeader(t, 2, "192.0.2.1"), header: "X-Forwarded-For: 198.51.100.7",
			o: Options{Trusted: proxies{"127.0.0.1"}, ProxyProtocol: true}, client: "192.0.2.1", forged: [3]int64{1, 0, 0}},
		{name: "a query", query: "&ip=198.51.100.7", o: Options{MayName: proxies{"127.0.0.1"}}, client: "198.51.100.7"},
		{name: "a query behind a header", header: "X-Forwarded-For: 192.0.2.1", query: "&ip=198.51.100.7",
			o: Options{Trusted: proxies{"127.0.0.1"}, MayName: proxies{"192.0.2.1"}}, client: "198.51.100.7"},
		{name: "a forged query", query: "&ipv6=::2&ip=198.51.100.7", o: Options{Trusted: proxies{"127.0.0.1"}}, client: "127.0.0.1", forged: [3]int64{0, 0, 1}},
		{name: "a query of a proxy's client", header: "X-Forwarded-For: 192.0.2.1", query: "&ip=198.51.100.7",
			o: Options{Trusted: proxies{"127.0.0.1"}, MayName: proxies{"127.0.0.1"}}, client: "192.0.2.1", forged: [3]int64{0, 0, 1}},
	} {
		for path, unusual := range map[string]string{"plain": "", "Fiber": "Expect: 100-continue\r\n"} {
			tracker := &fakeTracker{answer: answer}
			test.o.Tracker, test.o.MaxClients, test.o.RealIPHeader = tracker, 10, headerOfHops
			_, addr, metrics := serveWith(t, test.o)
			header := unusual
			if test.header != "" {
				header += test.header + "\r\n"
			}
			got := exchange(t, addr, test.begin+"GET "+asked+test.query+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+header+"\r\n")
			if client, err := netip.ParseAddr(test.client); err != nil {
				if want := string(appendFailure(nil, test.client)); !strings.HasSuffix(got, want) || tracker.asked.Load() != nil {
					t.Errorf("%s, %s: %q", test.name, path, got)
				}
			} else if a := tracker.asked.Load(); a == nil || a.Peer.Addr() != client || !strings.Contains(got, fmt.Sprintf("external ip%d:%s", len(client.AsSlice()), client.AsSlice())) {
				t.Errorf("%s, %s: %q", test.name, path, got)
			}
			if metrics.forged() != test.forged {
				t.Errorf("%s, %s: %v are counted as forged", test.name, path, metrics.forged())
			}
		}
	}
}

func TestAForgedPROXYHeaderIsRefused(t *testing.T) {
	for _, o := range []Options{
		{Trusted: proxies{"10.0.0.1"}, ProxyProtocol: true},
		{Trusted: proxies{"127.0.0.1"}},
		{},
	} {
		for _, begin := range []string{proxyHeader(t, 1, "198.51.100.7"), proxyHeader(t, 2, "198.51.100.7"), proxyHeader(t, 2, "")} {
			tracker := &fakeTracker{answer: answer}
			o.Tracker, o.MaxClients = tracker, 10
			_, addr, metrics := serveWith(t, o)
			got := exchange(t, addr, begin+"GET "+asked+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if !strings.HasPrefix(got, "HTTP/1.1 400 ") || tracker.asked.Load() != nil || metrics.forged() != [3]int64{0, 1, 0} {
				t.Errorf("%q: %q, %v are counted as forged", begin, got, metrics.forged())
			}
		}
	}
}

// The header before a connection is for all its requests, over whichever path.
func TestOneConnectionManyRequests(t *testing.T) {
	tracker := &fakeTracker{answer: answer}
	_, addr, metrics := serveWith(t, Options{Tracker: tracker, MaxClients: 10, Trusted: proxies{"127.0.0.1"}, ProxyProtocol: true, RealIPHeader: headerOfHops})
	plain := "GET " + asked + " HTTP/1.1\r\nHost: x\r\n\r\n"
	last := "GET " + asked + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	got := exchange(t, addr, proxyHeader(t, 2, "198.51.100.7")+plain+plain+"GET / HTTP/1.1\r\nHost: x\r\n\r\n"+plain+last)
	if n := strings.Count(got, strings.Replace(golden, "\x7f\x00\x00\x01", "\xc6\x33\x64\x07", 1)); n != 4 || !bytes.Contains([]byte(got), []byte(" 404 ")) {
		t.Errorf("%d announces of the client in %q", n, got)
	}
	if metrics.forged() != [3]int64{} {
		t.Errorf("%v are counted as forged", metrics.forged())
	}
}
