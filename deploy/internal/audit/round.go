package audit

import (
	"errors"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

const (
	// late is how long gateways may take to see that the cluster is whole again.
	late = 2 * time.Second

	// slow is what an announce for another master's swarm may take at the 99th percentile. What waits for a node that
	// hangs takes a second or more.
	slow = 500 * time.Millisecond
)

// Columns of the lines that rounds log.
const Columns = "| what fails | announces answered | missing | errors for | cluster whole after | p99 of other swarms |"

// Round is one thing that fails, under load.
type Round struct {
	testing.TB
	*Cluster
	*Fleet
	Victim string // a master
	Watch  string // another one, that does not fail

	homes map[swarm.InfoHash]string // at which master each small swarm is
	fault time.Time
	whole time.Time // when nothing of it was left but in the gateways
}

// Want is what may go wrong in a round.
type Want struct {
	Loss    bool // announces that were answered may be missing
	Refused bool // those for the victim's swarms may be
	All     bool // those for all swarms may be
	Broken  bool // some may get no answer
	Busy    bool // the machine has so much to do that any may be slow, and one in a hundred of other masters' swarms be refused
}

// Begin the nth round, when all is well, with clients.
func Begin(t testing.TB, c *Cluster, f *Fleet, n int) *Round {
	t.Helper()
	storetest.Eventually(t, 20*time.Second, c.Agreed)
	storetest.Eventually(t, 20*time.Second, c.Replicated)
	masters, err := c.Masters(c.nodes[0])
	if err != nil || len(masters) < 2 {
		t.Fatalf("the masters are %v, %v", masters, err)
	}
	r := &Round{TB: t, Cluster: c, Fleet: f, Victim: masters[0], Watch: masters[1], homes: map[swarm.InfoHash]string{}}
	r.Start(n)
	storetest.Eventually(t, 15*time.Second, func() error {
		found, err := c.Peers(r.Watch)
		if err != nil {
			return err
		}
		for m, at := range found {
			r.homes[m.Hash] = at[0].Master
		}
		for swarm := range smallSwarms {
			if r.homes[hashOf(n, swarm)] == "" {
				return errors.New("not all swarms are stored yet")
			}
		}
		delete(r.homes, LargeHash)
		return nil
	})
	r.fault = time.Now()
	return r
}

// Fails says that it fails now.
func (r *Round) Fails() { r.fault = time.Now() }

// Whole says that nothing of what failed is left, but in the gateways, or will not be after some more time.
func (r *Round) Whole(after time.Duration) { r.whole = time.Now().Add(after) }

// GoesOn lets clients announce for longer than anything may be refused.
func (r *Round) GoesOn() { time.Sleep(late + time.Second) }

// Theirs are the swarms of the master that fails.
func (r *Round) Theirs(h swarm.InfoHash) bool { return r.homes[h] == r.Victim }

// Others are those of other masters, but for the large one.
func (r *Round) Others(h swarm.InfoHash) bool { return r.homes[h] != "" && r.homes[h] != r.Victim }

func large(h swarm.InfoHash) bool { return h == LargeHash }

// All swarms.
func All(swarm.InfoHash) bool { return true }

// Judge ends the load, compares answers with what is stored, also those of other fleets, and fails the test where
// more went wrong than may.
func (r *Round) Judge(w Want, earlier ...*Fleet) {
	r.Helper()
	r.End()
	if r.whole.IsZero() {
		r.whole = r.fault
	}
	storetest.Eventually(r, 20*time.Second, r.Agreed) // on where the swarms are
	found, err := r.Peers(r.Watch)
	if err != nil {
		r.Fatal(err)
	}
	theirs, others, large, all := r.Spell(r.fault, r.Theirs), r.Spell(r.fault, r.Others), r.Spell(r.fault, large), r.Spell(r.fault, All)
	a := r.Audit(r, found)
	_, name, _ := strings.Cut(r.Name(), "/")
	r.Logf("| %s | %d | %d | %.1f s | %.1f s | %v |", strings.ReplaceAll(name, "_", " "), a.Announces, a.Lost(),
		all.errors.Seconds(), r.whole.Sub(r.fault).Seconds(), others.p99.Round(time.Millisecond))
	r.Logf("its swarms: %v %q", theirs, theirs.Why)
	r.Logf("others:     %v %q", others, others.Why)
	r.Logf("spread one: %v %q", large, large.Why)

	if !w.Loss && a.Lost() > 0 {
		r.Errorf("of %d announces that were answered %+v", a.Announces, a)
	}
	for _, f := range earlier {
		if a := f.Audit(r, found); !w.Loss && a.Lost() > 0 {
			r.Errorf("of %d announces that were answered earlier %+v", a.Announces, a)
		}
	}
	if !w.Broken && all.Broken > 0 {
		r.Errorf("%d announces got no answer, or an error without a reason: %q", all.Broken, all.Why)
	}
	if !w.Refused && !w.All && theirs.Refused+large.Refused > 0 {
		r.Errorf("%d announces were refused", theirs.Refused+large.Refused)
	}
	most := 0
	if w.Busy {
		most = others.Answered / 100
	}
	if !w.All && others.Refused > most {
		r.Errorf("of other masters' swarms %d announces were refused", others.Refused)
	}
	if !w.All && !w.Busy && others.p99 > slow {
		r.Errorf("announces for other masters' swarms took %v at the 99th percentile", others.p99)
	}
	if after := all.last.Sub(r.whole); after > late {
		r.Errorf("announces were refused %v after the cluster was whole", after)
	}
}
