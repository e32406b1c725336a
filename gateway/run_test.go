package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

func TestMain(m *testing.M) {
	if os.Getenv("TEST_IS_GATEWAY") != "" {
		main() // as startChild wants it
	}
	// fasthttp's clock is one for the process, and its pool's cleaner ends 10 s late.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// running is a gateway in this process.
type running struct {
	listening
	HTTP, UDP string // the first addresses

	t      *testing.T
	log    storetest.Text
	stdout bytes.Buffer
	cancel context.CancelFunc
	exit   chan int
}

// gatewayWith starts a gateway on free ports and with these flags besides, which ends
// with the test.
func gatewayWith(t *testing.T, args ...string) *running {
	t.Helper()
	g := &running{t: t, exit: make(chan int, 1)}
	for _, flag := range []string{"--http", "--udp", "--admin"} {
		if !slices.Contains(args, flag) {
			args = append(args, flag, "127.0.0.1:0")
		}
	}
	_, config, err := parseConfig(args, func(string) (string, bool) { return "", false }, io.Discard, &g.log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	up := make(chan listening, 1)
	go func() {
		if err := run(ctx, config, &g.stdout, func(l listening) { up <- l }); err != nil {
			fmt.Fprintln(&g.log, err)
			g.exit <- 1
			return
		}
		g.exit <- 0
	}()
	t.Cleanup(func() { g.end() })
	select {
	case g.listening = <-up:
		for _, first := range []struct {
			addr *string
			of   []string
		}{{&g.HTTP, g.listening.HTTP}, {&g.UDP, g.listening.UDP}} {
			if len(first.of) > 0 {
				*first.addr = first.of[0]
			}
		}
	case code := <-g.exit:
		g.exit <- code
		t.Fatalf("exit code %d: %s", code, g.log.String())
	case <-time.After(20 * time.Second):
		t.Fatal("the gateway does not start")
	}
	return g
}

// end ends the gateway as SIGTERM does.
func (g *running) end() {
	g.t.Helper()
	g.cancel()
	select {
	case code := <-g.exit:
		if code != 0 {
			g.t.Errorf("exit code %d: %s", code, g.log.String())
		}
		g.exit <- code // for whom ends it again
	case <-time.After(30 * time.Second):
		g.t.Error("the gateway does not end")
	}
}

// httpClient keeps no connections, which would outlive their tests.
var httpClient = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (g *running) get(url string) (status int, body string) {
	g.t.Helper()
	response, err := httpClient.Get(url)
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

func (g *running) announce(parameters string) string {
	g.t.Helper()
	_, body := g.get("http://" + g.HTTP + "/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-XX0000-000000000000&" + parameters)
	return body
}

func (g *running) scrape() string {
	g.t.Helper()
	_, body := g.get("http://" + g.HTTP + "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa")
	return body
}

// udpClient asks over UDP.
type udpClient struct {
	t    *testing.T
	conn net.Conn
	id   uint64
}

func (g *running) dialUDP() *udpClient {
	g.t.Helper()
	conn, err := net.Dial("udp", g.UDP)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = conn.Close() })
	c := &udpClient{t: g.t, conn: conn}
	c.id = c.ask(bep15.Request{Action: bep15.ActionConnect}).ConnectionID
	return c
}

func (c *udpClient) ask(r bep15.Request) bep15.Reply {
	c.t.Helper()
	r.ConnectionID, r.TransactionID = c.id, 77
	if _, err := c.conn.Write(r.Append(nil)); err != nil {
		c.t.Fatal(err)
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 2048)
	n, err := c.conn.Read(b)
	if err != nil {
		c.t.Fatal(err)
	}
	var reply bep15.Reply
	if err := reply.Parse(b[:n]); err != nil || reply.TransactionID != 77 {
		c.t.Fatalf("%v: %x", err, b[:n])
	}
	return reply
}

var hashA = swarm.InfoHash([]byte("aaaaaaaaaaaaaaaaaaaa"))

func redisFlags(servers ...*storetest.Process) []string {
	return []string{"--redis", strings.Join(storetest.URLs(servers...), ",")}
}

func TestEndToEnd(t *testing.T) {
	for name, flags := range map[string]func(t *testing.T) []string{
		"embedded":  func(*testing.T) []string { return nil },
		"one Redis": func(t *testing.T) []string { return redisFlags(storetest.Redis(t)) },
		"a cluster": func(t *testing.T) []string { return redisFlags(storetest.Cluster(t, 3, 0)...) },
	} {
		t.Run(name, func(t *testing.T) {
			g := gatewayWith(t, append(flags(t), "--view-ttl", "0")...)

			if body := g.announce("port=1001&left=0"); !strings.Contains(body, "8:completei1e") || !strings.HasSuffix(body, "5:peers0:e") {
				t.Errorf("the first announce gets %q", body)
			}
			c := g.dialUDP()
			r := c.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Left: 5, NumWant: -1, Port: 1002, Event: swarm.Started})
			if r.Seeders != 1 || r.Leechers != 1 || string(r.Peers) != "\x7f\x00\x00\x01\x03\xe9" || r.Interval < 1620 || r.Interval > 1980 {
				t.Errorf("over UDP the first leecher gets %+v", r)
			}
			if body := g.announce("port=1003&left=5&compact=0"); strings.Count(body, "2:ip9:127.0.0.1") != 2 {
				t.Errorf("the second leecher gets %q", body)
			}
			r = c.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Left: 0, NumWant: -1, Port: 1002, Event: swarm.Completed})
			if r.Seeders != 2 || r.Leechers != 1 || string(r.Peers) != "\x7f\x00\x00\x01\x03\xeb" {
				t.Errorf("over UDP the new seeder gets %+v", r)
			}
			g.announce("port=1001&left=0&event=stopped")
			want := "8:completei1e10:downloadedi1e11:downloadersi1e10:incompletei1e"
			if body := g.scrape(); !strings.Contains(body, want) {
				t.Errorf("the scrape is %q", body)
			}
			r = c.ask(bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{hashA, {}}})
			if !slices.Equal(r.Counts, []swarm.Counts{{Seeders: 1, Leechers: 1, Downloads: 1}, {}}) {
				t.Errorf("over UDP the scrape is %+v", r.Counts)
			}

			for path, want := range map[string]string{
				"/healthz":                       "up",
				"/readyz":                        "ready",
				"/debug/pprof/goroutine?debug=1": "goroutine profile",
				"/metrics":                       `swarmgate_announces_total{result="ok",transport="udp"} 2`,
			} {
				if status, body := g.get("http://" + g.Admin + path); status != 200 || !strings.Contains(body, want) {
					t.Errorf("%s: %d %.200q", path, status, body)
				}
			}
			if log := g.log.String(); strings.Contains(log, "1002") || strings.Contains(log, "level=ERROR") {
				t.Errorf("the log is %q", log)
			}
		})
	}
}

