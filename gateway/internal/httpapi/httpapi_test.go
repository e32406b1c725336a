package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

func TestMain(m *testing.M) {
	// fasthttp's clock is one for the process, and its pool's cleaner ends 10 s late.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// fakeTracker gives each announce the same answer, from another goroutine.
type fakeTracker struct {
	answer swarm.Answer
	err    error
	counts swarm.Counts
	asked  atomic.Pointer[swarm.Announce] // a copy of the last one
	hold   chan struct{}                  // when set, answers wait for it
}

func (f *fakeTracker) Announce(_ time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce)) {
	seen := *batch[0]
	f.asked.Store(&seen)
	batch = slices.Clone(batch)
	go func() {
		if f.hold != nil {
			<-f.hold
		}
		for _, a := range batch {
			a.Answer = f.answer
			a.Err = f.err
		}
		answered(batch)
	}()
}

func (f *fakeTracker) Scrape(_ time.Time, s *swarm.Scrape, answered func(*swarm.Scrape)) {
	s.Counts = make([]swarm.Counts, len(s.Hashes))
	for i := range s.Counts {
		s.Counts[i] = f.counts
	}
	s.Err = f.err
	go answered(s)
}

type fakeMetrics struct{ accepted, invalid, scraped, bytes, header, proxy, query atomic.Int64 }

func (m *fakeMetrics) Accepted(netip.Addr) { m.accepted.Add(1) }
func (m *fakeMetrics) Invalid(int)         { m.invalid.Add(1) }
func (m *fakeMetrics) FullScraped(bytes int) {
	m.scraped.Add(1)
	m.bytes.Add(int64(bytes))
}
func (m *fakeMetrics) ForgedHeader() { m.header.Add(1) }
func (m *fakeMetrics) ForgedProxy()  { m.proxy.Add(1) }
func (m *fakeMetrics) ForgedQuery()  { m.query.Add(1) }

// forged are the counts of header, proxy and query.
func (m *fakeMetrics) forged() [3]int64 {
	return [...]int64{m.header.Load(), m.proxy.Load(), m.query.Load()}
}

var answer = swarm.Answer{
	Counts:      swarm.Counts{Seeders: 3, Leechers: 1, PartialSeeds: 1, Downloads: 7},
	Interval:    1835*time.Second + 100*time.Millisecond,
	MinInterval: 917 * time.Second,
	Peers4:      []byte("\x0a\x00\x00\x01\x1a\xe1\x0a\x00\x00\x02\x00\x50"),
	Peers6:      []byte("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09\x1a\xe1"),
}

// serve answers on a loopback address until the test ends.
func serve(t *testing.T, tracker Tracker, clients int) (s *Server, addr string, metrics *fakeMetrics) {
	t.Helper()
	return serveWith(t, Options{Tracker: tracker, MaxClients: clients, PathPrefix: "/t"})
}

func serveWith(t *testing.T, o Options) (s *Server, addr string, metrics *fakeMetrics) {
	t.Helper()
	metrics = &fakeMetrics{}
	o.Metrics = metrics
	if o.Now == nil {
		o.Now = time.Now
	}
	s = New(o)
	return s, serveOn(t, s), metrics
}

// serveOn lets a server answer on a loopback address until the test ends.
func serveOn(t *testing.T, s *Server) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

// dial a connection on which nothing takes longer than ten seconds.
func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// exchange sends raw bytes on a connection of its own and returns all that comes back.
func exchange(t *testing.T, addr, request string) string {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

// get asks for a path and returns the status and the body.
func get(t *testing.T, addr, path string) (status int, body string) {
	t.Helper()
	raw := exchange(t, addr, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), nil)
	if err != nil {
		t.Fatalf("%v: %q", err, raw)
	}
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(b)
}

const (
	hash  = "\x12\x34Vx\x9a\xbc\xde\xf1\x23\x45\x67\x89\xab\xcd\xef\x12\x34 .~"
	asked = "/announce?info_hash=%124Vx%9a%bc%de%f1%23Eg%89%ab%cd%ef%124%20.~&peer_id=-XX0000-000000000000&port=6881&left=9"
)

