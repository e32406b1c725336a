package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func parse(t *testing.T, env map[string]string, args ...string) (*Config, error) {
	t.Helper()
	_, c, err := parseConfig(args, func(name string) (string, bool) { v, ok := env[name]; return v, ok }, io.Discard, io.Discard)
	return c, err
}

func TestDefaults(t *testing.T) {
	c, err := parse(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(c.HTTP, " ") != ":6969" || strings.Join(c.UDP, " ") != ":6969" || c.Admin != "127.0.0.1:6970" || len(c.Redis) != 0 ||
		c.Interval != 30*time.Minute || c.MinInterval != 15*time.Minute || c.PeerTTL != 45*time.Minute ||
		c.ViewTTL != time.Second || c.WaitReplicas != 0 || c.RepeatWindow != 2*time.Minute || c.SharePort {
		t.Errorf("defaults are %+v", c)
	}
}

func TestEnvironment(t *testing.T) {
	env := map[string]string{
		"SWARMGATE_PEER_TTL": "1h", "SWARMGATE_REDIS": "redis://a:1, redis://b:2", "SWARMGATE_SHARE_PORT": "true",
		"SWARMGATE_INTERVAL": "5m", "SWARMGATE_UDP": "", "SWARMGATE_HTTP": ":1, :2", "SWARMGATE_VIEW_TTL": "",
	}
	c, err := parse(t, env, "--interval", "6m")
	if err != nil {
		t.Fatal(err)
	}
	if c.PeerTTL != time.Hour || len(c.Redis) != 2 || c.Redis[1] != "redis://b:2" || !c.SharePort {
		t.Errorf("the environment gives %+v", c)
	}
	if len(c.UDP) != 0 || strings.Join(c.HTTP, " ") != ":1 :2" || c.ViewTTL != time.Second {
		t.Errorf("empty variables give %+v", c)
	}
	if c.Interval != 6*time.Minute {
		t.Errorf("the flag does not win: %v", c.Interval)
	}
	if c.MinInterval != 6*time.Minute {
		t.Errorf("the default min interval stays above the interval: %v", c.MinInterval)
	}
}

func TestProxies(t *testing.T) {
	c, err := parse(t, map[string]string{"SWARMGATE_TRUSTED_PROXIES": "10.0.0.0/8, 2001:db8::1", "SWARMGATE_IP_FROM_QUERY": ""}, "--real-ip-header", "cf-connecting-ip", "--proxy-protocol")
	if err != nil {
		t.Fatal(err)
	}
	if !c.TrustedProxies.Contains(netip.MustParseAddr("10.1.2.3")) || !c.IPFromQuery.Empty() || c.RealIPHeader != "CF-Connecting-IP" || !c.ProxyProtocol {
		t.Errorf("proxies are %+v", c)
	}
	if c, err = parse(t, nil, "--real-ip-header", ""); err != nil || c.RealIPHeader != "" || !c.TrustedProxies.Empty() || c.ProxyProtocol {
		t.Errorf("without proxies: %+v, %v", c, err)
	}
}

func TestWrongValuesNameTheirFlag(t *testing.T) {
	for _, test := range []struct {
		args []string
		env  map[string]string
		want string
	}{
		{args: []string{"--interval", "x"}, want: "--interval"},
		{args: []string{"--interval", "10ms"}, want: "--interval"},
		{args: []string{"--peer-ttl=-1s"}, want: "--peer-ttl"},
		{args: []string{"--min-interval", "2h"}, want: "--min-interval"},
		{args: []string{"--interval-max", "29m"}, want: "--interval-max"},
		{args: []string{"--interval-max", "1ms", "--interval", "1s"}, want: "--interval-max"},
		{args: []string{"--view-ttl=-1s"}, want: "--view-ttl"},
		{args: []string{"--http", "6969"}, want: "--http"},
		{args: []string{"--http", ":1", "--http", "6969"}, want: "--http"},
		{args: []string{"--http", ","}, want: "--http"},
		{args: []string{"--udp", ":99999"}, want: "--udp"},
		{args: []string{"--udp", ":1,:99999"}, want: "--udp"},
		{args: []string{"--http", "", "--udp", ""}, want: "--http"},
		{args: []string{"--udp", "nosuch.invalid:6969"}, want: "--udp"},
		{args: []string{"--path-prefix", "t"}, want: "--path-prefix"},
		{args: []string{"--path-prefix", "/a//b"}, want: "--path-prefix"},
		{args: []string{"--path-prefix", "/:x"}, want: "--path-prefix"},
		{args: []string{"--redirect-url", "example.org"}, want: "--redirect-url"},
		{args: []string{"--redirect-url", "javascript://x/%0aalert(1)"}, want: "--redirect-url"},
		{args: []string{"--redirect-url", "https:///x"}, want: "--redirect-url"},
		{args: []string{"--redirect-url", "https://x/\r\nSet-Cookie: y"}, want: "--redirect-url"},
		{args: []string{"--completed-events", "mail"}, want: "--completed-events"},
		{args: []string{"--completed-events", "stream"}, want: "--completed-events"},
		{env: map[string]string{"SWARMGATE_COMPLETED_EVENTS": ""}, want: "--completed-events"},
		{args: []string{"--user", "no such user"}, want: "--user"},
		{args: []string{"--redis", ","}, want: "--redis"},
		{args: []string{"--admin", ":9-8"}, want: "--admin"},
		{args: []string{"--admin", ":x"}, want: "--admin"},
		{args: []string{"--trusted-proxies", "10.0.0.0/33"}, want: "--trusted-proxies"},
		{args: []string{"--trusted-proxies", "10.0.0.1,"}, want: "--trusted-proxies"},
		{args: []string{"--ip-from-query", "localhost"}, want: "--ip-from-query"},
		{args: []string{"--real-ip-header", "Forwarded"}, want: "--real-ip-header"},
		{args: []string{"--proxy-protocol"}, want: "--proxy-protocol"},
		{args: []string{"--wait-replicas", "1"}, want: "--wait-replicas"},
		{args: []string{"--wait-replicas=-1"}, want: "--wait-replicas"},
		{args: []string{"--read-from", "replica"}, want: "--read-from"},
		{args: []string{"--read-from", "slave", "--redis", "redis://h"}, want: "--read-from"},
		{args: []string{"--connection-ttl", "200h"}, want: "--connection-ttl"},
		{args: []string{"--secret", "short"}, want: "--secret"},
		{args: []string{"--decoys", "0.3"}, want: "--decoys"},
		{args: []string{"--decoys=NaN"}, want: "--decoys"},
		{args: []string{"--decoys", "0.1", "--decoy-prefixes", "1.2.3"}, want: "--decoy-prefixes"},
		{args: []string{"--decoy-prefixes", "192.0.2.0/24"}, want: "--decoy-prefixes"},
		{args: []string{"--admin-token", "hunter22"}, want: "--admin-token"},
		{args: []string{"--access", "remove"}, want: "--access"},
		{args: []string{"--access-file", "no/such/file", "--http", "127.0.0.1:0", "--udp", "", "--admin", ""}, want: "--access-file"},
		{args: []string{"--log-level", "loud"}, want: "--log-level"},
		{args: []string{"--log-format", "xml"}, want: "--log-format"},
		{args: []string{"--repeat-window", "1ms"}, want: "--repeat-window"},
		{args: []string{"--embedded-peers", "0"}, want: "--embedded-peers"},
		{args: []string{"--stats", "everybody"}, want: "--stats"},
		{args: []string{"--stats", "10.0.0.0/8,10.0.0.0/99"}, want: "--stats"},
		{args: []string{"--stats="}, want: "--stats"},
		{args: []string{"--stats-path", "stats"}, want: "--stats-path"},
		{args: []string{"--stats-path", "/st:ats"}, want: "--stats-path"},
		{args: []string{"--stats-path", "/announce"}, want: "--stats-path"},
		{args: []string{"--stats-interval", "10ms"}, want: "--stats-interval"},
		{env: map[string]string{"SWARMGATE_STATS": "10.0.0.0/x"}, want: "--stats"},
		{args: []string{"--no-such-flag"}, want: "--no-such-flag"},
		{args: []string{"serve"}, want: "serve"},
		{args: []string{"secret", "rotate"}, want: "--redis"},
		{args: []string{"secret", "rotate", "--redis", "redis://127.0.0.1:1", "--secret", "hunter22hunter22"}, want: "--secret"},
		{args: []string{"--redis", "http://:hunter22@x"}, want: "--redis"},
		{args: []string{"--redis", "redis://:hunter22@x:y"}, want: "--redis"},
		{args: []string{"--redis-ca", "x"}, want: "--redis-ca"},
		{args: []string{"--redis", "redis://h", "--redis-ca", "x"}, want: "--redis-ca"},
		{args: []string{"--redis", "rediss://h", "--redis-ca", "/no/such"}, want: "--redis-ca"},
		{args: []string{"--redis", "rediss://h", "--redis-ca", "/dev/null"}, want: "--redis-ca"},
		{args: []string{"--redis", "rediss://h", "--redis-cert", "x"}, want: "--redis-key"},
		{args: []string{"--redis", "rediss://h", "--redis-cert", "/no/such", "--redis-key", "/no/such"}, want: "--redis-cert"},
		{args: []string{"--redis", "redis://user@h", "--redis-password-file", "/no/such"}, want: "--redis-password-file"},
		{args: []string{"--redis", "redis://user@h", "--redis-password-file", "/dev/null"}, want: "--redis-password-file"},
		{args: []string{"--redis", "redis://user@h"}, want: "--redis-password-file"},
		{args: []string{"--redis", "redis://user:hunter22@h", "--redis-password-file", "x"}, want: "--redis-password-file"},
		{args: []string{"--redis", "redis://h,rediss://h"}, want: "--redis"},
		{args: []string{"--redis", "redis://h", "--redis-password-file", "x"}, env: map[string]string{"SWARMGATE_REDIS_PASSWORD": "hunter22"}, want: "SWARMGATE_REDIS_PASSWORD"},
		{env: map[string]string{"SWARMGATE_REDIS_PASSWORD": "hunter22"}, want: "SWARMGATE_REDIS_PASSWORD"},
		{env: map[string]string{"SWARMGATE_INTERVAL": "soon"}, want: "--interval"},
		{env: map[string]string{"SWARMGATE_TRUSTED_PROXIES": "10"}, want: "--trusted-proxies"},
		{env: map[string]string{"SWARMGATE_SECRET": "hunter22"}, want: "--secret"},
	} {
		var stdout, stderr bytes.Buffer
		code := start(context.Background(), test.args, func(name string) (string, bool) { v, ok := test.env[name]; return v, ok }, &stdout, &stderr)
		if code != 2 || !strings.Contains(stderr.String(), test.want) || stdout.Len() > 0 {
			t.Errorf("%q %v: exit code %d, %q, %q", test.args, test.env, code, stderr.String(), stdout.String())
		}
		if strings.Contains(stderr.String(), "hunter22") {
			t.Errorf("%q tells a secret: %q", test.args, stderr.String())
		}
	}
}

func TestPeersThatExpireTooEarlyAreWarnedOf(t *testing.T) {
	for _, test := range []struct {
		args []string
		want bool
	}{
		{nil, false},
		{[]string{"--peer-ttl", "33m1s"}, false},
		{[]string{"--peer-ttl", "33m"}, true},
		{[]string{"--interval-max", "40m"}, false},
		{[]string{"--interval-max", "41m"}, true},
	} {
		c, err := parse(t, nil, test.args...)
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		c.outlives(slog.New(slog.NewTextHandler(&log, nil)))
		if warned := strings.Contains(log.String(), "peers expire"); warned != test.want {
			t.Errorf("%q: %q", test.args, &log)
		}
	}
}

func TestHelpNamesEveryFlagOnceAndNoSecret(t *testing.T) {
	var stdout, stderr bytes.Buffer
	env := func(name string) (string, bool) {
		return "hunter2hunter2hunter2", name == "SWARMGATE_SECRET" || name == "SWARMGATE_REDIS_PASSWORD"
	}
	if code := start(context.Background(), []string{"--help"}, env, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
	for _, flag := range []string{"http", "udp", "admin", "redis", "interval", "min-interval", "peer-ttl", "view-ttl",
		"stats", "stats-path", "stats-interval", "wait-replicas", "repeat-window", "secret", "log-level", "log-format"} {
		if n := strings.Count(stdout.String(), "\n      --"+flag+" "); n != 1 {
			t.Errorf("--%s has %d lines", flag, n)
		}
	}
	if strings.Contains(stdout.String(), "hunter2") {
		t.Error("help tells the secret")
	}
}

func TestEveryFlagIsInTheREADMEAndReachesTheContainers(t *testing.T) {
	readme, err1 := os.ReadFile("../README.md")
	compose, err2 := os.ReadFile("../deploy/compose/gateway.yml")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	var help bytes.Buffer
	if _, _, err := parseConfig([]string{"--help"}, os.LookupEnv, &help, io.Discard); !errors.Is(err, errHelp) {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), passwordVariable) || !strings.Contains(string(compose), "\n      "+passwordVariable+":") {
		t.Errorf("%s is not in the README or does not reach the containers", passwordVariable)
	}
	flags := 0
	for line := range strings.Lines(help.String()) {
		if rest, ok := strings.CutPrefix(line, "      --"); ok {
			flags++
			name, _, _ := strings.Cut(strings.Fields(rest)[0], "[")
			if !strings.Contains(string(readme), "`--"+name+"`") && !strings.Contains(string(readme), "`--"+name+" ") {
				t.Errorf("--%s is not in the README", name)
			}
			// A gateway with a Redis has no use for the limits of a store in the process, nor
			// has a container that starts without root for a user to become.
			if !strings.HasPrefix(name, "embedded-") && name != "user" && !strings.Contains(string(compose), "\n      "+envName(name)+":") {
				t.Errorf("%s does not reach the containers", envName(name))
			}
		}
	}
	if flags < 20 {
		t.Errorf("help has only %d flags", flags)
	}
}

func TestAdminAddresses(t *testing.T) {
	got, err := adminAddrs("127.0.0.1:10-12")
	if err != nil || strings.Join(got, " ") != "127.0.0.1:10 127.0.0.1:11 127.0.0.1:12" {
		t.Errorf("%v, %v", got, err)
	}
	file := filepath.Join(t.TempDir(), "admin")
	if err := os.WriteFile(file, []byte("127.0.0.1:11\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr, err := (&Config{Admin: "127.0.0.1:10-12", AdminFile: file}).loadAdminAddr()
	if err != nil || addr != "127.0.0.1:11" {
		t.Errorf("%q, %v", addr, err)
	}
	if _, err := (&Config{Admin: "127.0.0.1:10-12"}).loadAdminAddr(); err == nil {
		t.Error("a range without a file names one address")
	}
}

func TestWhoMayReadStatistics(t *testing.T) {
	for _, test := range []struct {
		flags   []string
		in, out []string
	}{
		{nil, []string{"127.0.0.2", "::1"}, []string{"128.0.0.0", "::2"}},
		{[]string{"--stats", "open"}, []string{"192.0.2.1", "2001:db8::1"}, nil},
		{[]string{"--stats", "off"}, nil, []string{"127.0.0.1", "::1"}},
		{[]string{"--stats", "10.0.0.0/8, ::2"}, []string{"10.1.2.3", "::2"}, []string{"127.0.0.1", "::1"}},
	} {
		c, err := parse(t, nil, test.flags...)
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range test.in {
			if !c.Stats.Contains(netip.MustParseAddr(addr)) {
				t.Errorf("%v refuses %s", test.flags, addr)
			}
		}
		for _, addr := range test.out {
			if c.Stats.Contains(netip.MustParseAddr(addr)) {
				t.Errorf("%v lets %s read", test.flags, addr)
			}
		}
	}
}
