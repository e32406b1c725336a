//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// memory prints what a peer takes in Redis, everything included, for swarms of some sizes.
func (b *bench) memory() error {
	fmt.Fprintln(b.out, "\n| swarms | bytes a peer in Redis | resident bytes of the gateway |\n|---|---|---|")
	for _, shape := range []struct{ swarms, each int }{{1_000_000, 1}, {100_000, 10}, {5_000, 100}, {20, 50_000}} {
		if err := b.shape(shape.swarms, shape.each); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) shape(swarms, each int) error {
	defer b.stop()
	pids, port, err := gatewayOn("", 1).start(b, row{})
	if err != nil {
		return err
	}
	before, err := b.usedMemory()
	if err != nil {
		return err
	}
	r := row{scheme: "udp", load: []string{"--torrents", strconv.Itoa(swarms), "--each", "--peers", strconv.Itoa(swarms * each), "--warmup", "0s"}}
	if _, err := b.load(r, nil, port, time.Millisecond); err != nil {
		return err
	}
	after, err := b.usedMemory()
	if err != nil {
		return err
	}
	resident, err := residentBytes(pids["gateway"])
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "| %d of %d | %.1f | %d MiB |\n", swarms, each, float64(after-before)/float64(swarms*each), resident>>20)
	return nil
}

func (b *bench) usedMemory() (int, error) {
	info, err := b.cli(portRedis, "info", "memory")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, "used_memory:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("no used_memory in %q", info)
}

// residentBytes of a process (proc(5)).
func residentBytes(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	return pages * os.Getpagesize(), err
}
