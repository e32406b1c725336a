//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy"
)

// fakeTracker answers each announce with two peers, and remembers who announced.
type fakeTracker struct {
	mu   sync.Mutex
	seen map[swarm.InfoHash]map[string]bool
}

func (f *fakeTracker) Announce(_ time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce)) {
	f.mu.Lock()
	for _, a := range batch {
		a.Peers4 = append(a.Peers4[:0], "\x0a\x00\x00\x01\x00\x01\x0a\x00\x00\x02\x00\x01"...)
		if f.seen[a.InfoHash] == nil {
			f.seen[a.InfoHash] = map[string]bool{}
		}
		f.seen[a.InfoHash][a.Peer.String()] = true
	}
	f.mu.Unlock()
	answered(batch)
}

func (f *fakeTracker) Scrape(time.Time, *swarm.Scrape, func(*swarm.Scrape)) {}

func (f *fakeTracker) Received(udpproxy.Batch) {}
func (f *fakeTracker) Dropped(int)             {}
func (f *fakeTracker) Invalid()                {}
func (f *fakeTracker) ForgedProxy()            {}

func TestOverUDP(t *testing.T) {
	tracker := &fakeTracker{seen: map[swarm.InfoHash]map[string]bool{}}
	s, err := udpproxy.Listen(t.Context(), udpproxy.Options{
		Addr: "127.0.0.1:0", Sockets: 1, IDs: udpproxy.NewConnectionIDs(time.Hour, [16]byte{1}),
		Tracker: tracker, Metrics: tracker, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		if err := errors.Join(s.Shutdown(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	})
	for _, rate := range []string{"0", "400"} {
		c, err := parse([]string{"--target", "udp://" + s.Addr().String(), "--torrents", "10", "--each", "--peers", "200", "--addresses", "8",
			"--rate", rate, "--warmup", "0s", "--duration", "500ms", "--quiet"})
		if err != nil {
			t.Fatal(err)
		}
		c.Processes["self"] = os.Getpid()
		r, err := run(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if r.Answers < 50 || r.Failed != 0 || r.Lost != 0 || r.Peers != 2 || r.P50 <= 0 || r.P99 < r.P50 || r.CPU["self"] != r.CPUTotal {
			t.Errorf("at rate %s: %+v", rate, r)
		}
		if rate != "0" && r.Answers > 260 {
			t.Errorf("at rate %s: %d answers in half a second", rate, r.Answers)
		}
	}
	tracker.mu.Lock()
	defer tracker.mu.Unlock()
	if len(tracker.seen) != 10 {
		t.Errorf("%d torrents were announced", len(tracker.seen))
	}
	for hash, peers := range tracker.seen {
		if len(peers) != 20 {
			t.Errorf("%x has %d peers", hash, len(peers))
		}
	}
}

func TestOverHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	connections := 0
	server := &http.Server{
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				mu.Lock()
				connections++
				mu.Unlock()
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(r.URL.Query().Get("info_hash")) != 20 || r.URL.Query().Get("port") == "" {
				_, _ = io.WriteString(w, "d14:failure reason2:noe")
				return
			}
			_, _ = io.WriteString(w, "d8:completei1e5:peers12:aaaaaabbbbbbe")
		}),
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	for _, closing := range []string{"--close=false", "--close=true"} {
		mu.Lock()
		connections = 0
		mu.Unlock()
		c, err := parse([]string{"--target", "http://" + l.Addr().String(), closing, "--torrents", "10", "--peers", "200", "--addresses", "4",
			"--window", "2", "--warmup", "0s", "--duration", "300ms", "--quiet"})
		if err != nil {
			t.Fatal(err)
		}
		r, err := run(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if r.Answers < 50 || r.Failed != 0 || r.Lost != 0 || r.Peers != 2 {
			t.Errorf("%s: %+v", closing, r)
		}
		mu.Lock()
		if all := 200 + int(r.Answers); closing == "--close=true" && connections < all || closing == "--close=false" && connections > 16 {
			t.Errorf("%s: %d connections for %d answers", closing, connections, all)
		}
		mu.Unlock()
	}
}

func TestZipfDrawsWhatItSays(t *testing.T) {
	w := Work{Torrents: 100, Zipf: 1, Peers: 100_000, Addresses: 1, Seed: 1}
	w.draw()
	counts := make([]float64, w.Torrents)
	for _, torrent := range w.torrent {
		counts[torrent]++
	}
	// The first has ten times the peers of the tenth.
	if ratio := counts[0] / counts[9]; ratio < 9 || ratio > 11 {
		t.Errorf("the first torrent has %.1f times the peers of the tenth", ratio)
	}
}

func TestSwarmsHaveSeedersAndLeechers(t *testing.T) {
	w := Work{Torrents: 1000, Each: true, Peers: 100_000, Addresses: 64, SeederPercent: 30, Seed: 1}
	w.draw()
	seeders := map[swarm.InfoHash]int{}
	all := 0
	for n := range w.Peers {
		if p := w.peer(n); p.seeder {
			seeders[p.hash]++
			all++
		}
	}
	if all < 29_000 || all > 31_000 {
		t.Errorf("%d of %d peers are seeders", all, w.Peers)
	}
	for n := range w.Torrents {
		if got := seeders[hashOf(n)]; got < 10 || got > 50 {
			t.Errorf("%d of the 100 peers of torrent %d are seeders", got, n)
		}
	}
}

func TestTargetDecidesTheFamily(t *testing.T) {
	for target, want := range map[string]string{"udp://127.0.0.1:1": "127.1.2.1", "http://[::1]:1": "fd53::201"} {
		c, err := parse([]string{"--target", target})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Work.address(250).String(); got != want {
			t.Errorf("%s is announced to from %s, not %s", target, got, want)
		}
	}
}

// A tracker that stalls shows in the latencies of all that were due meanwhile, and what there was no time for is lost.
func TestStallsAreNotLeftOut(t *testing.T) {
	var stalled sync.Once
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		stalled.Do(func() { time.Sleep(500 * time.Millisecond) })
		_, _ = io.WriteString(w, "d5:peers0:e")
	}))
	defer server.Close()
	for _, test := range []struct {
		duration string
		lost     bool
	}{{"900ms", false}, {"300ms", true}} {
		stalled = sync.Once{}
		c, err := parse([]string{"--target", server.URL, "--torrents", "1", "--peers", "1", "--addresses", "1", "--window", "1", "--rate", "100",
			"--fill=false", "--warmup", "0s", "--duration", test.duration, "--quiet"})
		if err != nil {
			t.Fatal(err)
		}
		r, err := run(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if r.P50 < 20*time.Millisecond || r.Failed != 0 || (r.Lost > 0) != test.lost || !test.lost && r.Answers < 80 {
			t.Errorf("in %s: %+v", test.duration, r)
		}
	}
}

