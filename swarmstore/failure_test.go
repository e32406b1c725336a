//go:build unix

package swarmstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/embedded"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// gateway on running servers, with the wall clock's time but standing still.
func gateway(t *testing.T, urls []string, set func(*swarmstore.Options)) *storetest.Gateway {
	t.Helper()
	now := time.Now()
	return (&storetest.Backend{URLs: urls}).Open(t, &now, set)
}

// announce a leecher and return what the store says.
func announce(g *storetest.Gateway, hash swarm.InfoHash, n int) error {
	a := &swarm.Announce{InfoHash: hash, Peer: storetest.Peer4(n), Left: 5}
	g.Announces(a)
	return a.Err
}

func port(t *testing.T, p *storetest.Process) int {
	t.Helper()
	_, s, err := net.SplitHostPort(p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRedisDiesAndReturns(t *testing.T) {
	server := storetest.Redis(t)
	g := gateway(t, storetest.URLs(server), func(o *swarmstore.Options) {
		o.RepeatWindow = time.Minute
		o.ViewTTL = 0
	})
	if err := announce(g, storetest.Hash(1), 1); err != nil {
		t.Fatal(err)
	}
	if err := g.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, 5*time.Second, func() error {
		if err := announce(g, storetest.Hash(1), 2); !errors.Is(err, swarm.ErrUnavailable) {
			return fmt.Errorf("announce without Redis: %v", err)
		}
		return nil
	})
	if err := g.Ping(t.Context()); !errors.Is(err, swarm.ErrUnavailable) {
		t.Errorf("ping without Redis: %v", err)
	}
	storetest.RedisAt(t, port(t, server))
	storetest.Eventually(t, 5*time.Second, func() error { return announce(g, storetest.Hash(1), 1) })
	// The first announce was stored a moment ago, by a server that lost it.
	if c := g.Counts(storetest.Hash(1)); c.Leechers != 1 {
		t.Errorf("counts are %+v: the announce was taken for a repeat", c)
	}
}

// mute takes the place of a server that was killed: it answers no attempt to connect, as a host that is gone. Called, it ends.
func mute(t *testing.T, at int) (end func()) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	addr := &syscall.SockaddrInet4{Port: at, Addr: [4]byte{127, 0, 0, 1}}
	storetest.Eventually(t, 5*time.Second, func() error { return syscall.Bind(fd, addr) }) // the server may not have ended yet
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	var waiting []net.Conn
	end = sync.OnceFunc(func() {
		_ = syscall.Close(fd)
		for _, c := range waiting {
			_ = c.Close()
		}
	})
	t.Cleanup(end)
	for { // until nobody else is let in to wait
		c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(at)), 300*time.Millisecond)
		if err != nil {
			return end
		}
		waiting = append(waiting, c)
	}
}

// A node that answers nothing is waited for once, not by each announce that finds it gone.
func TestNodeIsSilent(t *testing.T) {
	for what, silence := range map[string]func(*testing.T, *storetest.Process) (end func()){
		"it hangs": func(_ *testing.T, p *storetest.Process) func() {
			_ = p.Signal(syscall.SIGSTOP)
			return func() { _ = p.Signal(syscall.SIGCONT) }
		},
		"its host is gone": func(t *testing.T, p *storetest.Process) func() {
			_ = p.Kill()
			end := mute(t, port(t, p))
			return func() {
				end()
				storetest.RedisAt(t, port(t, p))
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			server := storetest.Redis(t)
			g := gateway(t, storetest.URLs(server), nil)
			if err := announce(g, storetest.Hash(1), 1); err != nil {
				t.Fatal(err)
			}
			end := silence(t, server)
			slow := 0
			for begun := time.Now(); time.Since(begun) < 6*time.Second; time.Sleep(20 * time.Millisecond) {
				asked := time.Now()
				if err := announce(g, storetest.Hash(1), 2); !errors.Is(err, swarm.ErrUnavailable) {
					t.Fatalf("an announce that cannot be stored: %v", err)
				}
				if time.Since(asked) > 500*time.Millisecond {
					slow++
				}
			}
			if slow > 2 {
				t.Errorf("%d announces waited for it", slow)
			}
			end()
			storetest.Eventually(t, 10*time.Second, func() error { return announce(g, storetest.Hash(1), 1) })
		})
	}
}

