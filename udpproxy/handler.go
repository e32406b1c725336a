package udpproxy

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
	"swarmgate/udpproxy/proxyprotocol"
)

const (
	// maxPayload is what an answer may take: what any path carries unbroken
	// (an IPv6 packet of 1,280 bytes without its headers).
	maxPayload = 1232

	// maxRequests bounds the announces and scrapes that wait for their answers. More
	// than the store lets wait for one Redis node, so that one that hangs leaves
	// room for the others.
	maxRequests = 32768

	reasonPort    = "Your client sent port 0."
	reasonAddress = "Your client named an address that nobody can have."
)

// request is an announce or a scrape from its datagram to its answer.
type request struct {
	conn     conn
	from     route
	question bep15.Request
	announce swarm.Announce // its Origin is the request
	scrape   swarm.Scrape   // likewise
}

func newRequest() *request {
	r := &request{}
	r.announce.Origin, r.scrape.Origin = r, r
	return r
}

// handler knows what to do with a datagram, and no sockets.
type handler struct {
	Options
	requests *requests
	outgoing sync.Pool // of *outgoing

	// Methods, bound once.
	announced func([]*swarm.Announce)
	scraped   func(*swarm.Scrape)
}

func newHandler(o Options) *handler {
	h := &handler{Options: o, requests: newRequests(maxRequests)}
	h.outgoing.New = func() any { return newOutgoing() }
	h.announced = h.answerAnnounces
	h.scraped = h.answerScrape
	return h
}

// What handle leaves to do.
type todo int

const (
	toNothing todo = iota
	toAnnounce
	toScrape
	gotID   // nothing: a connection id was asked for
	wrongID // nothing: it came with a wrong one
)

// handle reads a datagram. A reply that needs no tracker it appends to out; else it
// fills in r, and says what to do with it. Garbage and wrong connection ids are met
// with silence: nothing is sent to who has not proved to be there but a
// connection id, which is no larger than what asked for it.
func (h *handler) handle(now time.Time, data []byte, from route, r *request, out *outgoing) todo {
	q := &r.question
	client := from.client.Addr()
	err := q.Parse(data)
	if err != nil { // as that of a datagram with a PROXY header is
		client, data = h.unwrap(client, data)
		err = q.Parse(data)
	}
	if err != nil || from.client.Port() == 0 {
		h.Metrics.Invalid()
		return toNothing
	}
	if q.Action == bep15.ActionConnect {
		out.add(from, func(b []byte) []byte {
			return bep15.AppendConnectReply(b, q.TransactionID, h.IDs.New(now, client))
		})
		return gotID
	}
	if !h.IDs.Valid(now, client, q.ConnectionID) {
		h.Metrics.Invalid()
		return wrongID
	}
	r.from = from
	if q.Action == bep15.ActionScrape {
		r.scrape.Hashes = q.Hashes
		return toScrape
	}
	if q.Port == 0 {
		h.Metrics.Invalid()
		out.add(from, func(b []byte) []byte { return bep15.AppendErrorReply(b, q.TransactionID, reasonPort) })
		return toNothing
	}
	peer := client
	if q.IP != [4]byte{} && h.MayName != nil && client.Is4() && h.MayName.Contains(client) {
		if peer = netip.AddrFrom4(q.IP); peer.IsMulticast() {
			h.Metrics.Invalid()
			out.add(from, func(b []byte) []byte { return bep15.AppendErrorReply(b, q.TransactionID, reasonAddress) })
			return toNothing
		}
	}
	room := (maxPayload - bep15.AnnounceReplySize) / swarm.Size(client)
	r.announce = swarm.Announce{
		InfoHash: q.InfoHash,
		Peer:     netip.AddrPortFrom(peer, q.Port),
		Event:    q.Event,
		Left:     q.Left,
		NumWant:  min(q.NumWant, room),
		Room:     room,
		Origin:   r,
		Answer:   swarm.Answer{Peers4: r.announce.Peers4, Peers6: r.announce.Peers6},
	}
	return toAnnounce
}

