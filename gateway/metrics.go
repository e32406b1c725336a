package main

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"swarmgate/swarmstore/swarm"
)

// metrics are what the admin listener shows. They satisfy the small interfaces by
// which the other rooms tell what they do.
type metrics struct {
	registry *prometheus.Registry

	announces, scrapes *prometheus.CounterVec   // by transport and result
	invalid            *prometheus.CounterVec   // by transport
	forged             *prometheus.CounterVec   // by kind
	seconds            *prometheus.HistogramVec // by transport and kind

	datagrams prometheus.Histogram
	dropped   prometheus.Counter

	exchangeOps     prometheus.Histogram
	exchangeSeconds prometheus.Histogram
	exchangeErrors  prometheus.Counter
	refused         prometheus.Counter
	views           *prometheus.CounterVec // by result
	absorbed        prometheus.Counter
}

// results that requests are counted by; the names of the errors in swarm.
var results = []struct {
	err  error
	name string
}{
	{swarm.ErrUnavailable, "unavailable"},
	{swarm.ErrBusy, "busy"},
	{swarm.ErrFull, "full"},
}

func newMetrics() *metrics {
	latency := prometheus.ExponentialBuckets(0.0001, 2.5, 12)
	sizes := prometheus.ExponentialBuckets(1, 2, 11)
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "swarmgate", Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: "swarmgate", Name: name, Help: help, Buckets: buckets}
	}
	m := &metrics{
		registry:  prometheus.NewRegistry(),
		announces: prometheus.NewCounterVec(counter("announces_total", "Announces answered."), []string{"transport", "result"}),
		scrapes:   prometheus.NewCounterVec(counter("scrapes_total", "Scrapes answered."), []string{"transport", "result"}),
		invalid:   prometheus.NewCounterVec(counter("invalid_requests_total", "Requests that made no sense."), []string{"transport"}),
		forged:    prometheus.NewCounterVec(counter("forged_addresses_total", "Addresses of clients, in an HTTP header, a PROXY header or a query, from who may name none."), []string{"kind"}),
		seconds:   prometheus.NewHistogramVec(histogram("request_seconds", "From a request read to its answer found.", latency), []string{"transport", "kind"}),

		datagrams: prometheus.NewHistogram(histogram("udp_batch_datagrams", "Datagrams that one call to the kernel gave.", sizes)),
		dropped:   prometheus.NewCounter(counter("udp_dropped_total", "Datagrams lost in full buffers of the kernel, in and out.")),

		exchangeOps:     prometheus.NewHistogram(histogram("store_batch_operations", "Announces and look-ups that one pipeline carried.", sizes)),
		exchangeSeconds: prometheus.NewHistogram(histogram("store_seconds", "What a pipeline took.", latency)),
		exchangeErrors:  prometheus.NewCounter(counter("store_errors_total", "Pipelines that a Redis node did not answer.")),
		refused:         prometheus.NewCounter(counter("store_refused_total", "Announces and look-ups that Redis refused or did not answer.")),
		views:           prometheus.NewCounterVec(counter("views_total", "Swarms looked up in the views: hit, or miss and read."), []string{"result"}),
		absorbed:        prometheus.NewCounter(counter("repeats_absorbed_total", "Repeated announces answered without a write.")),
	}
	m.registry.MustRegister(
		m.announces, m.scrapes, m.invalid, m.forged, m.seconds, m.datagrams, m.dropped,
		m.exchangeOps, m.exchangeSeconds, m.exchangeErrors, m.refused, m.views, m.absorbed,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Exchange, Refused, Views and Absorbed are the store's.
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

// front is the metrics of one front end.
type front struct {
	announces, scrapes             map[string]prometheus.Counter // by result
	invalid                        prometheus.Counter
	header, proxy, query           prometheus.Counter // forged addresses
	announceSeconds, scrapeSeconds prometheus.Observer
}

const (
	resultOK    = "ok"
	resultError = "error"
)

func (m *metrics) front(transport string) *front {
	f := &front{
		announces:       map[string]prometheus.Counter{},
		scrapes:         map[string]prometheus.Counter{},
		invalid:         m.invalid.WithLabelValues(transport),
		header:          m.forged.WithLabelValues("header"),
		proxy:           m.forged.WithLabelValues("proxy"),
		query:           m.forged.WithLabelValues("query"),
		announceSeconds: m.seconds.WithLabelValues(transport, "announce"),
		scrapeSeconds:   m.seconds.WithLabelValues(transport, "scrape"),
	}
	names := []string{resultOK, resultError}
	for _, r := range results {
		names = append(names, r.name)
	}
	for _, name := range names {
		f.announces[name] = m.announces.WithLabelValues(transport, name)
		f.scrapes[name] = m.scrapes.WithLabelValues(transport, name)
	}
	return f
}

func result(err error) string {
	if err == nil {
		return resultOK
	}
	for _, r := range results {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return resultError
}

// Announced and Scraped are the tracker's.
func (f *front) Announced(err error, took time.Duration) {
	f.announces[result(err)].Inc()
	f.announceSeconds.Observe(took.Seconds())
}

func (f *front) Scraped(err error, took time.Duration) {
	f.scrapes[result(err)].Inc()
	f.scrapeSeconds.Observe(took.Seconds())
}

// Invalid and those below are a front end's.
func (f *front) Invalid()      { f.invalid.Inc() }
func (f *front) ForgedHeader() { f.header.Inc() }
func (f *front) ForgedProxy()  { f.proxy.Inc() }
func (f *front) ForgedQuery()  { f.query.Inc() }

// udpFront adds what datagrams have.
type udpFront struct {
	*front
	m *metrics
}

func (f udpFront) Received(datagrams int) { f.m.datagrams.Observe(float64(datagrams)) }
func (f udpFront) Dropped(n int)          { f.m.dropped.Add(float64(n)) }
