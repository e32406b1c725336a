package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

const (
	adminToken = "a token of some length"
	hexA       = "6161616161616161616161616161616161616161" // hashA
	hexB       = "6262626262626262626262626262626262626262"
	hexC       = "6363636363636363636363636363636363636363"

	// inForce is how long a change may take to be in force on all gateways.
	inForce = 2 * time.Second
)

// command runs the command line.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = start(t.Context(), args, func(string) (string, bool) { return "", false }, &out, &errs)
	return code, out.String(), errs.String()
}

// mustAccess runs an access command with flags behind it.
func mustAccess(t *testing.T, flags []string, words ...string) string {
	t.Helper()
	code, stdout, stderr := command(t, append(append([]string{"access"}, words...), flags...)...)
	if code != 0 {
		t.Fatalf("access %q: %d %s", words, code, stderr)
	}
	return stdout
}

// wantDenied waits until all gateways deny the swarm, or all serve it.
func wantDenied(t *testing.T, want bool, gateways ...*running) {
	t.Helper()
	storetest.Eventually(t, inForce, func() error {
		for i, g := range gateways {
			if body := g.announce("port=1&left=1"); strings.Contains(body, "63:"+swarm.Reason(swarm.ErrDenied)) != want {
				return fmt.Errorf("gateway %d: %q", i, body)
			}
		}
		return nil
	})
}

// ask the admin listener with a token.
func (g *running) access(method, path, token, body string) (status int, answer string) {
	g.t.Helper()
	request, err := http.NewRequest(method, "http://"+g.Admin+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := httpClient.Do(request)
	if err != nil {
		g.t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return response.StatusCode, string(b)
}

func TestDeniedSwarms(t *testing.T) {
	g := gatewayWith(t, "--admin-token", adminToken, "--view-ttl", "0")
	g.announce("port=1001&left=0")
	c := g.dialUDP()
	mustAccess(t, []string{"--admin", g.Admin, "--admin-token", adminToken}, "deny", hexA)
	wantDenied(t, true, g)
	if body := g.announce("port=1001&left=0&event=stopped"); !strings.HasSuffix(body, "8:retry in5:nevere") || !strings.Contains(body, "8:intervali1") {
		t.Errorf("a denied stop gets %q", body)
	}
	for _, event := range []swarm.Event{swarm.Started, swarm.Stopped} {
		r := c.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Left: 5, NumWant: -1, Port: 1002, Event: event})
		if r.Action != bep15.ActionError || r.Reason != "Requested download is not authorized for use with this tracker." {
			t.Errorf("over UDP event %d gets %+v", event, r)
		}
	}
	if r := c.ask(bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{hashA}}); len(r.Counts) != 1 || r.Counts[0] != (swarm.Counts{}) {
		t.Errorf("over UDP the scrape is %+v", r)
	}
	if body := g.scrape(); body != "d5:filesdee" {
		t.Errorf("the scrape is %q", body)
	}
	_, metrics := g.get("http://" + g.Admin + "/metrics")
	if !strings.Contains(metrics, `swarmgate_announces_total{result="denied",transport="udp"} 2`) || !strings.Contains(metrics, "swarmgate_store_refused_total 0") {
		t.Errorf("the metrics are %s", metrics)
	}
	mustAccess(t, []string{"--admin", g.Admin, "--admin-token", adminToken}, "remove", hexA)
	wantDenied(t, false, g)
	if body := g.scrape(); !strings.Contains(body, "8:completei1e") {
		t.Errorf("the scrape after all is %q", body)
	}
	if strings.Contains(g.log.String(), adminToken) {
		t.Error("the token shows")
	}
}

func TestAllowMode(t *testing.T) {
	flags := redisFlags(storetest.Redis(t))
	g := gatewayWith(t, append(flags, "--access", "allow")...)
	wantDenied(t, true, g)
	mustAccess(t, flags, "allow", hexA)
	wantDenied(t, false, g)
	mustAccess(t, flags, "deny", hexA)
	wantDenied(t, true, g)
}

