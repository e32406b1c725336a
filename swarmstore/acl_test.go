package swarmstore_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

const (
	aclFile  = "../deploy/redis/swarmgate.acl"
	password = "hunter2hunter2"
)

// rareCommands are those that the gateway's user may run and the suite does not, with what
// needs them.
var rareCommands = map[string]string{
	"asking":         "slots that move",
	"cluster|shards": "--read-from",
	"exec":           "the end of MULTI, which the slow log leaves out",
	"readonly":       "--read-from",
	"select":         "a database other than 0 in --redis",
	"wait":           "--wait-replicas",
	"zcount":         "a partition that outgrew its layout",
	"zrandmember":    "a partition that outgrew its layout",
	"zrangestore":    "a partition that was large for a while",
}

// secured makes a backend of running servers one that stores reach as the gateways' user.
func secured(t *testing.T, b *storetest.Backend) *storetest.Backend {
	t.Helper()
	for i, url := range b.URLs {
		b.URLs[i] = strings.Replace(url, "://", "://swarmgate@", 1)
	}
	for _, c := range admins(t, b) {
		if err := c.Do(t.Context(), "acl", "setuser", "swarmgate", ">"+password).Err(); err != nil {
			t.Fatal(err)
		}
	}
	b.Set = func(o *swarmstore.Options) { o.Password = func() (string, error) { return password, nil } }
	return b
}

// securedCluster takes only TLS of whoever is not the test.
func securedCluster(t *testing.T, args ...string) (*storetest.Backend, []*storetest.Process) {
	t.Helper()
	ca := storetest.NewAuthority(t)
	cert := ca.Issue("redis", "127.0.0.1", time.Now().Add(time.Hour))
	var urls []string
	masters := storetest.Cluster(t, 3, 0, func() []string {
		addr := storetest.FreeAddr(t)
		urls = append(urls, "rediss://"+addr)
		return append(append(ca.TLS(cert, addr), "--tls-cluster", "yes", "--include", absolute(t, aclFile)), args...)
	})
	b := storetest.Real(t, masters...)
	b.URLs = urls
	secured(t, b)
	login, encrypt := b.Set, with(ca, cert)
	b.Set = func(o *swarmstore.Options) {
		login(o)
		encrypt(o)
	}
	return b, masters
}

func admins(t *testing.T, b *storetest.Backend) (clients []*redis.Client) {
	t.Helper()
	for _, url := range b.Admin {
		o, err := redis.ParseURL(url)
		if err != nil {
			t.Fatal(err)
		}
		c := redis.NewClient(o)
		t.Cleanup(func() { _ = c.Close() })
		clients = append(clients, c)
	}
	return clients
}

// The gateways' user may do what the store needs, and nothing else. On one server the commands that the suite and
// the rest of the store use are compared with the file; a cluster takes the file as it is, over TLS.
func TestTheACLIsEnoughAndNoMore(t *testing.T) {
	text, err := os.ReadFile(aclFile)
	must(t, err)
	line, allowed := "", map[string]bool{}
	for _, word := range strings.Fields(string(text)) {
		if command, is := strings.CutPrefix(word, "+"); is {
			allowed[command] = true
		} else {
			line += word + " "
		}
	}
	const always = " hello auth " // for who is not logged in yet
	used := map[string]bool{}
	right := maps.Clone(allowed)
	log := []string{"--slowlog-log-slower-than", "0", "--slowlog-max-len", "100000"}
	run := func(t *testing.T, b *storetest.Backend) {
		clients, reset := admins(t, b), b.Reset
		commands := func() {
			for _, c := range clients {
				entries, err := c.SlowLogGet(t.Context(), -1).Result()
				must(t, errors.Join(err, c.Do(t.Context(), "slowlog", "reset").Err()))
				for _, entry := range entries {
					command := strings.ToLower(entry.Args[0])
					if len(entry.Args) > 1 && allowed[command+"|"+strings.ToLower(entry.Args[1])] {
						command += "|" + strings.ToLower(entry.Args[1])
					}
					if entry.ClientName == storetest.AdminName || used[command] || strings.Contains(always, " "+command+" ") {
						continue
					}
					used[command] = true
					if !allowed[command] {
						t.Errorf("%s lacks %q, which %s uses", aclFile, command, t.Name())
						right[command] = true
					}
				}
			}
		}
		for _, c := range clients { // forget how the cluster was made
			must(t, c.Do(t.Context(), "slowlog", "reset").Err())
		}
		b.Reset = func() { commands(); reset() }
		storetest.Run(t, b)
		t.Run("the rest", func(t *testing.T) { theRest(t, b) })
		commands()
		for _, c := range clients {
			denied, err := c.ACLLog(t.Context(), 1000).Result()
			must(t, err)
			for _, entry := range denied {
				t.Errorf("%s lacks the %s %q", aclFile, entry.Reason, entry.Object)
				if entry.Reason == "command" {
					right[entry.Object] = true
				}
			}
		}
	}
	t.Run("single", func(t *testing.T) {
		b := secured(t, storetest.Real(t, storetest.Redis(t, append(log, "--include", absolute(t, aclFile))...)))
		must(t, admins(t, b)[0].Do(t.Context(), "acl", "setuser", "swarmgate", "+@all").Err())
		run(t, b)
	})
	if !t.Failed() {
		t.Run("cluster over TLS", func(t *testing.T) {
			b, _ := securedCluster(t, log...)
			run(t, b)
		})
		for command := range allowed {
			if !used[command] && rareCommands[command] == "" {
				t.Errorf("%s allows %q, which nothing here uses and rareCommands does not explain", aclFile, command)
				delete(right, command)
			}
		}
	}
	for command, why := range rareCommands {
		if !allowed[command] {
			t.Errorf("%s lacks %q, for %s", aclFile, command, why)
			right[command] = true
		}
	}
	if t.Failed() {
		t.Logf("its line should be:\n%s+%s", line, strings.Join(slices.Sorted(maps.Keys(right)), " +"))
	}
}