// A new connection that is refused answers no announce.
func TestConnectionsAreRefused(t *testing.T) {
	ctx := t.Context()
	server := storetest.Redis(t)
	admin := redis.NewClient(&redis.Options{Addr: server.Addr, PoolSize: 1})
	defer admin.Close()
	password := func(word string) {
		t.Helper()
		if err := errors.Join(admin.ConfigSet(ctx, "requirepass", word).Err(),
			admin.Do(ctx, "client", "kill", "type", "normal", "skipme", "yes").Err()); err != nil {
			t.Fatal(err)
		}
	}
	password("one")
	g := gateway(t, []string{"redis://:one@" + server.Addr}, func(o *swarmstore.Options) { o.ViewTTL = time.Minute })
	for range 3 { // so that a view is kept, and only the write is to be made
		if err := announce(g, storetest.Hash(1), 1); err != nil {
			t.Fatal(err)
		}
	}
	password("two")
	failed := g.Failed.Load()
	storetest.Eventually(t, 10*time.Second, func() error {
		if err := announce(g, storetest.Hash(1), 2); !errors.Is(err, swarm.ErrUnavailable) {
			t.Fatalf("an announce that cannot be stored: %v", err)
		}
		if n := g.Failed.Load() - failed; n < 4 {
			return fmt.Errorf("%d pipelines failed", n)
		}
		return nil
	})
	password("one")
	storetest.Eventually(t, 5*time.Second, func() error { return announce(g, storetest.Hash(1), 2) })
	if n, err := admin.ZCard(ctx, admin.Keys(ctx, "*p").Val()[0]).Result(); err != nil || n != 2 {
		t.Errorf("%d peers are stored, %v", n, err)
	}
}

// A repeat of what was stored on a server that has lost it since is no repeat.
func TestRedisIsReplacedBetweenTwoAnnounces(t *testing.T) {
	server := storetest.Redis(t)
	g := gateway(t, storetest.URLs(server), func(o *swarmstore.Options) {
		o.RepeatWindow = time.Minute
		o.ViewTTL = 0
	})
	if err := announce(g, storetest.Hash(1), 1); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, 5*time.Second, func() error {
		c, err := net.Dial("tcp", server.Addr)
		if err == nil {
			_ = c.Close()
			return errors.New("the server is still there")
		}
		return nil
	})
	storetest.RedisAt(t, port(t, server))
	if err := announce(g, storetest.Hash(1), 1); err != nil {
		return // told so, which is as good
	}
	if c := g.Counts(storetest.Hash(1)); c.Leechers != 1 {
		t.Errorf("an announce that was answered is not stored: %+v", c)
	}
}

func TestRedisComesLate(t *testing.T) {
	server := storetest.Redis(t)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	g := gateway(t, storetest.URLs(server), nil)
	if err := announce(g, storetest.Hash(1), 1); !errors.Is(err, swarm.ErrUnavailable) {
		t.Errorf("announce without Redis: %v", err)
	}
	storetest.Eventually(t, 5*time.Second, func() error {
		l, err := net.Listen("tcp", server.Addr)
		if err == nil {
			_ = l.Close()
		}
		return err
	})
	storetest.RedisAt(t, port(t, server))
	storetest.Eventually(t, 5*time.Second, func() error { return announce(g, storetest.Hash(1), 1) })
}

// A master that hangs delays and fails its own swarms only.
func TestOneMasterHangs(t *testing.T) {
	masters := storetest.Cluster(t, 3, 0)
	g := gateway(t, storetest.URLs(masters...), nil)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{masters[0].Addr}})
	defer client.Close()
	theirs, others := -1, []int{}
	for n := range 40 {
		if err := announce(g, storetest.Hash(n), 1); err != nil {
			t.Fatal(err)
		}
		key := ""
		for _, p := range masters {
			c := redis.NewClient(&redis.Options{Addr: p.Addr})
			keys, err := c.Keys(t.Context(), "*"+escape(storetest.Hash(n))+"p").Result()
			_ = c.Close()
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) == 1 {
				key = p.Addr
			}
		}
		if key == masters[1].Addr {
			theirs = n
		} else {
			others = append(others, n)
		}
	}
	if theirs < 0 || len(others) < 10 {
		t.Fatalf("swarm %d is on the master, %d are on others", theirs, len(others))
	}
	if err := masters[1].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	hung := make(chan error, 1)
	go func() { hung <- announce(g, storetest.Hash(theirs), 2) }()
	slowest := time.Duration(0)
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		for _, n := range others {
			start := time.Now()
			if err := announce(g, storetest.Hash(n), 2); err != nil {
				t.Fatalf("swarm of another master: %v", err)
			}
			slowest = max(slowest, time.Since(start))
		}
	}
	if slowest > 900*time.Millisecond {
		t.Errorf("another master's swarm took %v", slowest)
	}
	select {
	case err := <-hung:
		if !errors.Is(err, swarm.ErrUnavailable) {
			t.Errorf("swarm of the master that hangs: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("swarm of the master that hangs: no answer")
	}
	if err := masters[1].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, 10*time.Second, func() error { return announce(g, storetest.Hash(theirs), 2) })
}

