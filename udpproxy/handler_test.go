package udpproxy

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

// fakeTracker answers at once, unless it holds.
type fakeTracker struct {
	answer swarm.Answer
	counts swarm.Counts
	asked  atomic.Int64

	mu   sync.Mutex
	hold bool
	held []func()
	last swarm.Announce
}

func (f *fakeTracker) Announce(_ time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce)) {
	f.asked.Add(int64(len(batch)))
	for _, a := range batch {
		a.Answer.Err, a.Counts, a.Interval = f.answer.Err, f.answer.Counts, f.answer.Interval
		a.Peers4 = append(a.Peers4[:0], f.answer.Peers4[:min(len(f.answer.Peers4), max(0, a.NumWant)*swarm.Size4)]...)
		a.Peers6 = append(a.Peers6[:0], f.answer.Peers6[:min(len(f.answer.Peers6), max(0, a.NumWant)*swarm.Size6)]...)
	}
	f.mu.Lock()
	f.last = *batch[len(batch)-1]
	if f.hold {
		kept := append([]*swarm.Announce(nil), batch...)
		f.held = append(f.held, func() { answered(kept) })
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	answered(batch)
}

func (f *fakeTracker) Scrape(_ time.Time, s *swarm.Scrape, answered func(*swarm.Scrape)) {
	s.Counts, s.Err = s.Counts[:0], f.answer.Err
	for range s.Hashes {
		s.Counts = append(s.Counts, f.counts)
	}
	answered(s)
}

func (f *fakeTracker) release() {
	f.mu.Lock()
	held := f.held
	f.held, f.hold = nil, false
	f.mu.Unlock()
	for _, answer := range held {
		answer()
	}
}

type fakeMetrics struct{ received, gotID, wrongID, dropped, invalid atomic.Int64 }

func (m *fakeMetrics) Received(b Batch) {
	m.received.Add(int64(b.Datagrams[0] + b.Datagrams[1]))
	m.gotID.Add(int64(b.GotID[0] + b.GotID[1]))
	m.wrongID.Add(int64(b.WrongID))
}
func (m *fakeMetrics) Dropped(n int) { m.dropped.Add(int64(n)) }
func (m *fakeMetrics) Invalid()      { m.invalid.Add(1) }

// fakeConn keeps the last batch that was sent.
type fakeConn struct {
	conn
	sent [][]byte
	out  *outgoing
}

func (c *fakeConn) send(out *outgoing) int {
	c.sent = c.sent[:0]
	for i := range out.n {
		c.sent = append(c.sent, out.data[i])
	}
	return 0
}

var answer = swarm.Answer{
	Counts:   swarm.Counts{Seeders: 3, Leechers: 1, PartialSeeds: 1, Downloads: 7},
	Interval: 1800 * time.Second,
	Peers4:   bytes.Repeat([]byte("\x0a\x00\x00\x01\x1a\xe1"), 250),
	Peers6:   bytes.Repeat([]byte("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09\x1a\xe1"), 250),
}

var (
	from4 = route{client: netip.AddrPortFrom(client4, 5000)}
	from6 = route{client: netip.AddrPortFrom(client6, 5000)}
	hashA = swarm.InfoHash([]byte("aaaaaaaaaaaaaaaaaaaa"))
)

func testOptions(tracker *fakeTracker) (Options, *fakeMetrics) {
	metrics := &fakeMetrics{}
	return Options{
		Addr: "127.0.0.1:0", Sockets: 2, Tracker: tracker, Metrics: metrics,
		IDs: NewConnectionIDs(time.Hour, secretA),
		Now: func() time.Time { return epoch },
	}, metrics
}

// ask passes a datagram through a handler, as a loop does, and returns the reply.
func ask(h *handler, c *fakeConn, from route, datagram []byte) []byte {
	if c.out == nil {
		c.out = newOutgoing()
	}
	out := c.out
	r := h.requests.take(nil, 1)[0]
	r.conn = c
	c.sent = nil
	switch h.handle(epoch, datagram, from, r, out) {
	case toAnnounce:
		h.Tracker.Announce(epoch, []*swarm.Announce{&r.announce}, h.announced)
	case toScrape:
		h.Tracker.Scrape(epoch, &r.scrape, h.scraped)
	default:
		h.flush(c, out)
		h.requests.give([]*request{r})
	}
	if len(c.sent) == 0 {
		return nil
	}
	return c.sent[0]
}

func TestReplies(t *testing.T) {
	tracker := &fakeTracker{answer: answer, counts: answer.Counts}
	o, metrics := testOptions(tracker)
	h, c := newHandler(o), &fakeConn{}
	id4, id6 := o.IDs.New(epoch, client4), o.IDs.New(epoch, client6)
	announce := bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: id4, TransactionID: 7, InfoHash: hashA, Left: 1, NumWant: 2, Port: 6881}
	counts := "\x00\x00\x07\x08\x00\x00\x00\x02\x00\x00\x00\x03"

	change := func(f func(*bep15.Request)) []byte {
		r := announce
		f(&r)
		return r.Append(nil)
	}
	reason := swarm.Reason(swarm.ErrUnavailable)
	for _, test := range []struct {
		name     string
		from     route
		datagram []byte
		err      error
		want     string
	}{
		{"announce", from4, change(func(*bep15.Request) {}), nil, "\x00\x00\x00\x01\x00\x00\x00\x07" + counts + strings.Repeat("\x0a\x00\x00\x01\x1a\xe1", 2)},
		{"announce on IPv6", from6, change(func(r *bep15.Request) { r.ConnectionID = id6; r.NumWant = 1 }), nil, "\x00\x00\x00\x01\x00\x00\x00\x07" + counts + string(answer.Peers6[:18])},
		{"with options", from4, change(func(r *bep15.Request) { r.URLData = []byte("/announce?x"); r.NumWant = 0 }), nil, "\x00\x00\x00\x01\x00\x00\x00\x07" + counts},
		{"scrape", from4, change(func(r *bep15.Request) { r.Action = bep15.ActionScrape; r.Hashes = []swarm.InfoHash{hashA, hashA} }), nil,
			"\x00\x00\x00\x02\x00\x00\x00\x07" + strings.Repeat("\x00\x00\x00\x03\x00\x00\x00\x07\x00\x00\x00\x02", 2)},
		{"port 0", from4, change(func(r *bep15.Request) { r.Port = 0 }), nil, "\x00\x00\x00\x03\x00\x00\x00\x07" + reasonPort},
		{"no store", from4, change(func(*bep15.Request) {}), swarm.ErrUnavailable, "\x00\x00\x00\x03\x00\x00\x00\x07" + reason},
		{"no store for a scrape", from4, change(func(r *bep15.Request) { r.Action = bep15.ActionScrape; r.Hashes = []swarm.InfoHash{hashA} }), swarm.ErrUnavailable,
			"\x00\x00\x00\x03\x00\x00\x00\x07" + reason},
		{"a wrong id", from4, change(func(r *bep15.Request) { r.ConnectionID++ }), nil, ""},
		{"another's id", from6, change(func(*bep15.Request) {}), nil, ""},
		{"the magic as an id", from4, change(func(r *bep15.Request) { r.ConnectionID = bep15.Magic }), nil, ""},
		{"a scrape of nothing", from4, change(func(r *bep15.Request) { r.Action = bep15.ActionScrape }), nil, ""},
		{"a short announce", from4, announce.Append(nil)[:97], nil, ""},
		{"action 3", from4, []byte("\x00\x00\x04\x17\x27\x10\x19\x80\x00\x00\x00\x03\x00\x00\x00\x07"), nil, ""},
		{"a connect without magic", from4, make([]byte, 16), nil, ""},
		{"a short connect", from4, []byte("\x00\x00\x04\x17\x27\x10\x19\x80\x00\x00\x00\x00\x00\x00\x00"), nil, ""},
		{"nothing", from4, nil, nil, ""},
		{"from port 0", route{client: netip.AddrPortFrom(client4, 0)}, change(func(*bep15.Request) {}), nil, ""},
	} {
		tracker.answer.Err = test.err
		metrics.invalid.Store(0)
		if got := string(ask(h, c, test.from, test.datagram)); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if wrong := test.want == "" || test.name == "port 0"; (metrics.invalid.Load() == 1) != wrong {
			t.Errorf("%s: counted %d as invalid", test.name, metrics.invalid.Load())
		}
	}
}