func TestAllGatewaysAgreeOnAccess(t *testing.T) {
	for name, servers := range map[string]func(t *testing.T) []*storetest.Process{
		"one Redis": func(t *testing.T) []*storetest.Process { return []*storetest.Process{storetest.Redis(t)} },
		"a cluster": func(t *testing.T) []*storetest.Process { return storetest.Cluster(t, 3, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			flags := redisFlags(servers(t)...)
			g1, g2 := gatewayWith(t, append(flags, "--admin-token", adminToken)...), gatewayWith(t, flags...)
			wantDenied(t, false, g1, g2)
			mustAccess(t, flags, "deny", hexA, hexB)
			wantDenied(t, true, g1, g2)
			if got, want := mustAccess(t, flags, "list"), "deny "+hexA+"\ndeny "+hexB+"\n"; got != want {
				t.Errorf("the list is %q", got)
			}

			g2.end()
			g2 = gatewayWith(t, flags...)
			wantDenied(t, true, g2)

			if status, body := g1.access("DELETE", "/access/"+hexA, adminToken, ""); status != 204 {
				t.Errorf("DELETE: %d %q", status, body)
			}
			wantDenied(t, false, g1, g2)

			file := filepath.Join(t.TempDir(), "hashes")
			if err := os.WriteFile(file, []byte(hexA+"\nno hash\n"+hexA+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if out := mustAccess(t, flags, "import", file); out != "deny 1 info hashes; 1 lines are no info hashes\n" {
				t.Errorf("import says %q", out)
			}
			wantDenied(t, true, g1, g2)
		})
	}
}

// A gateway that does not know what is denied serves nothing, and goes on when it does.
func TestAccessIsNotKnownWithoutRedis(t *testing.T) {
	redis := storetest.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
	flags := redisFlags(redis)
	mustAccess(t, flags, "deny", hexA)
	dir := appendOnlyDir(t, redis)
	_ = redis.Kill()

	g := gatewayWith(t, flags...)
	unavailable := swarm.Reason(swarm.ErrUnavailable)
	if body := g.announce("port=1&left=1"); !strings.Contains(body, unavailable) {
		t.Errorf("an announce gets %q", body)
	}
	c := g.dialUDP()
	if r := c.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Port: 1}); r.Reason != unavailable {
		t.Errorf("over UDP an announce gets %+v", r)
	}
	if status, body := g.get("http://" + g.Admin + "/readyz"); status != 503 || !strings.Contains(body, "access list") {
		t.Errorf("/readyz is %d %q", status, body)
	}
	if log := g.log.String(); !strings.Contains(log, "nothing is served until") {
		t.Errorf("the log is %s", log)
	}

	_, port, _ := net.SplitHostPort(redis.Addr)
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	redis = storetest.RedisAt(t, n, "--appendonly", "yes", "--dir", dir)
	storetest.Eventually(t, 10*time.Second, func() error {
		if body := g.announce("port=1&left=1"); !strings.Contains(body, swarm.Reason(swarm.ErrDenied)) {
			if !strings.Contains(body, unavailable) {
				t.Fatalf("a denied swarm was served: %q", body)
			}
			return fmt.Errorf("%q", body)
		}
		return nil
	})
	if status, body := g.get("http://" + g.Admin + "/readyz"); status != 200 {
		t.Errorf("/readyz is %d %q", status, body)
	}

	_ = redis.Kill()
	storetest.Eventually(t, 10*time.Second, func() error {
		if !strings.Contains(g.log.String(), "stays in force") {
			return errors.New("the gateway did not notice")
		}
		return nil
	})
	wantDenied(t, true, g)
}

// A Redis that loses the list gets it back from the gateways, also when a command begins a new one.
func TestAccessListThatRedisLoses(t *testing.T) {
	redis := storetest.Redis(t)
	flags := redisFlags(redis)
	file := filepath.Join(t.TempDir(), "hashes")
	if err := os.WriteFile(file, []byte(hexB), 0o600); err != nil {
		t.Fatal(err)
	}
	g1, g2 := gatewayWith(t, append(flags, "--access-file", file)...), gatewayWith(t, flags...)
	mustAccess(t, flags, "deny", hexA)
	wantDenied(t, true, g1, g2)

	storetest.Real(t, redis).Reset()
	mustAccess(t, flags, "deny", hexC)
	all := "deny " + hexA + "\ndeny " + hexB + "\ndeny " + hexC + "\n"
	storetest.Eventually(t, inForce, func() error {
		for i, g := range []*running{g1, g2} {
			for _, c := range "abc" {
				_, body := g.get("http://" + g.HTTP + "/announce?info_hash=" + strings.Repeat(string(c), 20) + "&peer_id=-XX0000-000000000000&port=1&left=1")
				if !strings.Contains(body, swarm.Reason(swarm.ErrDenied)) {
					return fmt.Errorf("gateway %d: %c gets %q", i, c, body)
				}
			}
		}
		if got := mustAccess(t, flags, "list"); got != all {
			return fmt.Errorf("the list is %q", got)
		}
		return nil
	})

	// What is removed afterwards is not brought back, and what was the file's word still is.
	mustAccess(t, flags, "remove", hexA)
	wantDenied(t, false, g1, g2)
	if err := os.WriteFile(file, []byte(hexC), 0o600); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, inForce, func() error {
		if got := mustAccess(t, flags, "list"); got != "deny "+hexC+"\n" {
			return fmt.Errorf("the list is %q", got)
		}
		return nil
	})
	wantDenied(t, false, g1, g2)
}

