package httpapi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// fakeStats has a page of each mode but one.
type fakeStats struct{ err error }

func (f fakeStats) Page(_ context.Context, mode string) (page []byte, known bool, err error) {
	return []byte("page " + mode), mode != "nosuch" && mode != "", f.err
}

func (f fakeStats) JSON(context.Context) ([]byte, error) { return []byte("{}"), f.err }

var loopback = netip.MustParsePrefix("127.0.0.0/8")

func TestStats(t *testing.T) {
	elsewhere := netip.MustParsePrefix("10.0.0.0/8")
	away := errors.New("the store is away")
	for _, test := range []struct {
		path     string
		networks Networks
		err      error
		status   int
		body     string
	}{
		{"/my/stats", loopback, nil, 200, "page peer"},
		{"/my/stats?x=y", loopback, nil, 200, "page peer"},
		{"/my/stats?mode=top10", loopback, nil, 200, "page top10"},
		{"/my/stats?mode=", loopback, nil, 400, ""},
		{"/my/stats?mode=nosuch", loopback, nil, 400, ""},
		{"/my/stats.json", loopback, nil, 200, "{}"},
		{"/my/stats", nil, nil, 403, ""},
		{"/my/stats", elsewhere, nil, 403, ""},
		{"/my/stats?mode=nosuch", elsewhere, nil, 403, ""},
		{"/my/stats.json", elsewhere, nil, 403, ""},
		{"/my/stats", loopback, away, 503, ""},
		{"/my/stats.json", loopback, away, 503, ""},
		{"/stats", loopback, nil, 404, ""},
		{"/my/stats/", loopback, nil, 404, ""},
	} {
		o := Options{Tracker: &fakeTracker{}, MaxClients: 10, Stats: fakeStats{test.err}, StatsPath: "/my/stats", StatsNetworks: test.networks}
		_, addr, metrics := serveWith(t, o)
		status, body := get(t, addr, test.path)
		if status != test.status || status == 200 && body != test.body {
			t.Errorf("%s from networks %v: %d %q", test.path, test.networks, status, body)
		}
		invalid := int64(1)
		if test.status == 200 {
			invalid = 0
		}
		if accepted, n := metrics.accepted.Load(), metrics.invalid.Load(); accepted != 1 || n != invalid {
			t.Errorf("%s: %d connections are counted, %d invalid requests", test.path, accepted, n)
		}
	}
}

func TestStatsBehindAProxy(t *testing.T) {
	_, addr, _ := serveWith(t, Options{
		Tracker: &fakeTracker{}, MaxClients: 10, Stats: fakeStats{}, StatsPath: "/stats", StatsNetworks: proxies{"192.0.2.1"},
		Trusted: loopback, RealIPHeader: headerOfHops,
	})
	for client, want := range map[string]string{"192.0.2.1": "200", "192.0.2.2": "403", "nonsense": "403"} {
		raw := exchange(t, addr, "GET /stats HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: "+client+"\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(raw, "HTTP/1.1 "+want) {
			t.Errorf("%s gets %q", client, raw)
		}
	}
}

func TestStatsAreOffWithoutAny(t *testing.T) {
	_, addr, _ := serve(t, &fakeTracker{}, 10)
	for _, path := range []string{"/stats", "/stats.json"} {
		if status, _ := get(t, addr, path); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
}

func TestStatsSayWhatTheyAre(t *testing.T) {
	_, addr, _ := serveWith(t, Options{Tracker: &fakeTracker{}, MaxClients: 10, Stats: fakeStats{}, StatsPath: "/stats", StatsNetworks: loopback})
	for path, want := range map[string]string{"/stats": "text/plain", "/stats.json": "application/json"} {
		raw := exchange(t, addr, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if !strings.Contains(raw, "\r\nContent-Type: "+want) {
			t.Errorf("%s: %q", path, raw)
		}
	}
}

// fakeSwarms hands on part after part when the test lets it.
type fakeSwarms struct {
	parts chan []swarm.Entry
	err   error
}

func (f *fakeSwarms) Scan(_ context.Context, _ func() time.Time, yield func([]swarm.Entry) error) error {
	for part := range f.parts {
		if err := yield(part); err != nil {
			return err
		}
	}
	return f.err
}

func TestDump(t *testing.T) {
	swarms := &fakeSwarms{parts: make(chan []swarm.Entry, 1)}
	o := Options{
		Tracker: &fakeTracker{}, MaxClients: 10, Stats: fakeStats{}, StatsPath: "/stats", StatsNetworks: loopback, Swarms: swarms,
		Now: func() time.Time { return time.Unix(1_800_000_059, 0) },
	}
	_, addr, _ := serveWith(t, o)
	ask := func() (*http.Response, error) {
		c := dial(t, addr)
		t.Cleanup(func() { _ = c.Close() })
		_, _ = io.WriteString(c, "GET /stats?mode=statedump HTTP/1.1\r\nHost: x\r\n\r\n")
		return http.ReadResponse(bufio.NewReader(c), nil)
	}
	part := func(first byte) []swarm.Entry {
		return []swarm.Entry{{InfoHash: swarm.InfoHash{first, 0xab}, Counts: swarm.Counts{Downloads: 7}}, {InfoHash: swarm.InfoHash{first, 0xff}}}
	}
	lines := func(first string) string {
		rest := strings.Repeat("0", 36)
		return first + "AB" + rest + ":30000000:7\n" + first + "FF" + rest + ":30000000:0\n"
	}

	swarms.parts <- part(1)
	dump, err := ask()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(lines("01")))
	if _, err := io.ReadFull(dump.Body, got); err != nil || string(got) != lines("01") {
		t.Fatalf("%v: %q", err, got) // while the rest is not known yet
	}
	if status, _ := get(t, addr, "/stats?mode=statedump"); status != 503 {
		t.Errorf("a second dump at a time gets %d", status)
	}
	swarms.parts <- part(2)
	close(swarms.parts)
	if rest, err := io.ReadAll(dump.Body); err != nil || string(rest) != lines("02") {
		t.Errorf("%v: %q", err, rest)
	}

	// One that fails breaks off.
	failing := &fakeSwarms{parts: make(chan []swarm.Entry, 1), err: errors.New("a node is away")}
	o.Swarms = failing
	s, at, _ := serveWith(t, o)
	addr = at
	failing.parts <- part(3)
	close(failing.parts)
	broken, err := ask()
	if err == nil {
		_, err = io.ReadAll(broken.Body)
	}
	if err == nil {
		t.Error("a dump that fails looks whole")
	}
	storetest.Eventually(t, 5*time.Second, func() error {
		if s.dumping.Load() {
			return errors.New("no other can be made")
		}
		return nil
	})
}

func TestADumpEndsWhenItsClientLeaves(t *testing.T) {
	swarms := &fakeSwarms{parts: make(chan []swarm.Entry)}
	s, addr, _ := serveWith(t, Options{
		Tracker: &fakeTracker{}, MaxClients: 10, Stats: fakeStats{}, StatsPath: "/stats", StatsNetworks: loopback, Swarms: swarms,
	})
	c := dial(t, addr)
	_, _ = io.WriteString(c, "GET /stats?mode=statedump HTTP/1.1\r\nHost: x\r\n\r\n")
	part := make([]swarm.Entry, 512)
	swarms.parts <- part
	_ = c.Close()
	storetest.Eventually(t, 10*time.Second, func() error {
		if !s.dumping.Load() {
			return nil
		}
		select {
		case swarms.parts <- part:
		default:
		}
		return errors.New("it goes on")
	})
}
