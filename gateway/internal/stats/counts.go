// Package stats counts what a gateway does, adds the counts of a fleet up, and renders them
// in the shapes that opentracker's /stats gave its readers.
//
//	counters := stats.NewCounters(true)       // what the front ends and the store tell
//	fleet := stats.NewFleet(stats.Options{Store: store, Counters: counters, ...})
//	page, known, err := fleet.Page(ctx, "peer")
//
// Gateways exchange their counts through the store: each publishes its own every few
// seconds and any of them speaks for all. What takes a look at every swarm one of them finds
// out for all, now and then. The addresses of peers are kept in memory only, and cut to
// networks (networks.go).
package stats

import (
	"errors"
	"net/netip"
	"reflect"
	"sync/atomic"

	"swarmgate/swarmstore/swarm"
)

// Counts of one gateway since it started, or of a fleet. All fields are numbers that add
// up, of type uint64, in structs and arrays.
type Counts struct {
	HTTP            Front              `json:"http"`
	UDP             Front              `json:"udp"`
	ConnectionIDs   Families           `json:"udp_connection_ids"`       // given
	WrongIDs        uint64             `json:"udp_wrong_connection_ids"` // met
	InvalidUDP      uint64             `json:"udp_invalid"`              // met with silence or an error
	Downloads       uint64             `json:"downloads"`                // completed, each peer's once
	FullScrapes     uint64             `json:"full_scrapes"`
	FullScrapeBytes uint64             `json:"full_scrape_bytes"`
	Refused         Refused            `json:"http_errors"`
	Renewed         [maxRenewed]uint64 `json:"renewed"` // by minutes since the peer's previous announce
	NumWants        [maxNumWant]uint64 `json:"numwants"`
}

const (
	maxRenewed = 45  // minutes that are told apart, as opentracker's peers last so long
	maxNumWant = 201 // from 0 to the most that is handed out
)

// Front is the counts of one front end.
type Front struct {
	Received  Families `json:"received"` // connections accepted, or datagrams
	Announces struct {
		IPv4 Outcomes `json:"ipv4"`
		IPv6 Outcomes `json:"ipv6"`
	} `json:"announces"`
	Scrapes Outcomes `json:"scrapes"`
}

// Announced are the announces answered with peers.
func (f *Front) Announced() uint64 { return f.Announces.IPv4.OK + f.Announces.IPv6.OK }

// Families counts by the family of the client's address.
type Families struct {
	IPv4 uint64 `json:"ipv4"`
	IPv6 uint64 `json:"ipv6"`
}

func (f *Families) sum() uint64 { return f.IPv4 + f.IPv6 }

// Outcomes counts requests by what they were answered: OK, or one of swarm's errors.
type Outcomes struct {
	OK          uint64 `json:"ok"`
	Unavailable uint64 `json:"unavailable"`
	Busy        uint64 `json:"busy"`
	Full        uint64 `json:"full"`
	Denied      uint64 `json:"denied"`
	Failed      uint64 `json:"error"`
}

// ByResult names the counts as they are named in JSON.
func (o *Outcomes) ByResult() map[string]uint64 {
	return map[string]uint64{"ok": o.OK, "unavailable": o.Unavailable, "busy": o.Busy, "full": o.Full, "denied": o.Denied, "error": o.Failed}
}

func (o *Outcomes) of(err error) *uint64 {
	switch {
	case err == nil:
		return &o.OK
	case errors.Is(err, swarm.ErrUnavailable):
		return &o.Unavailable
	case errors.Is(err, swarm.ErrBusy):
		return &o.Busy
	case errors.Is(err, swarm.ErrFull):
		return &o.Full
	case errors.Is(err, swarm.ErrDenied):
		return &o.Denied
	default:
		return &o.Failed
	}
}

// Refused counts HTTP requests that got no answer, in the classes that opentracker has and
// this tracker knows.
type Refused struct {
	Redirected uint64 `json:"302"`
	Malformed  uint64 `json:"400"`     // no announce, no scrape
	Invalid    uint64 `json:"invalid"` // an announce or a scrape that got a failure reason
	TooSoon    uint64 `json:"402"`     // and 429
	Forbidden  uint64 `json:"403"`
	NotFound   uint64 `json:"404"`
	Failed     uint64 `json:"500"` // and the like
}

// Sum of all classes.
func (r *Refused) Sum() uint64 {
	return r.Redirected + r.Malformed + r.Invalid + r.TooSoon + r.Forbidden + r.NotFound + r.Failed
}

func (r *Refused) of(status int) *uint64 {
	switch {
	case status == 200:
		return &r.Invalid
	case status < 400:
		return &r.Redirected
	case status == 402 || status == 429:
		return &r.TooSoon
	case status == 403:
		return &r.Forbidden
	case status == 404:
		return &r.NotFound
	case status < 500:
		return &r.Malformed
	default:
		return &r.Failed
	}
}

// Add what others counted.
func (c *Counts) Add(others *Counts) {
	each(reflect.ValueOf(c).Elem(), reflect.ValueOf(others).Elem(), func(mine, others *uint64) { *mine += *others })
}

