//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// fullScrape prints what announces cost and how long they take while a million torrents are listed, and while not, at
// a quarter of the rate at which a closed loop found the servers busy.
func (b *bench) fullScrape() error {
	defer b.stop()
	w := even(1_000_000, 1)
	pids, addr, err := setup{flags: []string{"--fullscrape-ttl", "1s"}}.start(b, w)
	if err != nil {
		return err
	}
	busy, err := b.load(w, nil, addr, b.duration)
	if err != nil {
		return err
	}
	rate := strconv.Itoa(max(1, int(busy.PerSecond/4)))
	load := func() (*result, error) {
		return b.load(w, pids, addr, b.duration, "--fill=false", "--warmup", "0s", "--rate", rate)
	}
	type listing struct {
		bytes int64
		took  time.Duration
		err   error
	}
	var without, with []*result
	var sizes, seconds []float64
	for n := range b.rounds {
		alone, err := load()
		if err != nil {
			return err
		}
		listed := make(chan listing, 1)
		go func() {
			start := time.Now()
			bytes, err := list(n, addr)
			listed <- listing{bytes, time.Since(start), err}
		}()
		beside, err := load()
		var l listing
		select {
		case l = <-listed:
			l.err = errors.Join(l.err, errors.New("the list was there before the load ended: less --duration"))
		default:
			l = <-listed
		}
		if err := errors.Join(err, l.err); err != nil {
			return err
		}
		b.note("fullscrape: alone %v, %v, %.1f µs %v; beside %v, %v, %.1f µs %v; %d bytes in %v", alone.P50, alone.P99, alone.CPUTotal, alone.CPU,
			beside.P50, beside.P99, beside.CPUTotal, beside.CPU, l.bytes, l.took)
		without, with = append(without, alone), append(with, beside)
		sizes, seconds = append(sizes, float64(l.bytes)), append(seconds, l.took.Seconds())
	}
	b.heading(fmt.Sprintf("%s, UDP, %s announces a second; the list took %.0f s and had %.1f MB", b.medians(), rate, median(seconds), median(sizes)/1e6),
		"1,000,000 torrents of one peer", "p50, ms", "p99, ms", "CPU, µs", "of which gateway", "failed", "lost")
	for _, side := range []struct {
		name    string
		results []*result
	}{{"announces alone", without}, {"while all torrents are listed", with}} {
		var failed, lost int64
		for _, r := range side.results {
			failed, lost = failed+r.Failed, lost+r.Lost
		}
		fmt.Fprintf(b.out, "| %s | %.2f | %.2f | %.1f | %.1f | %d | %d |\n", side.name,
			of(side.results, func(r *result) float64 { return r.P50.Seconds() * 1000 }),
			of(side.results, func(r *result) float64 { return r.P99.Seconds() * 1000 }),
			of(side.results, (*result).cpu), of(side.results, (*result).gateways), failed, lost)
	}
	return nil
}

// list all torrents, as the nth client, and tell how many bytes that is.
func list(n int, addr string) (int64, error) {
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, byte(n>>8), byte(n))}}
	client := &http.Client{Transport: &http.Transport{DialContext: from.DialContext, DisableKeepAlives: true, DisableCompression: true}}
	response, err := client.Get("http://" + addr + "/scrape")
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, errors.New(response.Status)
	}
	return io.Copy(io.Discard, response.Body)
}