func TestTheBanner(t *testing.T) {
	g := gatewayWith(t)
	g.end()
	out := g.stdout.String()
	for _, want := range []string{"http://" + g.HTTP + "/announce", "udp://" + g.UDP + "/announce", g.Admin, "in this process", "--redis"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}

	const unreachable = "redis://:hunter2hunter2@127.0.0.1:1"
	g = gatewayWith(t, "--redis", unreachable, "--http", "")
	g.end()
	out = g.stdout.String()
	if !strings.Contains(out, "127.0.0.1:1\n") || strings.Contains(out, "http://:") {
		t.Errorf("the banner is %q", out)
	}
	if strings.Contains(out+g.log.String(), "hunter2") {
		t.Errorf("a password shows in %q or %q", out, g.log.String())
	}
}

func TestSeveralAddresses(t *testing.T) {
	g := gatewayWith(t, "--http", "127.0.0.1:0", "--http", "127.0.0.1:0,127.0.0.1:0", "--udp", "127.0.0.1:0, 127.0.0.1:0", "--view-ttl", "0")
	if len(g.listening.HTTP) != 3 || len(g.listening.UDP) != 2 {
		t.Fatalf("it listens on %+v", g.listening)
	}
	for n, addr := range g.listening.HTTP {
		g.HTTP = addr
		want := fmt.Sprintf("8:completei%de", n+1)
		if body := g.announce(fmt.Sprintf("port=%d&left=0", 1001+n)); !strings.Contains(body, want) {
			t.Errorf("HTTP on %s: %q has no %q", addr, body, want)
		}
	}
	var id uint64 // which is good on all addresses
	for _, addr := range g.listening.UDP {
		g.UDP = addr
		c := g.dialUDP()
		if id == 0 {
			id = c.id
		}
		c.id = id
		if r := c.ask(bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{hashA}}); !slices.Equal(r.Counts, []swarm.Counts{{Seeders: 3}}) {
			t.Errorf("UDP on %s: %+v", addr, r)
		}
	}
	g.end()
	out := g.stdout.String()
	for _, addr := range slices.Concat(g.listening.HTTP, g.listening.UDP) {
		if !strings.Contains(out, "://"+addr+"/announce") {
			t.Errorf("%s is not in %q", addr, out)
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			t.Errorf("%s takes connections after the end", addr)
		}
	}
}

