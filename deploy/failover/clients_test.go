//go:build unix

package failover

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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

const (
	smallSwarms  = 90 // one client each, so that those of one master do not hold up others
	largeClients = 20 // of one swarm that is spread over the cluster
	pace         = 120 * time.Millisecond
	patience     = 5 * time.Second // of a client
)

// fleet is clients that announce, and remember every answer.
type fleet struct {
	t         testing.TB
	endpoints []endpoint
	http      *http.Client
	stop      chan struct{}
	clients   sync.WaitGroup

	mu       sync.Mutex
	peers    []*peer
	attempts []attempt
}

// peer is what a client knows of what the tracker must have stored.
type peer struct {
	member
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

// largeHash is the swarm that is spread over the cluster, in all rounds.
var largeHash = hashOf(0, 0)

func newFleet(t testing.TB, endpoints []endpoint) *fleet {
	f := &fleet{
		t: t, endpoints: endpoints, stop: make(chan struct{}),
		http: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: smallSwarms + largeClients}},
	}
	t.Cleanup(f.end)
	return f
}

// start the clients, which announce until end. The swarms of each round are others, but for
// the large one, in which each round has other peers.
func (f *fleet) start(round int) {
	for n := range smallSwarms {
		f.clients.Go(func() { f.client(hashOf(round, n), lives, func(k int) int { return 1 + k }) })
	}
	for n := range largeClients {
		f.clients.Go(func() { f.client(largeHash, shortLives, func(k int) int { return round*4000 + n + largeClients*k }) })
	}
}

// end returns when every announce under way is answered or given up.
func (f *fleet) end() {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	f.clients.Wait()
	f.http.CloseIdleConnections()
}

