//go:build unix

package failover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// cluster is a Redis Cluster whose nodes the test makes fail.
type cluster struct {
	test    testing.TB // that it ends with
	t       testing.TB // or a part of it that runs
	nodes   []*storetest.Process
	clients map[*storetest.Process]*redis.Client
	rounds  int // so far
}

func newCluster(t testing.TB, nodes ...*storetest.Process) *cluster {
	c := &cluster{test: t, t: t, clients: map[*storetest.Process]*redis.Client{}}
	for _, p := range nodes {
		c.add(p)
	}
	storetest.Eventually(t, 20*time.Second, c.replicated)
	return c
}

// add a node, and say its id.
func (c *cluster) add(p *storetest.Process) (id string) {
	c.t.Helper()
	c.nodes = append(c.nodes, p)
	client := redis.NewClient(&redis.Options{
		Addr: p.Addr, MaxRetries: -1, Protocol: 2, DialTimeout: 500 * time.Millisecond, ReadTimeout: 500 * time.Millisecond,
	})
	c.test.Cleanup(func() { _ = client.Close() })
	c.clients[p] = client
	id, err := client.ClusterMyID(c.t.Context()).Result()
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// agreed tells whether all nodes know all nodes, and what they are.
func (c *cluster) agreed() error {
	var first map[string]role
	for _, p := range c.nodes {
		roles, err := c.roles(p)
		if err != nil {
			return err
		}
		if first == nil {
			first = roles
		}
		if len(roles) != len(c.nodes) {
			return fmt.Errorf("%s knows %d of %d nodes", p.Addr, len(roles), len(c.nodes))
		}
		for addr, r := range roles {
			if one := first[addr]; r.is("handshake") || r.master != one.master || !slices.Equal(r.slots, one.slots) {
				return fmt.Errorf("%s takes %s for %+v, others for %+v", p.Addr, addr, r, first[addr])
			}
		}
	}
	return nil
}

// moveSlots moves the first slots of a master that hold keys to another one, as redis-cli does but a key at a time.
func (c *cluster) moveSlots(from, to *storetest.Process, most int) {
	c.t.Helper()
	ctx := c.t.Context()
	keys, err := c.clients[from].Keys(ctx, "*p").Result()
	if err != nil {
		c.t.Fatal(err)
	}
	source, target := c.clients[from].ClusterMyID(ctx).Val(), c.clients[to].ClusterMyID(ctx).Val()
	host, port, _ := net.SplitHostPort(to.Addr)
	done := map[int64]bool{}
	for _, key := range keys {
		slot := c.clients[from].ClusterKeySlot(ctx, key).Val()
		if done[slot] || len(done) == most {
			continue
		}
		done[slot] = true
		c.must(to, "cluster", "setslot", slot, "importing", source)
		c.must(from, "cluster", "setslot", slot, "migrating", target)
		for {
			keys, err := c.clients[from].ClusterGetKeysInSlot(ctx, int(slot), 1).Result()
			if err != nil {
				c.t.Fatal(err)
			}
			if len(keys) == 0 {
				break
			}
			c.must(from, "migrate", host, port, keys[0], 0, 5000)
			time.Sleep(5 * time.Millisecond) // while the slot is on both
		}
		for _, p := range []*storetest.Process{to, from} {
			c.must(p, "cluster", "setslot", slot, "node", target)
		}
	}
	if len(done) == 0 {
		c.t.Fatalf("%s has no keys", from.Addr)
	}
}

func (c *cluster) urls() string { return strings.Join(storetest.URLs(c.nodes...), ",") }

func (c *cluster) do(p *storetest.Process, args ...any) (any, error) {
	return c.clients[p].Do(c.t.Context(), args...).Result()
}

func (c *cluster) must(p *storetest.Process, args ...any) {
	c.t.Helper()
	if _, err := c.do(p, args...); err != nil {
		c.t.Fatalf("%v: %v", args, err)
	}
}

// role is a line of CLUSTER NODES.
type role struct {
	id, addr, master string // of whom it is a replica, or "-"
	flags            []string
	slots            []string
}

// roles of all nodes, as one of them sees it.
func (c *cluster) roles(from *storetest.Process) (map[string]role, error) {
	text, err := c.clients[from].ClusterNodes(c.t.Context()).Result()
	if err != nil {
		return nil, err
	}
	roles := map[string]role{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 8 {
			return nil, fmt.Errorf("CLUSTER NODES says %q", line)
		}
		addr, _, _ := strings.Cut(f[1], "@")
		roles[addr] = role{id: f[0], addr: addr, master: f[3], flags: strings.Split(f[2], ","), slots: f[8:]}
	}
	return roles, nil
}

func (r role) is(flag string) bool { return slices.Contains(r.flags, flag) }

// masters are the nodes that hold slots, as one of them sees it.
func (c *cluster) masters(from *storetest.Process) (found []*storetest.Process, err error) {
	roles, err := c.roles(from)
	for _, p := range c.nodes {
		if r := roles[p.Addr]; r.is("master") && len(r.slots) > 0 {
			found = append(found, p)
		}
	}
	return found, err
}

// mustMasters are the masters when all is well.
func (c *cluster) mustMasters() []*storetest.Process {
	c.t.Helper()
	masters, err := c.masters(c.nodes[0])
	if err != nil || len(masters) < 3 {
		c.t.Fatalf("%d masters, %v", len(masters), err)
	}
	return masters
}

// replica of a master, as another node sees it.
func (c *cluster) replica(of, from *storetest.Process) *storetest.Process {
	c.t.Helper()
	roles, err := c.roles(from)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range c.nodes {
		if roles[p.Addr].master == roles[of.Addr].id {
			return p
		}
	}
	c.t.Fatalf("%s has no replica", of.Addr)
	return nil
}

// promoted waits until a replica is a master, as another node sees it, and says when.
func (c *cluster) promoted(replica, from *storetest.Process) time.Time {
	c.t.Helper()
	storetest.Eventually(c.t, 20*time.Second, func() error {
		roles, err := c.roles(from)
		if r := roles[replica.Addr]; err == nil && (!r.is("master") || len(r.slots) == 0) {
			err = fmt.Errorf("%s is %v", replica.Addr, r.flags)
		}
		return err
	})
	return time.Now()
}

// takeOver makes a replica the master, by hand.
func (c *cluster) takeOver(replica *storetest.Process) {
	c.t.Helper()
	storetest.TakeOver(c.t, replica)
	storetest.Eventually(c.t, 20*time.Second, c.agreed)
	storetest.Eventually(c.t, 20*time.Second, c.replicated)
}

// replicated tells whether every master has a replica that is up to date.
func (c *cluster) replicated() error {
	var errs []error
	for _, p := range c.nodes {
		info, err := c.clients[p].Info(c.t.Context(), "replication").Result()
		if err == nil && strings.Contains(info, "role:master") && !strings.Contains(info, "state=online") {
			err = errors.New("no replica is online")
		}
		if err == nil && strings.Contains(info, "role:slave") && !strings.Contains(info, "master_link_status:up") {
			err = errors.New("the link to the master is down")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Addr, err))
		}
	}
	return errors.Join(errs...)
}