func TestAGatewayWithoutItsRedisStaysUp(t *testing.T) {
	g := gatewayWith(t, "--redis", "redis://127.0.0.1:1")
	if log := g.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "127.0.0.1:1") || strings.Contains(log, "goroutine") {
		t.Errorf("the log is %q", log)
	}
	reason := swarm.Reason(swarm.ErrUnavailable)
	if body := g.announce("port=1&left=1"); !strings.Contains(body, reason) || !strings.Contains(body, "8:intervali") || !strings.Contains(body, "8:retry ini") {
		t.Errorf("an announce gets %q", body)
	}
	if body := g.scrape(); !strings.Contains(body, reason) {
		t.Errorf("a scrape gets %q", body)
	}
	c := g.dialUDP()
	if r := c.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Port: 1}); r.Action != bep15.ActionError || r.Reason != reason {
		t.Errorf("over UDP an announce gets %+v", r)
	}
	if status, _ := g.get("http://" + g.Admin + "/readyz"); status != 503 {
		t.Errorf("/readyz is %d", status)
	}
	if status, _ := g.get("http://" + g.Admin + "/healthz"); status != 200 {
		t.Errorf("/healthz is %d", status)
	}
}

func TestRedisDiesAndReturns(t *testing.T) {
	redis := storetest.Redis(t)
	g := gatewayWith(t, append(redisFlags(redis), "--repeat-window", "0", "--view-ttl", "0")...)
	if body := g.announce("port=1&left=1"); !strings.Contains(body, "10:incompletei1e") {
		t.Fatalf("before: %q", body)
	}
	if err := redis.Kill(); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, 10*time.Second, func() error {
		status, _ := g.get("http://" + g.Admin + "/readyz")
		if body := g.announce("port=1&left=1"); !strings.Contains(body, "8:retry ini") || status != 503 {
			return fmt.Errorf("without Redis: %q, ready %d", body, status)
		}
		return nil
	})
	_, port, _ := net.SplitHostPort(redis.Addr)
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	storetest.RedisAt(t, n)
	storetest.Eventually(t, 10*time.Second, func() error {
		status, _ := g.get("http://" + g.Admin + "/readyz")
		if body := g.announce("port=1&left=1"); !strings.Contains(body, "10:incompletei1e") || status != 200 {
			return fmt.Errorf("after Redis came back: %q, ready %d", body, status)
		}
		return nil
	})
}

func TestGatewaysOfOneRedisAreOne(t *testing.T) {
	flags := append(redisFlags(storetest.Redis(t)), "--view-ttl", "0")
	g1, g2 := gatewayWith(t, flags...), gatewayWith(t, flags...)
	c1 := g1.dialUDP()
	c1.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Left: 5, NumWant: -1, Port: 1002})
	c2 := g2.dialUDP()
	c2.id = c1.id // which the other gateway gave
	r := c2.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Left: 5, NumWant: -1, Port: 1003})
	if string(r.Peers) != "\x7f\x00\x00\x01\x03\xea" {
		t.Errorf("the other gateway gives %+v", r)
	}
}

func TestGatewaysTellOfTheSameDecoys(t *testing.T) {
	flags := append(redisFlags(storetest.Redis(t)), "--view-ttl", "0", "--decoys", "0.25")
	g1, g2 := gatewayWith(t, flags...), gatewayWith(t, flags...)
	for port := range 24 {
		g1.announce(fmt.Sprintf("port=%d&left=%d", 2000+port, port%2))
	}
	sorted := func(peers string) (list []string) {
		for ; len(peers) >= swarm.Size4; peers = peers[swarm.Size4:] {
			list = append(list, peers[:swarm.Size4])
		}
		slices.Sort(list)
		return list
	}
	_, peers, _ := strings.Cut(g1.announce("port=2001&left=1"), "5:peers")
	_, peers, _ = strings.Cut(peers, ":")
	c := g2.dialUDP()
	r := c.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Left: 1, NumWant: -1, Port: 2001})
	http, udp := sorted(strings.TrimSuffix(peers, "e")), sorted(string(r.Peers))
	if len(udp) < 23+3 || !slices.Equal(http, udp) {
		t.Errorf("one gateway tells of %d over HTTP, the other of %d over UDP", len(http), len(udp))
	}
	if n := int(r.Seeders + r.Leechers); n != len(udp)+1 {
		t.Errorf("%d peers and the asker are handed out, %d counted", len(udp), n)
	}
	if s := g1.dialUDP().ask(bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{hashA}}); s.Counts[0].Seeders != int(r.Seeders) {
		t.Errorf("%+v are scraped, %d seeders announced", s.Counts[0], r.Seeders)
	}
}

