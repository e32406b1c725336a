package main

import (
	"fmt"
	"math"
	"os"
	"sort"
	"strings"
	"sync/atomic"
	"time"
)

// stats are added to by all clients at once.
type stats struct {
	answers, peers, failed, lost atomic.Int64
	buckets                      [bucketCount]atomic.Int64 // of latencies
}

// Buckets of latency grow by a twentieth each, from 10 µs on.
const (
	bucketCount = 400
	bucketFirst = 10 * time.Microsecond
	bucketStep  = 1.05
)

func (s *stats) answered(took time.Duration, peers int) {
	s.answers.Add(1)
	s.peers.Add(int64(max(peers, 0)))
	n := math.Log(float64(max(took, bucketFirst))/float64(bucketFirst)) / math.Log(bucketStep)
	s.buckets[min(int(n), bucketCount-1)].Add(1)
}

// percentile is the latency that a share of the answers stayed below.
func (s *stats) percentile(share float64) time.Duration {
	want := int64(math.Ceil(share * float64(s.answers.Load())))
	for n := range s.buckets {
		if want -= s.buckets[n].Load(); want <= 0 {
			return time.Duration(float64(bucketFirst) * math.Pow(bucketStep, float64(n+1)))
		}
	}
	return 0
}

// progress shows each second how it goes.
func (s *stats) progress(done <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for before := int64(0); ; {
		select {
		case <-done:
			return
		case <-tick.C:
			now := s.answers.Load()
			fmt.Fprintf(os.Stderr, "%8d answers/s  p99 %v  failed %d  lost %d\n", now-before, s.percentile(0.99).Round(10*time.Microsecond), s.failed.Load(), s.lost.Load())
			before = now
		}
	}
}

// Result is what is printed.
type Result struct {
	Answers, Failed, Lost int64
	PerSecond             float64
	Peers                 float64            // handed out with an answer, on average
	P50, P90, P99, P999   time.Duration      // in nanoseconds
	CPU                   map[string]float64 // µs an answer, by process
	CPUTotal              float64
}

func (s *stats) result(measured time.Duration, before, after map[string]time.Duration) *Result {
	n := s.answers.Load()
	answers := math.Max(1, float64(n))
	r := &Result{
		Answers: n, Failed: s.failed.Load(), Lost: s.lost.Load(),
		PerSecond: float64(n) / measured.Seconds(),
		Peers:     float64(s.peers.Load()) / answers,
		P50:       s.percentile(0.5), P90: s.percentile(0.9), P99: s.percentile(0.99), P999: s.percentile(0.999),
		CPU: map[string]float64{},
	}
	for name, end := range after {
		r.CPU[name] = float64((end - before[name]).Microseconds()) / answers
		r.CPUTotal += r.CPU[name]
	}
	return r
}

func (r *Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "answers   %d, %.0f a second, with %.1f peers each\n", r.Answers, r.PerSecond, r.Peers)
	fmt.Fprintf(&b, "failed    %d, lost %d\n", r.Failed, r.Lost)
	fmt.Fprintf(&b, "latency   p50 %v  p90 %v  p99 %v  p99.9 %v\n", r.P50, r.P90, r.P99, r.P999)
	names := make([]string, 0, len(r.CPU))
	for name := range r.CPU {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(&b, "CPU       %-10s %6.2f µs an answer\n", name, r.CPU[name])
	}
	if len(names) > 1 {
		fmt.Fprintf(&b, "CPU       %-10s %6.2f µs an answer\n", "all", r.CPUTotal)
	}
	return b.String()
}

// cpuTimes are what processes have used so far, in user and system time (proc(5)).
func cpuTimes(pids map[string]int) (map[string]time.Duration, error) {
	times := map[string]time.Duration{}
	for name, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil, fmt.Errorf("--pid %s: %w", name, err)
		}
		_, rest, _ := strings.Cut(string(b), ") ") // after the name, which may hold spaces
		var state string
		var skip, user, system int64
		if _, err := fmt.Sscan(rest, &state, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &user, &system); err != nil {
			return nil, fmt.Errorf("--pid %s: %w", name, err)
		}
		times[name] = time.Duration(user+system) * (time.Second / 100) // USER_HZ
	}
	return times, nil
}