// escape an info hash for a glob pattern.
func escape(hash swarm.InfoHash) string {
	var b strings.Builder
	for _, c := range hash {
		b.WriteByte('\\')
		b.WriteByte(c)
	}
	return b.String()
}

// While a slot moves, its keys are on one node or the other, and announces follow.
func TestSlotsMove(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		masters := storetest.Cluster(t, 3, 0)
		slotsMove(t, storetest.Real(t, masters...), masters)
	})
	t.Run("with TLS and a password", func(t *testing.T) {
		b, masters := securedCluster(t)
		slotsMove(t, b, masters)
	})
}

func slotsMove(t *testing.T, b *storetest.Backend, masters []*storetest.Process) {
	ctx, now := t.Context(), time.Now()
	g := b.Open(t, &now, func(o *swarmstore.Options) { o.ViewTTL = 0 })
	hash := storetest.Hash(7)
	if err := announce(g, hash, 1); err != nil {
		t.Fatal(err)
	}

	var from, to *redis.Client
	var key string
	var toAddr string
	var before, idle *storetest.Process // the masters without keys, of which one takes the slot
	for i, p := range masters {
		c := redis.NewClient(&redis.Options{Addr: p.Addr})
		defer c.Close()
		keys, err := c.Keys(ctx, "*").Result()
		if err != nil {
			t.Fatal(err)
		}
		if len(keys) > 0 {
			from, key = c, keys[0]
		} else {
			to, idle = c, before
			_, toAddr, _ = strings.Cut(b.URLs[i], "://")
			toAddr = toAddr[strings.IndexByte(toAddr, '@')+1:]
			before = p
		}
	}
	slot := from.ClusterKeySlot(ctx, key).Val()
	id := func(c *redis.Client) string { return c.ClusterMyID(ctx).Val() }
	do := func(c *redis.Client, args ...any) {
		t.Helper()
		if err := c.Do(ctx, args...).Err(); err != nil {
			t.Fatal(args, err)
		}
	}
	do(to, "cluster", "setslot", slot, "importing", id(from))
	do(from, "cluster", "setslot", slot, "migrating", id(to))
	if err := announce(g, hash, 2); err != nil {
		t.Errorf("before its keys move: %v", err)
	}
	host, toPort, _ := net.SplitHostPort(toAddr)
	do(from, "migrate", host, toPort, key, 0, 1000)
	if err := announce(g, hash, 3); err != nil {
		t.Errorf("after its keys moved: %v", err)
	}
	done := &swarm.Announce{InfoHash: hash, Peer: storetest.Peer4(9), Event: swarm.Completed}
	if g.Announces(done); done.Err != nil {
		t.Errorf("a download after its keys moved: %v", done.Err)
	}
	if c := g.Counts(hash); c != (swarm.Counts{Leechers: 3, Seeders: 1, Downloads: 1}) {
		t.Errorf("while the slot moves: %+v", c)
	}
	// A master that hangs and has no part in it delays nothing.
	if err := idle.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for n := range 20 {
		if err := announce(g, hash, 10+n%3); err != nil {
			t.Errorf("with another master hanging: %v", err)
		}
	}
	if took := time.Since(begun); took > 900*time.Millisecond {
		t.Errorf("with another master hanging 20 announces took %v", took)
	}
	begun = time.Now()
	if err := g.Ping(ctx); err != nil || time.Since(begun) > 500*time.Millisecond {
		t.Errorf("a ping with one master hanging took %v: %v", time.Since(begun), err)
	}
	if err := idle.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	do(to, "cluster", "setslot", slot, "node", id(to))
	do(from, "cluster", "setslot", slot, "node", id(to))
	if err := announce(g, hash, 4); err != nil {
		t.Errorf("after the slot moved: %v", err)
	}
	if c := g.Counts(hash); c.Leechers != 7 {
		t.Errorf("after the slot moved: %+v", c)
	}
}

func TestWaitReplicas(t *testing.T) {
	master := storetest.Redis(t, "--repl-diskless-sync-delay", "0")
	replica := storetest.Redis(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(port(t, master)))
	g := gateway(t, storetest.URLs(master), func(o *swarmstore.Options) { o.WaitReplicas = 1 })
	storetest.Eventually(t, 20*time.Second, func() error { return announce(g, storetest.Hash(1), 1) })
	c := redis.NewClient(&redis.Options{Addr: replica.Addr})
	defer c.Close()
	if n := c.DBSize(t.Context()).Val(); n != 1 {
		t.Errorf("the replica has %d keys", n)
	}
	if err := replica.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := announce(g, storetest.Hash(1), 2); !errors.Is(err, swarm.ErrUnavailable) {
		t.Errorf("without the replica: %v", err)
	}
	if c := g.Counts(storetest.Hash(1)); c.Leechers < 1 {
		t.Errorf("reads without the replica: %+v", c)
	}
	if err := replica.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, 20*time.Second, func() error { return announce(g, storetest.Hash(1), 3) })
}

