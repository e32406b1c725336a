package main

import (
	"bytes"
	"context"
	"errors"
	"io"
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
	if c.HTTP != ":6969" || c.UDP != ":6969" || c.Admin != "127.0.0.1:6970" || len(c.Redis) != 0 ||
		c.Interval != 30*time.Minute || c.MinInterval != 15*time.Minute || c.PeerTTL != 45*time.Minute ||
		c.ViewTTL != time.Second || c.WaitReplicas != 0 || c.RepeatWindow != 2*time.Minute || c.SharePort {
		t.Errorf("defaults are %+v", c)
	}
}

func TestEnvironment(t *testing.T) {
	env := map[string]string{
		"SWARMGATE_PEER_TTL": "1h", "SWARMGATE_REDIS": "redis://a:1, redis://b:2", "SWARMGATE_SHARE_PORT": "true",
		"SWARMGATE_INTERVAL": "5m", "SWARMGATE_UDP": "", "SWARMGATE_VIEW_TTL": "",
	}
	c, err := parse(t, env, "--interval", "6m")
	if err != nil {
		t.Fatal(err)
	}
	if c.PeerTTL != time.Hour || len(c.Redis) != 2 || c.Redis[1] != "redis://b:2" || !c.SharePort {
		t.Errorf("the environment gives %+v", c)
	}
	if c.UDP != "" || c.ViewTTL != time.Second {
		t.Errorf("empty variables give %+v", c)
	}
	if c.Interval != 6*time.Minute {
		t.Errorf("the flag does not win: %v", c.Interval)
	}
	if c.MinInterval != 6*time.Minute {
		t.Errorf("the default min interval stays above the interval: %v", c.MinInterval)
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
		{args: []string{"--view-ttl=-1s"}, want: "--view-ttl"},
		{args: []string{"--http", "6969"}, want: "--http"},
		{args: []string{"--udp", ":99999"}, want: "--udp"},
		{args: []string{"--http", "", "--udp", ""}, want: "--http"},
		{args: []string{"--udp", "nosuch.invalid:6969"}, want: "--udp"},
		{args: []string{"--redis", ","}, want: "--redis"},
		{args: []string{"--admin", ":9-8"}, want: "--admin"},
		{args: []string{"--admin", ":x"}, want: "--admin"},
		{args: []string{"--wait-replicas", "1"}, want: "--wait-replicas"},
		{args: []string{"--wait-replicas=-1"}, want: "--wait-replicas"},
		{args: []string{"--connection-ttl", "200h"}, want: "--connection-ttl"},
		{args: []string{"--secret", "short"}, want: "--secret"},
		{args: []string{"--decoys", "0.3"}, want: "--decoys"},
		{args: []string{"--decoys=NaN"}, want: "--decoys"},
		{args: []string{"--decoys", "0.1", "--decoy-prefixes", "1.2.3"}, want: "--decoy-prefixes"},
		{args: []string{"--decoy-prefixes", "192.0.2.0/24"}, want: "--decoy-prefixes"},
		{args: []string{"--log-level", "loud"}, want: "--log-level"},
		{args: []string{"--log-format", "xml"}, want: "--log-format"},
		{args: []string{"--repeat-window", "1ms"}, want: "--repeat-window"},
		{args: []string{"--embedded-peers", "0"}, want: "--embedded-peers"},
		{args: []string{"--no-such-flag"}, want: "--no-such-flag"},
		{args: []string{"serve"}, want: "serve"},
		{args: []string{"secret", "rotate"}, want: "--redis"},
		{args: []string{"secret", "rotate", "--redis", "redis://127.0.0.1:1", "--secret", "hunter22hunter22"}, want: "--secret"},
		{args: []string{"--redis", "http://:hunter22@x"}, want: "--redis"},
		{args: []string{"--redis", "redis://:hunter22@x:y"}, want: "--redis"},
		{env: map[string]string{"SWARMGATE_INTERVAL": "soon"}, want: "--interval"},
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

func TestHelpNamesEveryFlagOnceAndNoSecret(t *testing.T) {
	var stdout, stderr bytes.Buffer
	env := func(name string) (string, bool) { return "hunter2hunter2hunter2", name == "SWARMGATE_SECRET" }
	if code := start(context.Background(), []string{"--help"}, env, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
	for _, flag := range []string{"http", "udp", "admin", "redis", "interval", "min-interval", "peer-ttl", "view-ttl",
		"wait-replicas", "repeat-window", "secret", "log-level", "log-format"} {
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
	compose, err2 := os.ReadFile("../docker-compose.yml")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	var help bytes.Buffer
	if _, _, err := parseConfig([]string{"--help"}, os.LookupEnv, &help, io.Discard); !errors.Is(err, errHelp) {
		t.Fatal(err)
	}
	flags := 0
	for line := range strings.Lines(help.String()) {
		if rest, ok := strings.CutPrefix(line, "      --"); ok {
			flags++
			name, _, _ := strings.Cut(strings.Fields(rest)[0], "[")
			if !strings.Contains(string(readme), "`--"+name+"`") && !strings.Contains(string(readme), "`--"+name+" ") {
				t.Errorf("--%s is not in the README", name)
			}
			// A gateway with a Redis has no use for the limits of a store in the process.
			if !strings.HasPrefix(name, "embedded-") && !strings.Contains(string(compose), "\n      "+envName(name)+":") {
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
