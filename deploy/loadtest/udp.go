package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	work(ctx context.Context, s *stats) error // announces random ones until ctx's deadline
	close()
}

// lostAfter is when an announce without an answer counts as lost.
const lostAfter = 2 * time.Second

// fillTries are how often a peer's first announce is made until it is answered; work tries nothing twice.
const fillTries = 5

var errNoAnswer = fmt.Errorf("no answer to the first announce of a peer, %d times", fillTries)

// slots of announces under way at a fixed rate; an older one still without an answer is lost.
const slots = 1 << 14

type udpClient struct {
	c       *Config
	address int
	conn    *net.UDPConn
	random  *rand.Rand
	id      uint64
	sends   uint32 // transactions so far
	request bep15.Request
	out, in []byte
	sent    [slots]atomic.Int64 // when the transaction of that number was, Unix nanoseconds; 0 when it is no longer under way
}

func newUDPClient(c *Config, address int) (*udpClient, error) {
	to, err := net.ResolveUDPAddr("udp", c.Target)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: c.Work.address(address)}, to)
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(1 << 20)
	u := &udpClient{c: c, address: address, conn: conn, in: make([]byte, 2048), random: rand.New(rand.NewPCG(c.Work.Seed, uint64(address)+1))}
	return u, u.connect()
}

func (u *udpClient) close() { _ = u.conn.Close() }

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

// send announces a peer, in a transaction of its own.
func (u *udpClient) send(p peer, event swarm.Event, now int64) error {
	u.sends++
	n := u.sends
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

// receive one datagram, and note what it was. Known is the answer to an announce that was under way.
func (u *udpClient) receive(s *stats, deadline time.Time) (known bool, err error) {
	_ = u.conn.SetReadDeadline(deadline)
	n, err := u.conn.Read(u.in)
	if err != nil || n < 8 {
		return false, err
	}
	transaction := binary.BigEndian.Uint32(u.in[4:])
	at := u.sent[transaction%slots].Swap(0)
	took := time.Duration(time.Now().UnixNano() - at)
	switch {
	case at == 0: // twice, or late
		return false, nil
	case took > lostAfter:
		s.lost.Add(1)
	case binary.BigEndian.Uint32(u.in) != uint32(bep15.ActionAnnounce) || n < bep15.AnnounceReplySize:
		s.failed.Add(1)
	default:
		s.answered(took, (n-bep15.AnnounceReplySize)/u.c.Work.peerSize())
	}
	return true, nil
}

func (u *udpClient) fill(ctx context.Context, s *stats) error {
	each, tries := u.c.Work.each(u.address), 0
	for n := 0; n < each && ctx.Err() == nil; {
		window := min(u.c.Window, each-n)
		lost, err := u.round(s, window, swarm.Started, func(k int) peer { return u.c.Work.peer(u.address + (n+k)*u.c.Work.Addresses) })
		switch {
		case err != nil:
			return err
		case lost == 0:
			n, tries = n+window, 0
		default: // said again, as clients do
			if tries++; tries == fillTries {
				return errNoAnswer
			}
		}
	}
	return nil
}

func (u *udpClient) work(ctx context.Context, s *stats) error {
	if u.c.Rate > 0 {
		return u.pace(ctx, s)
	}
	for ctx.Err() == nil {
		if _, err := u.round(s, u.c.Window, swarm.None, func(int) peer { return u.c.Work.random(u.random, u.address) }); err != nil {
			return err
		}
	}
	return nil
}

// round sends some announces together, so that it costs the sender as little as it can, and awaits their answers.
func (u *udpClient) round(s *stats, announces int, event swarm.Event, next func(n int) peer) (lost int64, err error) {
	for n := range announces {
		if err := u.send(next(n), event, time.Now().UnixNano()); err != nil {
			return 0, err
		}
	}
	deadline := time.Now().Add(lostAfter)
	for got := 0; got < announces; {
		known, err := u.receive(s, deadline)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			lost = u.forget()
			s.lost.Add(lost)
			return lost, nil
		}
		if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return 0, err
		}
		if known {
			got++
		}
	}
	return 0, nil
}

// forget what is under way, and tell how many it is.
func (u *udpClient) forget() (lost int64) {
	for n := range u.sent {
		if u.sent[n].Swap(0) != 0 {
			lost++
		}
	}
	return lost
}

// pace sends at the client's part of the rate, each at its time even if answers are late.
func (u *udpClient) pace(ctx context.Context, s *stats) error {
	every := time.Second * time.Duration(u.c.Work.Addresses) / time.Duration(u.c.Rate)
	var underWay, last atomic.Int64 // last is when the last one was sent, Unix nanoseconds; 0 before
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			sent := last.Load()
			if sent != 0 && (underWay.Load() == 0 || time.Now().UnixNano() > sent+int64(lostAfter)) {
				return
			}
			if known, _ := u.receive(s, time.Now().Add(50*time.Millisecond)); known {
				underWay.Add(-1)
			}
		}
	}()
	var err error
	end, _ := ctx.Deadline()
	due := time.Now().Add(time.Duration(u.random.Int64N(int64(every))))
	for due.Before(end) && err == nil {
		if !waitUntil(ctx, due) {
			break
		}
		if u.sent[(u.sends+1)%slots].Swap(0) != 0 { // the next one's slot
			s.lost.Add(1)
			underWay.Add(-1)
		}
		underWay.Add(1)
		err = u.send(u.c.Work.random(u.random, u.address), swarm.None, due.UnixNano())
		due = due.Add(every)
	}
	last.Store(time.Now().UnixNano())
	<-done
	s.lost.Add(u.forget())
	return err
}

// waitUntil something is due. It is false when the run was broken off before.
func waitUntil(ctx context.Context, due time.Time) bool {
	if wait := time.Until(due); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return errors.Is(ctx.Err(), context.DeadlineExceeded) // which it was due before
		}
	}
	return true
}