const golden = "d8:completei3e10:downloadedi7e11:external ip4:\x7f\x00\x00\x0110:incompletei2e8:intervali1835e12:min intervali917e" +
	"5:peers12:\x0a\x00\x00\x01\x1a\xe1\x0a\x00\x00\x02\x00\x506:peers618:\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09\x1a\xe1e"

func TestAnswers(t *testing.T) {
	tracker := &fakeTracker{answer: answer, counts: answer.Counts}
	_, addr, metrics := serve(t, tracker, 100)

	for name, test := range map[string]struct{ path, want string }{
		"announce": {asked, golden},
		"dictionaries": {asked + "&compact=0", "d8:completei3e10:downloadedi7e11:external ip4:\x7f\x00\x00\x0110:incompletei2e8:intervali1835e12:min intervali917e" +
			"5:peersld2:ip8:10.0.0.14:porti6881eed2:ip8:10.0.0.24:porti80eed2:ip11:2001:db8::94:porti6881eeee"},
		"scrape": {"/scrape?info_hash=bbbbbbbbbbbbbbbbbbbb&info_hash=aaaaaaaaaaaaaaaaaaaa&info_hash=bbbbbbbbbbbbbbbbbbbb&x=y",
			"d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei3e10:downloadedi7e11:downloadersi1e10:incompletei2ee" +
				"20:bbbbbbbbbbbbbbbbbbbbd8:completei3e10:downloadedi7e11:downloadersi1e10:incompletei2eeee"},
	} {
		if status, body := get(t, addr, test.path); status != 200 || body != test.want {
			t.Errorf("%s: %d %q\nwant %q", name, status, body, test.want)
		}
	}
	if n := metrics.invalid.Load(); n != 0 {
		t.Errorf("%d valid requests were counted as invalid", n)
	}

	tracker = &fakeTracker{err: fmt.Errorf("10.1.2.3 is away: %w", swarm.ErrUnavailable), answer: swarm.Answer{Interval: 125 * time.Second}}
	_, addr, _ = serve(t, tracker, 100)
	reason := swarm.Reason(swarm.ErrUnavailable)
	if _, body := get(t, addr, asked); body != fmt.Sprintf("d14:failure reason%d:%s8:intervali125e8:retry ini3ee", len(reason), reason) {
		t.Errorf("without a store: %q", body)
	}
	if _, body := get(t, addr, "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa"); body != fmt.Sprintf("d14:failure reason%d:%se", len(reason), reason) {
		t.Errorf("scrape without a store: %q", body)
	}

	tracker = &fakeTracker{err: swarm.ErrDenied, answer: swarm.Answer{Interval: 1800 * time.Second}}
	_, addr, _ = serve(t, tracker, 100)
	const denied = "d14:failure reason63:Requested download is not authorized for use with this tracker.8:intervali1800e8:retry in5:nevere"
	if status, body := get(t, addr, asked); status != 200 || body != denied {
		t.Errorf("a denied swarm: %d %q", status, body)
	}
	tracker = &fakeTracker{counts: swarm.Counts{Denied: true}}
	_, addr, _ = serve(t, tracker, 100)
	if _, body := get(t, addr, "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa"); body != "d5:filesdee" {
		t.Errorf("scrape of a denied swarm: %q", body)
	}
}

// parse reads the query of an announce as the server does.
func parse(query string) (*announce, string) {
	r := newAnnounce()
	return r, r.parse([]byte(query), netip.MustParseAddr("10.9.8.7"), false)
}

func TestInfoHashInAnyEscaping(t *testing.T) {
	upper, lower, full, twice := url.QueryEscape(hash), "", "", ""
	for _, c := range []byte(hash) {
		full += fmt.Sprintf("%%%02X", c)
		lower += fmt.Sprintf("%%%02x", c)
		twice += fmt.Sprintf("%%25%02x", c)
	}
	if !strings.Contains(upper, "+") {
		t.Fatal("the hash has no space")
	}
	for _, escaped := range []string{upper, strings.ReplaceAll(upper, "+", "%20"), lower, full, twice, hash} {
		for _, query := range []string{
			"info_hash=" + escaped + "&port=6881",
			"port=6881&&x&=&supportcrypto=1&no_peer_id=1&key=%&peer_id=" + escaped + "&info_hash=" + escaped,
		} {
			if r, reason := parse(query); reason != "" || string(r.InfoHash[:]) != hash {
				t.Errorf("%q: %q, %x", query, reason, r.InfoHash)
			}
		}
	}
}