// client is one peer of a swarm after the other, each with its port. Each announces a few times and is silent
// then, so that nothing which is lost is stored again.
func (f *fleet) client(hash swarm.InfoHash, lives [][]swarm.Event, port func(k int) int) {
	c, err := f.newClient(hash)
	if err != nil {
		f.t.Error(err)
		return
	}
	defer c.udp.Close()
	for k := 0; ; k++ {
		p := f.newPeer(hash, uint16(port(k)))
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

func (f *fleet) newPeer(hash swarm.InfoHash, port uint16) *peer {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	p := &peer{member: member{hash, string(swarm.AppendCompact(nil, at))}, port: port}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peers = append(f.peers, p)
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

// settle makes the large swarm, of peers that announce once, and waits until it is spread over the
// cluster.
func (f *fleet) settle(c *cluster, from *storetest.Process) {
	f.t.Helper()
	begun := time.Now()
	for n := range largeClients {
		f.clients.Go(func() {
			client, err := f.newClient(largeHash)
			if err != nil {
				f.t.Error(err)
				return
			}
			defer client.udp.Close()
			for k := range 45 {
				client.announce(f.newPeer(largeHash, uint16(1+n+largeClients*k)), swarm.Started)
				time.Sleep(pace) // slowly: a layout that is made for many is given up again
			}
		})
	}
	f.clients.Wait()
	looker, err := f.newClient(largeHash)
	if err != nil {
		f.t.Fatal(err)
	}
	defer looker.udp.Close()
	storetest.Eventually(f.t, 30*time.Second, func() error {
		if !looker.announce(f.peers[0], swarm.Started) { // who looks goes on with the layout
			return errors.New("an announce failed")
		}
		return c.spread(from, largeHash, 4)
	})
	f.t.Logf("the large swarm is spread after %v", time.Since(begun))
}

// client announces through any gateway.
type client struct {
	*fleet
	hash swarm.InfoHash
	udp  *net.UDPConn
	id   uint64
	from int // the endpoint that gave it
	uses int // of it that are left
	left uint64
}

func (f *fleet) newClient(hash swarm.InfoHash) (*client, error) {
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	return &client{fleet: f, hash: hash, udp: udp}, err
}

// wait a moment; false when it is time to end.
func (c *client) wait() bool {
	select {
	case <-c.stop:
		return false
	case <-time.After(pace/2 + rand.N(pace)):
		return true
	}
}

// announce once, and note what came of it.
func (c *client) announce(p *peer, event swarm.Event) bool {
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

func (c *client) overHTTP(port uint16, event swarm.Event) (outcome, string) {
	query := fmt.Sprintf("info_hash=%s&peer_id=-XX0000-000000000000&port=%d&left=%d&compact=1", url.QueryEscape(string(c.hash[:])), port, c.left)
	if event != swarm.None {
		query += "&event=" + eventNames[event]
	}
	request, err := http.NewRequest(http.MethodGet, "http://"+c.endpoints[rand.IntN(len(c.endpoints))].http+"/announce?"+query, nil)
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
func (c *client) overUDP(port uint16, event swarm.Event) (outcome, string) {
	if c.uses == 0 {
		c.from, c.uses = rand.IntN(len(c.endpoints)), 4
		reply, err := c.ask(c.from, bep15.Request{Action: bep15.ActionConnect})
		if err != nil {
			c.uses = 0
			return broken, "connect: " + err.Error()
		}
		c.id = reply.ConnectionID
	}
	c.uses--
	reply, err := c.ask(c.from+c.uses, bep15.Request{Action: bep15.ActionAnnounce, InfoHash: c.hash, Left: c.left, NumWant: -1, Port: port, Event: event})
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

func (c *client) ask(at int, r bep15.Request) (reply bep15.Reply, err error) {
	to, err := net.ResolveUDPAddr("udp", c.endpoints[at%len(c.endpoints)].udp)
	if err != nil {
		return reply, err
	}
	r.ConnectionID, r.TransactionID = c.id, rand.Uint32()
	if _, err := c.udp.WriteToUDP(r.Append(nil), to); err != nil {
		return reply, err
	}
	_ = c.udp.SetReadDeadline(time.Now().Add(patience))
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

// audit compares what the clients were told with what the cluster holds.
type audit struct{ announces, missing, wrong, lingering int }

func (a audit) lost() int { return a.missing + a.wrong + a.lingering }

// audit the cluster; the clients must have ended.
func (f *fleet) audit(c *cluster, from *storetest.Process) (a audit) {
	f.t.Helper()
	found, err := c.peers(from)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, t := range f.attempts {
		if t.outcome == answered {
			a.announces++
		}
	}
	same := func(s []standing, class *swarm.Class) bool {
		if class == nil {
			return len(s) == 0
		}
		return slices.ContainsFunc(s, func(s standing) bool { return s.class == *class })
	}
	shown := 0
	for _, p := range f.peers {
		at := found[p.member]
		switch {
		case same(at, p.answered) || slices.ContainsFunc(p.perhaps, func(c *swarm.Class) bool { return same(at, c) }):
			continue
		case len(at) == 0:
			a.missing++
		case p.answered == nil:
			a.lingering++
		default:
			a.wrong++
		}
		if shown++; shown <= 5 {
			f.t.Logf("a peer of swarm %x is stored as %+v after %s", p.hash[:4], at, f.story(p))
		}
	}
	return a
}

// story of a peer's announces.
func (f *fleet) story(p *peer) string {
	var b strings.Builder
	for _, a := range f.attempts {
		if a.peer == p {
			fmt.Fprintf(&b, "event %d from %s to %s: outcome %d; ", a.event, a.at.Format("05.000"), a.end().Format("05.000"), a.outcome)
		}
	}
	return b.String()
}

// spell is how the announces of some swarms went in a time.
type spell struct {
	answered, refused, broken int
	p99, longest              time.Duration // of those that were answered
	errors                    time.Duration // from the first that was not to the end of the last
	last                      time.Time     // when that was
	why                       []string
}

func (s spell) String() string {
	return fmt.Sprintf("answered %d, refused %d, broken %d, p99 %v, longest %v, errors for %v",
		s.answered, s.refused, s.broken, s.p99.Round(time.Millisecond/10), s.longest.Round(time.Millisecond/10), s.errors.Round(10*time.Millisecond))
}

func (f *fleet) spell(from time.Time, of func(swarm.InfoHash) bool) (s spell) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var took []time.Duration
	var first time.Time
	for _, a := range f.attempts {
		if a.end().Before(from) || !of(a.hash) {
			continue
		}
		switch a.outcome {
		case answered:
			s.answered++
			took = append(took, a.took)
			continue
		case refused:
			s.refused++
		case broken:
			s.broken++
		}
		if len(s.why) < 5 && !slices.Contains(s.why, a.why) {
			s.why = append(s.why, a.why)
		}
		if first.IsZero() || a.at.Before(first) {
			first = a.at
		}
		if end := a.end(); end.After(s.last) {
			s.last = end
		}
	}
	if !first.IsZero() {
		s.errors = s.last.Sub(first)
	}
	if len(took) > 0 {
		slices.Sort(took)
		s.p99, s.longest = took[len(took)*99/100], took[len(took)-1]
	}
	return s
}

// homes waits until all small swarms are stored, and says at which master each is.
func (f *fleet) homes(c *cluster, from *storetest.Process, round int) map[swarm.InfoHash]string {
	f.t.Helper()
	homes := map[swarm.InfoHash]string{}
	storetest.Eventually(f.t, 15*time.Second, func() error {
		found, err := c.peers(from)
		if err != nil {
			return err
		}
		for m, at := range found {
			homes[m.hash] = at[0].addr
		}
		for n := range smallSwarms {
			if homes[hashOf(round, n)] == "" {
				return errors.New("not all swarms are stored yet")
			}
		}
		delete(homes, largeHash)
		return nil
	})
	return homes
}
