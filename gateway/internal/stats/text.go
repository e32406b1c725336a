package stats

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Report is what is known of a fleet. Its JSON is a page too.
type Report struct {
	Time      int64   `json:"time"` // Unix time
	Version   string  `json:"version"`
	TrackerID uint32  `json:"tracker_id"` // of the gateway that answers
	Gateways  int     `json:"gateways"`
	Uptime    int64   `json:"uptime"` // seconds since the oldest gateway started
	Swarms    Summary `json:"swarms"`
	Counts    Counts  `json:"counts"`

	// Of the gateway that answers only.
	Busiest     []Networks `json:"busiest_networks"`
	Woodpeckers []Networks `json:"woodpeckers"`
}

// Page is the report in the shape of a mode of opentracker's. known is false for a mode that
// it has not.
func (f *Fleet) Page(ctx context.Context, mode string) (page []byte, known bool, err error) {
	render := pages[mode]
	if render == nil {
		return nil, false, nil
	}
	report, err := f.Report(ctx)
	if err != nil {
		return nil, true, err
	}
	var b strings.Builder
	render(report, &b)
	return []byte(b.String()), true, nil
}

// pages by their modes. What scripts parse of them stays as it was, down to the newline that
// some do not end with.
var pages = map[string]func(*Report, io.Writer){
	"everything":  (*Report).everything,
	"version":     func(r *Report, w io.Writer) { fmt.Fprintln(w, r.Version) },
	"peer":        func(r *Report, w io.Writer) { r.serving(w, r.Swarms.Peers, r.Swarms.Seeds) },
	"torr":        func(r *Report, w io.Writer) { r.serving(w, r.Swarms.Torrents, 0) },
	"conn":        (*Report).connections,
	"syncs":       (*Report).syncs,
	"tcp4":        func(r *Report, w io.Writer) { r.family(w, "tcp4") },
	"tcp6":        func(r *Report, w io.Writer) { r.family(w, "tcp6") },
	"udp4":        func(r *Report, w io.Writer) { r.family(w, "udp4") },
	"udp6":        func(r *Report, w io.Writer) { r.family(w, "udp6") },
	"scrp":        (*Report).scrapes,
	"fscr":        (*Report).fullScrapes,
	"completed":   (*Report).completed,
	"top10":       func(r *Report, w io.Writer) { r.top(w, 10) },
	"top100":      func(r *Report, w io.Writer) { r.top(w, 100) },
	"renew":       (*Report).renewals,
	"numwants":    (*Report).numWants,
	"herr":        (*Report).httpErrors,
	"s24s":        func(r *Report, w io.Writer) { networksPage(w, r.Busiest) },
	"woodpeckers": func(r *Report, w io.Writer) { networksPage(w, r.Woodpeckers) },
}

// JSON is the whole report.
func (f *Fleet) JSON(ctx context.Context) ([]byte, error) {
	report, err := f.Report(ctx)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(report, "", "  ")
}

func (r *Report) serving(w io.Writer, first, second uint64) {
	fmt.Fprintf(w, "%d\n%d\nopentracker serving %d torrents\nopentracker", first, second, r.Swarms.Torrents)
}

// mrtg is two numbers, the uptime, and a line about them.
func (r *Report) mrtg(w io.Writer, first, second uint64, format string, args ...any) {
	fmt.Fprintf(w, "%d\n%d\n%d seconds (%d hours)\n", first, second, r.Uptime, r.Uptime/3600)
	fmt.Fprintf(w, format, args...)
}

// perSecond is the average of all the time that the fleet is up.
func (r *Report) perSecond(n uint64) uint64 { return n / uint64(max(r.Uptime, 1)) }

// all connections and datagrams, and those answered with peers or a connection id.
func (r *Report) all() (received, answered uint64) {
	c := &r.Counts
	return c.HTTP.Received.sum() + c.UDP.Received.sum(), c.HTTP.Announced() + c.UDP.Announced() + c.ConnectionIDs.sum()
}

