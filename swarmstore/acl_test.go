package swarmstore_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
)

const (
	aclFile  = "../deploy/redis/swarmgate.acl"
	password = "hunter2hunter2"
)

// rareCommands are those that the gateway's user may run and the suite does not, with what
// needs them.
var rareCommands = map[string]string{
	"asking":      "slots that move",
	"select":      "a database other than 0 in --redis",
	"wait":        "--wait-replicas",
	"zcount":      "a partition that outgrew its layout",
	"zrandmember": "a partition that outgrew its layout",
	"zrangestore": "a partition that was large for a while",
	"del":         "the end of a move between partitions",
	"pexpire":     "a long move between partitions",
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

// The gateways' user may do what the store needs, and nothing else: the suite passes as that user, over TLS where
// it is a cluster.
func TestTheACLIsEnoughAndNoMore(t *testing.T) {
	text, err := os.ReadFile(aclFile)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--slowlog-log-slower-than", "0", "--slowlog-max-len", "100000"}
	used, missing := map[string]bool{}, map[string]bool{}
	for name, start := range map[string]func(t *testing.T) *storetest.Backend{
		"single": func(t *testing.T) *storetest.Backend {
			return secured(t, storetest.Real(t, storetest.Redis(t, append(args, "--include", absolute(t, aclFile))...)))
		},
		"cluster over TLS": func(t *testing.T) *storetest.Backend {
			b, _ := securedCluster(t, args...)
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			clients, reset := admins(t, b), b.Reset
			note := func() {
				for _, c := range clients {
					log, err := c.SlowLogGet(t.Context(), -1).Result()
					if err == nil {
						err = c.Do(t.Context(), "slowlog", "reset").Err()
					}
					if err != nil {
						t.Fatal(err)
					}
					for _, entry := range log {
						if entry.ClientName != storetest.AdminName {
							used[strings.ToLower(entry.Args[0])] = true
							used[strings.ToLower(strings.Join(entry.Args[:min(2, len(entry.Args))], "|"))] = true
						}
					}
				}
			}
			b.Reset = func() { note(); reset() }
			for _, c := range clients { // forget how the cluster was made
				if err := c.Do(t.Context(), "slowlog", "reset").Err(); err != nil {
					t.Fatal(err)
				}
			}
			storetest.Run(t, b)
			note()
			for _, c := range clients {
				denied, err := c.ACLLog(t.Context(), 1000).Result()
				if err != nil {
					t.Fatal(err)
				}
				for _, entry := range denied {
					if entry.Reason == "command" {
						missing[entry.Object] = true
					} else {
						t.Errorf("%s refuses the %s %q", aclFile, entry.Reason, entry.Object)
					}
				}
			}
		})
	}
	allowed := map[string]bool{}
	line := ""
	for _, word := range strings.Fields(string(text)) {
		if command, is := strings.CutPrefix(word, "+"); is {
			allowed[command] = true
			if !used[command] && rareCommands[command] == "" {
				t.Errorf("%s allows %q, which the suite does not use and rareCommands does not explain: take it out", aclFile, command)
				delete(allowed, command)
			}
		} else {
			line += word + " "
		}
	}
	for command, why := range rareCommands {
		if !allowed[command] {
			t.Errorf("%s lacks %q, for %s", aclFile, command, why)
			allowed[command] = true
		}
	}
	for command := range missing {
		t.Errorf("%s lacks %q, which the suite uses", aclFile, command)
		allowed[command] = true
	}
	if t.Failed() {
		t.Logf("its line should be, so far:\n%s+%s", line, strings.Join(slices.Sorted(maps.Keys(allowed)), " +"))
	}
}

// Whoever has the gateways' password can do no more than a gateway.
func TestTheACLRefusesTheRest(t *testing.T) {
	server := storetest.Redis(t, "--include", absolute(t, aclFile))
	b := secured(t, storetest.Real(t, server))
	c := redis.NewClient(&redis.Options{Addr: server.Addr, Username: "swarmgate", Password: password})
	defer c.Close()
	ours := "{abc}" + strings.Repeat("\xff", 20) + "p"
	for _, command := range []string{
		"flushall", "flushdb", "keys *", "scan 0", "config get *", "acl list", "shutdown nosave", "eval return1 0",
		"function list", "replicaof no one", "client list", "monitor", "subscribe swarmgate:x", "publish x y", "save", "dbsize", "module list",
		"cluster forget x", "cluster nodes", "migrate h 1 k 0 1", "slowlog get",
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