func TestParameters(t *testing.T) {
	const good = "info_hash=aaaaaaaaaaaaaaaaaaaa&port=6881"
	for _, test := range []struct {
		query   string
		left    uint64
		numwant int
		event   swarm.Event
		compact bool
	}{
		{"", swarm.UnknownLeft, -1, swarm.None, true},
		{"&left=0&event=completed&compact=1", 0, -1, swarm.Completed, true},
		{"&left=4294967296&event=started&compact=0", 1 << 32, -1, swarm.Started, false},
		{"&left=18446744073709551615&event=stopped", math.MaxUint64, -1, swarm.Stopped, true},
		{"&left=-1&event=paused&numwant=-1", swarm.UnknownLeft, -1, swarm.Paused, true},
		{"&left=&event=&numwant=", swarm.UnknownLeft, -1, swarm.None, true},
		{"&left=00&event=update&numwant=0", 0, 0, swarm.None, true},
		{"&numwant=99999999999", swarm.UnknownLeft, math.MaxInt32, swarm.None, true},
		{"&numwant=30&uploaded=-5&downloaded=7", swarm.UnknownLeft, 30, swarm.None, true},
		{"&ip=1.2.3.4&ipv6=%3a%3a1", swarm.UnknownLeft, -1, swarm.None, true},
	} {
		r, reason := parse(good + test.query)
		if reason != "" || r.Left != test.left || r.NumWant != test.numwant || r.Event != test.event || r.compact != test.compact || !r.Both {
			t.Errorf("%q: %q, %+v", test.query, reason, r)
		}
		if r.Peer != netip.MustParseAddrPort("10.9.8.7:6881") {
			t.Errorf("%q: the peer is %v", test.query, r.Peer)
		}
	}
}

func TestMistakesGetAReason(t *testing.T) {
	_, addr, metrics := serve(t, &fakeTracker{answer: answer}, 100)
	const hash = "info_hash=aaaaaaaaaaaaaaaaaaaa"
	tests := []struct{ path, want string }{
		{"/announce", reasonNoHash},
		{"/announce?port=1", reasonNoHash},
		{"/announce?" + hash + "&port=1&" + hash, reasonHashes},
		{"/announce?info_hash=aaa&port=1", reasonHashSize},
		{"/announce?info_hash=&port=1", reasonHashSize},
		{"/announce?" + hash + "a&port=1", reasonHashSize},
		{"/announce?info_hash=" + strings.Repeat("%2561", 21) + "&port=1", reasonHashSize},
		{"/announce?info_hash=" + strings.Repeat("a", 4000) + "&port=1", reasonHashSize},
		{"/announce?info_hash=%zzaaaaaaaaaaaaaaaaaaa&port=1", reasonHashSize},
		{"/announce?" + hash, reasonNoPort},
		{"/announce?" + hash + "&port=0", reasonPort},
		{"/announce?" + hash + "&port=65536", reasonPort},
		{"/announce?" + hash + "&port=18446744073709558497", reasonPort},
		{"/announce?" + hash + "&port=-1", reasonPort},
		{"/announce?" + hash + "&port=", reasonPort},
		{"/announce?" + hash + "&port=http", reasonPort},
		{"/announce?" + hash + "&port=1&left=18446744073709551616", "What your client sent as left does not fit 64 bits."},
		{"/announce?" + hash + "&port=1&left=99999999999999999999999", "What your client sent as left does not fit 64 bits."},
		{"/announce?" + hash + "&port=1&left=many", "What your client sent as left is not a number."},
		{"/announce?" + hash + "&port=1&numwant=1e3", "What your client sent as numwant is not a number."},
		{"/announce?" + hash + "&port=1&numwant=18446744073709551616", "What your client sent as numwant does not fit 64 bits."},
		{"/announce?" + hash + "&port=1&uploaded=18446744073709551616", "What your client sent as uploaded does not fit 64 bits."},
		{"/announce?" + hash + "&port=1&downloaded=0x10", "What your client sent as downloaded is not a number."},
		{"/scrape", reasonNoScrape},
		{"/scrape?x=y", reasonNoScrape},
		{"/scrape?info_hash=a", reasonHashSize},
		{"/scrape?" + strings.Repeat(hash+"&", 101), reasonScrapes},
	}
	for _, test := range tests {
		want := fmt.Sprintf("d14:failure reason%d:%se", len(test.want), test.want)
		if status, body := get(t, addr, test.path); status != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", test.path, status, body, want)
		}
	}
	if n := metrics.invalid.Load(); n != int64(len(tests)) {
		t.Errorf("%d of %d mistakes were counted", n, len(tests))
	}
}

