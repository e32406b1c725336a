//go:build unix

package swarmstore_test

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// calls of commands that a node answered.
func calls(t *testing.T, p *storetest.Process, commands ...string) (n int) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: p.Addr})
	defer c.Close()
	info, err := c.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range commands {
		if found := regexp.MustCompile(`cmdstat_` + command + `:calls=(\d+)`).FindStringSubmatch(info); found != nil {
			more, _ := strconv.Atoi(found[1])
			n += more
		}
	}
	return n
}

// Views are read from replicas, as long as these are up to date, and writes go to masters.
func TestReadFromReplicas(t *testing.T) {
	if testing.Short() {
		t.Skip("takes most of a minute")
	}
	nodes := knownReplicas(t)
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
		done := make(chan int, swarms)
		g.Announce(time.Now(), batch, func(part []*swarm.Announce) {
			n := 0
			for _, a := range part {
				if a.Err != nil {
					n++
				}
			}
			done <- len(part)
			refused += n
		})
		for left := swarms; left > 0; {
			left -= <-done
		}
		return refused
	}
	read := func(of []*storetest.Process) int {
		n := 0
		for _, p := range of {
			n += calls(t, p, "zrange", "zrangebyscore")
		}
		return n
	}
	all := func(want int) func() error {
		return func() error {
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
	if atMasters, atReplicas := read(masters), read(replicas); atMasters > 0 || atReplicas < swarms {
		t.Errorf("%d reads at masters, %d at replicas", atMasters, atReplicas)
	}
	for _, p := range replicas {
		c := redis.NewClient(&redis.Options{Addr: p.Addr})
		defer c.Close()
		if errs := c.Info(t.Context(), "errorstats").Val(); strings.Contains(errs, "MOVED") || strings.Contains(errs, "READONLY") {
			t.Errorf("a replica was asked for what it cannot do: %s", errs)
		}
	}

	t.Run("a replica hangs", func(t *testing.T) {
		_ = replicas[0].Signal(syscall.SIGSTOP)
		before := read(masters)
		storetest.Eventually(t, 10*time.Second, func() error {
			if refused := announce(); refused > 0 {
				t.Fatalf("%d announces were refused", refused)
			}
			if read(masters) == before {
				return errors.New("its master is not read from")
			}
			return nil
		})
		storetest.Eventually(t, 10*time.Second, all(peers))
		_ = replicas[0].Signal(syscall.SIGCONT)
		storetest.Eventually(t, 30*time.Second, func() error {
			before := calls(t, replicas[0], "zrange")
			announce()
			if calls(t, replicas[0], "zrange") == before {
				return errors.New("it is not read from again")
			}
			return nil
		})
	})
	t.Run("a replica is killed", func(t *testing.T) {
		_ = replicas[1].Kill()
		before := read(masters)
		storetest.Eventually(t, 10*time.Second, func() error {
			if refused := announce(); refused > 0 {
				t.Fatalf("%d announces were refused", refused)
			}
			if read(masters) == before {
				return errors.New("its master is not read from")
			}
			return nil
		})
		storetest.Eventually(t, 10*time.Second, all(peers))
		replicas[1].Restart()
		storetest.Eventually(t, 30*time.Second, func() error {
			before := calls(t, replicas[1], "zrange")
			announce()
			if calls(t, replicas[1], "zrange") == before {
				return errors.New("it is not read from again")
			}
			return nil
		})
	})
	t.Run("a replica takes over", func(t *testing.T) {
		storetest.TakeOver(t, replicas[2])
		storetest.Eventually(t, 30*time.Second, func() error {
			before := calls(t, masters[2], "zrange")
			if refused := announce(); refused > 0 {
				return fmt.Errorf("%d announces are refused", refused)
			}
			if calls(t, masters[2], "zrange") == before {
				return errors.New("the old master is not read from")
			}
			return all(peers)()
		})
	})
	t.Run("a large swarm", func(t *testing.T) {
		f := &fleet{t: t, gateways: []*storetest.Gateway{g}}
		f.announce(swarm.Started, 0, 3000)
		storetest.Eventually(t, 20*time.Second, func() error {
			if c := counts(t, g); c.Seeders != 1000 || c.Leechers != 2000 {
				return fmt.Errorf("counts are %+v", c)
			}
			return nil
		})
		f.announce(swarm.Stopped, 100, 3000)
		storetest.Eventually(t, 20*time.Second, func() error {
			if c := counts(t, g); c.Seeders != 34 || c.Leechers != 66 {
				return fmt.Errorf("counts are %+v", c)
			}
			return nil
		})
	})
}
