package stats

import (
	"context"
	"encoding/json"
	"errors"
	"hash/crc32"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"swarmgate/swarmstore/swarm"
)

// Store is where the gateways of a fleet meet.
type Store interface {
	Publish(ctx context.Context, now time.Time, id string, state []byte) error
	Fleet(ctx context.Context, now time.Time) (map[string][]byte, error)
	Leave(ctx context.Context, id string) error

	Lead(ctx context.Context, holder string, ttl time.Duration) (bool, error)
	Resign(ctx context.Context, holder string) error
	PutSummary(ctx context.Context, summary []byte, ttl time.Duration) error
	Summary(ctx context.Context) ([]byte, error)

	Replicated(ctx context.Context) (bytes uint64, err error)
}

// Swarms lists every swarm there is.
type Swarms interface {
	Scan(ctx context.Context, now func() time.Time, yield func([]swarm.Entry) error) error
}

// Options of a Fleet.
type Options struct {
	Store    Store
	Swarms   Swarms
	Permits  func(swarm.InfoHash) bool // whether a swarm may be shown by its info hash
	Counters *Counters
	ID       string        // of this gateway, unlike all others
	Version  string        // a line of text
	Interval time.Duration // between looks at all swarms; 0: none is taken
	Now      func() time.Time
	Log      *slog.Logger
}

const (
	// publishEvery is how often a gateway tells the others its counts.
	publishEvery = 5 * time.Second

	// reportTTL is how long a report answers further requests.
	reportTTL = time.Second

	// storeTimeout bounds what is asked of the store at once.
	storeTimeout = 2 * time.Second

	// leadTTL is how long after the death of the gateway that looks at all swarms another may.
	leadTTL = 30 * time.Second

	// summaryTTL is how much longer than the interval a summary lasts: the next may take long.
	summaryTTL = time.Hour
)

// Fleet speaks for all gateways. Its methods may be called by many goroutines.
type Fleet struct {
	Options
	started time.Time
	asking  singleflight.Group
	last    atomic.Pointer[asked]
}

// asked is the last report, or why there is none.
type asked struct {
	at     time.Time
	report *Report
	err    error
}

// NewFleet returns the fleet as this gateway, which starts now, sees it.
func NewFleet(o Options) *Fleet { return &Fleet{Options: o, started: o.Now()} }

// state is what a gateway publishes.
type state struct {
	Started int64   `json:"started"` // Unix time
	Counts  *Counts `json:"counts"`
}

func (f *Fleet) state() state { return state{f.started.Unix(), f.Counters.Counts()} }

// Run publishes and summarizes until ctx ends, and then takes back what this gateway
// published.
func (f *Fleet) Run(ctx context.Context) {
	summaries := make(chan struct{})
	go func() { // which may take longer than what was published counts
		defer close(summaries)
		if f.Interval > 0 {
			repeat(ctx, min(f.Interval, publishEvery), func() { f.tell("summary", f.Summarize(ctx)) })
		}
	}()
	decayed := f.Now()
	repeat(ctx, publishEvery, func() {
		f.tell("counts", f.publish(ctx))
		if now := f.Now(); f.Counters.networks != nil && now.Sub(decayed) >= decayEvery {
			f.Counters.networks.decay()
			decayed = now
		}
	})
	<-summaries
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	f.tell("leaving", f.Store.Leave(leaving, f.ID))
}

// repeat calls do now and each interval until ctx ends.
func repeat(ctx context.Context, interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		do()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

func (f *Fleet) tell(what string, err error) {
	if err != nil {
		f.Log.Debug("statistics", "of", what, "error", err)
	}
}

func (f *Fleet) publish(ctx context.Context) error {
	text, err := json.Marshal(f.state())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return f.Store.Publish(ctx, f.Now(), f.ID, text)
}

// Summarize looks at all swarms, if that is due and no other gateway does.
func (f *Fleet) Summarize(ctx context.Context) error {
	if due, err := f.due(ctx); err != nil || !due {
		return err
	}
	if leads, err := f.lead(ctx); err != nil || !leads {
		return err
	}
	due, err := f.due(ctx) // still, or has another gateway just done it?
	if err == nil && due {
		err = f.lookAtAll(ctx)
	}
	// Where a look failed, the next one waits until the lead is over.
	if err == nil || ctx.Err() != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
		defer cancel()
		f.tell("leading", f.Store.Resign(ctx, f.ID))
		return nil
	}
	f.Log.Warn("statistics: the look at all swarms failed", "error", err)
	return nil
}

