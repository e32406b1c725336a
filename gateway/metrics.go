package main

import (
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"swarmgate/gateway/internal/stats"
	"swarmgate/swarmstore"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy"
)

// metrics are what the admin listener shows. They satisfy the small interfaces by
// which the other rooms tell what they do.
type metrics struct {
	registry *prometheus.Registry

	counters *stats.Counters
	forged   *prometheus.CounterVec   // by kind
	seconds  *prometheus.HistogramVec // by transport and kind

	datagrams prometheus.Histogram
	dropped   prometheus.Counter

	exchangeOps     prometheus.Histogram
	exchangeSeconds prometheus.Histogram
	exchangeErrors  prometheus.Counter
	refused         prometheus.Counter
	views           *prometheus.CounterVec // by result
	absorbed        prometheus.Counter

	lostEvents prometheus.Counter
}

// newMetrics are all zero; networks says whether the busiest ones shall be known.
func newMetrics(networks bool) *metrics {
	latency := prometheus.ExponentialBuckets(0.0001, 2.5, 12)
	sizes := prometheus.ExponentialBuckets(1, 2, 11)
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "swarmgate", Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: "swarmgate", Name: name, Help: help, Buckets: buckets}
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		counters: stats.NewCounters(networks),
		forged:   prometheus.NewCounterVec(counter("forged_addresses_total", "Addresses of clients, in an HTTP header, a PROXY header or a query, from who may name none."), []string{"kind"}),
		seconds:  prometheus.NewHistogramVec(histogram("request_seconds", "From a request read to its answer found.", latency), []string{"transport", "kind"}),

		datagrams: prometheus.NewHistogram(histogram("udp_batch_datagrams", "Datagrams that one call to the kernel gave.", sizes)),
		dropped:   prometheus.NewCounter(counter("udp_dropped_total", "Datagrams lost in full buffers of the kernel, in and out.")),

		exchangeOps:     prometheus.NewHistogram(histogram("store_batch_operations", "Announces and look-ups that one pipeline carried.", sizes)),
		exchangeSeconds: prometheus.NewHistogram(histogram("store_seconds", "What a pipeline took.", latency)),
		exchangeErrors:  prometheus.NewCounter(counter("store_errors_total", "Pipelines that a Redis node did not answer.")),
		refused:         prometheus.NewCounter(counter("store_refused_total", "Announces and look-ups that Redis refused or did not answer.")),
		views:           prometheus.NewCounterVec(counter("views_total", "Swarms looked up in the views: hit, or miss and read."), []string{"result"}),
		absorbed:        prometheus.NewCounter(counter("repeats_absorbed_total", "Repeated announces answered without a write.")),

		lostEvents: prometheus.NewCounter(counter("completed_events_lost_total", "Events of --completed-events that came too fast, or that Redis did not take.")),
	}
	m.registry.MustRegister(
		countsCollector{m.counters}, m.forged, m.seconds, m.datagrams, m.dropped,
		m.exchangeOps, m.exchangeSeconds, m.exchangeErrors, m.refused, m.views, m.absorbed, m.lostEvents,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Exchange, Refused, Views, Absorbed and Renewed are the store's.
func (m *metrics) Exchange(ops int, took time.Duration, failed bool) {
	m.exchangeOps.Observe(float64(ops))
	m.exchangeSeconds.Observe(took.Seconds())
	if failed {
		m.exchangeErrors.Inc()
	}
}

func (m *metrics) Refused() { m.refused.Inc() }

func (m *metrics) Views(hits, misses int) {
	m.views.WithLabelValues("hit").Add(float64(hits))
	m.views.WithLabelValues("miss").Add(float64(misses))
}

func (m *metrics) Absorbed(n int) { m.absorbed.Add(float64(n)) }

func (m *metrics) lost(events int) { m.lostEvents.Add(float64(events)) }
func (m *metrics) Renewed(peer netip.Addr, minutes int) {
	m.counters.Renewed(peer, minutes, swarmstore.RenewalSample)
}

// countsCollector shows what the statistics count.
type countsCollector struct{ counters *stats.Counters }

func (c countsCollector) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

func (c countsCollector) Collect(to chan<- prometheus.Metric) {
	counter := func(name, help string, labels ...string) func(n uint64, values ...string) {
		desc := prometheus.NewDesc("swarmgate_"+name, help, labels, nil)
		return func(n uint64, values ...string) {
			to <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), values...)
		}
	}
	announces := counter("announces_total", "Announces answered.", "transport", "result")
	scrapes := counter("scrapes_total", "Scrapes answered.", "transport", "result")
	invalid := counter("invalid_requests_total", "Requests that made no sense.", "transport")
	connections := counter("http_connections_total", "Connections accepted.", "family")
	ids := counter("udp_connection_ids_total", "Connection ids given.", "family")
	wrongIDs := counter("udp_wrong_connection_ids_total", "Datagrams with a wrong or an old connection id.")
	downloads := counter("downloads_total", "Completed downloads.")

	counts := c.counters.Counts()
	for transport, f := range map[string]*stats.Front{"http": &counts.HTTP, "udp": &counts.UDP} {
		ipv6 := f.Announces.IPv6.ByResult()
		for result, n := range f.Announces.IPv4.ByResult() {
			announces(n+ipv6[result], transport, result)
		}
		for result, n := range f.Scrapes.ByResult() {
			scrapes(n, transport, result)
		}
	}
	invalid(counts.Refused.Sum()-counts.Refused.Redirected, "http")
	invalid(counts.InvalidUDP, "udp")
	connections(counts.HTTP.Received.IPv4, "ipv4")
	connections(counts.HTTP.Received.IPv6, "ipv6")
	ids(counts.ConnectionIDs.IPv4, "ipv4")
	ids(counts.ConnectionIDs.IPv6, "ipv6")
	wrongIDs(counts.WrongIDs)
	downloads(counts.Downloads)
}

