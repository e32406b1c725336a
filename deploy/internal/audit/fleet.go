// Package audit puts gateways under load while something fails. Its clients keep every answer, and afterwards
// the answers are compared with the sorted sets of the Redis Cluster: no announce that was answered may be missing.
package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

const (
	smallSwarms  = 90 // one client each, so that those of one master do not hold up others
	largeClients = 20 // of one swarm that is spread over the cluster

	// Patience is how long a client waits for an answer.
	Patience = 5 * time.Second
)

// Endpoint is where clients reach gateways.
type Endpoint struct{ HTTP, UDP string }

// Fleet is clients that announce, and remember every answer.
type Fleet struct {
	Endpoints []Endpoint
	Pace      time.Duration // from an answer to a client's next announce, on average
	Addresses []netip.Addr  // that clients have, in turn; each announces to the endpoints of its family

	t       testing.TB
	stop    chan struct{}
	clients sync.WaitGroup
	made    atomic.Int64

	mu       sync.Mutex
	http     map[netip.Addr]*http.Client
	peers    []*peer
	attempts []attempt
}

// peer is what a client knows of what the tracker must have stored.
type peer struct {
	Member
	port     uint16
	answered *swarm.Class   // nil when it is gone, or was never there
	perhaps  []*swarm.Class // by announces that were not answered since
}

// attempt is one announce.
type attempt struct {
	*peer
	event swarm.Event
	at    time.Time
	took  time.Duration
	outcome
	why string
}

func (a attempt) end() time.Time { return a.at.Add(a.took) }

type outcome int

const (
	answered outcome = iota
	refused          // with an error that says what is wrong and when to come back
	broken           // without
)

// hashOf the nth swarm of a round.
func hashOf(round, n int) (h swarm.InfoHash) {
	r := rand.New(rand.NewPCG(uint64(round), uint64(n)))
	for i := range h {
		h[i] = byte(r.Uint32())
	}
	return h
}

// LargeHash is the swarm that is spread over the cluster, in all rounds.
var LargeHash = hashOf(0, 0)

// NewFleet is one that ends with the test, if not before.
func NewFleet(t testing.TB, endpoints []Endpoint) *Fleet {
	f := &Fleet{
		t: t, Endpoints: endpoints, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, Pace: 120 * time.Millisecond, stop: make(chan struct{}), http: map[netip.Addr]*http.Client{},
	}
	t.Cleanup(f.End)
	return f
}

// Start the clients, which announce until End. The swarms of each round are others, but for
// the large one, in which each round has other peers.
func (f *Fleet) Start(round int) {
	for n := range smallSwarms {
		f.clients.Go(func() { f.client(hashOf(round, n), lives, func(k int) int { return 1 + k }) })
	}
	for n := range largeClients {
		f.clients.Go(func() { f.client(LargeHash, shortLives, func(k int) int { return round*4000 + n + largeClients*k }) })
	}
}

// End returns when every announce under way is answered or given up.
func (f *Fleet) End() {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	f.clients.Wait()
	for _, c := range f.http {
		c.CloseIdleConnections()
	}
}

// client is one peer of a swarm after the other, each with its port. Each announces a few times and is silent
// then, so that nothing which is lost is stored again.
func (f *Fleet) client(hash swarm.InfoHash, lives [][]swarm.Event, port func(k int) int) {
	c, err := f.NewClient(hash)
	if err != nil {
		f.t.Error(err)
		return
	}
	defer c.Close()
	for k := 0; ; k++ {
		p := c.newPeer(uint16(port(k)))
		for _, event := range lives[rand.IntN(len(lives))] {
			for !c.announce(p, event) {
				if !c.wait() {
					return
				}
			}
			if !c.wait() {
				return
			}
		}
	}
}

func (c *Client) newPeer(port uint16) *peer {
	p := &peer{Member: Member{c.hash, string(swarm.AppendCompact(nil, netip.AddrPortFrom(c.addr, port)))}, port: port}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers = append(c.peers, p)
	return p
}

// lives of peers.
var lives = [][]swarm.Event{
	{swarm.Started},
	{swarm.Started, swarm.None},
	{swarm.Started, swarm.Completed},
	{swarm.Started, swarm.Paused, swarm.Completed},
	{swarm.Started, swarm.Stopped},
	{swarm.Started, swarm.Completed, swarm.None, swarm.Stopped},
	{swarm.Started, swarm.Stopped, swarm.Started},
}

// shortLives keep a swarm nearly as large as it is, so that its layout stays.
var shortLives = [][]swarm.Event{
	{swarm.Started, swarm.Completed},
	{swarm.Started, swarm.Stopped},
	{swarm.Started, swarm.Stopped},
	{swarm.Started, swarm.Completed, swarm.Stopped},
	{swarm.Started, swarm.Completed, swarm.Stopped},
	{swarm.Started, swarm.None, swarm.Completed, swarm.Stopped},
}

// Settle makes the large swarm, of peers that announce once, and waits until it is spread over the
// cluster, as spread tells.
func (f *Fleet) Settle(spread func() error) {
	f.t.Helper()
	begun := time.Now()
	for n := range largeClients {
		f.clients.Go(func() {
			client, err := f.NewClient(LargeHash)
			if err != nil {
				f.t.Error(err)
				return
			}
			defer client.Close()
			for k := range 45 {
				client.announce(client.newPeer(uint16(1+n+largeClients*k)), swarm.Started)
				time.Sleep(f.Pace) // slowly: a layout that is made for many is given up again
			}
		})
	}
	f.clients.Wait()
	looker, err := f.NewClient(LargeHash)
	if err != nil {
		f.t.Fatal(err)
	}
	defer looker.Close()
	last := looker.newPeer(1 + 45*largeClients)
	storetest.Eventually(f.t, 30*time.Second, func() error {
		if !looker.announce(last, swarm.Started) { // who looks goes on with the layout
			return errors.New("an announce failed")
		}
		return spread()
	})
	f.t.Logf("the large swarm is spread after %v", time.Since(begun))
}

