//go:build linux

package main

import (
	"errors"
	"fmt"
	"slices"
)

// work is what loadtest does.
type work struct {
	scheme string
	load   []string // flags of loadtest
}

// side is the servers that a run measures.
type side struct {
	name  string
	start func(b *bench, w work) (pids map[string]int, addr string, err error)
}

// row is a kind of work, done by two sides.
type row struct {
	name, key string
	work
	ours, other side
}

var (
	zipf     = []string{"--torrents", "10000", "--zipf", "1.1", "--peers", "128000"}
	udpZipf  = work{"udp", zipf}
	httpZipf = work{"http", zipf}

	absorbing = setup{flags: []string{"--repeat-window", "2m"}}
	redis8    = setup{image: "redis:8-alpine"}
	valkey    = setup{image: "valkey/valkey:8.1-alpine"}
)

var tables = []struct {
	key  string
	rows []row
}{
	{"announces", []row{
		{"UDP, 10,000 torrents Zipf 1.1, 128,000 peers", "zipf", udpZipf, ours(setup{}), opentracker},
		{"UDP, 500,000 torrents uniform, 640,000 peers", "uniform",
			work{"udp", []string{"--torrents", "500000", "--zipf", "0", "--peers", "640000"}}, ours(setup{}), opentracker},
		{"UDP, one swarm of 500,000 peers", "one", work{"udp", []string{"--torrents", "1", "--peers", "500000"}}, ours(setup{}), opentracker},
		{"HTTP keep-alive, Zipf (opentracker closes)", "http", httpZipf, ours(setup{}), opentracker},
		{"HTTP, a connection each, Zipf", "close", work{"http", append([]string{"--close"}, zipf...)}, ours(setup{}), opentracker},
		{"UDP Zipf, three masters against one Redis", "cluster", udpZipf, side{"three masters", setup{masters: 3}.start}, side{"one Redis", setup{}.start}},
	}},
	{"others", []row{
		{"UDP Zipf, repeats absorbed", "absorbed", udpZipf, ours(absorbing), opentracker},
		{"HTTP keep-alive Zipf, repeats absorbed", "absorbed-http", httpZipf, ours(absorbing), opentracker},
		{"UDP Zipf, Redis 8 in a container", "redis8", udpZipf, ours(redis8), opentracker},
		{"HTTP keep-alive Zipf, Redis 8 in a container", "redis8-http", httpZipf, ours(redis8), opentracker},
		{"UDP Zipf, Valkey 8.1 in a container", "valkey", udpZipf, ours(valkey), opentracker},
		{"HTTP keep-alive Zipf, Valkey 8.1 in a container", "valkey-http", httpZipf, ours(valkey), opentracker},
	}},
}

func ours(s setup) side { return side{"Swarmgate", s.start} }

// table prints rows.
func (b *bench) table(rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	b.heading(b.medians()+", least and most in brackets", "work", "ratio", "ours, µs", "of which gateway", "the other, µs", "peers an answer, ours / other", "answers a second, ours / other")
	for _, r := range rows {
		var missing *missingError
		switch err := b.compare(r); {
		case errors.As(err, &missing):
			b.note("%s is left out: %v", r.key, missing)
		case err != nil:
			return fmt.Errorf("%s: %w", r.key, err)
		}
	}
	return nil
}

func (b *bench) compare(r row) error {
	results, err := b.turns(r.key, attempt{r.work, r.ours}, attempt{r.work, r.other})
	if err != nil {
		return err
	}
	ours, others := results[0], results[1]
	var ratios []float64
	for n := range ours {
		ratios = append(ratios, ours[n].CPUTotal/others[n].CPUTotal)
	}
	fmt.Fprintf(b.out, "| %s | **%.2f** (%.2f to %.2f) | %.1f | %.1f | %.1f | %.1f / %.1f | %.0f / %.0f |\n", r.name,
		median(ratios), slices.Min(ratios), slices.Max(ratios), of(ours, (*result).cpu), of(ours, (*result).gateways), of(others, (*result).cpu),
		of(ours, (*result).peers), of(others, (*result).peers), of(ours, (*result).rate), of(others, (*result).rate))
	return nil
}
