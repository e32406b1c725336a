package bep15

import (
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"swarmgate/swarmstore/swarm"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var hash = swarm.InfoHash([]byte("\x01aaaaaaaaaaaaaaaaaa\xff"))

// Datagrams as BEP 15 lays them out.
const (
	connect  = `0000041727101980 00000000 12345678`
	announce = `0011223344556677 00000001 12345678
		01616161 61616161 61616161 61616161 616161ff
		2d434930 3030302d 30303030 30303030 30303030
		0000000000000001 0000000000000002 0000000000000003
		00000002 7f000001 00000009 ffffffff 1ae1`
	scrape = `0011223344556677 00000002 12345678
		01616161 61616161 61616161 61616161 616161ff
		00000000 00000000 00000000 00000000 00000000`
)

var announced = Request{
	Action: ActionAnnounce, ConnectionID: 0x0011223344556677, TransactionID: 0x12345678,
	InfoHash: hash, PeerID: [20]byte([]byte("-CI0000-000000000000")),
	Downloaded: 1, Left: 2, Uploaded: 3, Event: swarm.Started, IP: [4]byte{127, 0, 0, 1}, Key: 9, NumWant: -1, Port: 6881,
}

func with(r Request, change func(*Request)) Request {
	change(&r)
	return r
}

func TestParseRequests(t *testing.T) {
	option := func(url string) Request { return with(announced, func(r *Request) { r.URLData = []byte(url) }) }
	event := func(n string) string { return strings.Replace(announce, "00000002 7f", n+" 7f", 1) }
	for _, test := range []struct {
		name, datagram string
		want           Request
		garbage        bool
	}{
		{name: "connect", datagram: connect, want: Request{Action: ActionConnect, ConnectionID: Magic, TransactionID: 0x12345678}},
		{name: "connect with more behind it", datagram: connect + "00", want: Request{Action: ActionConnect, ConnectionID: Magic, TransactionID: 0x12345678}},
		{name: "announce", datagram: announce, want: announced},
		{name: "announce that completed", datagram: event("00000001"), want: with(announced, func(r *Request) { r.Event = swarm.Completed })},
		{name: "announce that stopped", datagram: event("00000003"), want: with(announced, func(r *Request) { r.Event = swarm.Stopped })},
		{name: "announce that paused", datagram: event("00000004"), want: with(announced, func(r *Request) { r.Event = swarm.Paused })},
		{name: "announce of an unknown event", datagram: event("00000005"), want: with(announced, func(r *Request) { r.Event = swarm.None })},
		{name: "announce of a huge event", datagram: event("00000102"), want: with(announced, func(r *Request) { r.Event = swarm.None })},
		{name: "options", datagram: announce + "01 02 02 2f61 01 02 01 62 00 02 01 63", want: option("/ab")},
		{name: "unknown option", datagram: announce + "09 02 ffff 02 01 61", want: option("a")},
		{name: "option cut short", datagram: announce + "02 05 6162", want: announced},
		{name: "option without length", datagram: announce + "02 01 61 02", want: option("a")},
		{name: "scrape", datagram: scrape, want: Request{Action: ActionScrape, ConnectionID: 0x0011223344556677, TransactionID: 0x12345678, Hashes: []swarm.InfoHash{hash, {}}}},
		{name: "scrape with a piece of a hash", datagram: scrape + "01", want: Request{Action: ActionScrape, ConnectionID: 0x0011223344556677, TransactionID: 0x12345678, Hashes: []swarm.InfoHash{hash, {}}}},
		{name: "nothing", garbage: true},
		{name: "15 bytes", datagram: connect[:len(connect)-2], garbage: true},
		{name: "wrong magic", datagram: strings.Replace(connect, "1980", "1981", 1), garbage: true},
		{name: "announce of 97 bytes", datagram: announce[:len(announce)-2], garbage: true},
		{name: "scrape of nothing", datagram: scrape[:35], garbage: true},
		{name: "error as a request", datagram: strings.Replace(connect, " 00000000", " 00000003", 1), garbage: true},
		{name: "unknown action", datagram: strings.Replace(connect, " 00000000", " 00010000", 1), garbage: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var r Request
			err := r.Parse(unhex(t, test.datagram))
			if test.garbage {
				if !errors.Is(err, ErrGarbage) {
					t.Fatalf("parsed as %+v, %v", r, err)
				}
				return
			}
			if len(r.URLData) == 0 {
				r.URLData = nil
			}
			if err != nil || !reflect.DeepEqual(r, test.want) {
				t.Errorf("parsed as %+v, %v, want %+v", r, err, test.want)
			}
		})
	}
}

func TestScrapesAreCut(t *testing.T) {
	var r Request
	b := unhex(t, scrape)[:16]
	for range MaxScrape + 5 {
		b = append(b, hash[:]...)
	}
	if err := r.Parse(b); err != nil || len(r.Hashes) != MaxScrape {
		t.Errorf("%d hashes, %v", len(r.Hashes), err)
	}
}

