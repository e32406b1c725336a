//go:build linux

// Package redis holds what the nodes of the Redis Cluster are started and joined with, and its tests.
package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/storetest"
)

// script runs one of the scripts with the shell and the programs of an Alpine image, after those in bin.
func script(t *testing.T, bin, name string, args ...string) *exec.Cmd {
	t.Helper()
	busybox := storetest.Need(t, "busybox", "busybox")
	programs := t.TempDir()
	if out, err := exec.Command(busybox, "--install", "-s", programs).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(busybox, append([]string{"sh", name}, args...)...)
	cmd.Env = []string{"PATH=" + bin + ":" + programs}
	return cmd
}

// node.sh ends in the image's entry point, here one that tells its arguments.
func TestNodeStartsWith(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "docker-entrypoint.sh"), []byte("#!/bin/sh\necho \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const auth = "/tmp/auth.conf" // where node.sh has to itself what a container has of it
	if _, err := os.Stat(auth); err == nil {
		t.Skip(auth + " is there already")
	}
	t.Cleanup(func() { _ = os.Remove(auth) })
	for what, c := range map[string]struct {
		env  []string
		want string
	}{
		"in compose": {[]string{"NODE_MEMORY_MB=1024"}, "/swarmgate/redis.conf --maxmemory 768mb"},
		"in a pod": {
			[]string{"NODE_MEMORY_MB=512", "POD_IP=10.1.2.3", "REDISCLI_AUTH=hunter2hunter2"},
			"/swarmgate/redis.conf --maxmemory 384mb --cluster-announce-ip 10.1.2.3 --include /tmp/auth.conf",
		},
	} {
		t.Run(what, func(t *testing.T) {
			cmd := script(t, bin, "node.sh")
			cmd.Env = append(cmd.Env, c.env...)
			out, err := cmd.CombinedOutput()
			if got := strings.TrimSpace(string(out)); err != nil || got != c.want {
				t.Errorf("it starts with %q, %v, want %q", got, err, c.want)
			}
		})
	}
	info, err := os.Stat(auth)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file with the password: %v, %v", info, err)
	}
	conf, err := os.ReadFile(auth)
	if want := "requirepass \"hunter2hunter2\"\nmasterauth \"hunter2hunter2\"\n"; err != nil || string(conf) != want {
		t.Errorf("it says %q, %v", conf, err)
	}
}

