// Package httpapi is the HTTP front end: announces (BEP 3, 7, 21, 23, 24, 31) and
// scrapes (BEP 48) on Fiber. It reads requests (request.go), hands them to the
// tracker, waits, and encodes the answers (bencode.go). Trusted proxies tell it where
// clients are (client.go). On Linux an event loop in front of Fiber answers plain
// announces (front_linux.go, head.go) and leaves it the rest.
//
//	s := httpapi.New(httpapi.Options{Tracker: t, Metrics: m, Now: time.Now, MaxClients: 16384})
//	go s.Serve(listener)
//	...
//	s.Shutdown(ctx)
package httpapi

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"

	"swarmgate/swarmstore/swarm"
)

// Tracker is who answers. Both calls hand back what they were given, once, perhaps
// from other goroutines.
type Tracker interface {
	Announce(now time.Time, batch []*swarm.Announce, answered func([]*swarm.Announce))
	Scrape(now time.Time, scrape *swarm.Scrape, answered func(*swarm.Scrape))
}

// Metrics is told what the tracker does not see.
type Metrics interface {
	// Accepted is a connection from this address.
	Accepted(from netip.Addr)
	// Invalid counts requests that got a failure reason, with the status 200, or another status.
	Invalid(status int)
	// ForgedHeader, ForgedProxy and ForgedQuery count requests, or for a PROXY header
	// connections, with an address from who may name none.
	ForgedHeader()
	ForgedProxy()
	ForgedQuery()
	// FullScraped is a full scrape sent whole.
	FullScraped(bytes int)
}

// Networks tells whether an address lies in some networks.
type Networks interface{ Contains(netip.Addr) bool }

// Access decides which swarms may be shown. Version is another text after each change of that.
type Access interface {
	Permits(hash swarm.InfoHash) bool
	Version() string
}

// Options of a Server.
type Options struct {
	Tracker     Tracker
	Metrics     Metrics
	Now         func() time.Time
	MaxClients  int    // connections at a time; more are answered 503
	PathPrefix  string // of letters, digits, -, _ and /: requests for paths below it are answered too; empty for none
	RedirectURL string // that a browser which asks for / is sent to; empty for none

	ScrapeMaxAge time.Duration // for which caches may keep the answer to a scrape, rounded up to seconds

	// What a client's address is taken from instead of its connection (client.go). Nil is nobody.
	Trusted       Networks // whose headers tell it
	RealIPHeader  string   // the HTTP header that does; empty for none
	ProxyProtocol bool     // a PROXY header before a connection does too
	MayName       Networks // whose announces may name another address in their query

	Stats         Stats        // nil: there are none
	StatsPath     string       // and with .json behind it
	StatsNetworks Networks     // of who may read them; nil is nobody
	FullScrapes   *FullScrapes // nil: there are none
	Looks         *Looks       // with either
	Access        Access       // nil permits all
}

// Bounds of what a client may send and for how long it may dally.
const (
	maxRequestLine = 16 << 10
	maxHeaders     = 8 << 10
	maxBody        = 4 << 10 // read, to find the next request, and thrown away

	readTimeout  = 10 * time.Second // of one request, from its first byte
	writeTimeout = 10 * time.Second
	idleTimeout  = 75 * time.Second // between requests; longer than the 60 s that proxies keep theirs
)

// Server is the front end. Its methods may be called by many goroutines.
type Server struct {
	Options
	app       *fiber.App
	under     string                // what further paths begin with; empty when there are none
	scraped   string                // the Cache-Control of answers to scrapes
	front     atomic.Pointer[front] // when it serves, where there is one
	announces sync.Pool             // of *announce
	scrapes   sync.Pool             // of *scrape
	sending   atomic.Int32          // full scrapes, and dumps
	leaving   atomic.Bool
}

// New returns a server that is not listening yet.
func New(o Options) *Server {
	keep := o.ScrapeMaxAge + time.Second - 1
	s := &Server{Options: o, scraped: cacheControl("public", keep, keep)}
	s.announces.New = func() any { return newAnnounce() }
	s.scrapes.New = func() any { return newScrape() }
	s.app = fiber.New(fiber.Config{
		DisableStartupMessage: true,
		CaseSensitive:         true,
		StrictRouting:         true,
		Concurrency:           o.MaxClients,
		ReadBufferSize:        maxRequestLine + maxHeaders,
		BodyLimit:             maxBody,
		ReadTimeout:           readTimeout,
		WriteTimeout:          writeTimeout,
		IdleTimeout:           idleTimeout,
		ErrorHandler:          s.refuse,
	})
	s.app.Server().CloseOnShutdown = true // tell a client that its connection ends
	s.app.Use(func(c *fiber.Ctx) error {
		c.Set(fiber.HeaderCacheControl, noStore)
		if s.leaving.Load() {
			c.Context().SetConnectionClose()
		}
		return c.Next()
	})
	if o.RedirectURL != "" {
		s.app.Get("/", func(c *fiber.Ctx) error {
			o.Metrics.Invalid(fiber.StatusFound)
			return c.Redirect(o.RedirectURL, fiber.StatusFound)
		})
	}
	paths := []string{"/"}
	if o.PathPrefix != "" {
		s.under = strings.TrimRight(o.PathPrefix, "/") + "/"
		paths = append(paths, s.under, s.under+"+/") // with anything between
	}
	for _, path := range paths {
		// Add, because Get would answer HEAD too, and so announce for who only looks.
		s.app.Add(fiber.MethodGet, path+"announce", s.announce)
		s.app.Add(fiber.MethodGet, path+"scrape", s.scrape)
	}
	if o.Stats != nil || o.FullScrapes != nil {
		s.app.Add(fiber.MethodGet, o.StatsPath, s.stats)
	}
	if o.Stats != nil {
		s.app.Add(fiber.MethodGet, o.StatsPath+".json", s.statsJSON)
	}
	return s
}