func TestStatusCodes(t *testing.T) {
	_, addr, _ := serve(t, &fakeTracker{answer: answer}, 100)
	_, query, _ := strings.Cut(asked, "?")
	for _, test := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 404},
		{"GET", "/announce/", 404},
		{"GET", "/Announce?" + query, 404},
		{"GET", "/a/../../etc/passwd", 404},
		{"HEAD", "/announce?" + query, 405},
		{"POST", "/announce?" + query, 405},
		{"PUT", "/scrape", 405},
		{"DELETE", "/announce", 405},
		{"OPTIONS", "/announce", 405},
		{"HEAD", "/nowhere", 404},
		{"POST", "/nowhere", 404},
	} {
		raw := exchange(t, addr, test.method+" "+test.path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), &http.Request{Method: test.method})
		if err != nil {
			t.Fatalf("%s %s: %v in %q", test.method, test.path, err, raw)
		}
		_ = response.Body.Close()
		if response.StatusCode != test.want {
			t.Errorf("%s %s: %s", test.method, test.path, response.Status)
		}
		if allow := response.Header.Get("Allow"); test.want == 405 && allow != "GET" {
			t.Errorf("%s %s: Allow is %q", test.method, test.path, allow)
		}
		if strings.Contains(raw, "passwd") {
			t.Errorf("%s %s is echoed: %q", test.method, test.path, raw)
		}
	}
}

func TestPaths(t *testing.T) {
	_, query, _ := strings.Cut(asked, "?")
	for prefix, want := range map[string]map[string]int{
		"": {"/announce": 200, "/t/announce": 404, "/a/announce": 404, "//announce": 404},
		"/t/": {
			"/announce": 200, "/t/announce": 200, "/t/key/announce": 200, "/t/a/b%20c/announce": 200, "/t/announce/announce": 200,
			"/t": 404, "/t/": 404, "/t/announce/": 404, "/t//announce": 404, "/tannounce": 404, "/a/announce": 404, "/t/key/announced": 404, "/t/key": 404,
		},
		"/a/b": {"/announce": 200, "/a/b/announce": 200, "/a/b/key/announce": 200, "/a/announce": 404, "/b/announce": 404},
		"/":    {"/announce": 200, "/key/announce": 200, "/a/b/announce": 200, "//announce": 404, "/": 404, "/key": 404},
	} {
		tracker := &fakeTracker{answer: answer}
		s := New(Options{Tracker: tracker, Metrics: &fakeMetrics{}, Now: time.Now, MaxClients: 10, PathPrefix: prefix})
		addr := serveOn(t, s)
		for path, want := range want {
			// The front answers the first, Fiber the second.
			for _, headers := range []string{"", "Content-Length: 0\r\n"} {
				raw := exchange(t, addr, "GET "+path+"?"+query+" HTTP/1.1\r\nConnection: close\r\n"+headers+"\r\n")
				if status := fmt.Sprintf("HTTP/1.1 %d ", want); !strings.HasPrefix(raw, status) || want == 200 && !strings.HasSuffix(raw, golden) {
					t.Errorf("below %q %s is %.40q, want %d", prefix, path, raw, want)
				}
			}
			path = strings.TrimSuffix(path, "announce") + "scrape"
			if !strings.HasSuffix(path, "/scrape") || want != 200 {
				continue
			}
			if status, body := get(t, addr, path+"?"+query); status != 200 || !strings.HasPrefix(body, "d5:filesd") {
				t.Errorf("below %q %s is %d %q", prefix, path, status, body)
			}
		}
	}
}