func TestConnectIsAnsweredInItsOwnSize(t *testing.T) {
	o, _ := testOptions(&fakeTracker{})
	h, c := newHandler(o), &fakeConn{}
	for _, from := range []route{from4, from6} {
		request := (&bep15.Request{Action: bep15.ActionConnect, TransactionID: 0x01020304}).Append(nil)
		for _, datagram := range [][]byte{request, append(request, "and more"...)} {
			reply := ask(h, c, from, datagram)
			if len(reply) != 16 || !strings.HasPrefix(string(reply), "\x00\x00\x00\x00\x01\x02\x03\x04") {
				t.Fatalf("%q", reply)
			}
			var r bep15.Reply
			if r.Parse(reply) != nil || !o.IDs.Valid(epoch, from.client.Addr(), r.ConnectionID) {
				t.Errorf("%q holds no good id", reply)
			}
		}
	}
}

func TestAnAnnounceArrivesWhole(t *testing.T) {
	tracker := &fakeTracker{}
	o, _ := testOptions(tracker)
	h, c := newHandler(o), &fakeConn{}
	for _, event := range []swarm.Event{swarm.None, swarm.Completed, swarm.Started, swarm.Stopped, swarm.Paused} {
		ask(h, c, from4, (&bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: o.IDs.New(epoch, client4), InfoHash: hashA,
			Left: 99, Event: event, NumWant: -1, Port: 6881, URLData: []byte("/announce")}).Append(nil))
		a := tracker.last
		if a.InfoHash != hashA || a.Peer != netip.MustParseAddrPort("192.0.2.1:6881") || a.Event != event || a.Left != 99 || a.NumWant != -1 || a.Both {
			t.Errorf("event %d arrives as %+v", event, a)
		}
	}
}

