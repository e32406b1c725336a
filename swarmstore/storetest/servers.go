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
	path := Need(t, "redis-server", "redis-server")
	args = append([]string{
		"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", t.TempDir(),
		"--save", "", "--appendonly", "no", "--loglevel", "warning",
	}, args...)
	cmd := exec.Command(path, args...)
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
	p := &Process{cmd.Process, net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
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
	return p
}

// Cluster starts a Redis Cluster on the loopback address and returns when it serves.
// The masters come first. What each gives are further arguments of a node.
func Cluster(t testing.TB, masters, replicasEach int, each ...func() []string) []*Process {
	t.Helper()
	cli := Need(t, "redis-cli", "redis-tools")
	var nodes []*Process
	create := []string{"--cluster", "create"}
	for range masters * (1 + replicasEach) {
		port, bus := freePort(t), freePort(t)
		args := []string{"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus),
			"--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no",
			"--repl-diskless-sync-delay", "0"}
		for _, more := range each {
			args = append(args, more()...)
		}
		p := RedisAt(t, port, args...)
		nodes = append(nodes, p)
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
			return nil
		})
		_ = client.Close()
	}
	return nodes
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

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