// due tells whether the last summary is old enough.
func (f *Fleet) due(ctx context.Context) (bool, error) {
	last, err := f.summary(ctx)
	return err == nil && (last.Time == 0 || f.Now().Sub(time.Unix(last.Time, 0)).Abs() >= f.Interval), err
}

// lookAtAll swarms, as long as this gateway leads, and keep what that tells.
func (f *Fleet) lookAtAll(ctx context.Context) error {
	began := f.Now()
	s := newSummary()
	err := f.whileLeading(ctx, func(ctx context.Context) error {
		return f.Swarms.Scan(ctx, f.Now, func(part []swarm.Entry) error {
			for i := range part {
				s.add(&part[i])
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if s.Replicated, err = f.Store.Replicated(ctx); err != nil {
		f.tell("replication", err) // the rest is worth having
	}
	s.Time = f.Now().Unix()
	s.Took = f.Now().Sub(began).Seconds()
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return f.Store.PutSummary(ctx, text, f.Interval+summaryTTL)
}

func (f *Fleet) lead(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return f.Store.Lead(ctx, f.ID, leadTTL)
}

var errOther = errors.New("another gateway looks at all swarms")

// whileLeading does what takes long, as long as this gateway leads.
func (f *Fleet) whileLeading(ctx context.Context, do func(context.Context) error) error {
	leading, end := context.WithCancelCause(ctx)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		repeat(leading, leadTTL/3, func() {
			switch leads, err := f.lead(leading); {
			case err != nil:
				end(err)
			case !leads:
				end(errOther)
			}
		})
	}()
	err := do(leading)
	if err != nil && context.Cause(leading) != nil {
		err = context.Cause(leading)
	}
	end(nil)
	<-renewed
	return err
}

// summary is the last one of the fleet, empty when there is none.
func (f *Fleet) summary(ctx context.Context) (*Summary, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	s := newSummary()
	text, err := f.Store.Summary(ctx)
	if err == nil && text != nil {
		err = json.Unmarshal(text, s)
	}
	return s, err
}

// Report is what is known of the fleet, a second old at most. However many ask, the store
// is asked once a second.
func (f *Fleet) Report(ctx context.Context) (*Report, error) {
	if last := f.last.Load(); last != nil && f.Now().Sub(last.at).Abs() < reportTTL {
		return last.report, last.err
	}
	found, _, _ := f.asking.Do("", func() (any, error) {
		last := f.last.Load()
		if last == nil || f.Now().Sub(last.at).Abs() >= reportTTL {
			report, err := f.ask(context.WithoutCancel(ctx)) // for all who wait
			last = &asked{f.Now(), report, err}
			f.last.Store(last)
		}
		return last, nil
	})
	last := found.(*asked)
	return last.report, last.err
}

// ask the store. The counts of this gateway are those of now.
func (f *Fleet) ask(ctx context.Context) (*Report, error) {
	own := f.state()
	now := f.Now()
	r := &Report{
		Time:      now.Unix(),
		Version:   f.Version,
		TrackerID: crc32.ChecksumIEEE([]byte(f.ID)),
		Gateways:  1,
		Counts:    *own.Counts,
	}
	r.Busiest, r.Woodpeckers = f.Counters.networks.tops()

	asking, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	others, err := f.Store.Fleet(asking, now)
	if err != nil {
		return nil, err
	}
	delete(others, f.ID)
	started := own.Started
	for _, text := range others {
		other := state{Counts: &Counts{}}
		if err := json.Unmarshal(text, &other); err != nil {
			f.tell("another gateway", err) // of a version that is to come
			continue
		}
		r.Gateways++
		r.Counts.Add(other.Counts)
		started = min(started, other.Started)
	}
	r.Uptime = max(0, now.Unix()-started)
	swarms, err := f.summary(ctx)
	if err != nil {
		return nil, err
	}
	for _, list := range [...]*top{&swarms.TopPeers, &swarms.TopSeeds, &swarms.TopLeechers} {
		*list = slices.DeleteFunc(*list, func(t torrent) bool { return !f.Permits(swarm.InfoHash(t.InfoHash)) })
	}
	r.Swarms = *swarms
	return r, nil
}