// appendOnlyDir is where a server keeps what it holds.
func appendOnlyDir(t *testing.T, redis *storetest.Process) string {
	t.Helper()
	cli := storetest.Need(t, "redis-cli", "redis-tools")
	_, port, _ := net.SplitHostPort(redis.Addr)
	out, err := exec.Command(cli, "-p", port, "config", "get", "dir").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))[1]
}

func TestAccessFile(t *testing.T) {
	flags := redisFlags(storetest.Redis(t))
	file := filepath.Join(t.TempDir(), "hashes")
	say := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	say(hexB + "\ngarbage\n")
	with := append(flags, "--access-file", file)
	g1, g2, g3 := gatewayWith(t, with...), gatewayWith(t, with...), gatewayWith(t, flags...)
	wantDenied(t, false, g1, g2, g3)
	if log := g1.log.String(); !strings.Contains(log, "1 lines of the access file are no info hashes") {
		t.Errorf("the log is %s", log)
	}
	say(hexA)
	wantDenied(t, true, g1, g2, g3)
	if got := mustAccess(t, flags, "list"); got != "deny "+hexA+"\n" {
		t.Errorf("the list is %q", got)
	}
	say("")
	storetest.Eventually(t, inForce, func() error {
		if !strings.Contains(g1.log.String(), "it is empty") {
			return errors.New("nothing is told of an empty file")
		}
		return nil
	})
	wantDenied(t, true, g1, g2, g3)

	// The same size, and the time of change as before: only a signal tells.
	say(hexB)
	storetest.Eventually(t, inForce, func() error {
		if got := mustAccess(t, flags, "list"); got != "deny "+hexB+"\n" {
			return fmt.Errorf("the list is %q", got)
		}
		return nil
	})
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	say(hexA)
	if err := os.Chtimes(file, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	reads := func(g *running) int { return strings.Count(g.log.String(), "the access file was read") }
	before1, before2 := reads(g1), reads(g2)
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(syscall.SIGHUP); err != nil {
		t.Skipf("no SIGHUP here: %v", err)
	}
	// Both, or one may still bring to Redis what the file said before.
	storetest.Eventually(t, inForce, func() error {
		if reads(g1) == before1 || reads(g2) == before2 {
			return errors.New("a gateway has not read the file anew")
		}
		return nil
	})
	wantDenied(t, true, g1, g2, g3)

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, inForce, func() error {
		if !strings.Contains(g1.log.String(), "stays in force") {
			return errors.New("nothing is told of a file that is gone")
		}
		return nil
	})
	wantDenied(t, true, g1, g2, g3)

	// What the file no longer says when a gateway starts is denied no more.
	say(hexB)
	g4 := gatewayWith(t, with...)
	wantDenied(t, false, g1, g2, g3, g4)
}

func TestWrongAccessCommands(t *testing.T) {
	flags := redisFlags(storetest.Redis(t))
	mustAccess(t, flags, "deny", hexB)
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "deny, allow, remove, list, import"},
		{[]string{"forbid", hexA}, `"forbid"`},
		{[]string{"deny"}, "deny"},
		{[]string{"deny", hexA, "61616161"}, `"61616161"`},
		{[]string{"deny", hexA, hexA + "00"}, hexA + "00"},
		{[]string{"remove", hexB, strings.Repeat("x", 40)}, strings.Repeat("x", 40)},
		{[]string{"list", hexA}, hexA},
		{[]string{"import"}, "FILE"},
	} {
		code, stdout, stderr := command(t, append(append([]string{"access"}, test.args...), flags...)...)
		if code != 2 || !strings.Contains(stderr, test.want) || stdout != "" {
			t.Errorf("%q: %d %q %q", test.args, code, stdout, stderr)
		}
	}
	if code, _, stderr := command(t, append([]string{"access", "import", "no/such/file"}, flags...)...); code != 1 || !strings.Contains(stderr, "no/such/file") {
		t.Errorf("import of no file: %d %q", code, stderr)
	}
	if code, _, stderr := command(t, "access", "list", "--admin", "127.0.0.1:1"); code != 2 || !strings.Contains(stderr, "--admin-token") {
		t.Errorf("without a token: %d %q", code, stderr)
	}
	if code, _, stderr := command(t, "access", "deny", hexA, "--redis", "redis://127.0.0.1:1"); code != 1 || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("without Redis: %d %q", code, stderr)
	}
	if got := mustAccess(t, flags, "list"); got != "deny "+hexB+"\n" {
		t.Errorf("the list is %q", got)
	}
}