// Client announces through any gateway.
type Client struct {
	*Fleet
	ID uint64 // of its UDP connection

	hash swarm.InfoHash
	addr netip.Addr
	to   []Endpoint
	http *http.Client
	udp  *net.UDPConn
	from int // the endpoint that gave the id
	uses int // of it that are left
	left uint64
}

// NewClient announces for a swarm when it is told to.
func (f *Fleet) NewClient(hash swarm.InfoHash) (*Client, error) {
	c := &Client{Fleet: f, hash: hash, addr: f.Addresses[int(f.made.Add(1))%len(f.Addresses)]}
	for _, e := range f.Endpoints {
		if at, err := netip.ParseAddrPort(e.UDP); err != nil || at.Addr().Is4() == c.addr.Is4() { // a name is of any
			c.to = append(c.to, e)
		}
	}
	c.http = f.httpFrom(c.addr)
	var err error
	c.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: c.addr.AsSlice()})
	return c, err
}

// httpFrom an address keeps connections for all clients that have it.
func (f *Fleet) httpFrom(addr netip.Addr) *http.Client {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.http[addr] == nil {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: addr.AsSlice()}}
		f.http[addr] = &http.Client{Timeout: Patience,
			Transport: &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: smallSwarms + largeClients}}
	}
	return f.http[addr]
}

// Close the client.
func (c *Client) Close() { _ = c.udp.Close() }

// wait a moment; false when it is time to end.
func (c *Client) wait() bool {
	select {
	case <-c.stop:
		return false
	case <-time.After(c.Pace/2 + rand.N(c.Pace)):
		return true
	}
}

// announce once, and note what came of it.
func (c *Client) announce(p *peer, event swarm.Event) bool {
	switch event {
	case swarm.Started:
		c.left = 5
	case swarm.Completed:
		c.left = 0
	}
	var class *swarm.Class
	if event != swarm.Stopped {
		a := swarm.Announce{Event: event, Left: c.left}
		is := a.Class()
		class = &is
	}
	over := c.overHTTP
	if rand.IntN(2) == 0 {
		over = c.overUDP
	}
	begun := time.Now()
	outcome, why := over(p.port, event)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attempts = append(c.attempts, attempt{p, event, begun, time.Since(begun), outcome, why})
	if outcome == answered {
		p.answered, p.perhaps = class, nil
		return true
	}
	p.perhaps = append(p.perhaps, class)
	return false
}

func (c *Client) overHTTP(port uint16, event swarm.Event) (outcome, string) {
	query := fmt.Sprintf("info_hash=%s&peer_id=-XX0000-000000000000&port=%d&left=%d&compact=1", url.QueryEscape(string(c.hash[:])), port, c.left)
	if event != swarm.None {
		query += "&event=" + eventNames[event]
	}
	request, err := http.NewRequest(http.MethodGet, "http://"+c.to[rand.IntN(len(c.to))].HTTP+"/announce?"+query, nil)
	if err != nil {
		return broken, err.Error()
	}
	request.Close = rand.IntN(5) == 0 // the next one may come to another gateway on the port
	response, err := c.http.Do(request)
	if err != nil {
		return broken, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return broken, err.Error()
	case bytes.Contains(body, []byte("14:failure reason")) && bytes.Contains(body, []byte("8:retry in")):
		return refused, string(body)
	case bytes.HasPrefix(body, []byte("d8:complete")):
		return answered, ""
	}
	return broken, string(body)
}

var eventNames = map[swarm.Event]string{swarm.Started: "started", swarm.Completed: "completed", swarm.Stopped: "stopped", swarm.Paused: "paused"}

// overUDP announces with a connection id that another gateway gave than the first to get it.
func (c *Client) overUDP(port uint16, event swarm.Event) (outcome, string) {
	if c.uses == 0 {
		c.from, c.uses = rand.IntN(len(c.to)), 4
		reply, err := c.Ask(c.from, bep15.Request{Action: bep15.ActionConnect})
		if err != nil {
			c.uses = 0
			return broken, "connect: " + err.Error()
		}
		c.ID = reply.ConnectionID
	}
	c.uses--
	reply, err := c.Ask(c.from+c.uses, bep15.Request{Action: bep15.ActionAnnounce, InfoHash: c.hash, Left: c.left, NumWant: -1, Port: port, Event: event})
	switch {
	case err != nil:
		c.uses = 0
		return broken, err.Error()
	case reply.Action == bep15.ActionError && reply.Reason != "":
		return refused, reply.Reason
	case reply.Action == bep15.ActionAnnounce:
		return answered, ""
	}
	return broken, fmt.Sprintf("%+v", reply)
}

// Ask an endpoint over UDP.
func (c *Client) Ask(at int, r bep15.Request) (reply bep15.Reply, err error) {
	to, err := net.ResolveUDPAddr("udp", c.to[at%len(c.to)].UDP)
	if err != nil {
		return reply, err
	}
	r.ConnectionID, r.TransactionID = c.ID, rand.Uint32()
	if _, err := c.udp.WriteToUDP(r.Append(nil), to); err != nil {
		return reply, err
	}
	_ = c.udp.SetReadDeadline(time.Now().Add(Patience))
	b := make([]byte, 2048)
	for {
		n, err := c.udp.Read(b)
		if err != nil {
			return reply, err
		}
		if err := reply.Parse(b[:n]); err != nil || reply.TransactionID == r.TransactionID {
			return reply, err
		}
	}
}