// nodesConf is where node.sh looks for what a node knew before it was restarted, in its container.
func nodesConf(t *testing.T, text string) {
	t.Helper()
	const path = "/tmp/nodes.conf"
	if _, err := os.Stat(path); err == nil {
		t.Skip(path + " is there already")
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// restart runs node.sh with programs in place of the image's, and returns how long it waited.
func restart(t *testing.T, programs map[string]string) (took time.Duration) {
	t.Helper()
	bin := t.TempDir()
	programs["docker-entrypoint.sh"] = "echo started\n"
	for name, text := range programs {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := script(t, bin, "node.sh")
	cmd.Env = append(cmd.Env, "NODE_MEMORY_MB=1024")
	begun := time.Now()
	out, err := cmd.CombinedOutput()
	took = time.Since(begun)
	if err != nil || !strings.HasSuffix(string(out), "started\n") {
		t.Errorf("%v: %s", err, out)
	}
	return took
}

// A node that was restarted has the best of its replicas take its place, and starts when another node says that it has
// no slots any more, or after a while.
func TestRestartedNodeWaits(t *testing.T) {
	const (
		master  = "aaaa 10.0.0.1:6379@16379 %smaster - 0 0 1 connected%s\n"
		replica = "bbbb 10.0.0.2:6379@16379 %sslave aaaa 0 0 1 connected\n"
		better  = "cccc fd00::3:6379@16379,redis-3 %s 0 0 2 connected%s\n"
		other   = "dddd 10.0.0.4:6379@16379 %smaster - 0 0 3 connected 8192-16383\n"
		theirs  = "eeee 10.0.0.5:6379@16379 %sslave dddd 0 0 3 connected\n"
	)
	const slave = "slave aaaa"
	all := func(me string) string {
		return fmt.Sprintf(master, me, " 0-8191") + fmt.Sprintf(replica, "") + fmt.Sprintf(better, slave, "") + fmt.Sprintf(other, "") + fmt.Sprintf(theirs, "")
	}
	nodesConf(t, all("myself,")+"vars currentEpoch 3 lastVoteEpoch 0\n")
	before := map[string]string{
		"10.0.0.2 cluster nodes":    strings.Replace(all(""), "slave aaaa", "myself,slave aaaa", 1),
		"fd00::3 cluster nodes":     strings.Replace(all(""), "redis-3 slave aaaa 0 0 2", "redis-3 myself,slave aaaa 0 0 2", 1),
		"10.0.0.4 cluster nodes":    strings.Replace(all(""), "10.0.0.4:6379@16379 ", "10.0.0.4:6379@16379 myself,", 1),
		"10.0.0.5 cluster nodes":    strings.Replace(all(""), "slave dddd", "myself,slave dddd", 1),
		"10.0.0.2 info replication": "# Replication\r\nrole:slave\r\nslave_repl_offset:998\r\n",
		"fd00::3 info replication":  "# Replication\r\nrole:slave\r\nslave_repl_offset:10021\r\n",
		"10.0.0.5 info replication": "# Replication\r\nrole:slave\r\nslave_repl_offset:90000\r\n",
	}
	promoted := map[string]string{
		"10.0.0.4 cluster nodes": fmt.Sprintf(master, "", "") + fmt.Sprintf(better, "master -", " 0-8191") + fmt.Sprintf(other, "myself,"),
	}
	with := func(more map[string]string) map[string]string {
		m := maps.Clone(before)
		maps.Copy(m, more)
		return m
	}
	for what, c := range map[string]struct {
		before, after map[string]string // what nodes answer, until one is asked to take over and afterwards
		asked         []string          // to take over
		from, to      time.Duration
	}{
		"a replica takes over":   {before, with(promoted), []string{"fd00::3"}, 0, 10 * time.Second},
		"one has taken over":     {with(promoted), nil, nil, 0, 10 * time.Second},
		"no replica takes over":  {before, before, []string{"fd00::3"}, 14 * time.Second, time.Minute},
		"the best one is silent": {map[string]string{"10.0.0.2 cluster nodes": before["10.0.0.2 cluster nodes"]}, before, []string{"10.0.0.2"}, 14 * time.Second, time.Minute},
		"nobody answers":         {nil, nil, nil, 14 * time.Second, time.Minute},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for when, says := range map[string]map[string]string{"before": c.before, "after": c.after} {
				if err := os.Mkdir(filepath.Join(dir, when), 0o755); err != nil {
					t.Fatal(err)
				}
				for question, text := range says {
					if err := os.WriteFile(filepath.Join(dir, when, question), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			took := restart(t, map[string]string{"redis-cli": "cd " + dir + `
if [ "$*" = "-h $2 -p 6379 cluster failover force" ]; then echo "$2" >>asked; fi
if [ -e asked ]; then cd after; else cd before; fi
cat "$2 $5 $6"
`})
			if took < c.from || took > c.to {
				t.Errorf("it waited %v", took)
			}
			asked, err := os.ReadFile(filepath.Join(dir, "asked"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if got := strings.Fields(string(asked)); !slices.Equal(got, c.asked) {
				t.Errorf("to take over it asked %q, want %q", got, c.asked)
			}
		})
	}
}

// The other masters agree at once, long before they would take the node for dead.
func TestReplicaOfARestartedNodeTakesOver(t *testing.T) {
	cli := storetest.Need(t, "redis-cli", "redis-tools")
	var files []string
	nodes := storetest.Cluster(t, 3, 1, func() []string {
		files = append(files, filepath.Join(t.TempDir(), "nodes.conf"))
		return []string{"--cluster-node-timeout", "60000", "--cluster-config-file", files[len(files)-1]}
	})
	ctx := context.Background()
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{nodes[0].Addr, nodes[1].Addr}})
	defer client.Close()
	for key := range 100 {
		if err := client.Set(ctx, fmt.Sprint(key), key, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
		return master.Do(ctx, "wait", 1, 10000).Err()
	}); err != nil {
		t.Fatal(err)
	}
	if err := nodes[2].Kill(); err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(files[2])
	if err != nil {
		t.Fatal(err)
	}
	nodesConf(t, string(conf))
	if took := restart(t, map[string]string{"redis-cli": "exec " + cli + ` "$@"` + "\n"}); took > 10*time.Second {
		t.Errorf("it waited %v", took)
	}
	storetest.Eventually(t, 5*time.Second, func() error {
		client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{nodes[1].Addr}}) // which looks anew who has what
		defer client.Close()
		for key := range 100 {
			if got, err := client.Get(ctx, fmt.Sprint(key)).Int(); err != nil || got != key {
				return fmt.Errorf("key %d has %d, %w", key, got, err)
			}
		}
		return nil
	})
}

const password = "hunter2hunter2"

// cluster is one of real servers, which form-cluster.sh joins, at loopback addresses of its own.
type cluster struct {
	t     *testing.T
	net   string
	nodes map[string]*storetest.Process // by address
}

// start starts a node as node.sh does in a pod.
func (c *cluster) start(last int) (addr string) {
	c.t.Helper()
	addr = fmt.Sprintf("%s.%d", c.net, last)
	conf := filepath.Join(c.t.TempDir(), "redis.conf")
	text, err := os.ReadFile("redis.conf")
	text = append(text, fmt.Sprintf("requirepass %s\nmasterauth %s\n", password, password)...)
	if err = errors.Join(err, os.WriteFile(conf, text, 0o600)); err != nil {
		c.t.Fatal(err)
	}
	path := storetest.Need(c.t, "redis-server", "redis-server")
	dir := c.t.TempDir()
	cmd := exec.Command(path, conf, "--bind", addr, "--dir", dir, "--cluster-config-file", filepath.Join(dir, "nodes.conf"),
		"--cluster-announce-ip", addr, "--loglevel", "warning")
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c.nodes[addr] = &storetest.Process{Process: cmd.Process, Addr: addr + ":6379"}
	return addr
}

// form runs form-cluster.sh until it succeeds, as the CronJob does; it may meet a node that has not noticed a failure.
func (c *cluster) form(nodes []string) {
	c.t.Helper()
	bin := c.t.TempDir()
	if err := os.Symlink(storetest.Need(c.t, "redis-cli", "redis-tools"), filepath.Join(bin, "redis-cli")); err != nil {
		c.t.Fatal(err)
	}
	for tries := 1; ; tries++ {
		cmd := script(c.t, bin, "form-cluster.sh", nodes...)
		cmd.Env = append(cmd.Env, "REDISCLI_AUTH="+password)
		out, err := cmd.CombinedOutput()
		if err == nil && strings.Contains(string(out), fmt.Sprintf("the cluster of %d nodes is up", len(nodes))) {
			return
		}
		if tries == 3 {
			c.t.Fatalf("%v\n%s\n%s", err, out, c.seen(nodes[1]))
		}
	}
}

func (c *cluster) seen(node string) string {
	c.t.Helper()
	client := redis.NewClient(&redis.Options{Addr: node + ":6379", Password: password})
	defer client.Close()
	seen, err := client.ClusterNodes(context.Background()).Result()
	if err != nil {
		c.t.Fatal(err)
	}
	return seen
}

// whole waits until every node sees these alone, half of them masters of all slots, and is ready.
func (c *cluster) whole(nodes []string) {
	c.t.Helper()
	for _, node := range nodes {
		storetest.Eventually(c.t, 30*time.Second, func() error {
			seen := c.seen(node)
			var at []string
			masters, slots := 0, 0
			for line := range strings.Lines(seen) {
				words := strings.Fields(line)
				addr, _, _ := strings.Cut(words[1], ":")
				at = append(at, addr)
				for _, r := range words[8:] {
					var from, to int
					if _, err := fmt.Sscanf(r, "%d-%d", &from, &to); err != nil {
						return fmt.Errorf("%s sees %s", node, seen)
					}
					slots += to - from + 1
				}
				if len(words) > 8 {
					masters++
				}
			}
			slices.Sort(at)
			if !slices.Equal(at, nodes) || masters != len(nodes)/2 || slots != 16384 || strings.Contains(seen, "fail") {
				return fmt.Errorf("%s sees %s", node, seen)
			}
			return c.ready(node)
		})
	}
}

// ready runs ready.sh with a redis-cli that asks the node, as it does in the node's container.
func (c *cluster) ready(node string) error {
	c.t.Helper()
	cli := storetest.Need(c.t, "redis-cli", "redis-tools")
	bin := c.t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "redis-cli"), fmt.Appendf(nil, "#!/bin/sh\nexec %s -h %s \"$@\"\n", cli, node), 0o755); err != nil {
		c.t.Fatal(err)
	}
	cmd := script(c.t, bin, "ready.sh")
	cmd.Env = append(cmd.Env, "REDISCLI_AUTH="+password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s is not ready: %w %s", node, err, out)
	}
	return nil
}