// What a cache may keep says so. All else says that it may not, because some caches keep what says nothing.
func TestWhatCachesMayKeep(t *testing.T) {
	const scrape = "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa"
	for _, test := range []struct {
		path string
		age  time.Duration
		err  error
		want string
	}{
		{asked, time.Second, nil, "no-store"},
		{asked + "&ipv6=x", time.Second, nil, "no-store"},
		{"/announce", time.Second, nil, "no-store"},
		{scrape, time.Second, nil, "public, max-age=1, stale-while-revalidate=1"},
		{scrape, 1100 * time.Millisecond, nil, "public, max-age=2, stale-while-revalidate=2"},
		{scrape, time.Millisecond, nil, "public, max-age=1, stale-while-revalidate=1"},
		{scrape, 0, nil, "public, max-age=0, stale-while-revalidate=0"},
		{scrape, time.Second, swarm.ErrUnavailable, "no-store"},
		{"/scrape", time.Second, nil, "no-store"},
		{"/scrape?info_hash=a", time.Second, nil, "no-store"},
		{"/", time.Second, nil, "no-store"},
		{"/stats", time.Second, nil, "no-store"},
		{"/stats.json", time.Second, nil, "no-store"},
		{"/stats?mode=nosuch", time.Second, nil, "no-store"},
		{"/nowhere", time.Second, nil, "no-store"},
	} {
		_, addr, _ := serveWith(t, Options{
			Tracker: &fakeTracker{answer: answer, err: test.err}, MaxClients: 10, RedirectURL: "https://example.org/", ScrapeMaxAge: test.age,
			Stats: fakeStats{}, StatsPath: "/stats", StatsNetworks: loopback,
		})
		// The front answers the first, Fiber the second.
		for _, headers := range []string{"", "Content-Length: 0\r\n"} {
			raw := exchange(t, addr, "GET "+test.path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+headers+"\r\n")
			response, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), nil)
			if err != nil {
				t.Fatalf("%v: %q", err, raw)
			}
			if got := response.Header.Values("Cache-Control"); !slices.Equal(got, []string{test.want}) {
				t.Errorf("%+v gets %q", test, got)
			}
		}
	}
}

