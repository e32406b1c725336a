package httpapi

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
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
