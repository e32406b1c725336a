//go:build linux

package main

import (
	"fmt"
	"strconv"
	"time"
)

// even is torrents of as many peers each.
func even(torrents, each int) work {
	return work{"udp", []string{"--torrents", strconv.Itoa(torrents), "--each", "--peers", strconv.Itoa(torrents * each)}}
}

// growth prints what an announce costs in swarms of some sizes, with as many peers at every size: each then announces as
// often, and changes as much in Redis.
func (b *bench) growth() error {
	return b.sizes("growth", setup{}, []shape{{500_000, 1}, {500, 1000}, {50, 10_000}, {5, 100_000}, {1, 500_000}})
}

// embedded prints the same of the store in the process, with as many peers at every size, and its announces a second on the usual work.
func (b *bench) embedded() error {
	store := setup{embedded: true}
	results, err := b.turns("embedded", attempt{udpZipf, side{"embedded store", store.start}})
	if err != nil {
		return err
	}
	b.heading(b.medians(), "work", "CPU, µs", "answers a second")
	fmt.Fprintf(b.out, "| UDP Zipf, store in the process | %.1f | %.0f |\n", of(results[0], (*result).cpu), of(results[0], (*result).rate))
	return b.sizes("embedded", store, []shape{{10_000, 10}, {1000, 100}, {100, 1000}, {10, 10_000}})
}

// shape is swarms of as many peers each.
type shape struct{ swarms, each int }

func (b *bench) sizes(key string, s setup, shapes []shape) error {
	var attempts []attempt
	for _, sh := range shapes {
		attempts = append(attempts, attempt{even(sh.swarms, sh.each), side{fmt.Sprintf("%d of %d", sh.swarms, sh.each), s.start}})
	}
	results, err := b.turns(key, attempts...)
	if err != nil {
		return err
	}
	least := of(results[0], (*result).cpu)
	for _, r := range results {
		least = min(least, of(r, (*result).cpu))
	}
	b.heading(b.medians(), "swarms", "CPU, µs", "of which gateway", "to the cheapest", "peers an answer", "answers a second")
	for n, sh := range shapes {
		r := results[n]
		cpu := of(r, (*result).cpu)
		fmt.Fprintf(b.out, "| %s of %s | %.1f | %.1f | **%.2f** | %.1f | %.0f |\n", count(sh.swarms), count(sh.each),
			cpu, of(r, (*result).gateways), cpu/least, of(r, (*result).peers), of(r, (*result).rate))
	}
	return nil
}

// hot prints how the announces of one large swarm spread over the masters of a cluster.
func (b *bench) hot() error {
	defer b.stop()
	const masters, peers = 3, 500_000
	pids, addr, err := setup{masters: masters}.start(b, work{})
	if err != nil {
		return err
	}
	w := even(1, peers)
	if _, err := b.load(w, nil, addr, time.Millisecond, "--warmup", "0s"); err != nil {
		return err
	}
	before, err := b.traffic(masters)
	if err != nil {
		return err
	}
	res, err := b.load(w, pids, addr, b.duration, "--fill=false", "--warmup", "0s")
	if err != nil {
		return err
	}
	after, err := b.traffic(masters)
	if err != nil {
		return err
	}
	all := 0
	for n := range masters {
		all += after[n].commands - before[n].commands
	}
	b.heading(fmt.Sprintf("one swarm of %s peers, %.0f answers a second, %.1f µs each, %.1f of them in the gateway", count(peers), res.PerSecond, res.CPUTotal, res.gateways()),
		"master", "commands a second", "of all", "CPU, µs an answer")
	for n := range masters {
		commands := float64(after[n].commands - before[n].commands)
		fmt.Fprintf(b.out, "| %d | %.0f | %.0f %% | %.1f |\n", n+1, commands/b.duration.Seconds(), 100*commands/float64(all), res.CPU[fmt.Sprintf("redis%d", n)])
	}
	return nil
}