// unwrap takes the PROXY header from a datagram that is no request, and returns the client that
// the header names and what follows it; where that makes no sense, something that is
// no request either. (With a header a datagram is none: letters stand where its action would.)
func (h *handler) unwrap(sender netip.Addr, data []byte) (client netip.Addr, rest []byte) {
	client, size, err := proxyprotocol.Parse(data)
	switch {
	case errors.Is(err, proxyprotocol.ErrNone), errors.Is(err, proxyprotocol.ErrIncomplete):
		return sender, nil
	case h.Proxies == nil || !h.Proxies.Contains(sender):
		h.Metrics.ForgedProxy()
		return sender, nil
	case !client.IsValid():
		return sender, data[size:] // the proxy's own, or malformed
	}
	return client, data[size:]
}

// answerAnnounces sends the answers to announces that the tracker hands back.
func (h *handler) answerAnnounces(part []*swarm.Announce) {
	out := h.outgoing.Get().(*outgoing)
	var c conn
	for _, a := range part {
		r := a.Origin.(*request)
		if out.full() || c != r.conn {
			h.flush(c, out)
			c = r.conn
		}
		out.add(r.from, func(b []byte) []byte { return appendAnnounceReply(b, r) })
	}
	h.flush(c, out)
	h.outgoing.Put(out)
	h.requests.giveAnnounces(part)
}

func appendAnnounceReply(b []byte, r *request) []byte {
	a := &r.announce
	if a.Err != nil {
		return bep15.AppendErrorReply(b, r.question.TransactionID, swarm.Reason(a.Err))
	}
	peers := a.Peers4
	if !a.Peer.Addr().Is4() {
		peers = a.Peers6
	}
	return bep15.AppendAnnounceReply(b, r.question.TransactionID, uint32(a.Interval/time.Second), a.Counts, peers)
}

// answerScrape likewise.
func (h *handler) answerScrape(s *swarm.Scrape) {
	r := s.Origin.(*request)
	out := h.outgoing.Get().(*outgoing)
	out.add(r.from, func(b []byte) []byte {
		if s.Err != nil {
			return bep15.AppendErrorReply(b, r.question.TransactionID, swarm.Reason(s.Err))
		}
		return bep15.AppendScrapeReply(b, r.question.TransactionID, s.Counts)
	})
	h.flush(r.conn, out)
	h.outgoing.Put(out)
	h.requests.give([]*request{r})
}

// flush sends what out holds.
func (h *handler) flush(c conn, out *outgoing) {
	if out.n > 0 {
		if dropped := c.send(out); dropped > 0 {
			h.Metrics.Dropped(dropped)
		}
	}
	out.n = 0
}

// requests is a bounded supply of requests.
type requests struct {
	most int

	mu       sync.Mutex
	returned sync.Cond
	free     []*request
	made     int
}

func newRequests(most int) *requests {
	p := &requests{most: most}
	p.returned.L = &p.mu
	return p
}

// take fills dst up to n requests. It waits until that many are free.
func (p *requests) take(dst []*request, n int) []*request {
	n -= len(dst)
	if n <= 0 {
		return dst
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.free) < n {
		if p.made < p.most {
			p.made++
			p.free = append(p.free, newRequest())
			continue
		}
		p.returned.Wait()
	}
	rest := len(p.free) - n
	dst = append(dst, p.free[rest:]...)
	p.free = p.free[:rest]
	return dst
}

func (p *requests) give(back []*request) {
	p.mu.Lock()
	p.free = append(p.free, back...)
	p.mu.Unlock()
	p.returned.Broadcast()
}

func (p *requests) giveAnnounces(back []*swarm.Announce) {
	p.mu.Lock()
	for _, a := range back {
		p.free = append(p.free, a.Origin.(*request))
	}
	p.mu.Unlock()
	p.returned.Broadcast()
}

// idle waits until all requests are back.
func (p *requests) idle(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.returned.Broadcast()
	})()
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.free) < p.made && ctx.Err() == nil {
		p.returned.Wait()
	}
	if len(p.free) < p.made {
		return context.Cause(ctx)
	}
	return nil
}