// theRest is what the store does besides what the suite asks for.
func theRest(t *testing.T, b *storetest.Backend) {
	t.Helper()
	ctx, now := t.Context(), time.Now()
	g := b.Open(t, &now, nil)
	g.Put(storetest.Hash(1), storetest.Peer4(1), swarm.Completed, 0)
	must(t, g.Publish(ctx, now, "a", []byte("x")))
	must(t, g.Publish(ctx, now.Add(-time.Hour), "b", []byte("x")))
	_, err := g.Fleet(ctx, now)
	must(t, err)
	must(t, g.Leave(ctx, "a"))
	for range 2 {
		_, err = g.Lead(ctx, "a", time.Minute)
		must(t, err)
	}
	must(t, g.Resign(ctx, "a"))
	must(t, g.PutSummary(ctx, []byte("x"), time.Minute))
	_, err = g.Summary(ctx)
	must(t, err)
	_, err = g.Replicated(ctx)
	must(t, err)
	must(t, g.PublishDownloads(ctx, []swarmstore.Download{{InfoHash: storetest.Hash(1), At: now}}))
	must(t, g.Scan(ctx, func() time.Time { return now }, func([]swarm.Entry) error { return nil }))
	_, err = g.ImportDownloads(ctx, []swarmstore.Tally{{InfoHash: storetest.Hash(1), Downloads: 10}, {InfoHash: storetest.Hash(2), Downloads: 10}})
	must(t, err)
	for range 2 {
		_, err = g.Once(ctx, "x", netip.MustParseAddr("192.0.2.1"), time.Minute)
		must(t, err)
	}
	must(t, g.Ping(ctx))
}

// Whoever has the gateways' password can do no more than a gateway.
func TestTheACLRefusesTheRest(t *testing.T) {
	server := storetest.Redis(t, "--include", absolute(t, aclFile))
	b := secured(t, storetest.Real(t, server))
	c := redis.NewClient(&redis.Options{Addr: server.Addr, Username: "swarmgate", Password: password})
	defer c.Close()
	ours := "{abc}" + strings.Repeat("\xff", 20) + "p"
	for _, command := range []string{
		"flushall", "flushdb", "keys *", "config get *", "acl list", "shutdown nosave", "eval return1 0",
		"function list", "replicaof no one", "client list", "monitor", "subscribe swarmgate:x", "publish x y", "save", "dbsize", "module list",
		"cluster forget x", "migrate h 1 k 0 1", "slowlog get",
		"get foreign", "set foreign 1", "del foreign", "zadd foreign 1 x", "zrangestore " + ours + " foreign 0 -1", "zrangestore foreign " + ours + " 0 -1",
		"get {abc}short", "get " + ours[:25] + "x", "get swarmgate",
		"rename " + ours + " foreign", "sort " + ours, "dump " + ours, "object encoding " + ours,
	} {
		var args []any
		for _, word := range strings.Fields(command) {
			args = append(args, word)
		}
		if err := c.Do(t.Context(), args...).Err(); err == nil || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("%s: %v", command, err)
		}
	}
	if err := c.ZAdd(t.Context(), ours, redis.Z{Score: 1, Member: "x"}).Err(); err != nil {
		t.Errorf("a key of ours: %v", err)
	}
	if n := b.Keys(t); n != 1 {
		t.Errorf("%d keys", n)
	}
}

// A user without a password, as the file has it, lets nobody in.
func TestTheACLGivesNoPassword(t *testing.T) {
	server := storetest.Redis(t, "--include", absolute(t, aclFile))
	for _, word := range []string{"x", "swarmgate"} {
		c := redis.NewClient(&redis.Options{Addr: server.Addr, Username: "swarmgate", Password: word})
		if err := c.Get(t.Context(), "swarmgate:secret").Err(); err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
			t.Errorf("%q: %v", word, err)
		}
		_ = c.Close()
	}
}

func with(ca *storetest.Authority, own storetest.Certificate) func(*swarmstore.Options) {
	return func(o *swarmstore.Options) { o.TLS = func(c *tls.Config) error { return trust(c, ca, own) } }
}

// trust an authority, and show a certificate of it.
func trust(c *tls.Config, ca *storetest.Authority, own storetest.Certificate) error {
	pem, err := os.ReadFile(ca.File)
	if err != nil {
		return err
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("no certificate in %s", ca.File)
	}
	cert, err := tls.LoadX509KeyPair(own.File, own.Key)
	c.Certificates = []tls.Certificate{cert}
	return err
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