func (r *Report) rates(received, answered uint64) string {
	return fmt.Sprintf("%d conns/s :: %d success/s.", r.perSecond(received), r.perSecond(answered))
}

func (r *Report) connections(w io.Writer) {
	received, answered := r.all()
	r.mrtg(w, received, answered, "opentracker connections, %s", r.rates(received, answered))
}

func (r *Report) syncs(w io.Writer) {
	r.mrtg(w, r.Swarms.Replicated, 0, "opentracker connections, %s", r.rates(r.all()))
}

func (r *Report) family(w io.Writer, name string) {
	c := &r.Counts
	var received, answered uint64
	switch name {
	case "tcp4":
		received, answered = c.HTTP.Received.IPv4, c.HTTP.Announces.IPv4.OK
	case "tcp6":
		received, answered = c.HTTP.Received.IPv6, c.HTTP.Announces.IPv6.OK
	case "udp4":
		received, answered = c.UDP.Received.IPv4, c.UDP.Announces.IPv4.OK+c.ConnectionIDs.IPv4
	case "udp6":
		received, answered = c.UDP.Received.IPv6, c.UDP.Announces.IPv6.OK+c.ConnectionIDs.IPv6
	}
	r.mrtg(w, received, answered, "opentracker %s stats, %s", name, r.rates(received, answered))
}

func (r *Report) scrapes(w io.Writer) {
	tcp, udp := r.Counts.HTTP.Scrapes.OK, r.Counts.UDP.Scrapes.OK
	r.mrtg(w, tcp, udp, "opentracker scrape stats, %d scrape/s (tcp and udp)", r.perSecond(tcp+udp))
}

// fullScrapes come times 1000, so that MRTG, which draws whole numbers, shows how many a second there are.
func (r *Report) fullScrapes(w io.Writer) {
	n, size := r.Counts.FullScrapes, r.Counts.FullScrapeBytes
	r.mrtg(w, n*1000, size, "opentracker full scrape stats, %d conns/s :: %d bytes/s.", r.perSecond(n), r.perSecond(size))
}

func (r *Report) completed(w io.Writer) {
	hours := uint64(max(r.Uptime/3600, 1))
	r.mrtg(w, r.Counts.Downloads, 0, "opentracker, %d completed/h.", r.Counts.Downloads/hours)
}

func (r *Report) top(w io.Writer, n int) {
	for _, list := range []struct {
		by string
		top
	}{{"peers", r.Swarms.TopPeers}, {"seeds", r.Swarms.TopSeeds}, {"leechers", r.Swarms.TopLeechers}} {
		fmt.Fprintf(w, "Top %d torrents by %s:\n", n, list.by)
		for _, t := range list.top[:min(n, len(list.top))] {
			fmt.Fprintf(w, "\t%d\t%s\n", t.Count, t.InfoHash)
		}
	}
}

func (r *Report) renewals(w io.Writer) {
	for minutes, n := range r.Counts.Renewed {
		fmt.Fprintf(w, "%02d %d\n", minutes, n)
	}
}

func (r *Report) numWants(w io.Writer) {
	for want, n := range r.Counts.NumWants {
		fmt.Fprintf(w, "%03d => %d\n", want, n)
	}
}

// httpErrors names the classes as opentracker does. compact=0 is answered here.
func (r *Report) httpErrors(w io.Writer) {
	e := &r.Counts.Refused
	fmt.Fprintf(w, "302 RED %d\n400 ... %d\n400 PAR %d\n400 COM %d\n403 IP  %d\n404 INV %d\n500 SRV %d\n",
		e.Redirected, e.Malformed, e.Invalid, 0, e.Forbidden, e.NotFound, e.Failed)
}

func networksPage(w io.Writer, lists []Networks) {
	for _, l := range lists {
		fmt.Fprintf(w, "Networks, limit /%d:\n", l.Bits)
		for _, n := range l.Top {
			fmt.Fprintf(w, "%08d: %s\n", n.Count, n.Addr)
		}
		fmt.Fprintln(w)
	}
}