// opentracker closes connections after an answer in HTTP/1.1 that does not say so.
func TestServerThatClosesSilently(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nd5:peers0:e")
			_ = conn.Close()
		}
	}()
	c, err := parse([]string{"--target", "http://" + l.Addr().String(), "--torrents", "1", "--peers", "100", "--addresses", "2", "--window", "2",
		"--warmup", "0s", "--duration", "1s", "--quiet"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := run(t.Context(), c); err != nil || r.Answers < 20 || r.Failed > 0 || r.Lost > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFillSaysWhatIsRefused(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "d14:failure reason4:fulle")
	}))
	defer server.Close()
	c, err := parse([]string{"--target", server.URL, "--quiet"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "failed") {
		t.Errorf("a tracker that refuses is measured: %v", err)
	}
}

func TestMistakesNameTheirFlag(t *testing.T) {
	for _, args := range [][]string{
		{"--target", "ftp://x:1"}, {"--target", "udp://x"}, {"--peers", "1"}, {"--peers", "5000000"}, {"--pid", "x"}, {"--window", "0"}, {"--torrents", "0"},
		{"--addresses", "100000"}, {"--zipf", "-1"}, {"--numwant", "-1"}, {"--seeders", "101"}, {"--rate", "-1"}, {"--duration", "0"}, {"--close"},
	} {
		if _, err := parse(args); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestPercentiles(t *testing.T) {
	s := &stats{}
	for n := range 1000 {
		s.answered(time.Duration(n+1)*time.Millisecond, 0)
	}
	for share, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond} {
		if got := s.percentile(share); got < want*95/100 || got > want*106/100 {
			t.Errorf("%v of 1 to 1000 ms is %v", share, got)
		}
	}
}
