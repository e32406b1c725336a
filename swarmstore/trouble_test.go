//go:build unix

package swarmstore_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// lines of a log.
type lines struct {
	mu    sync.Mutex
	lines []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

// with are those that hold all of the words.
func (l *lines) with(words ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for _, line := range l.lines {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// bad is a Redis in a state that an operator has to mend.
type bad struct {
	urls []string
	set  func(*swarmstore.Options)
	hash int // of a swarm that the state is about

	spoil func() // what brings it about, when the gateway is up already
	mend  func()
}

// What a full Redis has it goes on to tell, and lets go; whoever would have to be written is refused, also who is
// there already, as its time cannot be set anew.
func TestAFullRedis(t *testing.T) {
	p := storetest.Redis(t)
	g := gateway(t, storetest.URLs(p), func(o *swarmstore.Options) { o.ViewTTL = 0 })
	put := func(n int, event swarm.Event) error {
		a := &swarm.Announce{InfoHash: storetest.Hash(1), Peer: storetest.Peer4(n), Event: event, Left: 5}
		g.Announces(a)
		return a.Err
	}
	must(t, errors.Join(put(1, swarm.Started), put(2, swarm.Started)))
	do := on(t, p)
	do("config", "set", "maxmemory", "100kb")
	for n := range 3 { // one of them is new
		if err := put(n, swarm.None); !errors.Is(err, swarm.ErrFull) {
			t.Errorf("peer %d: %v", n, err)
		}
	}
	if err := put(2, swarm.Stopped); err != nil {
		t.Errorf("who stops: %v", err)
	}
	if c := g.Counts(storetest.Hash(1)); c != (swarm.Counts{Leechers: 1}) {
		t.Errorf("the counts are %+v", c)
	}
	do("config", "set", "maxmemory", "0")
	if err := put(0, swarm.None); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if c := g.Counts(storetest.Hash(1)); c != (swarm.Counts{Leechers: 2}) {
		t.Errorf("with room again the counts are %+v", c)
	}
}

// A key that somebody else wrote takes down its own swarm only.
func TestAForeignKeyTakesDownItsSwarmOnly(t *testing.T) {
	p := storetest.Redis(t)
	g := gateway(t, storetest.URLs(p), func(o *swarmstore.Options) { o.ViewTTL = 0 })
	on(t, p)("set", swarmstore.Key(storetest.Hash(0), 'p'), "x")
	var batch []*swarm.Announce
	for n := range 10 {
		batch = append(batch, &swarm.Announce{InfoHash: storetest.Hash(n % 5), Peer: storetest.Peer4(n), Left: 5})
	}
	g.Announces(batch...)
	for n, a := range batch {
		if (a.Err != nil) != (n%5 == 0) {
			t.Errorf("announce %d: %v", n, a.Err)
		}
	}
}

// That a trouble is over is told too.
func TestATroubleIsOver(t *testing.T) {
	t.Parallel() // it takes half a minute
	p := storetest.Redis(t, "--maxmemory", "8mb")
	var log lines
	g := gateway(t, storetest.URLs(p), func(o *swarmstore.Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	if len(g.Troubles()) != 1 {
		t.Errorf("troubles are %q", g.Troubles())
	}
	on(t, p)("config", "set", "maxmemory", "1gb")
	storetest.Eventually(t, time.Minute, func() error {
		if found := g.Troubles(); len(found) != 0 {
			return fmt.Errorf("troubles are %q", found)
		}
		return nil
	})
	if found := log.with("it seems to be over: Redis has little memory"); len(found) != 1 {
		t.Errorf("the log says %q", log.with(""))
	}
}

// Whatever is wrong with Redis, the log says what, once, and what to do; the gateway stays up, tells the same to who
// asks whether it is ready, and recovers when it is mended.
func TestBadStates(t *testing.T) {
	ctx := context.Background()
	one := func(t *testing.T, args ...string) (p *storetest.Process, do func(args ...any)) {
		t.Helper()
		p = storetest.Redis(t, args...)
		return p, on(t, p)
	}
	onlyTLS := func(t *testing.T, ca *storetest.Authority, cert storetest.Certificate) (addr string, do func(args ...any)) {
		t.Helper()
		addr = storetest.FreeAddr(t)
		_, do = one(t, ca.TLS(cert, addr)...)
		return addr, do
	}
	soon := time.Now().Add(time.Hour)

	for _, test := range []struct {
		name  string
		start func(t *testing.T) bad
		want  []string // in one line of the log, with what to do
		err   error    // of announces, meanwhile
		ready bool     // and it is ready nevertheless
	}{
		{name: "no password is given", want: []string{"wants a password", "--redis-password-file", "NOAUTH"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				p, do := one(t)
				do("config", "set", "requirepass", "hunter2")
				return bad{urls: storetest.URLs(p), mend: func() { do("config", "set", "requirepass", "") }}
			}},
		{name: "a wrong password", want: []string{"does not know the user with this password", "--redis-password-file", "WRONGPASS"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				p, do := one(t)
				do("acl", "setuser", "swarmgate", "on", ">hunter2", "allkeys", "+@all")
				file := filepath.Join(t.TempDir(), "password")
				write(t, file, "hunter3")
				return bad{urls: []string{"redis://swarmgate@" + p.Addr},
					set: func(o *swarmstore.Options) {
						o.Password = func() (string, error) { b, err := os.ReadFile(file); return string(b), err }
					},
					mend: func() { write(t, file, "hunter2") }}
			}},
		{name: "a password file that is gone", want: []string{"file that connections to Redis need", "let the gateway's user read it"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				p, do := one(t)
				do("acl", "setuser", "swarmgate", "on", ">hunter2", "allkeys", "+@all")
				file := filepath.Join(t.TempDir(), "password")
				return bad{urls: []string{"redis://swarmgate@" + p.Addr},
					set: func(o *swarmstore.Options) {
						o.Password = func() (string, error) { b, err := os.ReadFile(file); return string(b), err }
					},
					mend: func() { write(t, file, "hunter2") }}
			}},
		{name: "a command is not permitted", want: []string{"does not permit", "swarmgate.acl", "command=zadd"}, err: swarm.ErrUnavailable, ready: true,
			start: func(t *testing.T) bad {
				p, do := one(t, "--include", absolute(t, aclFile))
				do("acl", "setuser", "swarmgate", ">hunter2", "-zadd")
				return bad{urls: []string{"redis://swarmgate:hunter2@" + p.Addr}, mend: func() { do("acl", "setuser", "swarmgate", "+zadd") }}
			}},
		{name: "keys are not permitted", want: []string{"does not permit", "swarmgate.acl"}, err: swarm.ErrUnavailable, ready: true,
			start: func(t *testing.T) bad {
				p, do := one(t)
				do("acl", "setuser", "swarmgate", "on", ">hunter2", "~swarmgate:*", "+@all")
				return bad{urls: []string{"redis://swarmgate:hunter2@" + p.Addr}, mend: func() { do("acl", "setuser", "swarmgate", "allkeys") }}
			}},
		{name: "a replica in place of its master", want: []string{"is a replica", "its master in --redis"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				master, _ := one(t)
				p, do := one(t, "--replicaof", strings.Replace(master.Addr, ":", " ", 1))
				return bad{urls: storetest.URLs(p), mend: func() { do("replicaof", "no", "one") }}
			}},
		{name: "a master becomes a replica", want: []string{"is a replica", "its master in --redis"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				master, _ := one(t)
				p, do := one(t)
				host, port, _ := net.SplitHostPort(master.Addr)
				return bad{urls: storetest.URLs(p), spoil: func() { do("replicaof", host, port) }, mend: func() { do("replicaof", "no", "one") }}
			}},
		{name: "slots of a cluster that no node has", want: []string{"slots of the cluster are on no node", "redis-cli --cluster check"}, err: swarm.ErrUnavailable, ready: true,
			start: func(t *testing.T) bad {
				masters := storetest.Cluster(t, 3, 0)
				c := redis.NewClient(&redis.Options{Addr: masters[0].Addr})
				t.Cleanup(func() { _ = c.Close() })
				shards, err := c.ClusterShards(ctx).Result()
				must(t, err)
				slots := shards[0].Slots[0]
				change := func(command string, masters ...*storetest.Process) {
					for _, p := range masters {
						on(t, p)("cluster", command, slots.Start, slots.End)
					}
				}
				hash := 0
				for ; ; hash++ {
					slot := c.ClusterKeySlot(ctx, swarmstore.Key(storetest.Hash(hash), 'p')).Val()
					if slot >= slots.Start && slot <= slots.End {
						break
					}
				}
				return bad{urls: storetest.URLs(masters...), hash: hash,
					spoil: func() { change("delslotsrange", masters...) }, mend: func() { change("addslotsrange", masters[0]) }}
			}},
		{name: "a key of the wrong type", want: []string{"holds what no gateway wrote", "command=zadd", "delete the key", "key={"}, err: swarm.ErrUnavailable, ready: true,
			start: func(t *testing.T) bad {
				p, do := one(t)
				key := swarmstore.Key(storetest.Hash(0), 'p')
				return bad{urls: storetest.URLs(p), spoil: func() { do("set", key, "x") }, mend: func() { do("del", key) }}
			}},
		{name: "downloads of the wrong type", want: []string{"holds what no gateway wrote", "delete the key", "command=getex"}, err: swarm.ErrUnavailable, ready: true,
			start: func(t *testing.T) bad {
				p, do := one(t)
				key := swarmstore.Key(storetest.Hash(0), 'd')
				return bad{urls: storetest.URLs(p), spoil: func() { do("sadd", key, "x") }, mend: func() { do("del", key) }}
			}},
		{name: "downloads that are no number", want: []string{"holds what no gateway wrote", "delete the key", `d"`}, err: swarm.ErrUnavailable, ready: true,
			start: func(t *testing.T) bad {
				p, do := one(t)
				key := swarmstore.Key(storetest.Hash(0), 'd')
				return bad{urls: storetest.URLs(p), spoil: func() { do("set", key, "many") }, mend: func() { do("del", key) }}
			}},
		{name: "a full Redis", want: []string{"is full", "maxmemory", "OOM"}, err: swarm.ErrFull, ready: true,
			start: func(t *testing.T) bad {
				p, do := one(t)
				return bad{urls: storetest.URLs(p), spoil: func() { do("config", "set", "maxmemory", "100kb") }, mend: func() { do("config", "set", "maxmemory", "0") }}
			}},
		{name: "a policy that forgets swarms", want: []string{"level=WARN", "forgets swarms", "noeviction", "allkeys-lru"}, ready: true,
			start: func(t *testing.T) bad {
				p, do := one(t, "--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru")
				return bad{urls: storetest.URLs(p), mend: func() { do("config", "set", "maxmemory-policy", "noeviction") }}
			}},
		{name: "little memory", want: []string{"level=WARN", "little memory", "maxmemory=8388608"}, ready: true,
			start: func(t *testing.T) bad {
				p, do := one(t, "--maxmemory", "8mb")
				return bad{urls: storetest.URLs(p), mend: func() { do("config", "set", "maxmemory", "1gb") }}
			}},
		{name: "TLS where there is none", want: []string{"speaks no TLS", "redis:// in --redis", "deadline"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				ca := storetest.NewAuthority(t)
				cert := ca.Issue("redis", "127.0.0.1", soon)
				p, do := one(t, "--tls-cert-file", cert.File, "--tls-key-file", cert.Key, "--tls-ca-cert-file", ca.File)
				_, port, _ := net.SplitHostPort(p.Addr)
				return bad{urls: []string{"rediss://" + p.Addr}, set: with(ca, cert), mend: func() {
					do("config", "set", "port", "0", "tls-port", port)
				}}
			}},
		{name: "no TLS where there is", want: []string{"ends connections", "rediss://"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				ca := storetest.NewAuthority(t)
				addr, do := onlyTLS(t, ca, ca.Issue("redis", "127.0.0.1", soon))
				_, port, _ := net.SplitHostPort(addr)
				return bad{urls: []string{"redis://" + addr}, mend: func() { do("config", "set", "tls-port", "0", "port", port) }}
			}},
		{name: "a CA that is not known", want: []string{"certificate of Redis is not good", "--redis-ca"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				ca, other := storetest.NewAuthority(t), storetest.NewAuthority(t)
				cert := ca.Issue("redis", "127.0.0.1", soon)
				addr, _ := onlyTLS(t, ca, cert)
				return bad{urls: []string{"rediss://" + addr}, set: with(other, cert), mend: func() { write(t, other.File, read(t, ca.File)) }}
			}},
		{name: "a certificate that expired", want: []string{"certificate of Redis is not good", "a new certificate", "expired"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				ca := storetest.NewAuthority(t)
				own := ca.Issue("gateway", "gateway", soon)
				old := ca.Issue("redis", "127.0.0.1", time.Now().Add(-time.Hour))
				addr, do := onlyTLS(t, ca, old)
				return bad{urls: []string{"rediss://" + addr}, set: with(ca, own), mend: func() {
					do("config", "set", "tls-cert-file", ca.Issue("redis", "127.0.0.1", soon).File, "tls-key-file", old.Key)
				}}
			}},
		{name: "a certificate of another host", want: []string{"certificate of Redis is not good", "name or address by which"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				ca := storetest.NewAuthority(t)
				cert := ca.Issue("redis", "redis.example", soon)
				addr, do := onlyTLS(t, ca, cert)
				return bad{urls: []string{"rediss://" + addr}, set: with(ca, cert), mend: func() {
					do("config", "set", "tls-cert-file", ca.Issue("redis", "127.0.0.1", soon).File, "tls-key-file", cert.Key)
				}}
			}},
		{name: "no certificate of the gateway's own", want: []string{"does not accept the gateway's certificate", "--redis-cert"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				ca := storetest.NewAuthority(t)
				cert := ca.Issue("redis", "127.0.0.1", soon)
				addr, do := onlyTLS(t, ca, cert)
				return bad{urls: []string{"rediss://" + addr},
					set: func(o *swarmstore.Options) {
						o.TLS = func(c *tls.Config) error {
							err := trust(c, ca, cert)
							c.Certificates = nil
							return err
						}
					},
					mend: func() { do("config", "set", "tls-auth-clients", "no") }}
			}},
		{name: "nobody listens", want: []string{"a Redis node does not answer"}, err: swarm.ErrUnavailable,
			start: func(t *testing.T) bad {
				p, _ := one(t)
				must(t, p.Kill())
				return bad{urls: storetest.URLs(p), mend: func() {
					storetest.Eventually(t, 5*time.Second, func() error {
						l, err := net.Listen("tcp", p.Addr)
						if err == nil {
							_ = l.Close()
						}
						return err
					})
					storetest.RedisAt(t, port(t, p))
				}}
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := test.start(t)
			var log lines
			g := gateway(t, b.urls, func(o *swarmstore.Options) {
				if b.set != nil {
					b.set(o)
				}
				o.ViewTTL = 0
				o.Log = slog.New(slog.NewTextHandler(&log, nil))
			})
			announce := func(hash, n int) error {
				a := &swarm.Announce{InfoHash: storetest.Hash(hash), Peer: storetest.Peer4(n), Left: 5, Complete: true}
				g.Announces(a)
				return a.Err
			}
			if b.spoil != nil {
				must(t, announce(b.hash, 1))
				b.spoil()
			}
			storetest.Eventually(t, 20*time.Second, func() error {
				if err := announce(b.hash, 2); !errors.Is(err, test.err) {
					return fmt.Errorf("an announce: %v", err)
				}
				if len(log.with(test.want...)) == 0 {
					return fmt.Errorf("the log says %q", log.with(""))
				}
				if err := g.Ping(ctx); (err == nil) != test.ready {
					return fmt.Errorf("ready, or not: %v", err)
				}
				return nil
			})
			for range 20 { // and each adds no line
				_ = announce(b.hash, 2)
			}
			if found := log.with(test.want...); len(found) != 1 || len(log.with("level=ERROR"))+len(log.with("level=WARN")) > 4 {
				t.Errorf("the log says %q", log.with(""))
			}
			if text := strings.Join(g.Troubles(), "\n"); !strings.Contains(text, test.want[0]) && !strings.Contains(text, test.want[1]) {
				t.Errorf("whoever asks whether it is ready is told %q", text)
			}
			if found := append(log.with("hunter"), log.with("10.0.0.")...); len(found) > 0 || strings.Contains(strings.Join(g.Troubles(), ""), "hunter") {
				t.Errorf("told what nobody may know: %q", found)
			}
			b.mend()
			storetest.Eventually(t, 20*time.Second, func() error {
				if err := errors.Join(announce(b.hash, 1), g.Ping(ctx)); err != nil {
					return err
				}
				counts, err := scrape(g, storetest.Hash(b.hash))
				if err == nil && counts.Leechers < 1 {
					err = fmt.Errorf("the counts are %+v", counts)
				}
				return err
			})
		})
	}
}

// scrape is Counts, of a store that may fail.
func scrape(g *storetest.Gateway, hash swarm.InfoHash) (swarm.Counts, error) {
	done := make(chan struct{})
	s := &swarm.Scrape{Hashes: []swarm.InfoHash{hash}}
	g.Scrape(time.Now(), s, func(*swarm.Scrape) { close(done) })
	<-done
	return s.Counts[0], s.Err
}

// on is how a test gives a server commands.
func on(t *testing.T, p *storetest.Process) func(args ...any) {
	c := redis.NewClient(&redis.Options{Addr: p.Addr, PoolSize: 1})
	t.Cleanup(func() { _ = c.Close() })
	return func(args ...any) {
		t.Helper()
		must(t, c.Do(context.Background(), args...).Err())
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	must(t, os.WriteFile(file, []byte(text), 0o600))
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return string(b)
}
