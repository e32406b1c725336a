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
	b.heading("one run each", "swarms", "bytes a peer in Redis", "resident MiB of the gateway")
	for _, ipv6 := range []bool{false, true} {
		if ipv6 {
			// All addresses of a prefix are this machine's, and may be announced from.
			err := b.ip("-6", "route", "add", "local", "fd53::/64", "dev", "lo")
			if err == nil {
				err = os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0)
			}
			if err != nil {
				b.note("IPv6 is left out: %v", err)
				return nil
			}
		}
		for _, shape := range []struct{ swarms, each int }{{1_000_000, 1}, {100_000, 10}, {5_000, 100}, {20, 50_000}} {
			if err := b.shape(shape.swarms, shape.each, ipv6); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) shape(swarms, each int, ipv6 bool) error {
	defer b.stop()
	pids, addr, err := setup{ipv6: ipv6}.start(b, work{})
	if err != nil {
		return err
	}
	before, err := b.info(portRedis, "used_memory")
	if err != nil {
		return err
	}
	w := work{"udp", []string{"--torrents", strconv.Itoa(swarms), "--each", "--peers", strconv.Itoa(swarms * each), "--warmup", "0s"}}
	if _, err := b.load(w, nil, addr, time.Millisecond); err != nil {
		return err
	}
	after, err := b.info(portRedis, "used_memory")
	if err != nil {
		return err
	}
	resident, err := residentBytes(pids["gateway0"])
	if err != nil {
		return err
	}
	family := "IPv4"
	if ipv6 {
		family = "IPv6"
	}
	fmt.Fprintf(b.out, "| %s of %s, %s | %.1f | %d |\n", count(swarms), count(each), family, float64(after-before)/float64(swarms*each), resident>>20)
	return nil
}

// count with a comma before each three digits.
func count(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", count(n/1000), n%1000)
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