// front is the metrics of one front end.
type front struct {
	*stats.FrontCounters
	header, proxy, query           prometheus.Counter // forged addresses
	announceSeconds, scrapeSeconds prometheus.Observer
}

func (m *metrics) front(transport string, counters *stats.FrontCounters) *front {
	return &front{
		FrontCounters:   counters,
		header:          m.forged.WithLabelValues("header"),
		proxy:           m.forged.WithLabelValues("proxy"),
		query:           m.forged.WithLabelValues("query"),
		announceSeconds: m.seconds.WithLabelValues(transport, "announce"),
		scrapeSeconds:   m.seconds.WithLabelValues(transport, "scrape"),
	}
}

// Announced and Scraped are the tracker's.
func (f *front) Announced(part []*swarm.Announce, took time.Duration) {
	f.FrontCounters.Announced(part)
	for range part {
		f.announceSeconds.Observe(took.Seconds())
	}
}

func (f *front) Scraped(err error, took time.Duration) {
	f.FrontCounters.Scraped(err)
	f.scrapeSeconds.Observe(took.Seconds())
}

// ForgedHeader and those below are a front end's.
func (f *front) ForgedHeader() { f.header.Inc() }
func (f *front) ForgedProxy()  { f.proxy.Inc() }
func (f *front) ForgedQuery()  { f.query.Inc() }

// httpMetrics adds what connections have.
type httpMetrics struct {
	*front
	counters *stats.Counters
}

func (f httpMetrics) Accepted(client netip.Addr) { f.counters.Accepted(client) }
func (f httpMetrics) Invalid(status int)         { f.counters.InvalidHTTP(status) }
func (f httpMetrics) FullScraped(bytes int)      { f.counters.FullScraped(bytes) }

// udpMetrics adds what datagrams have.
type udpMetrics struct {
	*front
	m *metrics
}

func (f udpMetrics) Received(b udpproxy.Batch) {
	f.m.datagrams.Observe(float64(b.Datagrams[0] + b.Datagrams[1]))
	f.m.counters.Datagrams(b.Datagrams, b.GotID, b.WrongID)
}
func (f udpMetrics) Dropped(n int) { f.m.dropped.Add(float64(n)) }
func (f udpMetrics) Invalid()      { f.m.counters.InvalidUDP() }
