package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

// client is the peers of one address.
type client interface {
	fill(ctx context.Context, s *stats) error // announces each peer once
	work(ctx context.Context, s *stats) error // announces random ones until ctx ends
}

// lostAfter is when an announce without an answer counts as lost.
const lostAfter = 2 * time.Second

// slots of announces under way at a fixed rate; an older one still without an answer is lost.
const slots = 1 << 14

type udpClient struct {
	c       *Config
	address int
	conn    *net.UDPConn
	random  *rand.Rand
	id      uint64
	request bep15.Request
	out, in []byte
	sent    [slots]atomic.Int64 // when the transaction of that number was, Unix nanoseconds; 0 when answered
}

func newUDPClient(c *Config, address int) (*udpClient, error) {
	to, err := net.ResolveUDPAddr("udp", c.Target)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: addressOf(address)}, to)
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(1 << 20)
	u := &udpClient{c: c, address: address, conn: conn, in: make([]byte, 2048), random: rand.New(rand.NewPCG(c.Work.Seed, uint64(address)+1))}
	return u, u.connect()
}

func (u *udpClient) connect() error {
	r := bep15.Request{Action: bep15.ActionConnect, TransactionID: 1}
	for range 5 {
		if _, err := u.conn.Write(r.Append(nil)); err != nil {
			return err
		}
		_ = u.conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := u.conn.Read(u.in)
		var reply bep15.Reply
		if err == nil && reply.Parse(u.in[:n]) == nil && reply.Action == bep15.ActionConnect {
			u.id = reply.ConnectionID
			return nil
		}
	}
	return errors.New("no answer to connect")
}

// send announces a peer, as transaction n.
func (u *udpClient) send(p peer, n uint32, event swarm.Event, now int64) error {
	r := &u.request
	*r = bep15.Request{
		Action: bep15.ActionAnnounce, ConnectionID: u.id, TransactionID: n, InfoHash: p.hash, Left: 1 << 20,
		Event: event, NumWant: u.c.Work.NumWant, Port: p.port,
	}
	if p.seeder {
		r.Left = 0
	}
	u.out = r.Append(u.out[:0])
	u.sent[n%slots].Store(now)
	_, err := u.conn.Write(u.out)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = nil // news of an earlier one
	}
	return err
}

// receive one answer, and note what it was.
func (u *udpClient) receive(s *stats, deadline time.Time) error {
	_ = u.conn.SetReadDeadline(deadline)
	n, err := u.conn.Read(u.in)
	if err != nil {
		return err
	}
	if n < bep15.AnnounceReplySize && n < 8 {
		return nil
	}
	transaction := uint32(u.in[4])<<24 | uint32(u.in[5])<<16 | uint32(u.in[6])<<8 | uint32(u.in[7])
	at := u.sent[transaction%slots].Swap(0)
	switch {
	case at == 0: // twice, or late
	case u.in[3] != byte(bep15.ActionAnnounce):
		s.failed.Add(1)
	default:
		s.answered(time.Duration(time.Now().UnixNano()-at), (n-bep15.AnnounceReplySize)/swarm.Size4)
	}
	return nil
}

func (u *udpClient) fill(ctx context.Context, s *stats) error {
	n := 0
	return u.loop(ctx, s, func() (peer, bool) {
		if n >= u.c.Work.each(u.address) {
			return peer{}, false
		}
		n++
		return u.c.Work.peer(u.address + (n-1)*u.c.Work.Addresses), true
	}, swarm.Started)
}

func (u *udpClient) work(ctx context.Context, s *stats) error {
	if u.c.Rate > 0 {
		return u.pace(ctx, s)
	}
	return u.loop(ctx, s, func() (peer, bool) { return u.c.Work.random(u.random, u.address), true }, swarm.None)
}

// loop keeps a window of announces under way until next has no more or ctx ends.
func (u *udpClient) loop(ctx context.Context, s *stats, next func() (peer, bool), event swarm.Event) error {
	transaction := uint32(1)
	for {
		// Sent together, so that a round costs the sender as little as it can.
		sent := 0
		for ; sent < u.c.Window; sent++ {
			p, ok := next()
			if !ok {
				break
			}
			if err := u.send(p, transaction, event, time.Now().UnixNano()); err != nil {
				return err
			}
			transaction++
		}
		if sent == 0 || ctx.Err() != nil {
			return nil
		}
		deadline := time.Now().Add(lostAfter)
		for got := 0; got < sent; got++ {
			err := u.receive(s, deadline)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				s.lost.Add(int64(sent - got))
				break
			}
			if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return err
			}
		}
	}
}

// pace sends at the client's part of the rate, each at its time even if answers are late.
func (u *udpClient) pace(ctx context.Context, s *stats) error {
	every := time.Second * time.Duration(u.c.Work.Addresses) / time.Duration(u.c.Rate)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			err := u.receive(s, time.Now().Add(100*time.Millisecond))
			if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
				return
			}
		}
	}()
	start := time.Now().Add(time.Duration(u.random.Int64N(int64(every))))
	var err error
	for n := uint32(1); ctx.Err() == nil && err == nil; n++ {
		due := start.Add(time.Duration(n) * every)
		time.Sleep(time.Until(due))
		if at := u.sent[n%slots].Load(); at != 0 {
			s.lost.Add(1)
		}
		err = u.send(u.c.Work.random(u.random, u.address), n, swarm.None, due.UnixNano())
	}
	<-done
	for n := range u.sent {
		if u.sent[n].Swap(0) != 0 {
			s.lost.Add(1)
		}
	}
	return err
}
