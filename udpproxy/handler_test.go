package udpproxy

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

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

type fakeMetrics struct{ received, gotID, wrongID, dropped, invalid, forged atomic.Int64 }

func (m *fakeMetrics) Received(b Batch) {
	m.received.Add(int64(b.Datagrams[0] + b.Datagrams[1]))
	m.gotID.Add(int64(b.GotID[0] + b.GotID[1]))
	m.wrongID.Add(int64(b.WrongID))
}
func (m *fakeMetrics) Dropped(n int) { m.dropped.Add(int64(n)) }
func (m *fakeMetrics) Invalid()      { m.invalid.Add(1) }
func (m *fakeMetrics) ForgedProxy()  { m.forged.Add(1) }

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

// header2 is a PROXY header of version 2, before a datagram from source.
func header2(t testing.TB, source netip.Addr) []byte {
	t.Helper()
	from := net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 5000))
	b, err := proxyproto.HeaderProxyFromAddrs(2, from, from).Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDatagramsWithAProxysHeader(t *testing.T) {
	proxy, stranger := route{client: netip.MustParseAddrPort("10.0.0.1:7")}, route{client: netip.MustParseAddrPort("10.0.0.2:7")}
	local, err := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}).Format()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		from    route
		header  []byte
		client  netip.Addr // invalid where the datagram is refused
		forged  int64
		proxies string
	}{
		{"IPv4", proxy, header2(t, client4), client4, 0, "10.0.0.1/32"},
		{"IPv6 over IPv4", proxy, header2(t, client6), client6, 0, "10.0.0.1/32"},
		{"4-in-6", proxy, []byte("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"), client4, 0, "10.0.0.1/32"},
		{"version 1", proxy, []byte("PROXY TCP4 192.0.2.1 10.0.0.9 1 2\r\n"), client4, 0, "10.0.0.1/32"},
		{"the proxy's own", proxy, local, proxy.client.Addr(), 0, "10.0.0.1/32"},
		{"no header", proxy, nil, proxy.client.Addr(), 0, "10.0.0.1/32"},
		{"a part of a header", proxy, header2(t, client4)[:13], netip.Addr{}, 0, "10.0.0.1/32"},
		{"malformed", proxy, []byte("PROXY TCP4 192.0.2.1\r\n"), netip.Addr{}, 0, "10.0.0.1/32"},
		{"from nobody", proxy, header2(t, netip.IPv4Unspecified()), netip.Addr{}, 0, "10.0.0.1/32"},
		{"twice", proxy, append(header2(t, client4), header2(t, client4)...), netip.Addr{}, 0, "10.0.0.1/32"},
		{"forged", stranger, header2(t, client4), netip.Addr{}, 1, "10.0.0.1/32"},
		{"forged and malformed", stranger, []byte("PROXY TCP4 192.0.2.1\r\n"), netip.Addr{}, 1, "10.0.0.1/32"},
		{"forged where nobody may", proxy, header2(t, client4), netip.Addr{}, 1, ""},
		{"no header from elsewhere", stranger, nil, stranger.client.Addr(), 0, "10.0.0.1/32"},
	} {
		tracker := &fakeTracker{answer: answer}
		o, metrics := testOptions(tracker)
		if test.proxies != "" {
			o.Proxies = netip.MustParsePrefix(test.proxies)
		}
		h, c := newHandler(o), &fakeConn{}
		with := func(r bep15.Request) []byte { return append(bytes.Clone(test.header), r.Append(nil)...) }

		var reply bep15.Reply
		err := reply.Parse(ask(h, c, test.from, with(bep15.Request{Action: bep15.ActionConnect, TransactionID: 9})))
		if (err == nil) != test.client.IsValid() {
			t.Errorf("%s: %v", test.name, err)
		}
		if err == nil {
			if !o.IDs.Valid(epoch, test.client, reply.ConnectionID) || c.out.to[0] != test.from {
				t.Errorf("%s: the id is another's, or went to %v", test.name, c.out.to[0])
			}
			// The id is the client's: good behind another header, and not without.
			announce := bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: reply.ConnectionID, InfoHash: hashA, NumWant: 1, Port: 6881}
			size := swarm.Size(test.client)
			if b := ask(h, c, test.from, with(announce)); len(b) != bep15.AnnounceReplySize+size || tracker.last.Peer != netip.AddrPortFrom(test.client, 6881) {
				t.Errorf("%s: announced as %v, answered %x", test.name, tracker.last.Peer, b)
			}
			if b := ask(h, c, test.from, announce.Append(nil)); (b == nil) != (test.client != test.from.client.Addr()) {
				t.Errorf("%s: without the header answered %x", test.name, b)
			}
		} else if got := metrics.invalid.Load(); got != 1 {
			t.Errorf("%s: counted %d as invalid", test.name, got)
		}
		if got := metrics.forged.Load(); got != test.forged {
			t.Errorf("%s: counted %d as forged", test.name, got)
		}
	}
}

