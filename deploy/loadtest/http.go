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
	"strconv"
	"sync"
	"time"
)

// httpClient has a connection for each announce under way, kept or made anew.
type httpClient struct {
	c       *Config
	address int
}

func newHTTPClient(c *Config, address int) (*httpClient, error) { return &httpClient{c, address}, nil }

func (h *httpClient) fill(ctx context.Context, s *stats) error {
	each := h.c.Work.each(h.address)
	return h.workers(func(w *httpWorker, n int) error {
		for ; n < each && ctx.Err() == nil; n += h.c.Window {
			if err := w.announce(s, h.c.Work.peer(h.address+n*h.c.Work.Addresses), "started", time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
}

func (h *httpClient) work(ctx context.Context, s *stats) error {
	every := time.Duration(0)
	if h.c.Rate > 0 {
		every = time.Second * time.Duration(h.c.Work.Addresses*h.c.Window) / time.Duration(h.c.Rate)
	}
	return h.workers(func(w *httpWorker, n int) error {
		r := rand.New(rand.NewPCG(h.c.Work.Seed, uint64(h.address*h.c.Window+n)))
		due := time.Now()
		if every > 0 {
			due = due.Add(time.Duration(r.Int64N(int64(every))))
		}
		for ctx.Err() == nil {
			if every > 0 {
				time.Sleep(time.Until(due))
			} else {
				due = time.Now()
			}
			if err := w.announce(s, h.c.Work.random(r, h.address), "", due); err != nil {
				return err
			}
			due = due.Add(every)
		}
		return nil
	})
}

func (h *httpClient) workers(do func(w *httpWorker, n int) error) error {
	var group sync.WaitGroup
	errs := make([]error, h.c.Window)
	for n := range errs {
		group.Go(func() {
			w := &httpWorker{h: h}
			defer w.close()
			errs[n] = do(w, n)
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

type httpWorker struct {
	h    *httpClient
	conn net.Conn
	r    *bufio.Reader
	out  []byte
	body []byte
}

func (w *httpWorker) close() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

func (w *httpWorker) announce(s *stats, p peer, event string, due time.Time) error {
	if w.conn == nil {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: addressOf(w.h.address)}, Timeout: lostAfter}
		conn, err := d.Dial("tcp", w.h.c.Target)
		if err != nil {
			s.lost.Add(1)
			return nil
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
	if err != nil || w.h.c.Close || !keep {
		w.close()
	}
	at := bytes.Index(w.body, []byte("5:peers"))
	switch {
	case err != nil:
		s.lost.Add(1)
	case at < 0:
		s.failed.Add(1)
	default:
		peers, _, _ := bytes.Cut(w.body[at+len("5:peers"):], []byte(":"))
		n, _ := strconv.Atoi(string(peers))
		s.answered(time.Since(due), n/6)
	}
	return nil
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
