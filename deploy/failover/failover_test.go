//go:build unix

// Package failover holds tests that make Redis nodes and gateways fail under load.
// Clients keep a record of every answer, and afterwards it is compared with the cluster:
// no announce that was answered may be missing.
//
//	go test -count 1 -v ./deploy/failover
package failover

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
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

// scene is a cluster, gateways, and what the fleets of earlier rounds know.
type scene struct {
	*cluster
	net       *namespaces // between the first node and the others, if there is one
	endpoints []endpoint
	gateways  []*gateway
	sizes     []size // of the gateways, in their first round
	settlers  *fleet
}

// round is one thing that fails, under load.
type round struct {
	*testing.T
	*scene
	*fleet
	homes  map[swarm.InfoHash]string
	victim *storetest.Process // a master
	watch  *storetest.Process // another one, that does not fail
	fault  time.Time
	whole  time.Time // when nothing of it was left but in the gateways
}

// want is what may go wrong in a round.
type want struct {
	loss    bool // announces that were answered may be missing
	refused bool // those for the victim's swarms may be
	all     bool // those for all swarms may be
	broken  bool // some may get no answer
}

// The columns of the lines that the rounds log.
const columns = "| what fails | announces answered | missing | errors for | cluster whole after | p99 of other swarms |"

func TestFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	t.Log(columns)
	c, net := startCluster(t)
	s := newScene(t, c, net, "--wait-replicas", "1")
	s.settlers.settle(s.cluster, s.nodes[1])

	t.Run("a master is killed", func(t *testing.T) {
		r := s.begin(t)
		replica := s.replica(r.victim, r.watch)
		r.fails()
		_ = r.victim.Kill()
		s.promoted(replica, r.watch)
		r.victim.Restart() // until then no replica can acknowledge anything
		r.isWhole()
		r.end(want{refused: true})
	})
	t.Run("a master hangs", func(t *testing.T) {
		r := s.begin(t)
		replica := s.replica(r.victim, r.watch)
		r.fails()
		_ = r.victim.Signal(syscall.SIGSTOP)
		s.promoted(replica, r.watch)
		_ = r.victim.Signal(syscall.SIGCONT) // and it believes that it is the master still
		r.isWhole()
		r.end(want{refused: true})
	})
	t.Run("a master is cut off", func(t *testing.T) {
		r := s.beginCut(t)
		replica := s.replica(r.victim, r.watch)
		r.fails()
		if err := s.net.cut(); err != nil {
			t.Fatal(err)
		}
		s.promoted(replica, r.watch)
		if err := s.net.connect(); err != nil {
			t.Fatal(err)
		}
		r.isWhole()
		r.end(want{refused: true})
	})
	t.Run("all replicas restart", func(t *testing.T) {
		r := s.begin(t)
		masters := s.mustMasters()
		replicas := slices.DeleteFunc(slices.Clone(s.nodes), func(p *storetest.Process) bool { return slices.Contains(masters, p) })
		r.fails()
		for _, p := range replicas {
			_ = p.Kill()
		}
		storetest.Eventually(t, 10*time.Second, func() error {
			if r.spell(r.fault, func(swarm.InfoHash) bool { return true }).refused < 100 {
				return errors.New("announces are answered without replicas")
			}
			return nil
		})
		for _, p := range replicas {
			p.Restart()
		}
		r.isWhole()
		r.end(want{all: true})
	})
	t.Run("failover by hand", func(t *testing.T) {
		r := s.begin(t)
		r.fails()
		for _, master := range s.mustMasters() {
			s.takeOver(s.replica(master, master))
		}
		r.isWhole()
		r.end(want{all: true}) // a replica that changes masters may be away for a moment
	})
	t.Run("a master is added and slots move", func(t *testing.T) {
		host := storetest.Host{IP: "127.0.0.1"}
		if s.net != nil {
			host = s.net.b
		}
		r := s.begin(t)
		r.fails()
		master, replica := storetest.ClusterNode(s.test, host), storetest.ClusterNode(s.test, host)
		redisCLI(t, "add-node", master.Addr, r.watch.Addr)
		id := s.add(master)
		storetest.Eventually(t, 20*time.Second, s.agreed)
		redisCLI(t, "add-node", replica.Addr, r.watch.Addr, "--cluster-slave", "--cluster-master-id", id)
		s.add(replica)
		storetest.Eventually(t, 20*time.Second, s.agreed)
		storetest.Eventually(t, 20*time.Second, s.replicated)
		redisCLI(t, "reshard", r.watch.Addr, "--cluster-from", "all", "--cluster-to", id, "--cluster-slots", "1500", "--cluster-yes")
		s.moveSlots(r.victim, master, 300)
		r.isWhole()
		r.end(want{})
	})

	// What may be lost without --wait-replicas.
	s = newScene(t, c, net)
	t.Run("a master is killed, no replica waited for", func(t *testing.T) {
		r := s.begin(t)
		replica := s.replica(r.victim, r.watch)
		r.fails()
		_ = r.victim.Kill()
		s.promoted(replica, r.watch)
		r.whole = time.Now()
		r.goesOn()
		r.victim.Restart()
		r.end(want{loss: true, refused: true})
	})
	t.Run("a master is cut off, no replica waited for", func(t *testing.T) {
		r := s.beginCut(t)
		replica := s.replica(r.victim, r.watch)
		r.fails()
		if err := s.net.cut(); err != nil {
			t.Fatal(err)
		}
		s.promoted(replica, r.watch)
		r.whole = time.Now()
		r.goesOn() // while the gateways reach a master that does not know that it is none any more
		if err := s.net.connect(); err != nil {
			t.Fatal(err)
		}
		r.end(want{loss: true, refused: true})
	})
}

