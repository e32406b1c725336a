package udpproxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// platforms are the ways to move datagrams that this machine has.
var platforms = map[string]func(context.Context, Options) ([]conn, error){
	runtime.GOOS: listen,
	"portable":   listenPortable,
}

// serve answers until the test ends.
func serve(t *testing.T, o Options, listen func(context.Context, Options) ([]conn, error)) *Server {
	t.Helper()
	s, err := listenWith(t.Context(), o, listen)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// client is a BitTorrent client's socket.
type client struct {
	t    *testing.T
	conn *net.UDPConn
	id   uint64
}

func dial(t *testing.T, addr string, port uint16) *client {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &client{t: t, conn: c}
}

// ask sends a request and waits for its reply. A connected socket takes replies from
// the address that it sent to only.
func (c *client) ask(r bep15.Request) bep15.Reply {
	c.t.Helper()
	c.send(r)
	return c.reply()
}

func (c *client) send(r bep15.Request) {
	c.t.Helper()
	r.ConnectionID = c.id
	if _, err := c.conn.Write(r.Append(nil)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) reply() bep15.Reply {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 2048)
	n, err := c.conn.Read(b)
	if err != nil {
		c.t.Fatalf("%v: %v", c.conn.RemoteAddr(), err)
	}
	var reply bep15.Reply
	if err := reply.Parse(b[:n]); err != nil {
		c.t.Fatalf("%v: %x", err, b[:n])
	}
	return reply
}

func (c *client) connect() {
	c.t.Helper()
	c.id = c.ask(bep15.Request{Action: bep15.ActionConnect, TransactionID: 1}).ConnectionID
}

func TestOverSockets(t *testing.T) {
	for platform, listen := range platforms {
		for _, test := range []struct {
			listen string
			ask    []string
		}{
			{"127.0.0.1:0", []string{"127.0.0.1"}},
			{"[::1]:0", []string{"::1"}},
			{"0.0.0.0:0", []string{"127.0.0.1", "127.0.0.2"}},
			{":0", []string{"127.0.0.1", "127.9.9.9", "::1"}},
		} {
			t.Run(platform+" "+test.listen, func(t *testing.T) {
				tracker := &fakeTracker{answer: answer, counts: answer.Counts}
				o, metrics := testOptions(tracker)
				o.Addr = test.listen
				s := serve(t, o, listen)
				for _, addr := range test.ask {
					c := dial(t, addr, s.Addr().Port())
					c.connect()
					want := answer.Peers4[:50*swarm.Size4]
					if addr == "::1" {
						want = answer.Peers6[:50*swarm.Size6]
					}
					r := c.ask(bep15.Request{Action: bep15.ActionAnnounce, TransactionID: 2, InfoHash: hashA, NumWant: 50, Port: 6881})
					if r.TransactionID != 2 || r.Seeders != 3 || r.Leechers != 2 || r.Interval != 1800 || !bytes.Equal(r.Peers, want) {
						t.Errorf("asked at %s: %+v", addr, r)
					}
					tracker.mu.Lock()
					peer := tracker.last.Peer
					tracker.mu.Unlock()
					// A client on 127.0.0.0/8 may come from any of it.
					if peer.Port() != 6881 || !peer.Addr().IsLoopback() || peer.Addr().Is4In6() {
						t.Errorf("asked at %s: the peer is %v", addr, peer)
					}
					r = c.ask(bep15.Request{Action: bep15.ActionScrape, TransactionID: 3, Hashes: make([]swarm.InfoHash, 74)})
					if r.TransactionID != 3 || len(r.Counts) != 74 || r.Counts[73] != (swarm.Counts{Seeders: 3, Leechers: 2, Downloads: 7}) {
						t.Errorf("asked at %s: %+v", addr, r)
					}
				}
				if n, ids := metrics.received.Load(), metrics.gotID.Load(); n != int64(3*len(test.ask)) || ids != int64(len(test.ask)) {
					t.Errorf("%d datagrams were counted, %d connection ids", n, ids)
				}
			})
		}
	}
}

func TestManyClientsAtOnce(t *testing.T) {
	for platform, listen := range platforms {
		t.Run(platform, func(t *testing.T) {
			tracker := &fakeTracker{answer: answer}
			o, _ := testOptions(tracker)
			s := serve(t, o, listen)
			const clients, each = 16, 50
			done := make(chan int, clients)
			for range clients {
				c := dial(t, "127.0.0.1", s.Addr().Port())
				c.connect()
				for n := range each {
					c.send(bep15.Request{Action: bep15.ActionAnnounce, TransactionID: uint32(n), InfoHash: hashA, NumWant: 1, Port: 6881})
				}
				go func() {
					seen := map[uint32]bool{}
					for range each {
						seen[c.reply().TransactionID] = true
					}
					done <- len(seen)
				}()
			}
			for range clients {
				if n := <-done; n != each {
					t.Errorf("a client got %d different replies of %d", n, each)
				}
			}
		})
	}
}

func TestShutdownAnswersWhatIsInFlight(t *testing.T) {
	for platform, listen := range platforms {
		t.Run(platform, func(t *testing.T) {
			tracker := &fakeTracker{answer: answer, hold: true}
			o, _ := testOptions(tracker)
			s, err := listenWith(t.Context(), o, listen)
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() { served <- s.Serve() }()
			c := dial(t, "127.0.0.1", s.Addr().Port())
			c.connect()
			c.send(bep15.Request{Action: bep15.ActionAnnounce, TransactionID: 9, InfoHash: hashA, Port: 6881})
			storetest.Eventually(t, 5*time.Second, func() error {
				if tracker.asked.Load() == 0 {
					return errors.New("the announce has not arrived")
				}
				return nil
			})
			shut := make(chan error, 1)
			go func() { shut <- s.Shutdown(context.Background()) }()
			if err := <-served; err != nil { // the loops end first
				t.Error(err)
			}
			select {
			case err := <-shut:
				t.Fatalf("shut down before the answer: %v", err)
			default:
			}
			tracker.release()
			if r := c.reply(); r.TransactionID != 9 || r.Action != bep15.ActionAnnounce {
				t.Errorf("the announce in flight got %+v", r)
			}
			if err := <-shut; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestShutdownIsBounded(t *testing.T) {
	tracker := &fakeTracker{answer: answer, hold: true}
	o, _ := testOptions(tracker)
	s, err := Listen(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	c := dial(t, "127.0.0.1", s.Addr().Port())
	c.connect()
	c.send(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Port: 6881})
	storetest.Eventually(t, 5*time.Second, func() error {
		if tracker.asked.Load() == 0 {
			return errors.New("the announce has not arrived")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	tracker.release() // late answers do no harm
}

func TestWhatWaitsIsBounded(t *testing.T) {
	tracker := &fakeTracker{answer: answer, hold: true}
	o, _ := testOptions(tracker)
	o.Sockets = 1
	s, err := Listen(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s.handler.requests.most = 2 * batchSize
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	c := dial(t, "127.0.0.1", s.Addr().Port())
	c.connect()
	const sent = 200 // as many replies as the client's own buffer holds
	for n := range sent {
		c.send(bep15.Request{Action: bep15.ActionAnnounce, TransactionID: uint32(n), InfoHash: hashA, Port: 6881})
	}
	storetest.Eventually(t, 5*time.Second, func() error {
		if tracker.asked.Load() == 0 {
			return errors.New("nothing has arrived")
		}
		return nil
	})
	s.handler.requests.mu.Lock()
	if n := s.handler.requests.made; n > 2*batchSize {
		t.Errorf("%d requests were made", n)
	}
	s.handler.requests.mu.Unlock()
	tracker.release()
	for n := range sent { // the rest waited in the kernel
		if r := c.reply(); r.Action != bep15.ActionAnnounce {
			t.Fatalf("reply %d is %+v", n, r)
		}
	}
	if err := errors.Join(s.Shutdown(context.Background()), <-served); err != nil {
		t.Error(err)
	}
}

func TestAnAddressInUse(t *testing.T) {
	for platform, listen := range platforms {
		t.Run(platform, func(t *testing.T) {
			o, _ := testOptions(&fakeTracker{})
			s := serve(t, o, listen)
			o.Addr = s.Addr().String()
			if _, err := listenWith(t.Context(), o, listen); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("listening twice: %v", err)
			}
		})
	}
}

func TestASharedAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux spreads clients over sockets that share an address")
	}
	o, _ := testOptions(&fakeTracker{answer: answer})
	o.SharePort = true
	first := serve(t, o, listen)
	o.Addr = first.Addr().String()
	second, err := Listen(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- second.Serve() }()
	announce := func() {
		t.Helper()
		for range 32 { // each from a port of its own, so that both servers get some
			c := dial(t, "127.0.0.1", first.Addr().Port())
			c.connect()
			if r := c.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Port: 6881}); r.Action != bep15.ActionAnnounce {
				t.Fatalf("%+v", r)
			}
		}
	}
	announce()
	if err := errors.Join(second.Shutdown(context.Background()), <-served); err != nil {
		t.Error(err)
	}
	announce()
}