// each calls f for the numbers of two structs or arrays of the same type, in pairs.
func each(a, b reflect.Value, f func(a, b *uint64)) {
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			each(a.Field(i), b.Field(i), f)
		}
	case reflect.Array:
		for i := range a.Len() {
			each(a.Index(i), b.Index(i), f)
		}
	default:
		f(a.Addr().Interface().(*uint64), b.Addr().Interface().(*uint64))
	}
}

// Counters are counts that go on. Their methods may be called by many goroutines, and add
// a batch at a time.
type Counters struct {
	counts   Counts // by atomic operations only
	networks *networks
}

// NewCounters begins at zero; networks says whether the busiest ones shall be known.
func NewCounters(networks bool) *Counters {
	c := &Counters{}
	if networks {
		c.networks = newNetworks()
	}
	return c
}

// Counts so far.
func (c *Counters) Counts() *Counts {
	now := &Counts{}
	each(reflect.ValueOf(now).Elem(), reflect.ValueOf(&c.counts).Elem(), func(now, counter *uint64) { *now = atomic.LoadUint64(counter) })
	return now
}

func add(counter *uint64, n int) {
	if n > 0 {
		atomic.AddUint64(counter, uint64(n))
	}
}

// HTTP and UDP are the counters of the front ends.
func (c *Counters) HTTP() *FrontCounters { return &FrontCounters{c, &c.counts.HTTP, atomic.Uint64{}} }
func (c *Counters) UDP() *FrontCounters  { return &FrontCounters{c, &c.counts.UDP, atomic.Uint64{}} }

// FrontCounters count for one front end.
type FrontCounters struct {
	all   *Counters
	front *Front
	seen  atomic.Uint64 // announces, of which some are sampled
}

// Announced counts announces that are answered, with the numwant that counted.
func (f *FrontCounters) Announced(part []*swarm.Announce) {
	counts := &f.all.counts
	ok4, ok6 := 0, 0
	want, same := 0, 0 // most clients want as many as the one before
	for _, a := range part {
		is4 := a.Peer.Addr().Is4()
		if a.Err != nil {
			family := &f.front.Announces.IPv6
			if is4 {
				family = &f.front.Announces.IPv4
			}
			add(family.of(a.Err), 1)
			continue
		}
		if is4 {
			ok4++
		} else {
			ok6++
		}
		if a.NumWant != want {
			add(&counts.NumWants[want], same)
			want, same = min(max(a.NumWant, 0), maxNumWant-1), 0
		}
		same++
	}
	add(&counts.NumWants[want], same)
	add(&f.front.Announces.IPv4.OK, ok4)
	add(&f.front.Announces.IPv6.OK, ok6)
	if f.all.networks != nil {
		f.sample(part)
	}
}

// networkSample is of how many announces one is looked at for its network.
const networkSample = 64

func (f *FrontCounters) sample(part []*swarm.Announce) {
	after := f.seen.Add(uint64(len(part)))
	for i := int(after % networkSample); i < len(part); i += networkSample {
		f.all.networks.announced(part[len(part)-1-i].Peer.Addr(), networkSample)
	}
}

// Scraped counts a scrape that is answered.
func (f *FrontCounters) Scraped(err error) { add(f.front.Scrapes.of(err), 1) }

// Accepted counts a connection of HTTP.
func (c *Counters) Accepted(client netip.Addr) {
	received := &c.counts.HTTP.Received
	if client.Is4() {
		add(&received.IPv4, 1)
	} else {
		add(&received.IPv6, 1)
	}
}

// InvalidHTTP counts an HTTP request that got this status, or 200 and a failure reason.
func (c *Counters) InvalidHTTP(status int) { add(c.counts.Refused.of(status), 1) }

// FullScraped counts a full scrape.
func (c *Counters) FullScraped(bytes int) {
	add(&c.counts.FullScrapes, 1)
	add(&c.counts.FullScrapeBytes, bytes)
}

// Datagrams counts those of one batch by family, the connection ids that they were given, likewise, and
// those that came with a wrong one.
func (c *Counters) Datagrams(received, ids [2]int, wrong int) {
	add(&c.counts.UDP.Received.IPv4, received[0])
	add(&c.counts.UDP.Received.IPv6, received[1])
	add(&c.counts.ConnectionIDs.IPv4, ids[0])
	add(&c.counts.ConnectionIDs.IPv6, ids[1])
	add(&c.counts.WrongIDs, wrong)
}

// InvalidUDP counts a datagram that was met with silence or an error.
func (c *Counters) InvalidUDP() { add(&c.counts.InvalidUDP, 1) }

// Downloaded counts a completed download.
func (c *Counters) Downloaded() { add(&c.counts.Downloads, 1) }

// Renewed counts times announces of peers like this one, that announced so many minutes before.
func (c *Counters) Renewed(peer netip.Addr, minutes, times int) {
	add(&c.counts.Renewed[min(minutes, maxRenewed-1)], times)
	if c.networks != nil {
		c.networks.renewed(peer, minutes, times)
	}
}