func TestAnswersFitAPacketAnywhere(t *testing.T) {
	tracker := &fakeTracker{answer: answer}
	o, _ := testOptions(tracker)
	h, c := newHandler(o), &fakeConn{}
	for _, test := range []struct {
		from route
		size int
		want int
	}{{from4, swarm.Size4, 202}, {from6, swarm.Size6, 67}} {
		reply := ask(h, c, test.from, (&bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: o.IDs.New(epoch, test.from.client.Addr()),
			InfoHash: hashA, NumWant: 1000, Port: 6881}).Append(nil))
		if got := (len(reply) - bep15.AnnounceReplySize) / test.size; got != test.want || len(reply) > maxPayload {
			t.Errorf("%d bytes with %d peers, want %d", len(reply), got, test.want)
		}
	}
	scrape := bep15.Request{Action: bep15.ActionScrape, ConnectionID: o.IDs.New(epoch, client4), Hashes: make([]swarm.InfoHash, 80)}
	if reply := ask(h, c, from4, scrape.Append(nil)); len(reply) != 8+74*12 {
		t.Errorf("a scrape of 80 is answered in %d bytes", len(reply))
	}
}

// mutate changes a datagram at random.
func mutate(r *rand.Rand, b []byte) []byte {
	b = append([]byte(nil), b...)
	for range r.IntN(4) {
		if len(b) > 0 {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
	}
	switch r.IntN(4) {
	case 0:
		b = b[:r.IntN(len(b)+1)]
	case 1:
		for range r.IntN(300) {
			b = append(b, byte(r.Uint32()))
		}
	}
	return b
}

func TestAMillionMutatedDatagrams(t *testing.T) {
	tracker := &fakeTracker{answer: answer}
	o, _ := testOptions(tracker)
	h, c := newHandler(o), &fakeConn{}
	id := o.IDs.New(epoch, client4)
	seeds := [][]byte{
		(&bep15.Request{Action: bep15.ActionConnect}).Append(nil),
		(&bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: id, InfoHash: hashA, Left: 1, NumWant: -1, Port: 6881, URLData: []byte("/announce")}).Append(nil),
		(&bep15.Request{Action: bep15.ActionScrape, ConnectionID: id, Hashes: make([]swarm.InfoHash, 74)}).Append(nil),
	}
	var want [][]byte
	for _, seed := range seeds {
		want = append(want, bytes.Clone(ask(h, c, from4, seed)))
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
	before := heap()
	for range n {
		datagram := mutate(r, seeds[r.IntN(len(seeds))])
		reply := ask(h, c, from4, datagram)
		if len(reply) > maxPayload {
			t.Fatalf("%x gets %d bytes", datagram, len(reply))
		}
	}
	if after := heap(); after > before+8<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	for i, seed := range seeds {
		if got := ask(h, c, from4, seed); !bytes.Equal(got, want[i]) {
			t.Errorf("afterwards %x gets %x, before %x", seed, got, want[i])
		}
	}
	if h.requests.made != len(h.requests.free) {
		t.Errorf("of %d requests %d came back", h.requests.made, len(h.requests.free))
	}
}

func FuzzHandle(f *testing.F) {
	tracker := &fakeTracker{answer: answer}
	o, _ := testOptions(tracker)
	h, c := newHandler(o), &fakeConn{}
	id := o.IDs.New(epoch, client4)
	f.Add((&bep15.Request{Action: bep15.ActionConnect}).Append(nil))
	f.Add((&bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: id, Port: 1, URLData: []byte("/x")}).Append(nil))
	f.Add((&bep15.Request{Action: bep15.ActionScrape, ConnectionID: id, Hashes: make([]swarm.InfoHash, 3)}).Append(nil))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		reply := ask(h, c, from4, datagram)
		proved := len(datagram) >= 8 && bytes.Equal(datagram[:8], (&bep15.Request{Action: bep15.ActionScrape, ConnectionID: id}).Append(nil)[:8])
		if len(reply) > len(datagram) && !proved {
			t.Errorf("%x, which proves nothing, gets %d bytes", datagram, len(reply))
		}
		if len(reply) > 0 && (len(reply) > maxPayload || !bytes.Equal(reply[4:8], datagram[12:16])) {
			t.Errorf("%x gets %x", datagram, reply)
		}
	})
}

func TestADatagramAllocatesNothing(t *testing.T) {
	tracker := &fakeTracker{answer: answer}
	o, _ := testOptions(tracker)
	h, c := newHandler(o), &fakeConn{sent: make([][]byte, 0, batchSize)}
	connect := (&bep15.Request{Action: bep15.ActionConnect}).Append(nil)
	announce := (&bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: o.IDs.New(epoch, client4), InfoHash: hashA, NumWant: 50, Port: 1}).Append(nil)
	out := newOutgoing()
	spare := h.requests.take(nil, batchSize)
	batch := make([]*swarm.Announce, 0, batchSize)
	storetest.Allocs(t, 0, func() {
		batch = batch[:0]
		for range batchSize / 2 {
			h.handle(epoch, connect, from4, spare[len(spare)-1], out)
			r := spare[len(spare)-1]
			if h.handle(epoch, announce, from4, r, out) == toAnnounce {
				r.conn = c
				batch = append(batch, &r.announce)
				spare = spare[:len(spare)-1]
			}
		}
		h.flush(c, out)
		h.Tracker.Announce(epoch, batch, h.announced)
		spare = h.requests.take(spare, batchSize)
	})
}
