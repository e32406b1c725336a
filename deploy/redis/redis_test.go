//go:build linux

// Package redis holds what the nodes of the Redis Cluster are started and joined with, and its tests.
package redis

import (
	"context"
	"errors"
	"fmt"
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
			cmd := exec.Command("sh", "node.sh")
			cmd.Env = append(c.env, "PATH="+bin+":"+os.Getenv("PATH"))
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

// A master that was restarted starts when another node says that it has no slots any more, or after a while.
func TestNodeWaitsForItsReplica(t *testing.T) {
	const conf = "/tmp/nodes.conf" // where node.sh looks, in its container
	if _, err := os.Stat(conf); err == nil {
		t.Skip(conf + " is there already")
	}
	t.Cleanup(func() { _ = os.Remove(conf) })
	const me, other = "aaaa 10.0.0.1:6379@16379 %smaster - 0 0 1 connected%s\n", "bbbb 10.0.0.2:6379@16379 %s 0 0 2 connected%s\n"
	was := fmt.Sprintf(me, "myself,", " 0-16383") + fmt.Sprintf(other, "slave aaaa", "") + "vars currentEpoch 2 lastVoteEpoch 0\n"
	if err := os.WriteFile(conf, []byte(was), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		says     string // what the other one says, after it has said twice what was
		asked    int    // at least
		from, to time.Duration
	}{
		"a replica takes over":  {fmt.Sprintf(me, "", "") + fmt.Sprintf(other, "myself,master -", " 0-16383"), 3, 300 * time.Millisecond, 12 * time.Second},
		"no replica takes over": {fmt.Sprintf(me, "", " 0-16383") + fmt.Sprintf(other, "myself,slave aaaa", ""), 10, 14 * time.Second, time.Minute},
		"nobody answers":        {"", 10, 14 * time.Second, time.Minute},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			bin := t.TempDir()
			before := fmt.Sprintf(me, "", " 0-16383")
			for name, text := range map[string]string{
				"docker-entrypoint.sh": "#!/bin/sh\necho started\n",
				"redis-cli": fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%[1]s/asked\nif [ $(wc -l <%[1]s/asked) -lt 3 ]; then echo '%[2]s'; else echo '%[3]s'; fi\n",
					bin, before, c.says),
			} {
				if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("sh", "node.sh")
			cmd.Env = []string{"NODE_MEMORY_MB=1024", "PATH=" + bin + ":/usr/bin:/bin"}
			begun := time.Now()
			out, err := cmd.CombinedOutput()
			took := time.Since(begun)
			if err != nil || !strings.HasSuffix(string(out), "started\n") {
				t.Errorf("%v: %s", err, out)
			}
			asked, err := os.ReadFile(filepath.Join(bin, "asked"))
			lines := strings.Split(strings.TrimSpace(string(asked)), "\n")
			if err != nil || len(lines) < c.asked || lines[0] != "-h 10.0.0.2 -p 6379 cluster nodes" {
				t.Errorf("it asked %q, %v", lines, err)
			}
			if took < c.from || took > c.to {
				t.Errorf("it waited %v", took)
			}
		})
	}
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
	for tries := 1; ; tries++ {
		cmd := exec.Command("sh", append([]string{"form-cluster.sh"}, nodes...)...)
		cmd.Env = append(os.Environ(), "REDISCLI_AUTH="+password)
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
	cmd := exec.Command("sh", "ready.sh")
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "REDISCLI_AUTH=" + password}
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
