package httpapi

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// fakeSwarms hands on part after part when the test lets it, and ends with err when it closes parts.
type fakeSwarms struct {
	parts chan []swarm.Entry
	err   error
	scans atomic.Int64
}

func (f *fakeSwarms) Scan(ctx context.Context, _ func() time.Time, yield func([]swarm.Entry) error) error {
	f.scans.Add(1)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case part, more := <-f.parts:
			if !more {
				return f.err
			}
			if err := yield(part); err != nil {
				return err
			}
		}
	}
}

// swarmsOf lists some swarms at once.
func swarmsOf(entries ...swarm.Entry) *fakeSwarms {
	f := &fakeSwarms{parts: make(chan []swarm.Entry, 1)}
	f.parts <- entries
	close(f.parts)
	return f
}

var twoSwarms = []swarm.Entry{
	{InfoHash: swarm.InfoHash([]byte("aaaaaaaaaaaaaaaaaa\x00\xff")), Counts: swarm.Counts{Seeders: 3, Leechers: 1, PartialSeeds: 1, Downloads: 7}},
	{InfoHash: swarm.InfoHash([]byte("$-./=_~ bbbbbbbbbbbb")), Counts: swarm.Counts{Seeders: 258, Downloads: 9}},
}

// listing is a server that lists swarms.
type listing struct {
	t       *testing.T
	now     atomic.Int64 // Unix seconds
	looks   *Looks
	server  *Server
	addr    string
	metrics *fakeMetrics
	mu      sync.Mutex
	wait    time.Duration // that clients are told to
	err     error
	allowed atomic.Int64 // that clients were, and kept
}

const listingTTL = time.Minute

func list(t *testing.T, swarms Swarms, change func(*Options)) *listing {
	l := &listing{t: t}
	l.now.Store(1_800_000_059)
	clock := func() time.Time { return time.Unix(l.now.Load(), 0) }
	l.looks = NewLooks(swarms, listingTTL, clock, slog.New(slog.DiscardHandler))
	t.Cleanup(l.looks.Close)
	o := Options{
		Tracker: &fakeTracker{}, Metrics: &fakeMetrics{}, Now: clock, MaxClients: 100, Stats: fakeStats{}, StatsPath: "/stats", StatsNetworks: loopback, Looks: l.looks,
		FullScrapes: &FullScrapes{Networks: loopback, Public: true, Once: func(netip.Addr) (time.Duration, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.wait == 0 && l.err == nil {
				l.allowed.Add(1)
			}
			return l.wait, l.err
		}, NotOnce: func(netip.Addr) { l.allowed.Add(-1) }},
	}
	if change != nil {
		change(&o)
	}
	l.server, l.addr, l.metrics = serveWith(t, o)
	return l
}

// ask sends a request and reads the head of the response.
func (l *listing) ask(path string, headers ...string) (*http.Response, net.Conn) {
	l.t.Helper()
	c := dial(l.t, l.addr)
	l.t.Cleanup(func() { _ = c.Close() })
	_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\n"+strings.Join(append(headers, "\r\n"), "\r\n"))
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return response, c
}

// refuse lets clients wait, or fails.
func (l *listing) refuse(wait time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wait, l.err = wait, err
}

func (l *listing) body(path string) string {
	l.t.Helper()
	response, _ := l.ask(path)
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		l.t.Fatalf("%s: %d, %v", path, response.StatusCode, err)
	}
	return string(body)
}

