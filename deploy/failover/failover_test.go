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
	"syscall"
	"testing"
	"time"

	"swarmgate/deploy/internal/audit"
	"swarmgate/swarmstore/storetest"
)

func TestMain(m *testing.M) { os.Exit(audit.Main(m)) }

// scene is a cluster, gateways, and what the fleets of earlier rounds know.
type scene struct {
	*cluster
	net       *namespaces // between the first node and the others, if there is one
	endpoints []audit.Endpoint
	gateways  []*audit.Gateway
	sizes     []audit.Size // of the gateways, in their first round
	settlers  *audit.Fleet
}

// round is one thing that fails in a scene.
type round struct {
	*scene
	*audit.Round
}

func TestFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	t.Log(audit.Columns)
	c, net := startCluster(t)
	s := newScene(t, c, net, "--wait-replicas", "1")
	s.settlers.Settle(func() error { return s.spread(s.Nodes()[1], audit.LargeHash, 4) })

	t.Run("a master is killed", func(t *testing.T) {
		r := s.begin(t)
		replica := s.replica(r.Victim, r.Watch)
		r.Fails()
		_ = r.victim().Kill()
		s.must(replica, "cluster", "failover", "force") // as deploy/redis/node.sh does before it starts the node again
		s.Promoted(t, replica, r.Watch)
		r.victim().Restart() // until then no replica can acknowledge anything
		r.isWhole()
		r.end(audit.Want{Refused: true})
	})
	t.Run("a master hangs", func(t *testing.T) {
		r := s.begin(t)
		replica := s.replica(r.Victim, r.Watch)
		r.Fails()
		_ = r.victim().Signal(syscall.SIGSTOP)
		s.Promoted(t, replica, r.Watch)
		_ = r.victim().Signal(syscall.SIGCONT) // and it believes that it is the master still
		r.isWhole()
		r.end(audit.Want{Refused: true})
	})
	t.Run("a master is cut off", func(t *testing.T) {
		r := s.beginCut(t)
		replica := s.replica(r.Victim, r.Watch)
		r.Fails()
		if err := s.net.cut(); err != nil {
			t.Fatal(err)
		}
		s.Promoted(t, replica, r.Watch)
		if err := s.net.connect(); err != nil {
			t.Fatal(err)
		}
		r.isWhole()
		r.end(audit.Want{Refused: true})
	})
	t.Run("all replicas restart", func(t *testing.T) {
		r := s.begin(t)
		masters := s.mustMasters()
		replicas := slices.DeleteFunc(s.Nodes(), func(node string) bool { return slices.Contains(masters, node) })
		r.Fails()
		for _, node := range replicas {
			_ = s.processes[node].Kill()
		}
		storetest.Eventually(t, 10*time.Second, func() error {
			if r.Spell(time.Time{}, audit.All).Refused < 100 {
				return errors.New("announces are answered without replicas")
			}
			return nil
		})
		for _, node := range replicas {
			s.processes[node].Restart()
		}
		r.isWhole()
		r.end(audit.Want{All: true})
	})
	t.Run("failover by hand", func(t *testing.T) {
		r := s.begin(t)
		r.Fails()
		for _, master := range s.mustMasters() {
			s.takeOver(s.replica(master, master))
		}
		r.isWhole()
		r.end(audit.Want{All: true}) // a replica that changes masters may be away for a moment
	})
	t.Run("a master is added and slots move", func(t *testing.T) {
		host := storetest.Host{IP: "127.0.0.1"}
		if s.net != nil {
			host = s.net.b
		}
		r := s.begin(t)
		r.Fails()
		master, replica := storetest.ClusterNode(s.test, host), storetest.ClusterNode(s.test, host)
		redisCLI(t, "add-node", master.Addr, r.Watch)
		id := s.add(master)
		storetest.Eventually(t, 20*time.Second, s.Agreed)
		redisCLI(t, "add-node", replica.Addr, r.Watch, "--cluster-slave", "--cluster-master-id", id)
		s.add(replica)
		storetest.Eventually(t, 20*time.Second, s.Agreed)
		storetest.Eventually(t, 20*time.Second, s.Replicated)
		redisCLI(t, "reshard", r.Watch, "--cluster-from", "all", "--cluster-to", id, "--cluster-slots", "1500", "--cluster-yes")
		s.moveSlots(r.Victim, master.Addr, 300)
		r.isWhole()
		r.end(audit.Want{})
	})

	// What may be lost without --wait-replicas.
	s = newScene(t, c, net)
	t.Run("a master is killed, no replica waited for", func(t *testing.T) {
		r := s.begin(t)
		replica := s.replica(r.Victim, r.Watch)
		r.Fails()
		_ = r.victim().Kill()
		s.Promoted(t, replica, r.Watch)
		r.Whole(0)
		r.GoesOn()
		r.victim().Restart()
		r.end(audit.Want{Loss: true, Refused: true})
	})
	t.Run("a master is cut off, no replica waited for", func(t *testing.T) {
		r := s.beginCut(t)
		replica := s.replica(r.Victim, r.Watch)
		r.Fails()
		if err := s.net.cut(); err != nil {
			t.Fatal(err)
		}
		s.Promoted(t, replica, r.Watch)
		r.Whole(0)
		r.GoesOn() // while the gateways reach a master that does not know that it is none any more
		if err := s.net.connect(); err != nil {
			t.Fatal(err)
		}
		r.end(audit.Want{Loss: true, Refused: true})
	})
}

