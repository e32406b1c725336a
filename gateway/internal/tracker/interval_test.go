package tracker

import (
	"testing"
	"time"

	"swarmgate/swarmstore/swarm"
)

func TestIntervalsGrow(t *testing.T) {
	const minute, ms = time.Minute, time.Millisecond
	for _, test := range []struct {
		name  string
		max   time.Duration
		peers int
		took  time.Duration
		want  time.Duration
	}{
		{"off", 0, 1_000_000, time.Second, 30 * minute},
		{"a small swarm", 60 * minute, 1000, 100 * ms, 30 * minute},
		{"nobody", 60 * minute, 0, 0, 30 * minute},
		{"a third of the way", 60 * minute, 10_000, 0, 40 * minute},
		{"two thirds of the way", 60 * minute, 100_000, 0, 50 * minute},
		{"a large swarm", 60 * minute, 1_000_000, 0, 60 * minute},
		{"a larger one", 60 * minute, 50_000_000, 0, 60 * minute},
		{"a store that is slow", 60 * minute, 1, 316228 * time.Microsecond, 45 * minute},
		{"a store that is too slow", 60 * minute, 1, 10 * time.Second, 60 * minute},
		{"the larger of the two", 60 * minute, 100_000, 316 * ms, 50 * minute},
	} {
		p := Policy{Interval: 30 * minute, IntervalMax: test.max}
		if got := p.interval(test.peers, test.took); got.Round(time.Second) != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		if longest := p.MaxInterval(); longest < test.want*11/10 {
			t.Errorf("%s: the longest interval is %v", test.name, longest)
		}
	}
}

func TestLoadIsSmoothed(t *testing.T) {
	var l load
	start := time.Unix(1_700_000_000, 0)
	now := start
	feed := func(seconds int, took time.Duration) (last time.Duration) {
		for range seconds * 100 {
			now = now.Add(10 * time.Millisecond)
			last = l.add(now, took)
		}
		return last
	}
	for _, step := range []struct {
		seconds  int
		took     time.Duration
		low, top time.Duration
	}{
		{60, 2 * time.Millisecond, 1900 * time.Microsecond, 2100 * time.Microsecond},
		{1, time.Second, 50 * time.Millisecond, 100 * time.Millisecond}, // a moment changes little
		{9, time.Second, 600 * time.Millisecond, 660 * time.Millisecond},
		{50, time.Second, 980 * time.Millisecond, time.Second},
		{60, 2 * time.Millisecond, 2 * time.Millisecond, 6 * time.Millisecond},
	} {
		if got := feed(step.seconds, step.took); got < step.low || got > step.top {
			t.Errorf("after %v: %v, want %v to %v", now.Sub(start), got, step.low, step.top)
		}
	}
	if got := l.add(now.Add(-time.Hour), time.Hour); got > 10*time.Millisecond {
		t.Errorf("a clock that was set back makes %v", got)
	}
}

func TestAnnouncesOfLargeSwarmsComeLater(t *testing.T) {
	v := swarm.NewView(swarm.Part{More: [swarm.Classes]int{0, 0, 1_000_000}}, 0)
	p := Policy{Interval: 1000 * time.Second, MinInterval: 500 * time.Second, IntervalMax: 2000 * time.Second}
	f := New(&fakeStore{view: v}, denying{}, p).Front(&fakeMetrics{})
	for range 100 {
		a := &swarm.Announce{Peer: peer4(1)}
		f.Announce(time.Now(), []*swarm.Announce{a}, func([]*swarm.Announce) {})
		if a.Interval < 1800*time.Second || a.Interval > p.MaxInterval() || a.MinInterval != p.MinInterval {
			t.Fatalf("interval %v, min %v", a.Interval, a.MinInterval)
		}
	}
	f.load.add(time.Now(), time.Hour)
	f.load.took = time.Second // as after a while of this
	a := &swarm.Announce{Peer: peer4(1)}
	f.store = &fakeStore{view: viewOf(1, 0, 0)}
	f.Announce(time.Now(), []*swarm.Announce{a}, func([]*swarm.Announce) {})
	if a.Interval < 1790*time.Second {
		t.Errorf("under load the interval is %v", a.Interval)
	}
}

// What is refused at once does not make the store look quick.
func TestDeniedAnnouncesAreNoLoad(t *testing.T) {
	denied := swarm.InfoHash{1}
	p := Policy{Interval: 1000 * time.Second, IntervalMax: 2000 * time.Second}
	f := New(&fakeStore{view: viewOf(1, 0, 0)}, denying{denied: true}, p).Front(&fakeMetrics{})
	long := time.Now().Add(-time.Hour) // since when a look at the load would count in full
	f.load.at, f.load.took = long, time.Second
	f.Announce(time.Now(), []*swarm.Announce{{InfoHash: denied, Peer: peer4(1)}}, func([]*swarm.Announce) {})
	if f.load.took != time.Second || f.load.at != long {
		t.Errorf("a denied announce makes the load %v", f.load.took)
	}
	f.Announce(time.Now(), []*swarm.Announce{{InfoHash: denied, Peer: peer4(1)}, {Peer: peer4(2)}}, func([]*swarm.Announce) {})
	if f.load.at == long {
		t.Error("what the store answered does not count")
	}
}
