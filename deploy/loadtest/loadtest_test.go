//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
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

func (f *fakeTracker) Received(int) {}
func (f *fakeTracker) Dropped(int)  {}
func (f *fakeTracker) Invalid()     {}

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

func TestMistakesNameTheirFlag(t *testing.T) {
	for _, args := range [][]string{{"--target", "ftp://x:1"}, {"--target", "udp://x"}, {"--peers", "1"}, {"--pid", "x"}, {"--window", "0"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is taken", args)
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