func TestFormats(t *testing.T) {
	l := list(t, swarmsOf(twoSwarms...), nil)
	ben := "d5:filesd" +
		"20:aaaaaaaaaaaaaaaaaa\x00\xffd8:completei3e10:downloadedi7e10:incompletei2ee" +
		"20:$-./=_~ bbbbbbbbbbbbd8:completei258e10:downloadedi9e10:incompletei0ee" +
		"ee"
	const hexA, hexB = "61616161616161616161616161616161616100FF", "242D2E2F3D5F7E20626262626262626262626262"
	for path, want := range map[string]string{
		"/scrape":                      ben,
		"/scrape?":                     ben,
		"/stats?mode=tpbs":             ben,
		"/stats?mode=tpbs&format=ben":  ben,
		"/stats?mode=tpbs&format=bin":  "aaaaaaaaaaaaaaaaaa\x00\xff\x00\x00\x00\x03\x00\x00\x00\x02$-./=_~ bbbbbbbbbbbb\x00\x00\x01\x02\x00\x00\x00\x00",
		"/stats?mode=tpbs&format=txt":  hexA + ":3:2\n" + hexB + ":258:0\n",
		"/stats?mode=tpbs&format=txtp": hexA + ":3:2:7\n" + hexB + ":258:0:9\n",
		"/stats?mode=tpbs&format=url":  "aaaaaaaaaaaaaaaaaa%00%ff:3:2\n$-./=_~%20bbbbbbbbbbbb:258:0\n",
		"/stats?mode=statedump":        hexA + ":30000000:7\n" + hexB + ":30000000:9\n",
	} {
		if got := l.body(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if n := l.metrics.scraped.Load(); n != 8 {
		t.Errorf("%d full scrapes are counted", n)
	}
	none := list(t, swarmsOf(), nil)
	if got := none.body("/scrape"); got != "d5:filesdee" {
		t.Errorf("of no swarms: %q", got)
	}
}

func TestCodings(t *testing.T) {
	l := list(t, swarmsOf(twoSwarms...), nil)
	want := l.body("/scrape")
	for accepted, coding := range map[string]string{
		"":                                "",
		"identity":                        "",
		"gzip":                            "gzip",
		"GZIP":                            "gzip",
		"br":                              "br",
		"zstd":                            "zstd",
		"*":                               "zstd",
		"gzip, deflate, br, zstd":         "zstd",
		"gzip;q=1.0, br;q=0.5":            "gzip",
		"gzip; q=0.5, br;q=0.8, zstd;q=0": "br",
		"*;q=0.1, zstd;q=0, br;q=0":       "gzip",
		"gzip;q=0":                        "",
		"gzip;q=2, br;q=x, zstd;level=3":  "",
		"deflate, compress":               "",
	} {
		response, _ := l.ask("/scrape", "Accept-Encoding: "+accepted)
		if got := response.Header.Get("Content-Encoding"); got != coding {
			t.Errorf("%q gets %q", accepted, got)
			continue
		}
		var in io.Reader = response.Body
		var err error
		switch coding {
		case "gzip":
			in, err = gzip.NewReader(in)
		case "br":
			in = brotli.NewReader(in)
		case "zstd":
			in, err = zstd.NewReader(in)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(in); err != nil || string(got) != want {
			t.Errorf("%q: %v, %q", accepted, err, got)
		}
		if v := response.Header.Get("Vary"); v != "Accept-Encoding" {
			t.Errorf("%q: Vary is %q", accepted, v)
		}
	}
}

// What breaks off must not look whole, whatever the encoding.
func TestALookThatFailsBreaksOff(t *testing.T) {
	for _, accepted := range []string{"identity", "gzip", "br", "zstd"} {
		swarms := &fakeSwarms{parts: make(chan []swarm.Entry, 1), err: errors.New("a node is away")}
		l := list(t, swarms, nil)
		many := make([]swarm.Entry, 1<<15) // more than any encoder keeps to itself
		for i := range many {
			binary.BigEndian.PutUint64(many[i].InfoHash[:], uint64(i))
			binary.BigEndian.PutUint64(many[i].InfoHash[8:], rand.Uint64())
		}
		swarms.parts <- many
		_, c := l.ask("/scrape", "Accept-Encoding: "+accepted) // with which some of it was read
		close(swarms.parts)
		raw, err := io.ReadAll(c)
		if err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: the connection stays: %v", accepted, err)
		}
		if strings.HasSuffix(string(raw), "\r\n0\r\n\r\n") {
			t.Errorf("%s: what failed looks whole: %q", accepted, raw)
		}
		if response, _ := l.ask("/scrape"); response.StatusCode != 503 || response.Header.Get("Retry-After") == "" || response.Header.Get("ETag") != "" {
			t.Errorf("%s: a look that fails at once gets %d %v", accepted, response.StatusCode, response.Header)
		}
		if n := l.allowed.Load(); n != 1 {
			t.Errorf("%s: %d full scrapes are counted against the client, of which one was sent", accepted, n)
		}
		if n := swarms.scans.Load(); n != 2 {
			t.Errorf("%s: after a look that failed there are %d", accepted, n)
		}
		if n := l.metrics.scraped.Load(); n != 0 {
			t.Errorf("%s: %d are counted as sent", accepted, n)
		}
	}
}

func TestOneLookServesAllForAWhile(t *testing.T) {
	swarms := &fakeSwarms{parts: make(chan []swarm.Entry, 1)}
	l := list(t, swarms, nil)
	swarms.parts <- twoSwarms[:1]
	first, _ := l.ask("/stats?mode=tpbs&format=txt")
	line := make([]byte, 45)
	if _, err := io.ReadFull(first.Body, line); err != nil || line[44] != '\n' {
		t.Fatalf("%v: %q", err, line) // while the rest is not known yet
	}
	second, _ := l.ask("/stats?mode=tpbs&format=txt")
	if _, err := io.ReadFull(second.Body, line); err != nil || line[44] != '\n' {
		t.Fatalf("who comes later: %v, %q", err, line)
	}
	l.now.Add(int64(listingTTL/time.Second) + 1) // a look that goes on is shared, however long it takes
	r, err := l.looks.open()
	if err != nil || swarms.scans.Load() != 1 {
		t.Errorf("%v; there are %d looks", err, swarms.scans.Load())
	}
	r.close()
	l.now.Add(-int64(listingTTL/time.Second) - 1)
	swarms.parts <- twoSwarms[1:]
	close(swarms.parts)
	for _, response := range []*http.Response{first, second} {
		if rest, err := io.ReadAll(response.Body); err != nil || !strings.HasSuffix(string(rest), ":258:0\n") {
			t.Errorf("%v: %q", err, rest)
		}
	}
	l.now.Add(int64(listingTTL/time.Second) - 1)
	l.body("/scrape")
	if n := swarms.scans.Load(); n != 1 {
		t.Errorf("there are %d looks", n)
	}
	l.now.Add(1)
	l.body("/scrape")
	if n := swarms.scans.Load(); n != 2 {
		t.Errorf("after the look became old there are %d", n)
	}
}

func TestCaches(t *testing.T) {
	l := list(t, swarmsOf(twoSwarms...), nil)
	response, _ := l.ask("/scrape", "Accept-Encoding: gzip")
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	tag := response.Header.Get("ETag")
	if tag == "" || response.Header.Get("Cache-Control") != "public, max-age=60, stale-while-revalidate=60" || response.Header.Get("Age") != "0" {
		t.Errorf("%v", response.Header)
	}
	l.now.Add(20)
	l.refuse(time.Minute, nil) // which is not asked for what is known already
	for _, test := range []struct {
		path, coding, match string
		status              int
	}{
		{"/scrape", "gzip", tag, 304},
		{"/stats?mode=tpbs", "gzip", `"other", W/` + tag, 304},
		{"/scrape", "gzip", "*", 304},
		{"/scrape", "gzip", `"other"`, 429},
		{"/scrape", "br", tag, 429},
		{"/stats?mode=tpbs&format=txt", "gzip", tag, 429},
	} {
		response, _ := l.ask(test.path, "Accept-Encoding: "+test.coding, "If-None-Match: "+test.match)
		if response.StatusCode != test.status {
			t.Errorf("%+v: %d", test, response.StatusCode)
		}
		if test.status == 429 && response.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%+v: %v", test, response.Header)
		}
		if test.status == 304 && (response.Header.Get("Age") != "20" || response.Header.Get("X-Accel-Expires") != "40" || response.Header.Get("ETag") != tag) {
			t.Errorf("%+v: %v", test, response.Header)
		}
	}
	l.now.Add(60)
	if response, _ := l.ask("/scrape", "Accept-Encoding: gzip", "If-None-Match: "+tag); response.StatusCode != 429 {
		t.Errorf("an old look's tag gets %d", response.StatusCode)
	}
	l.refuse(0, nil)
	response, _ = l.ask("/stats?mode=statedump")
	if got := response.Header.Get("Cache-Control"); got != "private, max-age=60, stale-while-revalidate=60" {
		t.Errorf("a dump: %q", got)
	}
}

// fakeAccess denies one swarm, from the moment on that it is told.
type fakeAccess struct {
	denied atomic.Pointer[swarm.InfoHash]
}

func (a *fakeAccess) Permits(hash swarm.InfoHash) bool {
	denied := a.denied.Load()
	return denied == nil || *denied != hash
}

func (a *fakeAccess) Version() string { return fmt.Sprint(a.denied.Load() != nil) }

// What a look found is not shown any more once it is denied, nor left in a cache.
func TestFormatsHideWhatWasDeniedSinceTheLook(t *testing.T) {
	access := &fakeAccess{}
	l := list(t, swarmsOf(twoSwarms...), func(o *Options) { o.Access = access })
	const path, line = "/stats?mode=tpbs&format=txt", "242D2E2F3D5F7E20626262626262626262626262:258:0\n"
	if got := l.body(path); !strings.HasSuffix(got, line) || got == line {
		t.Fatalf("%q", got)
	}
	response, _ := l.ask(path)
	tag := "If-None-Match: " + response.Header.Get("ETag")
	if response, _ := l.ask(path, tag); response.StatusCode != 304 {
		t.Errorf("what the client has gets %d", response.StatusCode)
	}
	access.denied.Store(&twoSwarms[0].InfoHash)
	if response, _ := l.ask(path, tag); response.StatusCode != 200 {
		t.Errorf("what the client has with a swarm too many gets %d", response.StatusCode)
	}
	if got := l.body(path); got != line {
		t.Errorf("%q, want %q", got, line)
	}
	if got := l.body("/stats?mode=statedump"); strings.Count(got, "\n") != 1 {
		t.Errorf("the dump is %q", got)
	}
	if n := l.looks.swarms.(*fakeSwarms).scans.Load(); n != 1 {
		t.Errorf("there are %d looks", n)
	}
}

func TestWhoGetsNone(t *testing.T) {
	const reason = "d14:failure reason73:" + reasonNoScrape + "e"
	for name, test := range map[string]struct {
		change              func(*Options)
		scrape, tpbs, stats int
	}{
		"on":             {func(*Options) {}, 200, 200, 200},
		"off":            {func(o *Options) { o.FullScrapes = nil }, 0, 403, 200},
		"elsewhere":      {func(o *Options) { o.FullScrapes.Networks = netip.MustParsePrefix("10.0.0.0/8") }, 0, 403, 200},
		"without stats":  {func(o *Options) { o.Stats = nil }, 200, 200, 404},
		"without either": {func(o *Options) { o.Stats, o.FullScrapes = nil, nil }, 0, 404, 404},
	} {
		l := list(t, swarmsOf(twoSwarms...), test.change)
		status, body := get(t, l.addr, "/scrape")
		if test.scrape == 0 && (status != 200 || body != fmt.Sprintf("d14:failure reason%d:%se", len(reasonNoScrape), reasonNoScrape)) {
			t.Errorf("%s: a scrape gets %d %q, not %q", name, status, body, reason)
		}
		if test.scrape != 0 && (status != test.scrape || !strings.HasPrefix(body, "d5:filesd")) {
			t.Errorf("%s: a scrape gets %d %q", name, status, body)
		}
		if status, _ := get(t, l.addr, "/stats?mode=tpbs&format=txt"); status != test.tpbs {
			t.Errorf("%s: tpbs gets %d", name, status)
		}
		if status, _ := get(t, l.addr, "/stats"); status != test.stats {
			t.Errorf("%s: statistics get %d", name, status)
		}
	}

	l := list(t, swarmsOf(twoSwarms...), nil)
	if status, _ := get(t, l.addr, "/stats?mode=tpbs&format=xml"); status != 400 {
		t.Errorf("an unknown format gets %d", status)
	}
	if n := l.allowed.Load(); n != 0 {
		t.Errorf("%d full scrapes are counted against who got none", n)
	}
	if raw := exchange(t, l.addr, "GET /scrape HTTP/1.0\r\n\r\n"); !strings.HasPrefix(raw, "HTTP/1.1 505") {
		t.Errorf("HTTP/1.0 gets %q", raw)
	}
	if raw := exchange(t, l.addr, "HEAD /scrape HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(raw, "HTTP/1.1 405") {
		t.Errorf("HEAD gets %q", raw)
	}
	l.refuse(90*time.Second+time.Millisecond, nil)
	if response, _ := l.ask("/scrape"); response.StatusCode != 429 || response.Header.Get("Retry-After") != "91" {
		t.Errorf("too soon: %d %v", response.StatusCode, response.Header)
	}
	l.refuse(0, swarm.ErrUnavailable)
	if response, _ := l.ask("/scrape"); response.StatusCode != 503 || response.Header.Get("Retry-After") == "" {
		t.Errorf("without a store: %d %v", response.StatusCode, response.Header)
	}
}

func TestOnlySoManyAtATime(t *testing.T) {
	swarms := &fakeSwarms{parts: make(chan []swarm.Entry)}
	l := list(t, swarms, nil)
	var conns []net.Conn
	for range maxFullScrapes {
		c := dial(t, l.addr)
		_, _ = io.WriteString(c, "GET /scrape HTTP/1.1\r\nHost: x\r\n\r\n")
		conns = append(conns, c)
	}
	storetest.Eventually(t, 5*time.Second, func() error {
		if n := l.server.sending.Load(); n != maxFullScrapes {
			return fmt.Errorf("%d are sent", n)
		}
		return nil
	})
	if response, _ := l.ask("/scrape"); response.StatusCode != 503 {
		t.Errorf("one more gets %d", response.StatusCode)
	}
	// Clients that leave make room.
	for _, c := range conns {
		_ = c.Close()
	}
	part := make([]swarm.Entry, 512)
	storetest.Eventually(t, 10*time.Second, func() error {
		select {
		case swarms.parts <- part:
		default:
		}
		if n := l.server.sending.Load(); n != 0 {
			return fmt.Errorf("%d are still sent", n)
		}
		return nil
	})
}

func TestLooksEnd(t *testing.T) {
	looks := NewLooks(&fakeSwarms{parts: make(chan []swarm.Entry)}, time.Minute, time.Now, slog.New(slog.DiscardHandler))
	r, err := looks.open()
	if err != nil {
		t.Fatal(err)
	}
	looks.Close()
	if n, err := r.read(make([]swarm.Entry, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("a look that was ended gives %d swarms and %v", n, err)
	}
	r.close()
	r.close()
	if users := r.look.users; users != 0 {
		t.Errorf("%d still use the file", users)
	}
	if _, err := looks.open(); !errors.Is(err, errEnded) {
		t.Errorf("another one: %v", err)
	}
}

func TestASlowClientIsSentNoMore(t *testing.T) {
	l := list(t, swarmsOf(twoSwarms...), nil)
	r, err := l.looks.open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	a, _ := net.Pipe()
	b := &swarmsBody{look: r, format: formats[0], conn: a, end: func() {}}
	b.encoder = identity.encoder(&b.ready)
	buf := make([]byte, 10)
	if _, err := b.Read(buf); err != nil {
		t.Fatal(err)
	}
	b.handed = time.Now().Add(-writeTimeout - time.Second) // that the client took for ten bytes
	if _, err := b.Read(buf); !errors.Is(err, errSlow) {
		t.Errorf("it goes on: %v", err)
	}
}