func TestGatewaysFail(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux spreads clients over processes")
	}
	t.Log(columns)
	s := &scene{cluster: newCluster(t, storetest.Cluster(t, 3, 1)...), settlers: newFleet(t, nil)}
	at := newEndpoint(t)
	start := func() *gateway {
		return startGateway(t, at, "--redis", s.urls(), "--wait-replicas", "1", "--share-port")
	}
	s.endpoints = []endpoint{at}
	gateways := []*gateway{start(), start()}

	t.Run("a gateway is killed", func(t *testing.T) {
		r := s.begin(t)
		r.fails()
		for n := range 4 {
			gateways[n%2].kill()
			gateways[n%2] = start()
		}
		r.whole = time.Now().Add(patience) // some clients wait for an answer
		time.Sleep(late)
		r.end(want{broken: true})
	})
	t.Run("all gateways are replaced", func(t *testing.T) {
		r := s.begin(t)
		r.fails()
		for range 2 {
			for n, g := range gateways {
				gateways[n] = start()
				storetest.Eventually(t, 10*time.Second, func() error {
					for _, transport := range []string{"http", "udp"} {
						if gateways[n].metric(`swarmgate_announces_total{result="ok",transport="`+transport+`"}`) == 0 {
							return errors.New("the new gateway has no clients yet")
						}
					}
					return nil
				})
				g.drain()
			}
		}
		r.whole = time.Now()
		r.end(want{})
	})
	t.Run("one of two gateways ends", func(t *testing.T) {
		r := s.begin(t)
		r.fails()
		gateways[0].drain()
		r.goesOn()
		r.end(want{})
	})
}

// newScene is two gateways on a cluster.
func newScene(t testing.TB, c *cluster, net *namespaces, flags ...string) *scene {
	s := &scene{cluster: c, net: net}
	for range 2 {
		e := newEndpoint(t)
		s.endpoints = append(s.endpoints, e)
		s.gateways = append(s.gateways, startGateway(t, e, append([]string{"--redis", s.urls()}, flags...)...))
	}
	s.settlers = newFleet(t, s.endpoints)
	return s
}

// startCluster starts three masters and three replicas. Where network namespaces can be made, as root, and in CI must
// be, one of them is in its own.
func startCluster(t testing.TB) (*cluster, *namespaces) {
	net, err := newNamespaces(t)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Logf("no master can be cut off: %v", err)
		return newCluster(t, storetest.Cluster(t, 3, 1)...), nil
	}
	nodes := []*storetest.Process{storetest.ClusterNode(t, net.a)}
	for range 5 {
		nodes = append(nodes, storetest.ClusterNode(t, net.b))
	}
	storetest.FormCluster(t, 1, nodes...)
	return newCluster(t, nodes...), net
}

// begin a round, when all is well, with clients.
func (s *scene) begin(t *testing.T) *round {
	t.Helper()
	s.rounds++
	s.t = t
	r := &round{T: t, scene: s, fleet: newFleet(t, s.endpoints)}
	storetest.Eventually(t, 20*time.Second, s.agreed)
	storetest.Eventually(t, 20*time.Second, s.replicated)
	masters := s.mustMasters()
	r.victim, r.watch = masters[0], masters[1]
	r.start(s.rounds)
	r.homes = r.fleet.homes(s.cluster, r.watch, s.rounds)
	if s.sizes == nil {
		for _, g := range s.gateways {
			s.sizes = append(s.sizes, g.size())
		}
	}
	r.fault = time.Now()
	return r
}

