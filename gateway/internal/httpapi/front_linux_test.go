package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// serveFiber answers with Fiber alone.
func serveFiber(t *testing.T, o Options) (addr string, metrics *fakeMetrics) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics = &fakeMetrics{}
	o.Metrics, o.Now = metrics, time.Now
	s := New(o)
	served := make(chan error, 1)
	go func() { served <- s.app.Listener(clientListener{l, s}) }()
	t.Cleanup(func() { _ = errors.Join(s.app.Shutdown(), <-served) })
	return l.Addr().String(), metrics
}

// halfClosed sends raw bytes in pieces, and no more, and returns what comes back.
func halfClosed(t *testing.T, addr, request string, piece int) string {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	for len(request) > 0 {
		n := min(piece, len(request))
		if _, err := io.WriteString(c, request[:n]); err != nil {
			break // it was answered before its end
		}
		request = request[n:]
	}
	_ = c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c) // a reset may follow
	return date.ReplaceAllString(string(b), "Date: now")
}

var date = regexp.MustCompile("Date: [^\r]*")

func TestTheFrontAnswersAsFiberDoes(t *testing.T) {
	o := Options{Tracker: &fakeTracker{answer: answer, counts: answer.Counts}, MaxClients: 100, PathPrefix: "/t"}
	_, addr, metrics := serveWith(t, o)
	fiber, fiberMetrics := serveFiber(t, o)
	get := "GET " + asked
	requests := []string{
		get + " HTTP/1.1\r\nHost: x\r\n\r\n",
		get + " HTTP/1.1\r\n\r\n",
		get + " HTTP/1.0\r\n\r\n",
		get + " HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		get + " HTTP/1.0\r\nCONNECTION:  Keep-Alive \r\n\r\n",
		get + " HTTP/1.1\r\nConnection: close\r\n\r\n",
		get + " HTTP/1.1\r\nconnection:close\r\n\r\n",
		get + " HTTP/1.1\r\nConnection: Close\r\n\r\n",
		get + " HTTP/1.1\r\nConnection: keep-alive, close\r\n\r\n",
		get + " HTTP/1.1\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n",
		get + " HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		get + " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
		get + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		get + " HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 5\r\n\r\nabcde",
		get + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		get + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		get + " HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		get + " HTTP/1.1\r\nHost: [::1\r\n\r\n",
		get + " HTTP/1.1\r\nHost: a@b\r\n\r\n",
		get + " HTTP/1.1\r\nHost: x:6969\r\nUser-Agent: a b\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n",
		get + " HTTP/1.1\nHost: x\n\n",
		get + " HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
		get + " HTTP/1.1\r\nnocolon\r\n\r\n",
		get + " HTTP/1.1\r\n: x\r\n\r\n",
		get + " HTTP/1.2\r\n\r\n",
		get + "\r\n\r\n",
		get + "#x HTTP/1.1\r\n\r\n",
		get + "&x=a b HTTP/1.1\r\n\r\n",
		get + "&x=\x01 HTTP/1.1\r\n\r\n",
		get + "&x=http://a//b HTTP/1.1\r\n\r\n",
		get + "&compact=0 HTTP/1.1\r\n\r\n",
		"\r\n" + get + " HTTP/1.1\r\n\r\n",
		"GET http://x" + asked + " HTTP/1.1\r\n\r\n",
		"GET /announce?port=1 HTTP/1.1\r\n\r\n",
		"GET /announce? HTTP/1.1\r\n\r\n",
		"GET /announce HTTP/1.1\r\n\r\n",
		"GET /announce?\r\n\r\n",
		"GET /announce/?x HTTP/1.1\r\n\r\n",
		"GET /t" + asked + " HTTP/1.1\r\n\r\n",
		"GET /t/0Key_-" + asked + " HTTP/1.0\r\n\r\n",
		"GET /t/a%20b" + asked + " HTTP/1.0\r\n\r\n",
		"GET /t/" + asked + " HTTP/1.1\r\n\r\n",
		"GET /tt" + asked + " HTTP/1.1\r\n\r\n",
		"GET /t/announce HTTP/1.1\r\n\r\n",
		"GET /t/ HTTP/1.1\r\n\r\n",
		"GET /scrape?info_hash=aaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n\r\n",
		"POST /announce?x HTTP/1.1\r\n\r\n",
		"HEAD " + asked + " HTTP/1.1\r\n\r\n",
		"get " + asked + " HTTP/1.1\r\n\r\n",
		"nonsense\r\n\r\n", "\x00", "\x16\x03\x01\x02\x00", "", "G", "GET /announce?info_hash=",
		get + " HTTP/1.1\r\nHost: x\r\n",
		get + " HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n",
		get + " HTTP/1.1\r\nX: " + strings.Repeat("x", maxRequestLine+maxHeaders) + "\r\n\r\n",
	}
	for i := range requests[:len(requests):len(requests)] { // and after another request
		requests = append(requests, get+"&numwant=1 HTTP/1.1\r\nHost: y\r\n\r\n"+requests[i])
	}
	compare(t, requests, addr, fiber)
	if got, want := metrics.invalid.Load(), fiberMetrics.invalid.Load(); got != want {
		t.Errorf("%d requests are counted as invalid, by Fiber %d", got, want)
	}
	if got, want := metrics.accepted.Load(), fiberMetrics.accepted.Load(); got != want || got == 0 {
		t.Errorf("%d connections are counted, by Fiber %d", got, want)
	}
}

// compare checks that two servers answer alike, however requests come in.
func compare(t *testing.T, requests []string, addr, fiber string) {
	t.Helper()
	for _, request := range requests {
		for _, piece := range []int{len(request) + 1, 7, 1} {
			if piece < 7 && len(request) > 1000 {
				continue
			}
			if got, want := halfClosed(t, addr, request, piece), halfClosed(t, fiber, request, piece); got != want {
				t.Errorf("%.300q in pieces of %d:\n%q\nFiber says\n%q", request, piece, got, want)
			}
		}
	}
}

// Answers hold the client's address, so what is the same here is where both believe it to be.
func TestTheFrontFindsClientsWhereFiberDoes(t *testing.T) {
	v1, v2 := proxyHeader(t, 1, "198.51.100.7"), proxyHeader(t, 2, "2001:db8::7")
	local := proxyHeader(t, 2, "")
	var requests []string
	for _, begin := range []string{"", v1, v2, local, v1 + v2, v1[:9], v2[:20], "PROXY TCP4 nobody\r\n", "PROXY", v2[:12] + "\x21\x11\xff\xff"} {
		for _, header := range []string{"", "X-Forwarded-For: 203.0.113.1", "x-FORWARDED-for:203.0.113.1 , [2001:db8::1]:80,127.0.0.2",
			"X-Forwarded-For: 203.0.113.1\r\nX: y\r\nX-Forwarded-For: 127.0.0.9", "X-Forwarded-For: 203.0.113.1, unknown", "X-Forwarded-For:",
			"X-Forwarded-For: 203.0.113.1\t", "X-Forwarded-For: 127.0.0.3,, 127.0.0.4", "X-Forwarded-For: 203.0.113.1\r\nExpect: x"} {
			for _, query := range []string{"", "&ip=203.0.113.2", "&ipv6=x"} {
				requests = append(requests, strings.TrimSuffix(begin+"GET "+asked+query+" HTTP/1.1\r\nHost: x\r\n"+header, "\r\n")+"\r\n\r\n")
			}
		}
		requests = append(requests, begin, begin+"GET /", begin+"GET / HTTP/1.1\r\n\r\n",
			begin+"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET "+asked+" HTTP/1.1\r\nX-Forwarded-For: 203.0.113.4\r\n\r\n")
	}
	for name, o := range map[string]Options{
		"trusted":          {Trusted: netip.MustParsePrefix("127.0.0.0/8"), RealIPHeader: headerOfHops, ProxyProtocol: true, MayName: netip.MustParsePrefix("203.0.113.0/24")},
		"without PROXY":    {Trusted: netip.MustParsePrefix("127.0.0.0/8"), RealIPHeader: headerOfHops, MayName: netip.MustParsePrefix("127.0.0.0/8")},
		"another header":   {Trusted: netip.MustParsePrefix("127.0.0.0/8"), RealIPHeader: "X-Real-IP"},
		"others trusted":   {Trusted: netip.MustParsePrefix("10.0.0.0/8"), RealIPHeader: headerOfHops, ProxyProtocol: true},
		"nobody is":        {RealIPHeader: headerOfHops},
		"a trusted source": {Trusted: proxies{"127.0.0.1", "198.51.100.7"}, RealIPHeader: headerOfHops, ProxyProtocol: true},
	} {
		t.Run(name, func(t *testing.T) {
			o.Tracker, o.MaxClients = &syncTracker{answer}, 100
			_, addr, metrics := serveWith(t, o)
			fiber, fiberMetrics := serveFiber(t, o)
			compare(t, requests, addr, fiber)
			if got, want := metrics.forged(), fiberMetrics.forged(); got != want {
				t.Errorf("%v are counted as forged, by Fiber %v", got, want)
			}
			if got, want := metrics.invalid.Load(), fiberMetrics.invalid.Load(); got != want {
				t.Errorf("%d requests are counted as invalid, by Fiber %d", got, want)
			}
		})
	}
}

// fiberAnswer is what Fiber says first to a client that sent these bytes.
func fiberAnswer(s *Server, c *memoryConn, request []byte) string {
	c.in.Reset(request)
	c.out.Reset()
	_ = s.app.Server().ServeConn(c)
	return date.ReplaceAllString(c.out.String(), "Date: now")
}

// checkHead checks that what is a plain announce to the front is one to Fiber, with the
// same answer.
func checkHead(t *testing.T, s *Server, r *announce, request []byte) (is verdict) {
	var h head
	c := &memoryConn{}
	size, is := h.read(request, s.under, s.RealIPHeader)
	if is != plain {
		return is
	}
	r.body = r.body[:0]
	if reason := s.read(r, h.query, s.client(addrOf(c.RemoteAddr()), h.realIP)); reason != "" {
		r.body = appendFailure(r.body, reason)
	} else {
		r.Answer = answer
		r.body = r.appendAnswer(r.body)
	}
	got := string(h.appendResponse(nil, []byte("now"), r.body))
	if want := fiberAnswer(s, c, request[:size]); got != want {
		t.Fatalf("%q gets %q, of Fiber %q", request, got, want)
	}
	return is
}

// behindProxies is a server that trusts where a memoryConn is from.
func behindProxies() *Server {
	s := New(Options{Tracker: &fakeTracker{answer: answer}, Metrics: &fakeMetrics{}, Now: time.Now, MaxClients: 10, PathPrefix: "/t",
		Trusted: netip.MustParsePrefix("10.0.0.0/8"), RealIPHeader: headerOfHops, MayName: netip.MustParsePrefix("::/0")})
	s.app.Handler() // as Serve does, which connections of tests go past
	return s
}

func FuzzHead(f *testing.F) {
	s := behindProxies()
	f.Add([]byte("GET " + asked + " HTTP/1.1\r\nHost: x:1\r\nConnection: keep-alive\r\n\r\n"))
	f.Add([]byte("GET " + asked + "&ip=1.2.3.4 HTTP/1.1\r\nX-Forwarded-For: ::1 , [::2]:3\r\nx-forwarded-for:10.0.0.1\r\n\r\n"))
	f.Add([]byte("GET " + asked + " HTTP/1.0\r\nContent-Length: 1\r\nExpect: x\r\n\r\n"))
	f.Add([]byte("GET /t/a/announce" + asked + " HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, request []byte) { checkHead(t, s, newAnnounce(), request) })
}

func TestFurtherPathsArePlain(t *testing.T) {
	for path, want := range map[string]verdict{
		"/announce?": plain, "/t/announce?": plain, "/t/Key-0_/announce?": plain,
		"/x/announce?": unusual, "/t//announce?": unusual, "/t/a.b/announce?": unusual, "/t/announc": incomplete, "/": incomplete,
	} {
		request := "GET " + path
		if want != incomplete {
			request += "x HTTP/1.1\r\n\r\n"
		}
		if _, is := new(head).read([]byte(request), "/t/", ""); is != want {
			t.Errorf("%s is %v", path, is)
		}
	}
}

func TestMutatedHeads(t *testing.T) {
	s := behindProxies()
	n := 200_000
	if testing.Short() {
		n /= 10
	}
	seed := []byte("GET " + asked + " HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4,10.0.0.1\r\nX-Forwarded-For:10.0.0.2\r\nContent-Length:0\r\nExpect:\r\n\r\n")
	alphabet := []byte(" \t\r\n:#%&=?/HTTP1.0\x00\x7f\xffcC-")
	r, a, plains := rand.New(rand.NewPCG(3, 4)), newAnnounce(), 0
	for range n {
		request := bytes.Clone(seed)
		if r.IntN(2) == 0 {
			request = bytes.Replace(request, []byte("Content-Length:0\r\nExpect:\r\n"), nil, 1)
		}
		if r.IntN(2) == 0 {
			path := []string{"/t", "/t/t", "/t/announce", "/t/a/b", "/t/"}[r.IntN(5)]
			request = bytes.Replace(request, []byte("/announce"), []byte(path+"/announce"), 1)
		}
		for range r.IntN(4) {
			request[r.IntN(len(request))] = alphabet[r.IntN(len(alphabet))]
		}
		if checkHead(t, s, a, request) == plain {
			plains++
		}
	}
	if plains < n/20 {
		t.Errorf("%d of %d are plain", plains, n)
	}
}

func TestClientsOfBothKindsAreBounded(t *testing.T) {
	_, addr, _ := serve(t, &fakeTracker{answer: answer}, 2)
	fiber, _ := serveFiber(t, Options{Tracker: &fakeTracker{answer: answer}, MaxClients: 2})
	var refusals []string
	for _, addr := range []string{addr, fiber} {
		for _, request := range []string{"GET " + asked + " HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"} {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.WriteString(c, request)
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		refusals = append(refusals, halfClosed(t, addr, "", 1))
	}
	if refusals[0] != refusals[1] || !strings.HasPrefix(refusals[0], "HTTP/1.1 503 ") {
		t.Errorf("the third of two clients: %q, by Fiber %q", refusals[0], refusals[1])
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Clients that vanish while their announces are with the tracker leave nothing behind, and
// their answers reach nobody else.
func TestClientsVanishInFlight(t *testing.T) {
	tracker := &fakeTracker{answer: answer, hold: make(chan struct{})}
	s, addr, _ := serve(t, tracker, 1000)
	halfClosed(t, addr, "GET / HTTP/1.1\r\n\r\n", 100) // when it is answered, all is set up
	before := countFDs(t)
	for n := range 100 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		_, _ = io.WriteString(c, "GET "+asked+" HTTP/1.1\r\n\r\n"+[]string{"", "GET /ann", "GET " + asked + " HTTP/1.1\r\n\r\n"}[n%3])
		_ = c.Close()
	}
	storetest.Eventually(t, 5*time.Second, func() error {
		if tracker.asked.Load() == nil {
			return errors.New("no request has arrived")
		}
		return nil
	})
	// Who comes now gets no file descriptor of those before, and nothing but its own.
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	close(tracker.hold)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
	if b, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 404 ") || strings.Count(string(b), "HTTP/1.1") != 1 {
		t.Errorf("%q, %v", b, err)
	}
	_ = c.Close()
	storetest.Eventually(t, 10*time.Second, func() error {
		if n := s.front.Load().clients.Load(); n != 0 {
			return fmt.Errorf("%d clients are left", n)
		}
		if n := countFDs(t); n > before {
			return fmt.Errorf("%d file descriptors, before %d", n, before)
		}
		return nil
	})
}

func TestHalfARequestTimesOut(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	_, addr, _ := serve(t, &fakeTracker{answer: answer}, 100)
	begun := time.Now()
	for _, half := range []string{"", "GET /announce?info_hash=", "PROXY TCP4 "} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(begun.Add(20 * time.Second))
		_, _ = io.WriteString(c, half)
		defer func() {
			b, err := io.ReadAll(c)
			if took := time.Since(begun); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 408 ") || took < readTimeout || took > readTimeout+3*tick {
				t.Errorf("%q gets %q after %v, %v", half, b, took, err)
			}
		}()
	}
}

// syncTracker answers at once.
type syncTracker struct{ swarm.Answer }

func (f *syncTracker) Announce(_ time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce)) {
	for _, a := range batch {
		a.Counts, a.Interval, a.MinInterval = f.Counts, f.Interval, f.MinInterval
		a.Peers4, a.Peers6 = append(a.Peers4[:0], f.Peers4...), append(a.Peers6[:0], f.Peers6...)
	}
	answered(batch)
}

func (f *syncTracker) Scrape(_ time.Time, s *swarm.Scrape, answered func(*swarm.Scrape)) { answered(s) }

func TestTheFrontAllocatesNothing(t *testing.T) {
	s, addr, _ := serveWith(t, Options{Tracker: &syncTracker{answer}, MaxClients: 100,
		Trusted: netip.MustParsePrefix("127.0.0.0/8"), RealIPHeader: headerOfHops, ProxyProtocol: true, MayName: netip.MustParsePrefix("203.0.113.0/24")})
	for _, test := range []struct{ begin, query, header, client string }{
		{"", "", "", "\x7f\x00\x00\x01"},
		{"", "", "X-Forwarded-For: 198.51.100.7, 127.0.0.2\r\n", "\xc6\x33\x64\x07"},
		{"", "&ipv4=198.51.100.7", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: [203.0.113.1]:80, 203.0.113.1:80\r\n", "\xc6\x33\x64\x07"},
		{proxyHeader(t, 2, "198.51.100.7"), "", "", "\xc6\x33\x64\x07"},
		{proxyHeader(t, 1, "127.0.0.2"), "", "X-Forwarded-For: 198.51.100.7\r\n", "\xc6\x33\x64\x07"},
	} {
		c := dial(t, addr)
		defer c.Close()
		if _, err := io.WriteString(c, test.begin); err != nil {
			t.Fatal(err)
		}
		request, response := []byte("GET "+asked+test.query+" HTTP/1.1\r\nHost: x\r\n"+test.header+"\r\n"), make([]byte, 4096)
		want := []byte(strings.Replace(golden, "\x7f\x00\x00\x01", test.client, 1))
		storetest.Allocs(t, 0.1, func() {
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(response); err != nil || !bytes.HasSuffix(response[:n], want) {
				t.Fatalf("%q, %v", response[:n], err)
			}
		})
		if n := s.app.Server().GetOpenConnectionsCount(); n != 0 {
			t.Errorf("%q: Fiber has the connection", test.header)
		}
	}
}