// member is a peer of a swarm.
type member struct {
	hash    swarm.InfoHash
	compact string
}

// standing is where the cluster has a peer, and as what.
type standing struct {
	class swarm.Class
	addr  string // of the master
}

// peers reads the sorted sets of all masters (swarmstore/DESIGN.md says what they hold).
func (c *cluster) peers(from *storetest.Process) (map[member][]standing, error) {
	ctx := c.t.Context()
	masters, err := c.masters(from)
	if err != nil {
		return nil, err
	}
	found := map[member][]standing{}
	for _, p := range masters {
		client := c.clients[p]
		keys := client.Scan(ctx, 0, "*", 1000).Iterator()
		for keys.Next(ctx) {
			key := keys.Val()
			if len(key) != 26 || key[25] != 'p' && key[25] != 'q' {
				continue
			}
			members, err := client.ZRangeWithScores(ctx, key, 0, -1).Result()
			if err != nil {
				return nil, err
			}
			for _, z := range members {
				compact := z.Member.(string)
				if len(compact) < swarm.Size4 {
					continue // the layout
				}
				m := member{swarm.InfoHash([]byte(key[5:25])), compact}
				class := swarm.Class((int64(z.Score)+1<<31)>>30 - 1)
				found[m] = append(found[m], standing{class, p.Addr})
			}
		}
		if err := keys.Err(); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// spread tells whether a swarm is spread over two to the power of least partitions, or more, and all
// its peers are where they belong.
func (c *cluster) spread(from *storetest.Process, hash swarm.InfoHash, least int) error {
	masters, err := c.masters(from)
	if err != nil {
		return err
	}
	for _, p := range masters {
		client := c.clients[p]
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
	for _, command := range commands {
		if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", command, err, out)
		}
	}
	return nil
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