// replace kills nodes for good and starts others at new addresses in their places.
func (c *cluster) replace(nodes []string, places ...int) {
	c.t.Helper()
	for _, place := range places {
		if err := c.nodes[nodes[place]].Kill(); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, place := range places {
		nodes[place] = c.start(len(c.nodes) + 1)
		c.answers(nodes[place])
		if c.ready(nodes[place]) == nil {
			c.t.Errorf("%s is ready before it is taken in", nodes[place])
		}
	}
}

func (c *cluster) answers(node string) {
	c.t.Helper()
	client := redis.NewClient(&redis.Options{Addr: node + ":6379", Password: password, MaxRetries: -1})
	defer client.Close()
	storetest.Eventually(c.t, 10*time.Second, func() error { return client.Ping(context.Background()).Err() })
}

// failed waits until all nodes that are left have noticed whom they lost, and that a replica took the place of each that had one:
// as long as one is about to, form-cluster.sh leaves it alone until it runs again.
func (c *cluster) failed(nodes []string, lost ...string) {
	c.t.Helper()
	for _, node := range nodes {
		storetest.Eventually(c.t, 30*time.Second, func() error {
			seen := c.seen(node)
			gone := map[string]bool{} // ids
			for line := range strings.Lines(seen) {
				words := strings.Fields(line)
				addr, _, _ := strings.Cut(words[1], ":")
				if !slices.Contains(lost, addr) {
					continue
				}
				if gone[words[0]] = true; !slices.Contains(strings.Split(words[2], ","), "fail") {
					return fmt.Errorf("%s sees %s", node, seen)
				}
			}
			for line := range strings.Lines(seen) {
				if words := strings.Fields(line); gone[words[3]] && !strings.Contains(words[2], "fail") {
					return fmt.Errorf("%s sees %s", node, seen)
				}
			}
			return nil
		})
	}
}

// without those at some places, which are new and know nobody yet.
func without(nodes []string, places ...int) (rest []string) {
	for place, node := range nodes {
		if !slices.Contains(places, place) {
			rest = append(rest, node)
		}
	}
	return rest
}

// A pod that is replaced has lost all and has another address, as the nodes of the cluster do here.
func TestNodesAreReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	storetest.Need(t, "redis-cli", "redis-tools")
	c := &cluster{t: t, net: fmt.Sprintf("127.%d.%d", 64+os.Getpid()%128, os.Getpid()/128%256), nodes: map[string]*storetest.Process{}}
	if l, err := net.Listen("tcp", c.net+".1:6379"); err != nil {
		t.Skip("needs port 6379 of loopback addresses:", err)
	} else {
		_ = l.Close()
	}
	var nodes []string
	for n := range 6 {
		nodes = append(nodes, c.start(n+1))
		c.answers(nodes[n])
	}
	sorted := func() []string { return slices.Sorted(slices.Values(nodes)) }

	c.form(nodes)
	c.whole(sorted())
	before := c.seen(nodes[0])
	c.form(nodes)
	if after := c.seen(nodes[0]); len(strings.Fields(after)) != len(strings.Fields(before)) {
		t.Errorf("a second run made of\n%s\n%s", before, after)
	}

	ctx := context.Background()
	dial := func() *redis.ClusterClient { // a new one knows the cluster as it is
		return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{nodes[3] + ":6379"}, Password: password})
	}
	keys := func() (n int) {
		client := dial()
		defer client.Close()
		for key := range 100 {
			if got, err := client.Get(ctx, fmt.Sprint(key)).Int(); err == nil && got == key {
				n++
			}
		}
		return n
	}
	client := dial()
	defer client.Close()
	for key := range 100 {
		if err := client.Set(ctx, fmt.Sprint(key), key, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}

	// One at a time, the first among them, as a rolling update does: nothing is lost.
	for _, place := range []int{4, 1, 0} {
		lost := nodes[place]
		c.replace(nodes, place)
		c.failed(without(nodes, place), lost)
		c.form(nodes)
		c.whole(sorted())
		storetest.Eventually(t, 10*time.Second, func() error {
			if n := keys(); n != 100 {
				return fmt.Errorf("of 100 keys %d are left", n)
			}
			return nil
		})
	}

	// A master with its only replica: its part is lost, and made anew.
	lost := []int{}
	seen := c.seen(nodes[0])
	for line := range strings.Lines(seen) {
		words := strings.Fields(line)
		if len(lost) == 0 && len(words) > 8 {
			for other := range strings.Lines(seen) {
				if w := strings.Fields(other); w[0] == words[0] || w[3] == words[0] {
					addr, _, _ := strings.Cut(w[1], ":")
					lost = append(lost, slices.Index(nodes, addr))
				}
			}
		}
	}
	gone := []string{nodes[lost[0]], nodes[lost[1]]}
	c.replace(nodes, lost...)
	c.failed(without(nodes, lost...), gone...)
	c.form(nodes)
	c.whole(sorted())
	storetest.Eventually(t, 10*time.Second, func() error {
		if n := keys(); n < 50 || n > 80 {
			return fmt.Errorf("of 100 keys %d are left", n)
		}
		return nil
	})
}