func TestRedirect(t *testing.T) {
	const url = "https://example.org/about?a=b"
	metrics := &fakeMetrics{}
	addr := serveOn(t, New(Options{Tracker: &fakeTracker{answer: answer}, Metrics: metrics, Now: time.Now, MaxClients: 10, RedirectURL: url}))
	for _, request := range []string{"GET /", "GET /?x=y", "HEAD /"} {
		raw := exchange(t, addr, request+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(raw, "HTTP/1.1 302 ") || !strings.Contains(raw, "\r\nLocation: "+url+"\r\n") {
			t.Errorf("%s gets %q", request, raw)
		}
	}
	if n := metrics.invalid.Load(); n != 3 {
		t.Errorf("%d redirects were counted", n)
	}
	if status, _ := get(t, addr, "/x"); status != 404 {
		t.Errorf("/x is %d", status)
	}
}

func TestRequestLinesUpTo16KiB(t *testing.T) {
	_, addr, _ := serve(t, &fakeTracker{answer: answer}, 100)
	headers := "\r\nHost: x\r\nConnection: close\r\nUser-Agent: " + strings.Repeat("x", 4096) + "\r\n\r\n"
	const verb, proto = "GET ", " HTTP/1.1"
	for _, test := range []struct {
		line int
		want []string
	}{
		{8192, []string{"200"}},
		{16384, []string{"200"}},
		{16385, []string{"414"}},
		{30000, []string{"414", "431"}},
		{100000, []string{"414", "431"}},
	} {
		pad := strings.Repeat("x", test.line-len(verb)-len(proto)-len(asked)-len("&pad="))
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		go func() { _, _ = io.WriteString(c, verb+asked+"&pad="+pad+proto+headers) }()
		status := make([]byte, len("HTTP/1.1 200"))
		_, err = io.ReadFull(c, status)
		_ = c.Close()
		got, ok := strings.CutPrefix(string(status), "HTTP/1.1 ")
		if err != nil || !ok || !strings.Contains(strings.Join(test.want, " "), got) {
			t.Errorf("a line of %d bytes: %q, %v", test.line, status, err)
		}
	}

	// 100 hashes, wholly escaped, are within it.
	hashes := ""
	for n := range 100 {
		hashes += fmt.Sprintf("&info_hash=%%%02x%s", n, strings.Repeat("%ff", 19))
	}
	if status, body := get(t, addr, "/scrape?"+hashes[1:]); status != 200 || strings.Count(body, "8:complete") != 100 {
		t.Errorf("a scrape of 100: %d, %d answers", status, strings.Count(body, "8:complete"))
	}
}

func TestConnections(t *testing.T) {
	_, addr, _ := serve(t, &fakeTracker{answer: answer}, 100)
	request := "GET " + asked + " HTTP/1."

	if raw := exchange(t, addr, request+"0\r\n\r\n"); !strings.HasSuffix(raw, golden) {
		t.Errorf("HTTP/1.0: %q", raw)
	}
	pipelined := strings.Repeat(request+"1\r\nHost: x\r\n\r\n", 20) + request + "1\r\nHost: x\r\nConnection: close\r\n\r\n"
	if raw := exchange(t, addr, pipelined); strings.Count(raw, golden) != 21 {
		t.Errorf("%d answers to 21 pipelined requests", strings.Count(raw, golden))
	}

	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	for n := range 3 {
		if _, err := io.WriteString(c, request+"1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("request %d of a connection: %v", n, err)
		}
		if body, err := io.ReadAll(response.Body); err != nil || string(body) != golden {
			t.Errorf("request %d of a connection: %q, %v", n, body, err)
		}
	}
}

func TestTooManyClients(t *testing.T) {
	_, addr, _ := serve(t, &fakeTracker{answer: answer}, 1)
	first, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := io.WriteString(first, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := http.ReadResponse(bufio.NewReader(first), nil); err != nil {
		t.Fatal(err)
	}
	second, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	_ = second.SetDeadline(time.Now().Add(5 * time.Second))
	if response, err := http.ReadResponse(bufio.NewReader(second), nil); err != nil || response.StatusCode != 503 {
		t.Errorf("the second of one client: %v, %v", response, err)
	}
}

func TestShutdownAnswersWhatIsInFlight(t *testing.T) {
	tracker := &fakeTracker{answer: answer, hold: make(chan struct{})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Tracker: tracker, Metrics: &fakeMetrics{}, Now: time.Now, MaxClients: 10})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	body := make(chan string, 1)
	go func() {
		body <- exchange(t, l.Addr().String(), "GET "+asked+" HTTP/1.1\r\nHost: x\r\n\r\n")
	}()
	storetest.Eventually(t, 5*time.Second, func() error {
		if tracker.asked.Load() == nil {
			return errors.New("the request has not arrived")
		}
		return nil
	})
	shut := make(chan error, 1)
	go func() { shut <- s.Shutdown(context.Background()) }()
	storetest.Eventually(t, 5*time.Second, func() error {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_ = c.Close()
			return errors.New("the listener still accepts")
		}
		return nil
	})
	select {
	case err := <-shut:
		t.Errorf("shut down with a request in flight: %v", err)
	default:
	}
	close(tracker.hold)
	if got := <-body; !strings.HasSuffix(got, golden) || !strings.Contains(got, "Connection: close") {
		t.Errorf("the request in flight got %q", got)
	}
	if err := errors.Join(<-shut, <-served); err != nil {
		t.Error(err)
	}
}

// memoryConn is a connection on which a client sent all that it has to say.
type memoryConn struct {
	net.Conn
	in  bytes.Reader
	out bytes.Buffer
}

func (c *memoryConn) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *memoryConn) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *memoryConn) Close() error                     { return nil }
func (c *memoryConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(10, 9, 8, 7), Port: 5} }
func (c *memoryConn) LocalAddr() net.Addr              { return c.RemoteAddr() }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }

func TestAMillionMutatedRequests(t *testing.T) {
	s := New(Options{Tracker: &fakeTracker{answer: answer, counts: answer.Counts}, Metrics: &fakeMetrics{}, Now: time.Now, MaxClients: 10})
	s.app.Handler() // as Serve does, which these connections go past
	var c memoryConn
	exchange := func(request []byte) []byte {
		c.in.Reset(request)
		c.out.Reset()
		_ = s.app.Server().ServeConn(&c) // what is wrong with a request is in the answer
		return c.out.Bytes()
	}
	seeds := [][]byte{
		[]byte("GET " + asked + " HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\nAccept-Encoding: gzip\r\n\r\n"),
		[]byte("GET /scrape?info_hash=aaaaaaaaaaaaaaaaaaaa&info_hash=bbbbbbbbbbbbbbbbbbbb HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
		[]byte("POST /announce HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
	}
	body := func(response []byte) string {
		_, body, _ := strings.Cut(string(response), "\r\n\r\n") // without the Date
		return body
	}
	var want []string
	for _, seed := range seeds {
		want = append(want, body(exchange(seed)))
	}
	if !strings.HasPrefix(want[0], "d8:complete") || !strings.HasPrefix(want[1], "d5:files") {
		t.Fatalf("before: %q", want)
	}
	n := 1_000_000
	if testing.Short() {
		n /= 10
	}
	r := rand.New(rand.NewPCG(1, 2))
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var before uint64
	for i := range n {
		request := bytes.Clone(seeds[r.IntN(len(seeds))])
		for range r.IntN(5) {
			request[r.IntN(len(request))] = byte(r.Uint32())
		}
		if r.IntN(4) == 0 {
			request = request[:r.IntN(len(request))]
		}
		if r.IntN(8) == 0 {
			request = append(request, seeds[r.IntN(len(seeds))]...)
		}
		if got := exchange(request); len(got) > 0 && !bytes.HasPrefix(got, []byte("HTTP/1.")) {
			t.Fatalf("%q gets %q", request, got)
		}
		if i == n/10 {
			before = heap()
		}
	}
	if after := heap(); after > before+8<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	for i, seed := range seeds {
		if got := body(exchange(seed)); got != want[i] {
			t.Errorf("afterwards %q gets %q, before %q", seed, got, want[i])
		}
	}
}

func TestAnAnnounceAllocatesNothing(t *testing.T) {
	r := newAnnounce()
	_, query, _ := strings.Cut(asked+"&event=started&numwant=50&uploaded=1&downloaded=2&compact=1&key=0a1b2c3d", "?")
	query += "&ip=203.0.113.9&ipv6=[2001:db8::9]:6881"
	raw, addr := []byte(query), netip.MustParseAddr("10.9.8.7")
	storetest.Allocs(t, 0, func() {
		if r.parse(raw, addr, true) != "" {
			t.Fatal("not parsed")
		}
		r.Counts, r.Interval = answer.Counts, answer.Interval
		r.Peers4, r.Peers6 = answer.Peers4, answer.Peers6
		r.body = r.appendAnswer(r.body[:0])
	})
}

// What net/url reads in a query, parse reads too.
func FuzzQuery(f *testing.F) {
	_, query, _ := strings.Cut(asked, "?")
	f.Add(query)
	f.Add("info_hash=a+b%20c&port=1&left=-1&numwant=&compact=0&event=stopped")
	f.Add("%69nfo_hash=%2561&port=0001&info_hash")
	f.Add("&&==&%&%%%1&%g1=+")
	r, s := newAnnounce(), newScrape()
	f.Fuzz(func(t *testing.T, query string) {
		var scratch []byte
		values, err := url.ParseQuery(query)
		got, n := url.Values{}, 0
		for rest := []byte(query); len(rest) > 0; n++ {
			var key, value []byte
			key, value, rest = nextParameter(rest, &scratch)
			if len(key)+len(value) > 0 {
				got.Add(string(key), string(value))
			}
		}
		if err == nil && n < 1000 {
			for key, want := range values {
				if key == "" {
					continue // where net/url keeps what has neither key nor value
				}
				if fmt.Sprintf("%q", got[key]) != fmt.Sprintf("%q", want) && strings.Join(want, "") != "" {
					t.Errorf("%q: %q is %q, net/url reads %q", query, key, got[key], want)
				}
			}
		}
		reason := r.parse([]byte(query), netip.MustParseAddr("::1"), true)
		if reason == "" && (r.Peer.Port() == 0 || !bytes.HasPrefix(r.appendAnswer(nil), []byte("d8:complete"))) {
			t.Errorf("%q gives %+v", query, r)
		}
		if s.parse([]byte(query)) == "" && (len(s.Hashes) == 0 || len(s.Hashes) > maxScrape) {
			t.Errorf("%q scrapes %d hashes", query, len(s.Hashes))
		}
	})
}
