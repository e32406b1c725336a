package tracker

import (
	"math"
	"sync"
	"time"
)

// The interval grows from Policy.Interval to Policy.IntervalMax with the size of a swarm, as an
// announce tells little news of a large one, and with the time that announces take, which
// tells how much the store has to do. Both count by their logarithm, and the larger of the two
// decides.
const (
	growFromPeers, growToPeers = 1_000, 1_000_000
	growFromTime, growToTime   = 100 * time.Millisecond, time.Second

	// loadMemory is how long announces count for what they take: their weight is 1/e then.
	loadMemory = 10 * time.Second
)

// interval that an asker of a swarm with so many peers is given on average, while
// announces take so long.
func (p Policy) interval(peers int, took time.Duration) time.Duration {
	if p.IntervalMax <= p.Interval {
		return p.Interval
	}
	share := max(growth(float64(peers), growFromPeers, growToPeers), growth(float64(took), float64(growFromTime), float64(growToTime)))
	return p.Interval + time.Duration(share*float64(p.IntervalMax-p.Interval))
}

// growth is 0 up to from, and 1 from to on.
func growth(value, from, to float64) float64 {
	if value <= from {
		return 0
	}
	return min(math.Log(value/from)/math.Log(to/from), 1)
}

// load is a smoothed measure of what announces take.
type load struct {
	mu   sync.Mutex
	at   time.Time
	took time.Duration
}

// add tells of announces that came back at now, and returns what they take.
func (l *load) add(now time.Time, took time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	passed := now.Sub(l.at)
	if passed <= 0 {
		return l.took // a part of the same batch, or one that was overtaken
	}
	weight := 1 - math.Exp(-float64(passed)/float64(loadMemory))
	l.at = now
	l.took += time.Duration(weight * float64(took-l.took))
	return l.took
}
