package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"

	"swarmgate/swarmstore/swarm"
)

// Stats has the statistics, as pages by the modes of opentracker's /stats.
type Stats interface {
	// Page is that of a mode; known is false if there is none. An error says that there is none now.
	Page(ctx context.Context, mode string) (page []byte, known bool, err error)
	// JSON is all there is in one document.
	JSON(ctx context.Context) ([]byte, error)
}

// Swarms lists every swarm there is.
type Swarms interface {
	// Scan hands them on in parts, valid during the call of yield, whose error ends it.
	Scan(ctx context.Context, now func() time.Time, yield func([]swarm.Entry) error) error
}

// defaultMode is the page of who names none.
const defaultMode = "peer"

// stats answers ?mode=.
func (s *Server) stats(c *fiber.Ctx) error {
	if !s.mayReadStats(c) {
		return fiber.ErrForbidden
	}
	mode := defaultMode
	if args := c.Context().QueryArgs(); args.Has("mode") {
		mode = string(args.Peek("mode"))
	}
	if mode == "statedump" {
		return s.dump(c)
	}
	page, known, err := s.Stats.Page(context.Background(), mode)
	switch {
	case err != nil:
		return fiber.ErrServiceUnavailable
	case !known:
		return fiber.ErrBadRequest
	}
	return send(c, page)
}

func (s *Server) statsJSON(c *fiber.Ctx) error {
	if !s.mayReadStats(c) {
		return fiber.ErrForbidden
	}
	page, err := s.Stats.JSON(context.Background())
	if err != nil {
		return fiber.ErrServiceUnavailable
	}
	c.Context().SetContentType(fiber.MIMEApplicationJSON)
	c.Context().SetBody(page)
	return nil
}

// dump lists all swarms as opentracker reads them again: their downloads, and as the time of their last
// announce, in minutes, that of the dump. One dump is made at a time. One that fails on the way breaks off.
func (s *Server) dump(c *fiber.Ctx) error {
	if s.dumping.Swap(true) {
		return fiber.ErrServiceUnavailable
	}
	minute := s.Now().Unix() / 60
	next, stop := iter.Pull2(func(yield func([]byte, error) bool) {
		var text []byte
		err := s.Swarms.Scan(context.Background(), s.Now, func(part []swarm.Entry) error {
			text = text[:0]
			for i := range part {
				text = fmt.Appendf(text, "%X:%d:%d\n", part[i].InfoHash, minute, part[i].Downloads)
			}
			if !yield(text, nil) {
				return errGone
			}
			return nil
		})
		if err != nil && err != errGone {
			yield(nil, err)
		}
	})
	c.Context().SetContentType(fiber.MIMETextPlain)
	c.Context().SetBodyStream(&dump{conn: c.Context().Conn(), next: next, end: sync.OnceFunc(func() {
		stop()
		s.dumping.Store(false)
	})}, -1)
	return nil
}

var errGone = errors.New("the client is gone")

// dump is a body that is made while it is sent.
type dump struct {
	conn net.Conn
	next func() (text []byte, err error, more bool)
	rest []byte
	end  func()
}

func (d *dump) Read(b []byte) (int, error) {
	if len(d.rest) == 0 {
		text, err, more := d.next()
		if !more {
			err = io.EOF
		}
		if err != nil {
			return 0, err
		}
		d.rest = text
	}
	_ = d.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // of each part, not of all
	n := copy(b, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *dump) Close() error {
	d.end()
	return nil
}

func (s *Server) mayReadStats(c *fiber.Ctx) bool {
	return among(s.StatsNetworks, s.remote(c))
}
