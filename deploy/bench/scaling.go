//go:build linux

package main

import (
	"fmt"
	"strconv"
	"time"
)

// world is torrents with six peers each on average, as a tracker of 10 million has them: drawn by Zipf 0.8, so that nine in ten have
// peers, three in four announces are for small swarms, and of 60 million peers the largest swarm would have 500,000.
func world(torrents, window int, flags ...string) work {
	return work{"udp", append([]string{"--torrents", strconv.Itoa(torrents), "--zipf", "0.8", "--peers", strconv.Itoa(6 * torrents),
		"--addresses", "128", "--window", strconv.Itoa(window)}, flags...)}
}

// traffic is what Redis did since it started.
type traffic struct{ commands, in, out, replicated int }

func (b *bench) traffic(masters int) ([]traffic, error) {
	all := make([]traffic, max(1, masters))
	for n := range all {
		t := &all[n]
		for name, value := range map[string]*int{"total_commands_processed": &t.commands, "total_net_input_bytes": &t.in,
			"total_net_output_bytes": &t.out, "total_net_repl_output_bytes": &t.replicated} {
			var err error
			if *value, err = b.info(portRedis+n, name); err != nil {
				return nil, err
			}
		}
		t.out -= t.replicated // which is a part of it
	}
	return all, nil
}

// spent is what an answer took.
type spent struct {
	*result
	commands, in, out, replicated float64
}

// spend announces to servers that know the peers already.
func (b *bench) spend(w work, masters int, pids map[string]int, addr string) (*spent, error) {
	before, err := b.traffic(masters)
	if err != nil {
		return nil, err
	}
	res, err := b.load(w, pids, addr, b.duration, "--fill=false", "--warmup", "0s")
	if err != nil {
		return nil, err
	}
	after, err := b.traffic(masters)
	s := &spent{result: res}
	for n := range after {
		s.commands += float64(after[n].commands-before[n].commands) / float64(res.Answers)
		s.in += float64(after[n].in-before[n].in) / float64(res.Answers)
		s.out += float64(after[n].out-before[n].out) / float64(res.Answers)
		s.replicated += float64(after[n].replicated-before[n].replicated) / float64(res.Answers)
	}
	return s, err
}

// filled starts servers, fills them, and gives large swarms time to be spread. Gateways take no looks at all swarms, whose cost is none of an
// announce's.
func (b *bench) filled(s setup, w work, settle time.Duration) (pids map[string]int, addr string, err error) {
	s.flags = append([]string{"--stats-interval", "0"}, s.flags...)
	if pids, addr, err = s.start(b, w); err != nil {
		return nil, "", err
	}
	if _, err = b.load(w, nil, addr, time.Millisecond); err == nil {
		_, err = b.load(w, nil, addr, time.Millisecond, "--fill=false", "--rate", "2000", "--warmup", settle.String())
	}
	return pids, addr, err
}

// scaling prints what fleets of some sizes cost, at the highest rate, and then what one gateway of a large fleet costs, which
// sees few announces for many peers.
func (b *bench) scaling() error {
	fleets := []struct {
		setup
		window int
	}{
		{setup{gateways: 1, masters: 1}, 2}, {setup{gateways: 1, masters: 3}, 2}, {setup{gateways: 1, masters: 6}, 2},
		{setup{gateways: 2, masters: 1}, 4}, {setup{gateways: 2, masters: 3}, 4}, {setup{gateways: 2, masters: 6}, 4},
		{setup{gateways: 4, masters: 1}, 8}, {setup{gateways: 4, masters: 3}, 8}, {setup{gateways: 4, masters: 6}, 8},
		{setup{gateways: 4, masters: 6}, 2},
		{setup{gateways: 1, masters: 3, replicas: 1}, 2},
		{setup{gateways: 1, masters: 3, replicas: 1, flags: []string{"--wait-replicas", "1"}}, 2},
	}
	results := make([][]*spent, len(fleets))
	for range b.rounds {
		for n, f := range fleets {
			w := world(50_000, f.window)
			pids, addr, err := b.filled(f.setup, w, 10*time.Second)
			var s *spent
			if err == nil {
				s, err = b.spend(w, f.masters, pids, addr)
			}
			b.stop()
			if err != nil {
				return err
			}
			b.note("scaling, %+v: %.1f µs %v, %.0f/s, %+v", f, s.CPUTotal, s.CPU, s.PerSecond, *s)
			results[n] = append(results[n], s)
		}
	}
	b.heading(b.medians()+", 300,000 peers of 50,000 torrents", "gateways", "masters", "replicas", "announces under way", "gateways, µs", "masters, µs", "replicas, µs",
		"all, to one of each", "answers a second")
	one := of(results[0], spentCPU)
	for n, f := range fleets {
		r := results[n]
		replicas := strconv.Itoa(f.masters * f.replicas)
		if len(f.flags) > 0 {
			replicas += ", waited for"
		}
		fmt.Fprintf(b.out, "| %d | %d | %s | %d | %.1f | %.1f | %.1f | **%.2f** | %.0f |\n", f.gateways, f.masters, replicas, 128*f.window, of(r, spentOn("gateway")),
			of(r, spentOn("redis")), of(r, spentOn("replica")), of(r, spentCPU)/one, of(r, func(s *spent) float64 { return s.PerSecond }))
	}
	return b.scaled()
}

func spentCPU(s *spent) float64 { return s.CPUTotal }
func spentOn(servers string) func(*spent) float64 {
	return func(s *spent) float64 { return s.on(servers) }
}

// scaled prints what one gateway costs in worlds that differ in size alone: in each it sees as many announces for a peer as one of 8 or
// of 4 gateways sees where 500,000 announces a second come for 60 million peers, and as many as it can answer.
func (b *bench) scaled() error {
	b.heading("one run, one gateway, three masters with a replica each", "torrents", "peers", "bytes a peer", "announces a second", "gateway, µs", "masters, µs", "replicas, µs",
		"commands", "bytes to Redis", "bytes back", "bytes to replicas", "p99, ms")
	const masters = 3
	for _, torrents := range []int{100_000, 1_000_000} {
		w := world(torrents, 2)
		pids, addr, err := b.filled(setup{masters: masters, replicas: 1}, w, 20*time.Second+time.Duration(torrents/20)*time.Millisecond)
		if err != nil {
			return err
		}
		used := 0
		for n := range masters {
			bytes, err := b.info(portRedis+n, "used_memory_dataset")
			if err != nil {
				return err
			}
			used += bytes
		}
		for _, rate := range []int{torrents * 6 / 1000, torrents * 12 / 1000, 0} {
			s, err := b.spend(world(torrents, 2, "--rate", strconv.Itoa(rate)), masters, pids, addr)
			if err != nil {
				return err
			}
			fmt.Fprintf(b.out, "| %s | %s | %.1f | %.0f | %.1f | %.1f | %.1f | %.1f | %.0f | %.0f | %.0f | %.1f |\n", count(torrents), count(6*torrents), float64(used)/float64(6*torrents),
				s.PerSecond, s.on("gateway"), s.on("redis"), s.on("replica"), s.commands, s.in, s.out, s.replicated, float64(s.P99)/float64(time.Millisecond))
		}
		b.stop()
	}
	return nil
}
