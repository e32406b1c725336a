package httpapi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/gofiber/fiber/v2"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"swarmgate/swarmstore/swarm"
)

// FullScrapeWindow is how often a client may have a full scrape.
const FullScrapeWindow = 5 * time.Minute

const (
	// maxFullScrapes are sent at a time.
	maxFullScrapes = 16

	// A client that takes fewer bytes a second than this is sent no more.
	slowest = 64 << 10

	// busyAfter is when to come again to who comes while the tracker cannot.
	busyAfter = time.Minute
)

// format is one in which all swarms are listed.
type format struct {
	name       string // in the query, and in an ETag
	mime       string
	head, tail string
	append     func(b []byte, e *swarm.Entry, began time.Time) []byte
}

// formats are those of opentracker's full scrapes, the first where none is named.
var formats = []*format{
	{"ben", fiber.MIMETextPlain, "d5:filesd", "ee", func(b []byte, e *swarm.Entry, _ time.Time) []byte {
		b = append(append(append(b, "20:"...), e.InfoHash[:]...), 'd')
		b = appendInt(b, "complete", e.Seeders)
		b = appendInt(b, "downloaded", e.Downloads)
		b = appendInt(b, "incomplete", e.Incomplete())
		return append(b, 'e')
	}},
	{"bin", fiber.MIMEOctetStream, "", "", func(b []byte, e *swarm.Entry, _ time.Time) []byte {
		b = append(b, e.InfoHash[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(e.Seeders))
		return binary.BigEndian.AppendUint32(b, uint32(e.Incomplete()))
	}},
	{"txt", fiber.MIMETextPlain, "", "", func(b []byte, e *swarm.Entry, _ time.Time) []byte {
		return fmt.Appendf(b, "%X:%d:%d\n", e.InfoHash, e.Seeders, e.Incomplete())
	}},
	{"txtp", fiber.MIMETextPlain, "", "", func(b []byte, e *swarm.Entry, _ time.Time) []byte {
		return fmt.Appendf(b, "%X:%d:%d:%d\n", e.InfoHash, e.Seeders, e.Incomplete(), e.Downloads)
	}},
	{"url", fiber.MIMETextPlain, "", "", func(b []byte, e *swarm.Entry, _ time.Time) []byte {
		for _, c := range e.InfoHash {
			if letterOrDigit(c) || strings.IndexByte("$-./=_~", c) >= 0 {
				b = append(b, c)
			} else {
				b = fmt.Appendf(b, "%%%02x", c)
			}
		}
		return fmt.Appendf(b, ":%d:%d\n", e.Seeders, e.Incomplete())
	}},
}

// formatDump is what opentracker reads again: the time of the last announce, in minutes, is that of the look.
var formatDump = &format{"statedump", fiber.MIMETextPlain, "", "", func(b []byte, e *swarm.Entry, began time.Time) []byte {
	return fmt.Appendf(b, "%X:%d:%d\n", e.InfoHash, began.Unix()/60, e.Downloads)
}}

// FullScrapes says who may have all swarms listed.
type FullScrapes struct {
	Networks Networks // of those who may have a full scrape
	Public   bool     // which is everybody: caches may share it

	// Once says that a client may have a full scrape now, or how long it has to wait. NotOnce
	// takes back what was allowed, when it got none.
	Once    func(client netip.Addr) (wait time.Duration, err error)
	NotOnce func(client netip.Addr)
}

// mayScrapeAll says whether there are full scrapes for a client.
func (s *Server) mayScrapeAll(client netip.Addr) bool {
	return s.FullScrapes != nil && among(s.FullScrapes.Networks, client)
}

// fullScrape answers with all swarms, in the format of a name.
func (s *Server) fullScrape(c *fiber.Ctx, client netip.Addr, name string) error {
	var f *format
	for _, known := range formats {
		if known.name == name || name == "" && f == nil {
			f = known
		}
	}
	switch {
	case !s.mayScrapeAll(client):
		return fiber.ErrForbidden
	case f == nil:
		return fiber.ErrBadRequest
	}
	// What a client has already costs nothing.
	if young := s.Looks.openYoung(); young != nil {
		defer young.close()
		tag := s.tagOf(young.look, f, codingOf(c))
		if match := c.Get(fiber.HeaderIfNoneMatch); match != "" && matches(match, tag) {
			s.describe(c, young.look, f, codingOf(c), tag)
			return c.SendStatus(fiber.StatusNotModified)
		}
	}
	return s.sendAll(c, f, client)
}

// later refuses a request that may be made again after a while.
func (s *Server) later(c *fiber.Ctx, status int, wait time.Duration) error {
	c.Set(fiber.HeaderRetryAfter, strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	return fiber.NewError(status)
}

// sendAll answers with all swarms, in an encoding that the client takes. A look that fails on the way breaks
// the connection off; HTTP/1.0 could not tell that from the end, and is refused. A client has a full scrape once
// in a while, a dump as it likes.
func (s *Server) sendAll(c *fiber.Ctx, f *format, client netip.Addr) error {
	if !c.Request().Header.IsHTTP11() {
		return fiber.ErrHTTPVersionNotSupported
	}
	if s.sending.Add(1) > maxFullScrapes {
		s.sending.Add(-1)
		return s.later(c, fiber.StatusServiceUnavailable, busyAfter)
	}
	if f != formatDump {
		wait, err := s.FullScrapes.Once(client)
		if err != nil || wait > 0 {
			s.sending.Add(-1)
			if err != nil {
				return s.later(c, fiber.StatusServiceUnavailable, busyAfter)
			}
			return s.later(c, fiber.StatusTooManyRequests, wait)
		}
	}
	none := func() error {
		s.sending.Add(-1)
		if f != formatDump {
			s.FullScrapes.NotOnce(client)
		}
		return s.later(c, fiber.StatusServiceUnavailable, busyAfter)
	}
	r, err := s.Looks.open()
	if err != nil {
		return none()
	}
	coding := codingOf(c)
	tag := s.tagOf(r.look, f, coding) // of the access list before any of it is sent
	b := &swarmsBody{look: r, access: s.Access, format: f, conn: c.Context().Conn(), end: sync.OnceFunc(func() {
		r.close()
		s.sending.Add(-1)
	})}
	b.encoder = coding.encoder(&b.ready)
	if f != formatDump {
		b.sent = s.Metrics.FullScraped
	}
	if b.fill() != nil { // before anything is sent it can be said
		r.close()
		return none()
	}
	s.describe(c, r.look, f, coding, tag)
	c.Context().SetBodyStream(b, -1)
	return nil
}

// describe tells caches what the answer is and for how long.
func (s *Server) describe(c *fiber.Ctx, l *look, f *format, coding *coding, tag string) {
	c.Context().SetContentType(f.mime)
	if coding.name != "" {
		c.Set(fiber.HeaderContentEncoding, coding.name)
	}
	who := "private"
	if f != formatDump && s.FullScrapes.Public {
		who = "public"
	}
	// It is fresh for what the look has left: max-age without Age. nginx knows no Age, but a header of its own.
	ttl := s.Looks.ttl
	age := max(0, min(s.Now().Sub(l.began), ttl)).Truncate(time.Second)
	c.Set(fiber.HeaderCacheControl, cacheControl(who, ttl, ttl))
	c.Set(fiber.HeaderAge, strconv.Itoa(int(age/time.Second)))
	c.Set("X-Accel-Expires", strconv.Itoa(int((ttl-age)/time.Second)))
	c.Set(fiber.HeaderETag, tag)
	c.Set(fiber.HeaderVary, fiber.HeaderAcceptEncoding)
}

func (s *Server) tagOf(l *look, f *format, coding *coding) string {
	tag := l.id + "-" + f.name + "-" + coding.name
	if s.Access != nil {
		tag += "-" + s.Access.Version()
	}
	return `"` + tag + `"`
}

// matches tells whether an ETag is among those of If-None-Match.
func matches(list, tag string) bool {
	for one := range strings.SplitSeq(list, ",") {
		if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == tag {
			return true
		}
	}
	return false
}

// coding is one that HTTP knows.
type coding struct {
	name    string
	encoder func(to io.Writer) io.WriteCloser
}

// codings are those we have, the first ones before the others where a client likes them alike. Info hashes are
// random: more effort makes them no smaller.
var codings = []*coding{
	{"zstd", func(to io.Writer) io.WriteCloser {
		e, _ := zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(128<<10))
		return e
	}},
	{"br", func(to io.Writer) io.WriteCloser {
		return brotli.NewWriterOptions(to, brotli.WriterOptions{Quality: 3, LGWin: 17})
	}},
	{"gzip", func(to io.Writer) io.WriteCloser {
		e, _ := gzip.NewWriterLevel(to, gzip.BestSpeed)
		return e
	}},
}

// identity is none.
var identity = &coding{"", func(to io.Writer) io.WriteCloser { return plainEncoder{to} }}

type plainEncoder struct{ io.Writer }

func (plainEncoder) Close() error { return nil }

// codingOf is the one that a client likes best (RFC 9110, 12.5.3).
func codingOf(c *fiber.Ctx) *coding {
	best, most := identity, 0.0
	accepted := c.Get(fiber.HeaderAcceptEncoding)
	for _, known := range codings {
		if q := quality(accepted, known.name); q > most {
			best, most = known, q
		}
	}
	return best
}

// quality is how much a client likes a coding, from 0 for not at all to 1.
func quality(accepted, name string) (q float64) {
	for one := range strings.SplitSeq(accepted, ",") {
		of, parameter, weighed := strings.Cut(one, ";")
		of = strings.TrimSpace(of)
		if !strings.EqualFold(of, name) && of != "*" {
			continue
		}
		weight := 1.0
		if weighed {
			text, ok := strings.CutPrefix(strings.ToLower(strings.ReplaceAll(parameter, " ", "")), "q=")
			n, err := strconv.ParseFloat(text, 64)
			if weight = n; !ok || err != nil || !(n >= 0 && n <= 1) {
				weight = 0
			}
		}
		if of != "*" {
			return weight
		}
		q = weight
	}
	return q
}

var errSlow = errors.New("the client is too slow")

// swarmsBody is a body that is made while it is sent.
type swarmsBody struct {
	look    *lookReader
	access  Access
	format  *format
	encoder io.WriteCloser // to ready
	ready   bytes.Buffer
	conn    net.Conn
	end     func()
	sent    func(bytes int) // told of all when all is sent; may be nil

	begun, ended bool
	entries      [256]swarm.Entry
	text         []byte
	bytes        int
	writing      time.Duration // that the client took
	handed       time.Time
}

func (b *swarmsBody) Read(to []byte) (int, error) {
	if !b.handed.IsZero() {
		b.writing += time.Since(b.handed)
	}
	if b.writing > writeTimeout+time.Duration(b.bytes)*time.Second/slowest {
		return 0, errSlow
	}
	for b.ready.Len() == 0 {
		if b.ended {
			if b.sent != nil {
				b.sent(b.bytes)
			}
			return 0, io.EOF
		}
		if err := b.fill(); err != nil {
			return 0, err
		}
	}
	n, _ := b.ready.Read(to)
	b.bytes += n
	_ = b.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // of each part, not of all
	b.handed = time.Now()
	return n, nil
}

// fill encodes some more swarms, without those that were denied since the look.
func (b *swarmsBody) fill() error {
	b.text = b.text[:0]
	if !b.begun {
		b.begun = true
		b.text = append(b.text, b.format.head...)
	}
	n, err := b.look.read(b.entries[:])
	for i := range n {
		if e := &b.entries[i]; b.access == nil || b.access.Permits(e.InfoHash) {
			b.text = b.format.append(b.text, e, b.look.look.began)
		}
	}
	if err == io.EOF {
		b.ended = true
		b.text = append(b.text, b.format.tail...)
	} else if err != nil {
		return err
	}
	if _, err := b.encoder.Write(b.text); err != nil {
		return err
	}
	if b.ended {
		return b.encoder.Close()
	}
	return nil
}

// Close is called in the end, however that came.
func (b *swarmsBody) Close() error {
	b.end()
	return nil
}