// Leave ends each connection with its next answer, so that clients connect anew, where they are sent now. It goes on
// answering.
func (s *Server) Leave() { s.leaving.Store(true) }

// refuse answers what is no announce and no scrape, in plain words.
func (s *Server) refuse(c *fiber.Ctx, err error) error {
	status := fiber.StatusInternalServerError
	var known *fiber.Error
	if errors.As(err, &known) {
		status = known.Code
	}
	s.Metrics.Invalid(status)
	return c.SendStatus(status)
}

func (s *Server) announce(c *fiber.Ctx) error {
	if tooLong(c) {
		return fiber.ErrRequestURITooLong
	}
	r := s.announces.Get().(*announce)
	defer s.announces.Put(r)
	if reason := s.read(r, c.Context().URI().QueryString(), s.remote(c)); reason != "" {
		return s.fail(c, reason)
	}
	s.Tracker.Announce(s.Now(), r.batch[:], r.answered)
	<-r.done
	r.body = r.appendAnswer(r.body[:0])
	return send(c, r.body)
}

func (s *Server) scrape(c *fiber.Ctx) error {
	if tooLong(c) {
		return fiber.ErrRequestURITooLong
	}
	r := s.scrapes.Get().(*scrape)
	defer s.scrapes.Put(r)
	reason := r.parse(c.Context().URI().QueryString())
	if reason == reasonNoScrape {
		if client := s.remote(c); s.mayScrapeAll(client) {
			return s.fullScrape(c, client, "")
		}
	}
	if reason != "" {
		return s.fail(c, reason)
	}
	s.Tracker.Scrape(s.Now(), &r.Scrape, r.answered)
	<-r.done
	r.body = r.appendAnswer(r.body[:0])
	if r.Err == nil {
		c.Set(fiber.HeaderCacheControl, s.scraped)
	}
	return send(c, r.body)
}

// noStore is the Cache-Control of all answers that do not say otherwise: CDNs keep an answer without one for
// minutes up to a day, and an announce that a cache answers is lost.
const noStore = "no-store"

// cacheControl lets caches keep an answer while it is fresh (RFC 9111), and hand out the stale one for some more time to
// who comes while a request for a new one is under way (RFC 5861).
func cacheControl(who string, fresh, stale time.Duration) string {
	return fmt.Sprintf("%s, max-age=%d, stale-while-revalidate=%d", who, fresh/time.Second, stale/time.Second)
}

// fail answers a request that makes no sense. The status is 200: clients show the
// reason only then.
func (s *Server) fail(c *fiber.Ctx, reason string) error {
	s.Metrics.Invalid(fiber.StatusOK)
	return send(c, appendFailure(nil, reason))
}

func send(c *fiber.Ctx, body []byte) error {
	c.Context().SetContentType(fiber.MIMETextPlain)
	c.Context().SetBody(body)
	return nil
}

func tooLong(c *fiber.Ctx) bool {
	h := &c.Request().Header
	return len(h.Method())+len(" ")+len(h.RequestURI())+len(" ")+len(h.Protocol()) > maxRequestLine
}

// announce is one announce with what it needs again and again.
type announce struct {
	swarm.Announce
	compact bool
	forged  bool // its query names an address, and it may name none

	batch    [1]*swarm.Announce // of itself
	answered func([]*swarm.Announce)
	done     chan struct{}
	scratch  []byte
	body     []byte
}

func newAnnounce() *announce {
	r := &announce{done: make(chan struct{}, 1)}
	r.batch[0] = &r.Announce
	r.answered = func([]*swarm.Announce) { r.done <- struct{}{} }
	return r
}

// scrape likewise.
type scrape struct {
	swarm.Scrape

	answered func(*swarm.Scrape)
	done     chan struct{}
	scratch  []byte
	body     []byte
}

func newScrape() *scrape {
	r := &scrape{done: make(chan struct{}, 1)}
	r.answered = func(*swarm.Scrape) { r.done <- struct{}{} }
	return r
}

// The reasons that clients are given for requests that make no sense.
const (
	reasonNoHash   = "Your client forgot to send your torrent's info_hash. Please upgrade your client."
	reasonHashes   = "Your client sent more than one info_hash."
	reasonHashSize = "Your client sent an info_hash that is not 20 bytes long."
	reasonNoPort   = "Your client forgot to send its port."
	reasonPort     = "Your client sent a port that is not a number from 1 to 65535."
	reasonAddress  = "The proxy in front of this tracker did not say your address."
	reasonNamed    = "What your client sent as $ is not such an address."
	reasonNumber   = "What your client sent as $ is not a number."
	reasonOverflow = "What your client sent as $ does not fit 64 bits."
	reasonNoScrape = "A scrape needs an info_hash; this tracker does not list all its torrents."
	reasonScrapes  = "A scrape may name 100 torrents at most."
)

// about names a parameter in a reason.
func about(reason, parameter string) string { return strings.Replace(reason, "$", parameter, 1) }