func TestGatewaysOfOneSecretShareIDs(t *testing.T) {
	const secret = "a secret of some length"
	g1, g2 := gatewayWith(t, "--secret", secret), gatewayWith(t, "--secret", secret)
	c := g2.dialUDP()
	c.id = g1.dialUDP().id
	if r := c.ask(bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{hashA}}); len(r.Counts) != 1 {
		t.Errorf("%+v", r)
	}
	for _, g := range []*running{g1, g2} {
		if strings.Contains(g.log.String()+g.stdout.String(), secret) {
			t.Error("the secret shows")
		}
	}
}

func TestGatewaysShareAPort(t *testing.T) {
	if !canSharePort {
		t.Skip("only Linux can")
	}
	admin := fmt.Sprintf("127.0.0.1:%d-%d", 20000+os.Getpid()%20000, 20010+os.Getpid()%20000)
	file := filepath.Join(t.TempDir(), "admin")
	g1 := gatewayWith(t, "--share-port", "--admin", admin)
	g2 := gatewayWith(t, "--share-port", "--admin", admin, "--http", g1.HTTP, "--udp", g1.UDP, "--admin-file", file)
	if g1.Admin == g2.Admin {
		t.Errorf("both have their admin listener at %s", g1.Admin)
	}
	for range 20 {
		g1.announce("port=1&left=0")
		g1.dialUDP()
	}
	for _, g := range []*running{g1, g2} {
		if _, body := g.get("http://" + g.Admin + "/metrics"); strings.Contains(body, `swarmgate_announces_total{result="ok",transport="http"} 0`) {
			t.Errorf("the gateway with admin listener %s got no request of 20", g.Admin)
		}
	}
	flags := []string{"health", "--admin", admin, "--admin-file", file}
	var stderr bytes.Buffer
	if code := start(t.Context(), flags, os.LookupEnv, io.Discard, &stderr); code != 0 {
		t.Errorf("health: %d %s", code, &stderr)
	}
	g2.end()
	if code := start(t.Context(), flags, os.LookupEnv, io.Discard, io.Discard); code != 1 {
		t.Errorf("health of a gateway that ended: %d", code)
	}
	g1.announce("port=1&left=0")
}

func TestAnAddressInUse(t *testing.T) {
	g := gatewayWith(t)
	for flag, args := range map[string][]string{
		"--http":  {"--http", "127.0.0.1:0", "--http", g.HTTP, "--udp", "", "--admin", ""},
		"--udp":   {"--http", "", "--udp", "127.0.0.1:0," + g.UDP, "--admin", ""},
		"--admin": {"--http", "127.0.0.1:0", "--udp", "", "--admin", g.Admin},
	} {
		var stderr bytes.Buffer
		code := start(t.Context(), args, func(string) (string, bool) { return "", false }, io.Discard, &stderr)
		if code != 1 || !strings.Contains(stderr.String(), "gateway: "+flag) || !strings.Contains(stderr.String(), "in use") {
			t.Errorf("%s: %d %q", flag, code, &stderr)
		}
	}
}

// Clients of two gateways on one port do not notice that one of them ends.
func TestOneOfTwoDrains(t *testing.T) {
	if !canSharePort {
		t.Skip("only Linux can")
	}
	g1 := gatewayWith(t, "--share-port")
	for range 5 {
		g2 := gatewayWith(t, "--share-port", "--http", g1.HTTP, "--udp", g1.UDP)
		stop := make(chan struct{})
		var clients sync.WaitGroup
		for n := range 16 {
			clients.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					response, err := httpClient.Get(fmt.Sprintf("http://%s/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&port=%d&left=1", g1.HTTP, 1+n))
					if err != nil {
						t.Errorf("client %d: %v", n, err)
						return
					}
					_ = response.Body.Close()
				}
			})
		}
		storetest.Eventually(t, 10*time.Second, func() error {
			if _, body := g2.get("http://" + g2.Admin + "/metrics"); strings.Contains(body, `swarmgate_announces_total{result="ok",transport="http"} 0`) {
				return errors.New("the gateway that is to end has answered nothing yet")
			}
			return nil
		})
		g2.end()
		close(stop)
		clients.Wait()
	}
}

