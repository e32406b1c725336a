//go:build unix

package failover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"swarmgate/deploy/internal/audit"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// cluster is a Redis Cluster whose nodes the test makes fail.
type cluster struct {
	*audit.Cluster
	test      testing.TB // that it ends with
	t         testing.TB // or a part of it that runs
	processes map[string]*storetest.Process
	rounds    int // so far
}

func newCluster(t testing.TB, nodes ...*storetest.Process) *cluster {
	c := &cluster{Cluster: audit.NewCluster(t), test: t, t: t, processes: map[string]*storetest.Process{}}
	for _, p := range nodes {
		c.add(p)
	}
	storetest.Eventually(t, 20*time.Second, c.Replicated)
	return c
}

// add a node, and say its id.
func (c *cluster) add(p *storetest.Process) (id string) {
	c.t.Helper()
	c.Add(p.Addr)
	c.processes[p.Addr] = p
	id, err := c.Client(p.Addr).ClusterMyID(c.t.Context()).Result()
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// moveSlots moves the first slots of a master that hold keys to another one, as redis-cli does but a key at a time.
func (c *cluster) moveSlots(from, to string, most int) {
	c.t.Helper()
	ctx := c.t.Context()
	keys, err := c.Client(from).Keys(ctx, "*p").Result()
	if err != nil {
		c.t.Fatal(err)
	}
	source, target := c.Client(from).ClusterMyID(ctx).Val(), c.Client(to).ClusterMyID(ctx).Val()
	host, port, _ := net.SplitHostPort(to)
	done := map[int64]bool{}
	for _, key := range keys {
		slot := c.Client(from).ClusterKeySlot(ctx, key).Val()
		if done[slot] || len(done) == most {
			continue
		}
		done[slot] = true
		c.must(to, "cluster", "setslot", slot, "importing", source)
		c.must(from, "cluster", "setslot", slot, "migrating", target)
		for {
			keys, err := c.Client(from).ClusterGetKeysInSlot(ctx, int(slot), 1).Result()
			if err != nil {
				c.t.Fatal(err)
			}
			if len(keys) == 0 {
				break
			}
			c.must(from, "migrate", host, port, keys[0], 0, 5000)
			time.Sleep(5 * time.Millisecond) // while the slot is on both
		}
		for _, p := range []string{to, from} {
			c.must(p, "cluster", "setslot", slot, "node", target)
		}
	}
	if len(done) == 0 {
		c.t.Fatalf("%s has no keys", from)
	}
}

func (c *cluster) urls() string { return "redis://" + strings.Join(c.Nodes(), ",redis://") }

func (c *cluster) must(node string, args ...any) {
	c.t.Helper()
	if err := c.Client(node).Do(c.t.Context(), args...).Err(); err != nil {
		c.t.Fatalf("%v: %v", args, err)
	}
}

// mustMasters are the masters when all is well.
func (c *cluster) mustMasters() []string {
	c.t.Helper()
	masters, err := c.Masters(c.Nodes()[0])
	if err != nil || len(masters) < 3 {
		c.t.Fatalf("%d masters, %v", len(masters), err)
	}
	return masters
}

// replica of a master, as another node sees it.
func (c *cluster) replica(of, from string) string {
	c.t.Helper()
	replica, err := c.Replica(of, from)
	if err != nil {
		c.t.Fatal(err)
	}
	return replica
}

// takeOver makes a replica the master, by hand.
func (c *cluster) takeOver(replica string) {
	c.t.Helper()
	storetest.TakeOver(c.t, c.processes[replica])
	storetest.Eventually(c.t, 20*time.Second, c.Agreed)
	storetest.Eventually(c.t, 20*time.Second, c.Replicated)
}

// spread tells whether a swarm is spread over two to the power of least partitions, or more, and all
// its peers are where they belong.
func (c *cluster) spread(from string, hash swarm.InfoHash, least int) error {
	masters, err := c.Masters(from)
	if err != nil {
		return err
	}
	for _, p := range masters {
		client := c.Client(p)
		keys := client.Scan(c.t.Context(), 0, "*", 1000).Iterator()
		for keys.Next(c.t.Context()) {
			key := keys.Val()
			if len(key) != 26 || key[5:] != string(hash[:])+"p" {
				continue
			}
			score, err := client.ZScore(c.t.Context(), key, "p").Result()
			if err != nil {
				return err
			}
			if n := int(score + 1<<31); n>>4 != n&15 || n&15 < least {
				return fmt.Errorf("peers are in 2^%d partitions, and are to be in 2^%d", n>>4, n&15)
			}
			return nil
		}
		if err := keys.Err(); err != nil {
			return err
		}
	}
	return errors.New("the swarm is not stored")
}

// namespaces are two network namespaces with a cable between them, and one from each to
// the test, which can reach both when they cannot reach each other.
type namespaces struct{ a, b storetest.Host }

func newNamespaces(t testing.TB) (*namespaces, error) {
	name, net24 := fmt.Sprintf("sg%d", os.Getpid()%100000), fmt.Sprintf("198.18.%d", os.Getpid()%250)
	n := &namespaces{storetest.Host{Namespace: name + "a", IP: net24 + ".2"}, storetest.Host{Namespace: name + "b", IP: net24 + ".3"}}
	test := net24 + ".1"
	t.Cleanup(func() { // and with them all cables
		_ = ip("netns del " + n.a.Namespace)
		_ = ip("netns del " + n.b.Namespace)
	})
	commands := []string{
		"netns add " + n.a.Namespace,
		"netns add " + n.b.Namespace,
		"link add other netns " + n.a.Namespace + " type veth peer name other netns " + n.b.Namespace,
	}
	for i, h := range []storetest.Host{n.a, n.b} {
		in, here := "-n "+h.Namespace+" ", fmt.Sprintf("%s%d", name, i)
		commands = append(commands,
			"link add "+here+" type veth peer name test netns "+h.Namespace,
			"addr add "+test+"/32 dev "+here,
			"link set "+here+" up",
			"route add "+h.IP+" dev "+here+" src "+test,
			in+"link set lo up",
			in+"addr add "+h.IP+"/32 dev lo",
			in+"link set test up",
			in+"route add "+test+" dev test src "+h.IP)
	}
	if err := ip(commands...); err != nil {
		return nil, err
	}
	return n, n.connect()
}

// connect the two.
func (n *namespaces) connect() error {
	return ip(
		"-n "+n.a.Namespace+" link set other up",
		"-n "+n.b.Namespace+" link set other up",
		"-n "+n.a.Namespace+" route add "+n.b.IP+" dev other src "+n.a.IP,
		"-n "+n.b.Namespace+" route add "+n.a.IP+" dev other src "+n.b.IP)
}

// cut the cable between the two.
func (n *namespaces) cut() error {
	return ip("-n "+n.a.Namespace+" link set other down", "-n "+n.b.Namespace+" link set other down")
}

// ip runs commands of ip(8) until one fails.
func ip(commands ...string) error {
	_, err := storetest.IP(commands...)
	return err
}

// redisCLI runs redis-cli --cluster.
func redisCLI(t testing.TB, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, storetest.Need(t, "redis-cli", "redis-tools"), append([]string{"--cluster"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %v: %v\n%s", args, err, out)
	}
}
