//go:build unix

package swarmstore_test

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// counted sums up what a section of INFO counts of some names on nodes, as calls of commands or errors.
func counted(t *testing.T, nodes []*storetest.Process, section string, names ...string) (n int) {
	t.Helper()
	for _, p := range nodes {
		c := redis.NewClient(&redis.Options{Addr: p.Addr})
		defer c.Close()
		info, err := c.Info(t.Context(), section).Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if found := regexp.MustCompile(`stat_` + name + `:(?:calls|count)=(\d+)`).FindStringSubmatch(info); found != nil {
				more, _ := strconv.Atoi(found[1])
				n += more
			}
		}
	}
	return n
}

// Views are read from replicas, as long as these are up to date, and writes go to masters.
func TestReadFromReplicas(t *testing.T) {
	if testing.Short() {
		t.Skip("takes most of a minute")
	}
	nodes := storetest.Cluster(t, 3, 1)
	masters, replicas := nodes[:3], nodes[3:]
	b := storetest.Real(t, masters...)
	now := time.Now()
	g := b.Open(t, &now, func(o *swarmstore.Options) {
		o.ReadFrom, o.ViewTTL, o.RepeatWindow = swarmstore.ReadReplica, 100*time.Millisecond, 0
	})
	const swarms = 60
	peers := 0
	// announce one more peer of each swarm, and say how many were refused.
	announce := func() (refused int) {
		t.Helper()
		peers++
		var batch []*swarm.Announce
		for n := range swarms {
			batch = append(batch, &swarm.Announce{InfoHash: storetest.Hash(100 + n), Peer: storetest.Peer4(peers), Left: 1, Event: swarm.Started})
		}
		now = time.Now()
		g.Announces(batch...)
		for _, a := range batch {
			if a.Err != nil {
				refused++
			}
		}
		return refused
	}
	read := func(of ...*storetest.Process) int { return counted(t, of, "commandstats", "zrange", "zrangebyscore") }
	misled := func(of ...*storetest.Process) int { return counted(t, of, "errorstats", "MOVED", "READONLY") }
	all := func(want int) func() error {
		return func() error {
			now = time.Now() // or a view of a replica that lagged would stay
			for n := range swarms {
				if c := g.Counts(storetest.Hash(100 + n)); c.Incomplete() != want {
					return fmt.Errorf("swarm %d has %d peers, not %d", n, c.Incomplete(), want)
				}
			}
			return nil
		}
	}
	for range 5 {
		if refused := announce(); refused > 0 {
			t.Fatalf("%d announces were refused", refused)
		}
	}
	storetest.Eventually(t, 10*time.Second, all(5))
	if atMasters, atReplicas := read(masters...), read(replicas...); atMasters > 0 || atReplicas < swarms {
		t.Errorf("%d reads at masters, %d at replicas", atMasters, atReplicas)
	}
	if n := misled(replicas...); n > 0 {
		t.Errorf("replicas were asked %d times for what they cannot do", n)
	}

	// fails makes a replica fail, upon which its master is read from, and nobody refused; and what ends that.
	fails := func(t *testing.T, replica *storetest.Process, fail, mend func()) {
		fail()
		before := read(masters...)
		storetest.Eventually(t, 10*time.Second, func() error {
			if refused := announce(); refused > 0 {
				t.Fatalf("%d announces were refused", refused)
			}
			if read(masters...) == before {
				return errors.New("its master is not read from")
			}
			return nil
		})
		storetest.Eventually(t, 10*time.Second, all(peers))
		mend()
		storetest.Eventually(t, 30*time.Second, func() error {
			before := read(replica)
			announce()
			if read(replica) == before {
				return errors.New("it is not read from again")
			}
			return nil
		})
	}
	t.Run("a replica hangs", func(t *testing.T) {
		p := replicas[0]
		fails(t, p, func() { _ = p.Signal(syscall.SIGSTOP) }, func() { _ = p.Signal(syscall.SIGCONT) })
	})
	t.Run("a replica is killed", func(t *testing.T) {
		p := replicas[1]
		fails(t, p, func() { _ = p.Kill() }, p.Restart)
	})
	t.Run("a replica takes over", func(t *testing.T) {
		storetest.TakeOver(t, replicas[2])
		storetest.Eventually(t, 30*time.Second, func() error {
			before := read(masters[2])
			if refused := announce(); refused > 0 {
				return fmt.Errorf("%d announces are refused", refused)
			}
			if read(masters[2]) == before {
				return errors.New("the old master is not read from")
			}
			return all(peers)()
		})
	})
	t.Run("a large swarm", func(t *testing.T) {
		f := &fleet{t: t, gateways: []*storetest.Gateway{g}}
		before := misled(nodes...)
		for _, c := range []struct {
			event             swarm.Event
			from, to          int
			seeders, leechers int // afterwards
		}{{swarm.Started, 0, 3000, 1000, 2000}, {swarm.Stopped, 100, 3000, 34, 66}} {
			f.announce(c.event, c.from, c.to)
			storetest.Eventually(t, 20*time.Second, func() error {
				if n := counts(t, g); n.Seeders != c.seeders || n.Leechers != c.leechers {
					return fmt.Errorf("counts are %+v", n)
				}
				return nil
			})
		}
		if after := misled(nodes...); after != before {
			t.Errorf("%d commands were sent to nodes that do not have their slots", after-before)
		}
	})
}
