package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// httpClient has a worker for each announce under way.
type httpClient struct {
	c       *Config
	address int
	workers []*httpWorker
}

// httpWorker has a connection, kept or made anew.
type httpWorker struct {
	h      *httpClient
	random *rand.Rand
	closes bool // the server does after each answer, without saying so
	conn   net.Conn
	r      *bufio.Reader
	out    []byte
	body   []byte
}

func newHTTPClient(c *Config, address int) (*httpClient, error) {
	h := &httpClient{c: c, address: address}
	for n := range c.Window {
		h.workers = append(h.workers, &httpWorker{h: h, random: rand.New(rand.NewPCG(c.Work.Seed, uint64(address*c.Window+n)+1))})
	}
	return h, nil
}

func (h *httpClient) close() {
	for _, w := range h.workers {
		w.close()
	}
}

func (h *httpClient) fill(ctx context.Context, s *stats) error {
	each := h.c.Work.each(h.address)
	errs := make([]error, len(h.workers))
	h.together(func(first int, w *httpWorker) {
		for n, tries := first, 0; n < each && ctx.Err() == nil; {
			if w.announce(s, h.c.Work.peer(h.address+n*h.c.Work.Addresses), "started", time.Now()) {
				n, tries = n+h.c.Window, 0
			} else if tries++; tries == fillTries {
				errs[first] = errNoAnswer
				return
			}
		}
	})
	return errors.Join(errs...)
}

func (h *httpClient) work(ctx context.Context, s *stats) error {
	h.together(func(_ int, w *httpWorker) {
		if h.c.Rate > 0 {
			w.pace(ctx, s)
			return
		}
		for ctx.Err() == nil {
			w.announce(s, h.c.Work.random(w.random, h.address), "", time.Now())
		}
	})
	return nil
}

func (h *httpClient) together(do func(n int, w *httpWorker)) {
	var group sync.WaitGroup
	for n, w := range h.workers {
		group.Go(func() { do(n, w) })
	}
	group.Wait()
}

// pace announces at the worker's part of the rate. One that has to wait for the answer before it is late from when it was due.
func (w *httpWorker) pace(ctx context.Context, s *stats) {
	work := &w.h.c.Work
	every := time.Second * time.Duration(work.Addresses*w.h.c.Window) / time.Duration(w.h.c.Rate)
	end, _ := ctx.Deadline()
	for due := time.Now().Add(time.Duration(w.random.Int64N(int64(every)))); due.Before(end); due = due.Add(every) {
		if ctx.Err() != nil {
			s.lost.Add(1) // due, but there was no time for it
		} else if waitUntil(ctx, due) {
			w.announce(s, work.random(w.random, w.h.address), "", due)
		}
	}
}

func (w *httpWorker) close() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// announce a peer, note what became of it and tell whether there was an answer, be it a refusal.
func (w *httpWorker) announce(s *stats, p peer, event string, due time.Time) (answered bool) {
	kept := w.conn != nil
	if !kept {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: w.h.c.Work.address(w.h.address)}, Timeout: lostAfter}
		conn, err := d.Dial("tcp", w.h.c.Target)
		if err != nil {
			s.lost.Add(1)
			return false
		}
		w.conn = conn
		if w.r == nil {
			w.r = bufio.NewReaderSize(conn, 4096)
		}
		w.r.Reset(conn)
	}
	b := append(w.out[:0], "GET /announce?info_hash="...)
	for _, c := range p.hash {
		const hex = "0123456789ABCDEF"
		b = append(b, '%', hex[c>>4], hex[c&15])
	}
	b = fmt.Appendf(b, "&peer_id=-LT0001-%012d&port=%d&uploaded=0&downloaded=0&left=%d&compact=1&numwant=%d", p.port, p.port, left(p), w.h.c.Work.NumWant)
	if event != "" {
		b = append(append(b, "&event="...), event...)
	}
	b = append(append(append(b, " HTTP/1.1\r\nHost: "...), w.h.c.Target...), "\r\nUser-Agent: loadtest\r\n"...)
	if w.h.c.Close {
		b = append(b, "Connection: close\r\n"...)
	}
	w.out = append(b, "\r\n"...)
	_ = w.conn.SetDeadline(time.Now().Add(lostAfter))
	_, err := w.conn.Write(w.out)
	keep := false
	if err == nil {
		keep, err = w.response()
	}
	if err != nil && kept && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.closes = true // as opentracker does; the announce is lost, later ones have a connection each
	}
	if err != nil || w.h.c.Close || !keep || w.closes {
		w.close()
	}
	key := []byte("5:peers")
	if w.h.c.Work.IPv6 {
		key = []byte("6:peers6")
	}
	_, peers, ok := bytes.Cut(w.body, key)
	switch {
	case err != nil:
		s.lost.Add(1)
	case !ok:
		s.failed.Add(1)
	default:
		size, _, _ := bytes.Cut(peers, []byte(":"))
		n, _ := strconv.Atoi(string(size))
		s.answered(time.Since(due), n/w.h.c.Work.peerSize())
	}
	return err == nil
}

// response reads one into w.body, and tells whether the connection is kept.
func (w *httpWorker) response() (keep bool, err error) {
	w.body = w.body[:0]
	keep, length := true, -1
	for {
		line, err := w.r.ReadSlice('\n')
		if err != nil {
			return false, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.HasPrefix(line, []byte("HTTP/1.0")):
			keep = false // unless it says otherwise
		case bytes.EqualFold(name, []byte("Content-Length")):
			length, _ = strconv.Atoi(string(value))
		case bytes.EqualFold(name, []byte("Connection")):
			keep = !bytes.EqualFold(value, []byte("close"))
		}
	}
	if length < 0 {
		w.body, err = io.ReadAll(w.r)
		return false, err
	}
	w.body = append(w.body, make([]byte, length)...)
	_, err = io.ReadFull(w.r, w.body)
	return keep, err
}

func left(p peer) int {
	if p.seeder {
		return 0
	}
	return 1 << 20
}
