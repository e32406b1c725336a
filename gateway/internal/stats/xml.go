package stats

import (
	"encoding/xml"
	"fmt"
	"io"
)

// count is an element that holds a number, as most of opentracker's do.
type count struct {
	N uint64 `xml:"count"`
}

// counted is one of several, told apart by an attribute.
type counted struct {
	Interval string `xml:"interval,attr,omitempty"`
	Code     string `xml:"code,attr,omitempty"`
	N        uint64 `xml:",chardata"`
}

// everything is opentracker's XML, with its names.
type everything struct {
	XMLName   xml.Name `xml:"stats"`
	TrackerID uint32   `xml:"tracker_id"`
	Version   string   `xml:"version"`
	Uptime    int64    `xml:"uptime"`
	Torrents  struct {
		Mutex    uint64 `xml:"count_mutex"`
		Iterator uint64 `xml:"count_iterator"`
	} `xml:"torrents"`
	Peers       count `xml:"peers"`
	Seeds       count `xml:"seeds"`
	Completed   count `xml:"completed"`
	Connections struct {
		TCP struct {
			Accept   uint64 `xml:"accept"`
			Announce uint64 `xml:"announce"`
			Scrape   uint64 `xml:"scrape"`
		} `xml:"tcp"`
		UDP struct {
			Overall  uint64 `xml:"overall"`
			Connect  uint64 `xml:"connect"`
			Announce uint64 `xml:"announce"`
			Scrape   uint64 `xml:"scrape"`
			Mismatch uint64 `xml:"missmatch"` // as opentracker spells it
		} `xml:"udp"`
		Livesync count `xml:"livesync"`
	} `xml:"connections"`
	Renew      []counted `xml:"debug>renew>count"`
	HTTPErrors []counted `xml:"debug>http_error>count"`
	MutexStall uint64    `xml:"debug>mutex_stall>count"` // of opentracker's own locks: none here
}

func (r *Report) everything(w io.Writer) {
	c, s := &r.Counts, &r.Swarms
	x := everything{
		TrackerID: r.TrackerID,
		Version:   r.Version,
		Uptime:    r.Uptime,
		Peers:     count{s.Peers},
		Seeds:     count{s.Seeds},
		Completed: count{c.Downloads},
	}
	x.Torrents.Mutex, x.Torrents.Iterator = s.Torrents, s.Torrents
	tcp, udp := &x.Connections.TCP, &x.Connections.UDP
	tcp.Accept, tcp.Announce, tcp.Scrape = c.HTTP.Received.sum(), c.HTTP.Announced(), c.HTTP.Scrapes.OK
	udp.Overall, udp.Connect, udp.Announce = c.UDP.Received.sum(), c.ConnectionIDs.sum(), c.UDP.Announced()
	udp.Scrape, udp.Mismatch = c.UDP.Scrapes.OK, c.WrongIDs
	x.Connections.Livesync.N = s.Replicated
	for minutes, n := range c.Renewed {
		x.Renew = append(x.Renew, counted{Interval: fmt.Sprintf("%02d", minutes), N: n})
	}
	e := &c.Refused
	for _, class := range []struct {
		code string
		n    uint64
	}{
		{"302 Redirect", e.Redirected},
		{"400 Parse Error", e.Malformed},
		{"400 Invalid Parameter", e.Invalid},
		{"400 Invalid Parameter (compact=0)", 0},
		{"400 Not Modest", 0},
		{"402 Payment Required", e.TooSoon},
		{"403 Access Denied", e.Forbidden},
		{"404 Not found", e.NotFound},
		{"500 Internal Server Error", e.Failed},
	} {
		x.HTTPErrors = append(x.HTTPErrors, counted{Code: class.code, N: class.n})
	}
	_, _ = io.WriteString(w, xml.Header)
	encoder := xml.NewEncoder(w)
	encoder.Indent("", "  ")
	_ = encoder.Encode(x) // of numbers and texts to memory: it cannot fail
}
