//go:build linux

package main

import (
	"fmt"
	"strconv"
	"time"
)

// latency prints how long answers take at half of the rate at which a closed loop found the servers busy.
func (b *bench) latency() error {
	b.heading(b.medians()+", lost and failed of all", "work", "highest rate", "rate", "p50, ms", "p99, ms", "p99.9, ms", "answers", "failed", "lost")
	for _, w := range []struct {
		name string
		work
	}{{"UDP Zipf", udpZipf}, {"HTTP keep-alive Zipf", httpZipf}} {
		var highest, halves []*result
		var answers, failed, lost int64
		for range b.rounds {
			busy, half, err := b.half(w.work)
			if err != nil {
				return err
			}
			b.note("latency, %s: %.0f/s at most, %.0f/s in %v, %v, %v, %d failed, %d lost", w.name, busy.PerSecond, half.PerSecond, half.P50, half.P99, half.P999, half.Failed, half.Lost)
			highest, halves = append(highest, busy), append(halves, half)
			answers, failed, lost = answers+half.Answers, failed+half.Failed, lost+half.Lost
		}
		ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		fmt.Fprintf(b.out, "| %s | %.0f | %.0f | %.1f | %.1f | %.1f | %d | %d | %d |\n", w.name, of(highest, (*result).rate), of(halves, (*result).rate),
			of(halves, func(r *result) float64 { return ms(r.P50) }),
			of(halves, func(r *result) float64 { return ms(r.P99) }),
			of(halves, func(r *result) float64 { return ms(r.P999) }), answers, failed, lost)
	}
	return nil
}

func (b *bench) half(w work) (busy, half *result, err error) {
	defer b.stop()
	_, addr, err := setup{}.start(b, w)
	if err != nil {
		return nil, nil, err
	}
	if busy, err = b.load(w, nil, addr, b.duration); err != nil {
		return nil, nil, err
	}
	half, err = b.load(w, nil, addr, b.duration, "--fill=false", "--rate", strconv.Itoa(max(1, int(busy.PerSecond/2))))
	return busy, half, err
}