// A master that has become a replica sends what comes for it to its successor, and is not taken for one whose
// replica is away.
func TestAReplicaTookOver(t *testing.T) {
	nodes := storetest.Cluster(t, 3, 1)
	g := gateway(t, storetest.URLs(nodes...), func(o *swarmstore.Options) { o.WaitReplicas = 1 })
	all := func() error {
		for n := range 40 {
			if err := announce(g, storetest.Hash(n), 1); err != nil {
				return fmt.Errorf("swarm %d: %w", n, err)
			}
		}
		return nil
	}
	storetest.Eventually(t, 20*time.Second, all)
	for _, replica := range nodes[3:] {
		storetest.TakeOver(t, replica)
	}
	if err := all(); err != nil { // the gateway has not noticed yet
		t.Error(err)
	}
}

func TestFullStores(t *testing.T) {
	full := func(t *testing.T, g *storetest.Gateway) {
		t.Helper()
		var refused error
		for n := 0; n < 200_000 && refused == nil; n += 100 {
			var batch []*swarm.Announce
			for i := range 100 {
				batch = append(batch, &swarm.Announce{InfoHash: storetest.Hash(n + i), Peer: storetest.Peer4(n + i), Left: 5})
			}
			g.Announces(batch...)
			for _, a := range batch {
				if a.Err != nil {
					refused = a.Err
				}
			}
		}
		if !errors.Is(refused, swarm.ErrFull) {
			t.Fatalf("a full store says %v", refused)
		}
		if c := g.Counts(storetest.Hash(1)); c.Leechers != 1 {
			t.Errorf("a full store reads %+v", c)
		}
		if err := g.Ping(context.Background()); err != nil {
			t.Errorf("a full store: %v", err)
		}
	}
	t.Run("redis", func(t *testing.T) {
		server := storetest.Redis(t, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
		full(t, gateway(t, storetest.URLs(server), nil))
	})
	t.Run("embedded", func(t *testing.T) {
		for _, limits := range []embedded.Limits{{Swarms: 500, Peers: 1 << 30}, {Swarms: 1 << 30, Peers: 500}} {
			server, err := embedded.Start(limits)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(server.Close)
			g := gateway(t, []string{server.URL()}, nil)
			full(t, g)
			// Who is there goes on.
			if err := announce(g, storetest.Hash(1), 1); err != nil {
				t.Errorf("a peer of a full store: %v", err)
			}
			if limits.Peers > 500 {
				if err := announce(g, storetest.Hash(1), 1_000_000); err != nil {
					t.Errorf("another peer of a swarm in a store full of swarms: %v", err)
				}
			}
			for n := range 2000 {
				completed := &swarm.Announce{InfoHash: storetest.Hash(1), Peer: storetest.Peer4(1), Event: swarm.Completed}
				refused := n > 0
				if refused {
					completed.InfoHash, completed.Peer = storetest.Hash(9_000_000+n), storetest.Peer4(n)
				}
				if g.Announces(completed); errors.Is(completed.Err, swarm.ErrFull) != refused || !refused && completed.Err != nil {
					t.Fatalf("download %d, of a new peer if above 0: %v", n, completed.Err)
				}
				if c := g.Counts(completed.InfoHash); refused && c != (swarm.Counts{}) || !refused && c.Downloads != 1 {
					t.Fatalf("download %d, of a new peer if above 0, is counted: %+v", n, c)
				}
			}
		}
	})
}

func TestWrongAddresses(t *testing.T) {
	for _, url := range []string{"", "redis://user:hunter2/x@127.0.0.1:7390", "redis://:hunter2#x@127.0.0.1:7390", "redis://:hunter2", "redis://h:1?dial_timeout=hunter2", "http://:hunter2@localhost", "redis://user:hunter2@local host:x", "redis://:hunter2@localhost:6379/0/1"} {
		store, err := swarmstore.Open(t.Context(), swarmstore.Options{URLs: []string{url}, Log: slog.New(slog.DiscardHandler)})
		if !errors.Is(err, swarmstore.ErrURL) {
			t.Errorf("%q: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("an error tells the password: %v", err)
		}
		if store != nil {
			store.Close()
		}
	}
}