func TestAccessAPI(t *testing.T) {
	g := gatewayWith(t, "--admin-token", adminToken)
	ask := g.access
	const good = adminToken
	for _, test := range []struct {
		method, path, token, body string
		status                    int
		want                      string
	}{
		{"PUT", "/access/" + hexA, "", "deny", 401, "Bearer"},
		{"PUT", "/access/" + hexA, "another token of that", "deny", 401, "Bearer"},
		{"PUT", "/access/" + hexA, good + "x", "deny", 401, "Bearer"},
		{"PUT", "/access/" + hexA, good[1:], "deny", 401, "Bearer"},
		{"GET", "/access", "", "", 401, "Bearer"},
		{"DELETE", "/access/" + hexA, "", "", 401, "Bearer"},
		{"POST", "/access", "", "deny " + hexA, 401, "Bearer"},
		{"GET", "/access", good, "", 200, ""},
		{"GET", "/access/" + hexA, good, "", 404, "not listed"},
		{"PUT", "/access/" + hexA, good, "deny", 204, ""},
		{"GET", "/access/" + hexA, good, "", 200, "deny\n"},
		{"PUT", "/access/" + strings.ToUpper(hexB), good, "allow\n", 204, ""},
		{"GET", "/access", good, "", 200, "deny " + hexA + "\nallow " + hexB + "\n"},
		{"PUT", "/access/" + hexA, good, "perhaps", 400, "deny or allow"},
		{"PUT", "/access/" + hexA, good, "remove", 400, "deny or allow"},
		{"PUT", "/access/" + hexA[1:], good, "allow", 400, hexA[1:]},
		{"POST", "/access", good, "allow " + hexA + "\ndeny " + hexB[1:], 400, hexB[1:]},
		{"POST", "/access", good, "allow " + hexA + " " + hexB, 400, "none of"},
		{"POST", "/access", good, strings.Repeat("allow "+hexA+"\n", maxAccessBody/40), 413, "bytes"},
		{"PATCH", "/access/" + hexA, good, "allow", 405, ""},
		{"GET", "/access", good, "", 200, "deny " + hexA + "\nallow " + hexB + "\n"},
		{"POST", "/access", good, "allow " + hexA + "\r\n\nremove " + hexB, 204, ""},
		{"GET", "/access", good, "", 200, "allow " + hexA + "\n"},
		{"DELETE", "/access/" + hexA, good, "", 204, ""},
		{"GET", "/access", good, "", 200, ""},
	} {
		status, body := ask(test.method, test.path, test.token, test.body)
		if status != test.status || !strings.Contains(body, test.want) || test.want == "" && status == 200 && body != "" {
			t.Errorf("%s %s: %d %q", test.method, test.path, status, body)
		}
	}

	off := gatewayWith(t)
	for _, token := range []string{"", good} {
		if status, body := off.access("PUT", "/access/"+hexA, token, "deny"); status != 403 || !strings.Contains(body, "--admin-token") {
			t.Errorf("without a token set: %d %q", status, body)
		}
	}
	away := gatewayWith(t, "--redis", "redis://127.0.0.1:1", "--admin-token", good)
	for method, path := range map[string]string{"PUT": "/access/" + hexA, "GET": "/access/" + hexA} {
		if status, body := away.access(method, path, good, "deny"); status != 503 || !strings.Contains(body, swarm.Reason(swarm.ErrUnavailable)) {
			t.Errorf("%s without Redis: %d %q", method, status, body)
		}
	}
}

// A list of many is imported, through a gateway in several requests, and is in force.
func TestImportOfMany(t *testing.T) {
	var text strings.Builder
	for n := range 50_000 {
		fmt.Fprintf(&text, "%x\n", storetest.Hash(n))
	}
	text.WriteString(hexA)
	file := filepath.Join(t.TempDir(), "hashes")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	g := gatewayWith(t, "--admin-token", adminToken)
	flags := []string{"--admin", g.Admin, "--admin-token", adminToken}
	mustAccess(t, flags, "import", file)
	wantDenied(t, true, g)
	if list := mustAccess(t, flags, "list"); strings.Count(list, "deny ") != 50_001 {
		t.Errorf("%d are listed", strings.Count(list, "deny "))
	}
}

func FuzzParseChanges(f *testing.F) {
	f.Add([]byte("deny " + hexA + "\r\nremove " + hexB + "\n"))
	f.Add([]byte("allow " + hexA + " why"))
	f.Fuzz(func(t *testing.T, text []byte) {
		changes, err := parseChanges(text)
		if err != nil {
			return
		}
		var lines []byte
		for _, c := range changes {
			lines = appendChange(lines, c)
		}
		want := strings.ToLower(strings.Join(strings.Fields(string(text)), " "))
		if got := strings.Join(strings.Fields(string(lines)), " "); got != want {
			t.Errorf("%q is read as %q", text, lines)
		}
	})
}