func TestTheAddressThatAnAnnounceNames(t *testing.T) {
	named := [4]byte{203, 0, 113, 9}
	for _, test := range []struct {
		name    string
		mayName string
		client  netip.Addr
		ip      [4]byte
		want    string // peer, or nothing when refused
	}{
		{"nobody may", "", client4, named, "192.0.2.1"},
		{"others may", "192.0.2.2/32", client4, named, "192.0.2.1"},
		{"it may", "192.0.2.0/24", client4, named, "203.0.113.9"},
		{"none is named", "192.0.2.0/24", client4, [4]byte{}, "192.0.2.1"},
		{"multicast", "192.0.2.0/24", client4, [4]byte{224, 0, 0, 1}, ""},
		{"the field is IPv4's only", "::/0", client6, named, "2001:db8::1"},
	} {
		tracker := &fakeTracker{answer: answer}
		o, metrics := testOptions(tracker)
		if test.mayName != "" {
			o.MayName = netip.MustParsePrefix(test.mayName)
		}
		reply := ask(newHandler(o), &fakeConn{}, route{client: netip.AddrPortFrom(test.client, 5)}, (&bep15.Request{Action: bep15.ActionAnnounce,
			ConnectionID: o.IDs.New(epoch, test.client), InfoHash: hashA, NumWant: 1, Port: 6881, IP: test.ip}).Append(nil))
		if test.want == "" {
			if !bytes.HasSuffix(reply, []byte(reasonAddress)) || metrics.invalid.Load() != 1 || tracker.asked.Load() != 0 {
				t.Errorf("%s: answered %q", test.name, reply)
			}
		} else if got := tracker.last.Peer.Addr().String(); got != test.want || metrics.forged.Load()+metrics.invalid.Load() != 0 {
			t.Errorf("%s: announced as %s", test.name, got)
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
	f.Add(append(header2(f, client4), (&bep15.Request{Action: bep15.ActionConnect}).Append(nil)...))
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
	o.Proxies = netip.PrefixFrom(client6, 128)
	h, c := newHandler(o), &fakeConn{sent: make([][]byte, 0, batchSize)}
	connect := (&bep15.Request{Action: bep15.ActionConnect}).Append(nil)
	announce := (&bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: o.IDs.New(epoch, client4), InfoHash: hashA, NumWant: 50, Port: 1}).Append(nil)
	proxied := append(header2(t, client4), announce...)
	out := newOutgoing()
	spare := h.requests.take(nil, batchSize)
	batch := make([]*swarm.Announce, 0, batchSize)
	storetest.Allocs(t, 0, func() {
		batch = batch[:0]
		for range batchSize / 2 {
			h.handle(epoch, connect, from4, spare[len(spare)-1], out)
			for _, d := range []struct {
				data []byte
				from route
			}{{announce, from4}, {proxied, from6}} {
				r := spare[len(spare)-1]
				if h.handle(epoch, d.data, d.from, r, out) != toAnnounce {
					t.Fatal("no announce")
				}
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