// beginCut begins a round whose victim can be cut off from the other nodes, but not from the gateways.
func (s *scene) beginCut(t *testing.T) *round {
	t.Helper()
	if s.net == nil {
		t.Skip("there are no network namespaces, which need root")
	}
	s.t = t
	p := s.nodes[0]
	if roles, err := s.roles(p); err != nil {
		t.Fatal(err)
	} else if !roles[p.Addr].is("master") {
		s.takeOver(p)
	}
	return s.begin(t)
}

func (r *round) fails() { r.fault = time.Now() }

// isWhole waits until every master has a replica. Soon after nothing may be refused any more.
func (r *round) isWhole() {
	r.Helper()
	storetest.Eventually(r, 20*time.Second, r.replicated)
	r.whole = time.Now()
	r.goesOn()
}

// goesOn lets clients announce for longer than anything may be refused.
func (r *round) goesOn() { time.Sleep(late + time.Second) }

// Which swarms: those of the master that fails, those of the others, and the large one.
func (r *round) theirs(h swarm.InfoHash) bool { return r.homes[h] == r.victim.Addr }
func (r *round) others(h swarm.InfoHash) bool {
	return r.homes[h] != "" && r.homes[h] != r.victim.Addr
}
func large(h swarm.InfoHash) bool { return h == largeHash }

// end the load, compare answers with what is stored, and judge.
func (r *round) end(w want) {
	r.Helper()
	r.fleet.end()
	if r.whole.IsZero() {
		r.whole = r.fault
	}
	storetest.Eventually(r, 20*time.Second, r.agreed) // on where the swarms are
	theirs, others, large := r.spell(r.fault, r.theirs), r.spell(r.fault, r.others), r.spell(r.fault, large)
	all := r.spell(r.fault, func(swarm.InfoHash) bool { return true })
	a, old := r.audit(r.cluster, r.watch), r.settlers.audit(r.cluster, r.watch)
	_, name, _ := strings.Cut(r.Name(), "/")
	r.Logf("| %s | %d | %d | %.1f s | %.1f s | %v |", strings.ReplaceAll(name, "_", " "), a.announces, a.lost(),
		all.errors.Seconds(), r.whole.Sub(r.fault).Seconds(), others.p99.Round(time.Millisecond))
	r.Logf("its swarms: %v %q", theirs, theirs.why)
	r.Logf("others:     %v %q", others, others.why)
	r.Logf("spread one: %v %q", large, large.why)

	if !w.loss && a.lost()+old.lost() > 0 {
		r.Errorf("of %d announces that were answered %+v, of earlier ones %+v", a.announces, a, old)
	}
	if !w.broken && all.broken > 0 {
		r.Errorf("%d announces got no answer, or an error without a reason: %q", all.broken, all.why)
	}
	if !w.refused && !w.all && theirs.refused+large.refused > 0 {
		r.Errorf("%d announces were refused", theirs.refused+large.refused)
	}
	if !w.all && others.refused > 0 {
		r.Errorf("of other masters' swarms %d announces were refused", others.refused)
	}
	if !w.all && others.p99 > slow {
		r.Errorf("announces for other masters' swarms took %v at the 99th percentile", others.p99)
	}
	if after := all.last.Sub(r.whole); after > late {
		r.Errorf("announces were refused %v after the cluster was whole", after)
	}
	r.noneGrew()
}

// noneGrew tells that the gateways are those that were started, and hold no more than at first.
func (r *round) noneGrew() {
	r.Helper()
	for n, g := range r.gateways {
		select {
		case <-g.ended:
			r.Errorf("gateway %d ended: %s", n, g.log.String())
			continue
		default:
		}
		before := r.sizes[n]
		storetest.Eventually(r, 10*time.Second, func() error {
			after := g.size()
			if after.goroutines > before.goroutines+20 || after.files > before.files+40 || after.memory > before.memory+100 {
				return fmt.Errorf("gateway %d grew from %+v to %+v", n, before, after)
			}
			return nil
		})
		r.Logf("gateway %d: %+v, then %+v", n, before, g.size())
	}
}
