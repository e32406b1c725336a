package audit

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore/swarm"
)

// Audit compares what the clients were told with what Redis holds.
type Audit struct{ Announces, Missing, Wrong, Lingering int }

// Lost are the peers that do not stand in Redis as a client was told.
func (a Audit) Lost() int { return a.Missing + a.Wrong + a.Lingering }

// Audit what Redis holds; the clients must have ended. It logs the first that are not as they should be.
func (f *Fleet) Audit(t testing.TB, found map[Member][]Standing) (a Audit) {
	for _, attempt := range f.attempts {
		if attempt.outcome == answered {
			a.Announces++
		}
	}
	same := func(s []Standing, class *swarm.Class) bool {
		if class == nil {
			return len(s) == 0
		}
		return slices.ContainsFunc(s, func(s Standing) bool { return s.Class == *class })
	}
	shown := 0
	for _, p := range f.peers {
		at := found[p.Member]
		switch {
		case same(at, p.answered) || slices.ContainsFunc(p.perhaps, func(c *swarm.Class) bool { return same(at, c) }):
			continue
		case len(at) == 0:
			a.Missing++
		case p.answered == nil:
			a.Lingering++
		default:
			a.Wrong++
		}
		if shown++; shown <= 5 {
			t.Logf("a peer of swarm %x is stored as %+v after %s", p.Hash[:4], at, f.story(p))
		}
	}
	return a
}

// story of a peer's announces.
func (f *Fleet) story(p *peer) string {
	var b strings.Builder
	for _, a := range f.attempts {
		if a.peer == p {
			fmt.Fprintf(&b, "event %d from %s to %s: outcome %d; ", a.event, a.at.Format("05.000"), a.end().Format("05.000"), a.outcome)
		}
	}
	return b.String()
}

// Spell is how the announces of some swarms went in a time.
type Spell struct {
	Answered, Refused, Broken int
	Why                       []string // up to five different errors

	p99, longest time.Duration // of those that were answered
	errors       time.Duration // from the first that was not to the end of the last
	last         time.Time     // when that was
}

// Errors is the time from the first announce that was not answered to the end of the last.
func (s Spell) Errors() time.Duration { return s.errors }

func (s Spell) String() string {
	return fmt.Sprintf("answered %d, refused %d, broken %d, p99 %v, longest %v, errors for %v",
		s.Answered, s.Refused, s.Broken, s.p99.Round(time.Millisecond/10), s.longest.Round(time.Millisecond/10), s.errors.Round(10*time.Millisecond))
}

// Spell of the announces that ended after a time.
func (f *Fleet) Spell(from time.Time, of func(swarm.InfoHash) bool) (s Spell) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var took []time.Duration
	var first time.Time
	for _, a := range f.attempts {
		if a.end().Before(from) || !of(a.Hash) {
			continue
		}
		switch a.outcome {
		case answered:
			s.Answered++
			took = append(took, a.took)
			continue
		case refused:
			s.Refused++
		case broken:
			s.Broken++
		}
		if len(s.Why) < 5 && !slices.Contains(s.Why, a.why) {
			s.Why = append(s.Why, a.why)
		}
		if first.IsZero() || a.at.Before(first) {
			first = a.at
		}
		if end := a.end(); end.After(s.last) {
			s.last = end
		}
	}
	if !first.IsZero() {
		s.errors = s.last.Sub(first)
	}
	if len(took) > 0 {
		slices.Sort(took)
		s.p99, s.longest = took[len(took)*99/100], took[len(took)-1]
	}
	return s
}