func TestGatewaysFail(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux spreads clients over processes")
	}
	t.Log(audit.Columns)
	s := &scene{cluster: newCluster(t, storetest.Cluster(t, 3, 1)...), settlers: audit.NewFleet(t, nil)}
	at := audit.NewEndpoint(t)
	start := func() *audit.Gateway {
		return audit.StartGateway(t, at, "--redis", s.urls(), "--wait-replicas", "1", "--share-port")
	}
	s.endpoints = []audit.Endpoint{at}
	gateways := []*audit.Gateway{start(), start()}

	t.Run("a gateway is killed", func(t *testing.T) {
		r := s.begin(t)
		r.Fails()
		for n := range 4 {
			gateways[n%2].Kill()
			gateways[n%2] = start()
		}
		r.Whole(audit.Patience) // some clients wait for an answer
		r.GoesOn()
		r.end(audit.Want{Broken: true})
	})
	t.Run("all gateways are replaced", func(t *testing.T) {
		r := s.begin(t)
		r.Fails()
		for range 2 {
			for n, g := range gateways {
				gateways[n] = start()
				storetest.Eventually(t, 10*time.Second, func() error {
					for _, transport := range []string{"http", "udp"} {
						if gateways[n].Metric(`swarmgate_announces_total{result="ok",transport="`+transport+`"}`) == 0 {
							return errors.New("the new gateway has no clients yet")
						}
					}
					return nil
				})
				g.Terminate()
				g.Drained()
			}
		}
		r.Whole(0)
		r.end(audit.Want{})
	})
	t.Run("one of two gateways ends", func(t *testing.T) {
		r := s.begin(t)
		r.Fails()
		gateways[0].Terminate()
		gateways[0].Drained()
		r.GoesOn()
		r.end(audit.Want{})
	})
}

// newScene is two gateways on a cluster.
func newScene(t testing.TB, c *cluster, net *namespaces, flags ...string) *scene {
	s := &scene{cluster: c, net: net}
	for range 2 {
		e := audit.NewEndpoint(t)
		s.endpoints = append(s.endpoints, e)
		s.gateways = append(s.gateways, audit.StartGateway(t, e, append([]string{"--redis", s.urls()}, flags...)...))
	}
	s.settlers = audit.NewFleet(t, s.endpoints)
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
	r := &round{s, audit.Begin(t, s.Cluster, audit.NewFleet(t, s.endpoints), s.rounds)}
	if s.sizes == nil {
		for _, g := range s.gateways {
			s.sizes = append(s.sizes, g.Size())
		}
	}
	r.Fails()
	return r
}

// beginCut begins a round whose victim can be cut off from the other nodes, but not from the gateways.
func (s *scene) beginCut(t *testing.T) *round {
	t.Helper()
	if s.net == nil {
		t.Skip("there are no network namespaces, which need root")
	}
	s.t = t
	node := s.Nodes()[0]
	if roles, err := s.Roles(node); err != nil {
		t.Fatal(err)
	} else if !roles[node].Is("master") {
		s.takeOver(node)
	}
	return s.begin(t)
}

func (r *round) victim() *storetest.Process { return r.processes[r.Victim] }

// isWhole waits until every master has a replica. Soon after nothing may be refused any more.
func (r *round) isWhole() {
	r.Helper()
	storetest.Eventually(r, 20*time.Second, r.Replicated)
	r.Whole(0)
	r.GoesOn()
}

// end the load, and judge.
func (r *round) end(w audit.Want) {
	r.Helper()
	r.Judge(w, r.settlers)
	r.noneGrew()
}

// noneGrew tells that the gateways are those that were started, and hold no more than at first.
func (r *round) noneGrew() {
	r.Helper()
	for n, g := range r.gateways {
		select {
		case <-g.Ended:
			r.Errorf("gateway %d ended: %s", n, g.Log())
			continue
		default:
		}
		before := r.sizes[n]
		storetest.Eventually(r, 10*time.Second, func() error {
			after := g.Size()
			if after.Goroutines > before.Goroutines+20 || after.Files > before.Files+40 || after.Memory > before.Memory+100 {
				return fmt.Errorf("gateway %d grew from %+v to %+v", n, before, after)
			}
			return nil
		})
		r.Logf("gateway %d: %+v, then %+v", n, before, g.Size())
	}
}