func TestAppendRequests(t *testing.T) {
	for _, test := range []struct {
		r    Request
		want string
	}{
		{Request{Action: ActionConnect, TransactionID: 0x12345678}, connect},
		{announced, announce},
		{Request{Action: ActionScrape, ConnectionID: 0x0011223344556677, TransactionID: 0x12345678, Hashes: []swarm.InfoHash{hash, {}}}, scrape},
	} {
		if got := test.r.Append(nil); !reflect.DeepEqual(got, unhex(t, test.want)) {
			t.Errorf("%+v is %x", test.r, got)
		}
	}
	long := with(announced, func(r *Request) { r.URLData = []byte(strings.Repeat("/announce?", 60)) })
	var back Request
	if err := back.Parse(long.Append(nil)); err != nil || !reflect.DeepEqual(back, long) {
		t.Errorf("long options come back as %q", back.URLData)
	}
}

func TestReplies(t *testing.T) {
	counts := swarm.Counts{Seeders: 1, Leechers: 2, PartialSeeds: 3, Downloads: 4}
	for _, test := range []struct {
		name     string
		datagram []byte
		want     string
		parsed   Reply
	}{
		{"connect", AppendConnectReply(nil, 0x12345678, 0x0011223344556677), "00000000 12345678 0011223344556677",
			Reply{Action: ActionConnect, ConnectionID: 0x0011223344556677}},
		{"announce", AppendAnnounceReply(nil, 0x12345678, 1800, counts, []byte("\x01\x02\x03\x04\x1a\xe1")),
			"00000001 12345678 00000708 00000005 00000001 01020304 1ae1",
			Reply{Action: ActionAnnounce, Interval: 1800, Leechers: 5, Seeders: 1, Peers: []byte("\x01\x02\x03\x04\x1a\xe1")}},
		{"scrape", AppendScrapeReply(nil, 0x12345678, []swarm.Counts{counts, {}}),
			"00000002 12345678 00000001 00000004 00000005 00000000 00000000 00000000",
			Reply{Action: ActionScrape, Counts: []swarm.Counts{{Seeders: 1, Leechers: 5, Downloads: 4}, {}}}},
		{"error", AppendErrorReply(nil, 0x12345678, "no"), "00000003 12345678 6e6f", Reply{Action: ActionError, Reason: "no"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if !reflect.DeepEqual(test.datagram, unhex(t, test.want)) {
				t.Errorf("is %x", test.datagram)
			}
			test.parsed.TransactionID = 0x12345678
			var r Reply
			if err := r.Parse(test.datagram); err != nil || !reflect.DeepEqual(r, test.parsed) {
				t.Errorf("parsed as %+v, %v", r, err)
			}
		})
	}
	for _, bad := range []string{"", "00000000 1234", "00000000 12345678 00", "00000001 12345678 00000708", "00000002 12345678 00", "00000007 12345678"} {
		var r Reply
		if err := r.Parse(unhex(t, bad)); !errors.Is(err, ErrGarbage) {
			t.Errorf("%q parsed as %+v", bad, r)
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{connect, announce, announce + "02 05 6162636465 00", scrape, ""} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, back Request
		if r.Parse(b) != nil {
			return
		}
		if len(r.Hashes) > MaxScrape || len(r.URLData) > len(b) {
			t.Fatalf("%d bytes parsed as %+v", len(b), r)
		}
		again := r.Append(nil)
		if err := back.Parse(again); err != nil || !reflect.DeepEqual(back.Append(nil), again) {
			t.Fatalf("%x becomes %x", b, again)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(AppendConnectReply(nil, 1, 2))
	f.Add(AppendAnnounceReply(nil, 1, 2, swarm.Counts{}, []byte("123456")))
	f.Add(AppendScrapeReply(nil, 1, make([]swarm.Counts, 2)))
	f.Add(AppendErrorReply(nil, 1, "no"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reply
		if r.Parse(b) == nil && r.Action == ActionAnnounce && len(r.Peers) != len(b)-AnnounceReplySize {
			t.Fatalf("%x has %d bytes of peers", b, len(r.Peers))
		}
	})
}

func TestNothingIsAllocated(t *testing.T) {
	a, s := unhex(t, announce+"02 01 61"), unhex(t, scrape)
	var r Request
	dst := make([]byte, 0, 2048)
	peers := make([]byte, 300)
	counts := make([]swarm.Counts, 2)
	if n := testing.AllocsPerRun(100, func() {
		_ = r.Parse(a)
		_ = r.Parse(s)
		dst = AppendConnectReply(dst[:0], 1, 2)
		dst = AppendAnnounceReply(dst[:0], 1, 2, counts[0], peers)
		dst = AppendScrapeReply(dst[:0], 1, counts)
		dst = AppendErrorReply(dst[:0], 1, "no")
		dst = r.Append(dst[:0])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
