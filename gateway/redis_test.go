package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/storetest"
)

// A Redis that takes only TLS and a user with a password: the password is changed, and the certificate
// replaced, while the gateway runs.
func TestRedisWithTLSAndAPassword(t *testing.T) {
	acl, err := filepath.Abs("../deploy/redis/swarmgate.acl")
	if err != nil {
		t.Fatal(err)
	}
	ca := storetest.NewAuthority(t)
	soon := time.Now().Add(time.Hour)
	cert, addr := ca.Issue("redis", "127.0.0.1", soon), storetest.FreeAddr(t)
	server := storetest.Redis(t, append(ca.TLS(cert, addr), "--include", acl)...)
	admin := redis.NewClient(&redis.Options{Addr: server.Addr, PoolSize: 1})
	t.Cleanup(func() { _ = admin.Close() })
	do := func(args ...any) {
		t.Helper()
		if err := admin.Do(context.Background(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "password")
	password := func(word string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(word+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	do("acl", "setuser", "swarmgate", ">hunter21")
	password("hunter21")
	own := ca.Issue("gateway", "gateway", soon)
	g := gatewayWith(t, "--redis", "rediss://swarmgate@"+addr, "--redis-password-file", file, "--redis-ca", ca.File, "--redis-cert", own.File, "--redis-key", own.Key,
		"--repeat-window", "0")
	if answer := g.announce("port=1&left=5"); !strings.Contains(answer, "10:incompletei1e") {
		t.Errorf("the first answer is %q", answer)
	}
	answers := func(want string) {
		t.Helper()
		storetest.Eventually(t, 15*time.Second, func() error {
			if answer := g.announce("port=1&left=5"); !strings.Contains(answer, want) {
				return fmt.Errorf("an answer is %q", answer)
			}
			return nil
		})
	}

	// The new password before the file has it: refused, and ready says why.
	do("acl", "setuser", "swarmgate", "resetpass", ">hunter22")
	do("client", "kill", "user", "swarmgate")
	answers("14:failure reason")
	storetest.Eventually(t, 15*time.Second, func() error {
		status, body := g.get("http://" + g.Admin + "/readyz")
		if status != 503 || !strings.Contains(body, addr+": Redis does not know the user with this password") {
			return fmt.Errorf("/readyz is %d: %q", status, body)
		}
		return nil
	})
	password("hunter22")
	answers("10:incompletei1e")

	renewed := ca.Issue("gateway", "gateway", soon) // in the same files
	if renewed != own {
		t.Fatal("another file")
	}
	ca2 := ca.Issue("redis", "127.0.0.1", soon)
	do("config", "set", "tls-cert-file", ca2.File, "tls-key-file", ca2.Key)
	do("client", "kill", "user", "swarmgate")
	answers("10:incompletei1e")

	_, ready := g.get("http://" + g.Admin + "/readyz")
	_, metrics := g.get("http://" + g.Admin + "/metrics")
	g.end()
	for what, text := range map[string]string{"log": g.log.String(), "banner": g.stdout.String(), "ready": ready, "metrics": metrics} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("the %s tells a password: %s", what, text)
		}
	}
	if !strings.Contains(g.stdout.String(), "Redis at "+addr) {
		t.Errorf("the banner says %q", g.stdout.String())
	}
}
