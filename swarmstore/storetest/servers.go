// Package storetest starts real Redis servers and clusters for tests, and holds
// the conformance suite that every backend of the store passes.
//
//	addrs := storetest.Cluster(t, 3, 0) // three masters, gone when the test ends
//
// Without redis-server installed a test skips, and fails where CI is "true".
package storetest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Need skips the test unless program is installed; in CI it fails it.
func Need(t testing.TB, program, debian string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: apt-get install %s", program, debian)
	}
	t.Skipf("needs %s: apt-get install %s", program, debian)
	return ""
}

// Process is a server of the test's own.
type Process struct {
	*os.Process
	Addr string

	t       testing.TB // that it ends with
	command []string
	ended   chan struct{}
}

// Redis starts a redis-server on a free port of the loopback address, with
// further arguments, and returns when it answers. It ends with the test.
func Redis(t testing.TB, args ...string) *Process {
	t.Helper()
	return RedisAt(t, freePort(t), args...)
}

// RedisAt is Redis on a given port.
func RedisAt(t testing.TB, port int, args ...string) *Process {
	t.Helper()
	return redisOn(t, Host{IP: "127.0.0.1"}, port, args...)
}

// Host is where a server runs: in a network namespace that has the address, or in
// the test's own when Namespace is empty.
type Host struct{ Namespace, IP string }

// Enter is what a command begins with that runs there.
func (h Host) Enter(t testing.TB) []string {
	t.Helper()
	if h.Namespace == "" {
		return nil
	}
	return []string{Need(t, "ip", "iproute2"), "netns", "exec", h.Namespace}
}

// IP runs commands of ip(8), until one fails, and says what they print.
func IP(commands ...string) (string, error) {
	var out strings.Builder
	for _, command := range commands {
		text, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("ip %s: %w: %s", command, err, text)
		}
		out.Write(text)
	}
	return out.String(), nil
}

// Text is what a process or a log writes and a test reads meanwhile.
type Text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *Text) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Text) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func redisOn(t testing.TB, host Host, port int, args ...string) *Process {
	t.Helper()
	command := append(host.Enter(t), Need(t, "redis-server", "redis-server"),
		"--port", strconv.Itoa(port), "--bind", host.IP, "--protected-mode", "no", "--dir", t.TempDir(),
		"--save", "", "--appendonly", "no", "--loglevel", "warning")
	p := &Process{Addr: net.JoinHostPort(host.IP, strconv.Itoa(port)), t: t, command: append(command, args...)}
	p.start()
	return p
}

func (p *Process) start() {
	t := p.t
	t.Helper()
	cmd := exec.Command(p.command[0], p.command[1:]...)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	p.Process, p.ended = cmd.Process, ended
	client := redis.NewClient(&redis.Options{Addr: p.Addr, MaxRetries: -1})
	defer client.Close()
	Eventually(t, 10*time.Second, func() error {
		select {
		case <-ended:
			t.Fatalf("redis-server ended: %s", log.String())
		default:
		}
		return client.Ping(context.Background()).Err()
	})
}

// Restart kills the server and starts it again, with the same files. Nothing that it
// stored is left, and a node of a cluster knows its place.
func (p *Process) Restart() {
	p.t.Helper()
	_ = p.Kill()
	<-p.ended
	p.start()
}

// Cluster starts a Redis Cluster on the loopback address and returns when it serves.
// The masters come first. What each gives are further arguments of a node.
func Cluster(t testing.TB, masters, replicasEach int, each ...func() []string) []*Process {
	t.Helper()
	var nodes []*Process
	for range masters * (1 + replicasEach) {
		var args []string
		for _, more := range each {
			args = append(args, more()...)
		}
		nodes = append(nodes, ClusterNode(t, Host{IP: "127.0.0.1"}, args...))
	}
	FormCluster(t, replicasEach, nodes...)
	return nodes
}

// ClusterNode starts a node that belongs to no cluster yet, with further arguments.
func ClusterNode(t testing.TB, host Host, args ...string) *Process {
	t.Helper()
	port, bus := freePort(t), freePort(t)
	return redisOn(t, host, port, append([]string{"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus),
		"--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no",
		"--repl-diskless-sync-delay", "0"}, args...)...)
}

// FormCluster makes a cluster of nodes and returns when it serves, and all know the replicas. On one host the masters
// come first.
func FormCluster(t testing.TB, replicasEach int, nodes ...*Process) {
	t.Helper()
	cli := Need(t, "redis-cli", "redis-tools")
	create := []string{"--cluster", "create"}
	for _, p := range nodes {
		create = append(create, p.Addr)
	}
	create = append(create, "--cluster-replicas", strconv.Itoa(replicasEach), "--cluster-yes")
	if out, err := exec.Command(cli, create...).CombinedOutput(); err != nil {
		t.Fatalf("redis-cli: %v\n%s", err, out)
	}
	for _, p := range nodes {
		client := redis.NewClient(&redis.Options{Addr: p.Addr})
		Eventually(t, 20*time.Second, func() error {
			info, err := client.ClusterInfo(context.Background()).Result()
			if err != nil {
				return err
			}
			if !strings.Contains(info, "cluster_state:ok") ||
				!strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", len(nodes))) {
				return fmt.Errorf("%s: %s", p.Addr, info)
			}
			return knowsReplicas(client, replicasEach)
		})
		_ = client.Close()
	}
}

// knowsReplicas tells whether a node knows the replicas of each master, and is up to date if it is one.
func knowsReplicas(client *redis.Client, each int) error {
	shards, err := client.ClusterShards(context.Background()).Result()
	if err != nil {
		return err
	}
	for _, s := range shards {
		if len(s.Nodes) != 1+each {
			return fmt.Errorf("%s knows of %d nodes with the same slots", client.Options().Addr, len(s.Nodes))
		}
	}
	info, err := client.Info(context.Background(), "replication").Result()
	if err == nil && strings.Contains(info, "role:slave") && !strings.Contains(info, "master_link_status:up") {
		err = fmt.Errorf("%s has no link to its master", client.Options().Addr)
	}
	return err
}

// TakeOver makes a replica the master by hand, and returns when its old master follows it.
func TakeOver(t testing.TB, replica *Process) {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: replica.Addr})
	defer client.Close()
	var asked time.Time
	Eventually(t, 40*time.Second, func() error {
		// An attempt that fails ends after 5 s.
		if time.Since(asked) > 6*time.Second {
			asked = time.Now()
			if err := client.ClusterFailover(context.Background()).Err(); err != nil {
				return err
			}
		}
		info, err := client.Info(context.Background(), "replication").Result()
		if err == nil && (!strings.Contains(info, "role:master") || !strings.Contains(info, "state=online")) {
			err = fmt.Errorf("%s has not taken over", replica.Addr)
		}
		return err
	})
}

// URLs of processes.
func URLs(processes ...*Process) []string {
	var urls []string
	for _, p := range processes {
		urls = append(urls, "redis://"+p.Addr)
	}
	return urls
}

// Eventually tries until it succeeds, and fails the test with the last error when
// that takes too long.
func Eventually(t testing.TB, within time.Duration, try func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// FreeAddr is an address that nothing listens on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
}

// givenPorts are those that freePort has given: on another host they may be in use.
var givenPorts sync.Map

func freePort(t testing.TB) int {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		if _, given := givenPorts.LoadOrStore(port, true); !given {
			return port
		}
	}
}