// Where the kernel ignores no newcomers, a listener stops in a moment when none waits.
func TestADrainingListenerLeavesNobodyWaiting(t *testing.T) {
	if !canSharePort {
		t.Skip("only Linux can tell")
	}
	l, err := listenTCP(t.Context(), "127.0.0.1:0", true)
	if err != nil {
		t.Fatal(err)
	}
	dial := func() error {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err
	}
	long := time.Now().Add(-time.Minute)
	l.draining.Store(&long)
	if err := errors.Join(dial(), dial()); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("%d of two that wait are accepted: %v", n, err)
		}
		_ = c.Close()
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("when nobody waits: %v", err)
	}
	if err := dial(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("who comes then gets %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestADrainingGatewayIsNotReady(t *testing.T) {
	g := gatewayWith(t)
	g.announce("port=2&left=1") // before it serves, it drains nothing
	c, err := net.Dial("tcp", g.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /announce?info_hash=aaaaaaaaaaaaaaaaaaaa&port=1&left=1 HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	g.cancel() // and half a request holds it up
	storetest.Eventually(t, 5*time.Second, func() error {
		if status, body := g.get("http://" + g.Admin + "/readyz"); status != 503 || !strings.Contains(body, "draining") {
			return fmt.Errorf("%d %q", status, body)
		}
		return nil
	})
	if _, err := io.WriteString(c, "Host: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if b, err := io.ReadAll(c); err != nil || !bytes.Contains(b, []byte("d8:complete")) {
		t.Errorf("the request that was half sent gets %q, %v", b, err)
	}
	g.end()
}

// A gateway that goes on for a while answers who comes, is not ready, and keeps no connection.
func TestDrainDelay(t *testing.T) {
	g := gatewayWith(t, "--drain-delay", "4s")
	const request = "GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
	paths := []string{ // the event loop's and Fiber's
		"/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&port=1&left=1",
		"/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa",
	}
	ask := func(c net.Conn, path string) *http.Response {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := fmt.Fprintf(c, request, path); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != 200 {
			t.Fatalf("%s: %s %q, %v", path, response.Status, body, err)
		}
		return response
	}
	connect := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", g.HTTP)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	var kept []net.Conn
	for _, path := range paths {
		c := connect()
		if ask(c, path).Close {
			t.Fatalf("%s: the connection ends before the gateway does", path)
		}
		kept = append(kept, c)
	}
	g.cancel()
	storetest.Eventually(t, 5*time.Second, func() error {
		if status, _ := g.get("http://" + g.Admin + "/readyz"); status != 503 {
			return fmt.Errorf("/readyz says %d", status)
		}
		return nil
	})
	for n, path := range paths {
		for _, c := range []net.Conn{kept[n], connect()} {
			if !ask(c, path).Close {
				t.Errorf("%s: the connection is kept", path)
			}
		}
	}
	g.dialUDP() // fails without an answer
	g.end()
}

// Clients that announce while the gateway is told to end are answered, or their
// connection is refused.
func TestDrain(t *testing.T) {
	g := gatewayWith(t)
	var clients sync.WaitGroup
	var answered sync.Map
	for n := range 8 {
		clients.Go(func() {
			for i := 0; ; i++ {
				response, err := httpClient.Get(fmt.Sprintf("http://%s/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&port=%d&left=1", g.HTTP, 1+n))
				if err != nil {
					if !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("client %d: %v", n, err)
					}
					return
				}
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if err != nil || !bytes.HasPrefix(body, []byte("d8:complete")) {
					t.Errorf("client %d: %q, %v", n, body, err)
				}
				answered.Store(n, i)
			}
		})
	}
	storetest.Eventually(t, 10*time.Second, func() error {
		for n := range 8 {
			if i, ok := answered.Load(n); !ok || i.(int) < 10 {
				return errors.New("not all clients are at work")
			}
		}
		return nil
	})
	begun := time.Now()
	g.end()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the drain took %v", took)
	}
	clients.Wait()
}
