package cdn

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"swarmgate/swarmstore/storetest"
	"swarmgate/udpproxy/bep15"
)

// start runs a command line until the test ends, when all that it started ends too.
func start(t *testing.T, shell string) (stdout io.Reader) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", shell)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		late := time.AfterFunc(5*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		_ = cmd.Wait()
		late.Stop()
		if t.Failed() {
			t.Logf("%s\n%s", shell, log.String())
		}
	})
	return out
}

// gateway is one in a process of its own, with a store of its own.
type gateway struct{ http, udp, admin string }

func startGateway(t *testing.T, program, flags string) gateway {
	t.Helper()
	out := start(t, "exec "+program+" --http 127.0.0.1:0 --udp 127.0.0.1:0 --admin 127.0.0.1:0 --trusted-proxies 127.0.0.1 "+flags)
	var g gateway
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		_, addr, _ := strings.Cut(fields[len(fields)-1], "://")
		addr, _, _ = strings.Cut(addr, "/")
		switch fields[0] {
		case "HTTP":
			g.http = addr
		case "UDP":
			g.udp = addr
		case "Admin":
			g.admin = addr
		case "Store":
			return g
		}
	}
	t.Fatal("the gateway does not start")
	return g
}

// wantMetric waits until a metric has a value.
func (g gateway) wantMetric(t *testing.T, line string) {
	t.Helper()
	storetest.Eventually(t, 5*time.Second, func() error {
		response, err := http.Get("http://" + g.admin + "/metrics")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		metrics, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(metrics), "\n"+line+"\n") {
			err = fmt.Errorf("the metrics lack %s", line)
		}
		return err
	})
}

// upstream stands between the CDN and the gateway and sees all that comes.
type upstream struct {
	addr string

	mu          sync.Mutex
	connections int
	requests    []*http.Request
	held        chan struct{} // when set, answers wait until it is closed,
	free        int           // after so many bytes
	cut         int           // when set, the next answer breaks off after so many bytes
}

func startUpstream(t *testing.T, gateway string) *upstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: l.Addr().String()}
	var serving sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			cdn, err := l.Accept()
			if err != nil {
				return
			}
			gateway, err := net.Dial("tcp", gateway)
			if err != nil {
				t.Error(err)
				_ = cdn.Close()
				continue
			}
			u.mu.Lock()
			u.connections++
			u.mu.Unlock()
			end := func() { _, _ = cdn.Close(), gateway.Close() }
			context.AfterFunc(ctx, end)
			serving.Go(func() {
				defer end()
				u.pass(cdn, gateway)
			})
			serving.Go(func() {
				defer end()
				u.answer(ctx, cdn, gateway)
			})
		}
	})
	return u
}

func (u *upstream) pass(cdn io.Reader, gateway io.Writer) {
	var raw bytes.Buffer // passed on as it is, when it has been noted
	in := bufio.NewReader(io.TeeReader(cdn, &raw))
	for {
		request, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		u.mu.Lock()
		u.requests = append(u.requests, request)
		u.mu.Unlock()
		if _, err := raw.WriteTo(gateway); err != nil {
			return
		}
	}
}

func (u *upstream) answer(ctx context.Context, cdn io.Writer, gateway io.Reader) {
	b := make([]byte, 4096)
	for {
		n, err := gateway.Read(b)
		if err != nil {
			return
		}
		u.mu.Lock()
		held, last := u.held, false
		if u.free -= n; u.free >= 0 {
			held = nil
		}
		if u.cut > 0 {
			u.cut -= n
			last = u.cut <= 0
		}
		u.mu.Unlock()
		if held != nil {
			select {
			case <-held:
			case <-ctx.Done():
			}
		}
		if _, err := cdn.Write(b[:n]); err != nil || last {
			return
		}
	}
}

// hold lets answers wait, after some bytes, until release is called.
func (u *upstream) hold(after int) (release func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	held := make(chan struct{})
	u.held, u.free = held, after
	return sync.OnceFunc(func() {
		u.mu.Lock()
		u.held = nil
		u.mu.Unlock()
		close(held)
	})
}

// cutAfter breaks the next answer off.
func (u *upstream) cutAfter(bytes int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.cut = bytes
}

// asked are the requests that came for a path with its query.
func (u *upstream) asked(path string) (requests []*http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, r := range u.requests {
		if r.RequestURI == path {
			requests = append(requests, r)
		}
	}
	return requests
}

func (u *upstream) wantAsked(t *testing.T, path string, want int) {
	t.Helper()
	if got := len(u.asked(path)); got != want {
		t.Errorf("the gateway is asked for %s %d times, not %d", path, got, want)
	}
}

// folder is one that servers reach which are started as root and become others.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "swarmgate-cdn-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startShipped starts a server by the command in its file, with other addresses and folders only: by pairs of
// what is in the file or the command, and what stands for it. In the command $PWD is taken care of.
func startShipped(t *testing.T, file, server, foreground string, pairs ...string) {
	t.Helper()
	shipped, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(shipped)
	for n := 0; n < len(pairs); n += 2 {
		if !strings.Contains(text, pairs[n]) {
			t.Fatalf("%s lacks %q", file, pairs[n])
		}
	}
	text = strings.NewReplacer(pairs...).Replace(text)
	path := filepath.Join(folder(t), file)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`(?m)^# {3}(.*\b` + server + ` .*)$`).FindStringSubmatch(text)
	if command == nil {
		t.Fatalf("%s does not say how to start %s", file, server)
	}
	shell := strings.ReplaceAll(command[1], "$PWD/deploy/cdn/"+file, path)
	start(t, strings.Replace(shell, server, "exec "+server, 1)+" "+foreground)
}

func wantListening(t *testing.T, addr string) {
	t.Helper()
	storetest.Eventually(t, 10*time.Second, func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// edge is a CDN in front of a gateway.
type edge struct {
	addr string
	*upstream
	streams          int          // clients who can be sent a list while it comes
	clients, written atomic.Int64 // that there were, and requests that they have written
}

func TestCDN(t *testing.T) {
	program := filepath.Join(t.TempDir(), "gateway")
	if out, err := exec.Command("go", "build", "-o", program, "../../gateway").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Run("nginx", func(t *testing.T) { testNginx(t, program) })
	t.Run("varnish", func(t *testing.T) { testVarnish(t, program) })
	t.Run("nginx in front of UDP", func(t *testing.T) { testNginxUDP(t, program) })
}

func testNginx(t *testing.T, program string) {
	storetest.Need(t, "nginx", "nginx")
	testEdge(t, program, 1, func(t *testing.T, addr, upstream string) {
		startShipped(t, "nginx.conf", "nginx -p", "-g 'daemon off;'",
			"listen 80;", "listen "+addr+";", "listen [::]:80;", "", "127.0.0.1:6969", upstream, "/var/cache/swarmgate", filepath.Join(folder(t), "cache"))
	})
}

func testVarnish(t *testing.T, program string) {
	storetest.Need(t, "varnishd", "varnish")
	testEdge(t, program, 2, func(t *testing.T, addr, upstream string) {
		_, port, _ := net.SplitHostPort(upstream)
		dir := folder(t)
		startShipped(t, "varnish.vcl", "varnishd", "-F -n "+dir,
			"-a :80", "-a "+addr, `"6969"`, `"`+port+`"`, "/var/lib/varnish/swarmgate,20g", filepath.Join(dir, "storage")+",64m")
	})
}

// swarms that the gateway has, so many that a list of them comes in parts.
const swarms = 2000

// freshness of scrapes.
const freshness = 2 * time.Second

func testEdge(t *testing.T, program string, streams int, startEdge func(t *testing.T, addr, upstream string)) {
	g := startGateway(t, program, "--view-ttl "+freshness.String())
	fill(t, g.http)
	e := &edge{upstream: startUpstream(t, g.http), streams: streams}
	e.addr = storetest.FreeAddr(t)
	startEdge(t, e.addr, e.upstream.addr)
	wantListening(t, e.addr)

	t.Run("an announce passes with its client's address", func(t *testing.T) { testAnnounces(t, e, g) })
	t.Run("connections to the gateway are kept", func(t *testing.T) { testKeepAlive(t, e) })
	t.Run("a scrape is kept while it is fresh", func(t *testing.T) { testScrapes(t, e) })
	t.Run("one request asks for many clients", func(t *testing.T) { testCoalescing(t, e) })
	t.Run("a list is sent on while it comes", func(t *testing.T) { testStreaming(t, e) })
	t.Run("encodings are kept apart", func(t *testing.T) { testCodings(t, e) })
	t.Run("clients are limited, kept answers are not", func(t *testing.T) { testLimit(t, e) })
	t.Run("a broken list is not kept", func(t *testing.T) { testBroken(t, e) })
	t.Run("HTTP/1.0 is not given what could break off", func(t *testing.T) { testOldHTTP(t, e) })
}

// fill announces a peer in each of the swarms.
func fill(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		for n := range swarms {
			_, _ = fmt.Fprintf(c, "GET /announce?info_hash=aaaaaaaaaaaaaaaa%04d&port=1&left=0 HTTP/1.1\r\n\r\n", n)
		}
	}()
	in := bufio.NewReader(c)
	for range swarms {
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(response.Body); err != nil || !strings.Contains(string(body), "8:completei1e") {
			t.Fatalf("%v: %q", err, body)
		}
	}
}

// client is an address that no other test has.
func (e *edge) client() netip.Addr {
	return netip.AddrFrom4([4]byte{127, 0, 1, byte(e.clients.Add(1))})
}

// ask asks the CDN over a connection of its own, by HTTP/1.1, with pairs of headers.
func (e *edge) ask(t *testing.T, client netip.Addr, path string, headers ...string) (*http.Response, error) {
	t.Helper()
	from := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0))}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: from.DialContext}
	trace := &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { e.written.Add(1) }}
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodGet, "http://"+e.addr+path, nil)
	if err != nil {
		return nil, err
	}
	for n := 0; n < len(headers); n += 2 {
		request.Header.Add(headers[n], headers[n+1])
	}
	return (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(request)
}

// get asks and reads the body.
func (e *edge) get(t *testing.T, client netip.Addr, path string, headers ...string) (response *http.Response, body string, err error) {
	t.Helper()
	response, err = e.ask(t, client, path, headers...)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return response, string(b), err
}

func (e *edge) wantStatus(t *testing.T, want int, client netip.Addr, path string, headers ...string) (response *http.Response, body string) {
	t.Helper()
	response, body, err := e.get(t, client, path, headers...)
	if err != nil || response.StatusCode != want {
		t.Fatalf("%s gets %v, %v, want %d", path, response, err, want)
	}
	return response, body
}

func (e *edge) wantList(t *testing.T, client netip.Addr, path string) {
	t.Helper()
	if _, body := e.wantStatus(t, http.StatusOK, client, path); !isList(body) {
		t.Errorf("%s is no list of all swarms, but %d bytes", path, len(body))
	}
}

// isList tells a whole full scrape.
func isList(body string) bool {
	return strings.HasPrefix(body, "d5:filesd") && strings.HasSuffix(body, "eee") && strings.Count(body, "20:aaaaaaaaaaaaaaaa") == swarms
}

func testAnnounces(t *testing.T, e *edge, g gateway) {
	const path = "/announce?info_hash=bbbbbbbbbbbbbbbbbbbb&port=1&left=0"
	client := e.client()
	ip := client.As4()
	for n, headers := range [][]string{
		nil, // twice the same
		{"X-Forwarded-For", "203.0.113.1", "X-Forwarded-For", "203.0.113.2, 127.0.0.1"},
		{"X-Real-IP", "203.0.113.1", "CF-Connecting-IP", "203.0.113.1", "True-Client-IP", "203.0.113.1", "Forwarded", "for=203.0.113.1", "Host", "127.0.0.1"},
		{"Cookie", "a=b", "Authorization", "c", "Cache-Control", "only-if-cached", "If-None-Match", "*"},
	} {
		response, body := e.wantStatus(t, http.StatusOK, client, path, headers...)
		if !strings.Contains(body, "11:external ip4:"+string(ip[:])+"10:") {
			t.Errorf("with %q the client is another: %q", headers, body)
		}
		if got := response.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("the Cache-Control of an announce is %q", got)
		}
		asked := e.asked(path)
		if len(asked) != n+1 {
			t.Fatalf("the gateway is asked %d times, not %d", len(asked), n+1)
		}
		if got := asked[n].Header.Values("X-Forwarded-For"); !slices.Equal(got, []string{client.String()}) {
			t.Errorf("with %q the gateway is told %q", headers, got)
		}
	}
	g.wantMetric(t, `swarmgate_forged_addresses_total{kind="header"} 0`)

	const wrong = "/scrape?info_hash=b"
	for range 2 {
		if _, body := e.wantStatus(t, http.StatusOK, client, wrong); !strings.Contains(body, "failure reason") {
			t.Errorf("a scrape that makes no sense gets %q", body)
		}
	}
	e.wantAsked(t, wrong, 2)
}

func testKeepAlive(t *testing.T, e *edge) {
	connections := func() int {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.connections
	}
	before, client := connections(), e.client()
	n := 10 * runtime.NumCPU()
	for port := range n {
		e.wantStatus(t, http.StatusOK, client, fmt.Sprintf("/announce?info_hash=cccccccccccccccccccc&left=0&port=%d", 1+port))
	}
	// A process of nginx, of which there are as many as CPUs, has one.
	if got := connections() - before; got > n/5 {
		t.Errorf("%d announces come on %d connections", n, got)
	}
}

func testScrapes(t *testing.T, e *edge) {
	const path = "/scrape?info_hash=dddddddddddddddddddd"
	scrape := func() error {
		response, body, err := e.get(t, netip.MustParseAddr("127.0.0.1"), path)
		if err == nil && (response.StatusCode != http.StatusOK || !strings.HasPrefix(body, "d5:filesd20:dddd")) {
			err = fmt.Errorf("a scrape gets %d %q", response.StatusCode, body)
		}
		return err
	}
	begin := time.Now()
	if err := scrape(); err != nil {
		t.Fatal(err)
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	release := e.hold(0)
	defer release()
	again := 0
	asking.Go(func() { // until it is that which asks the gateway, and waits
		for ; len(e.asked(path)) == 1; again++ {
			if err := scrape(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	storetest.Eventually(t, 10*time.Second, func() error {
		if len(e.asked(path)) == 1 {
			return errors.New("the gateway is not asked again")
		}
		return nil
	})
	if took := time.Since(begin); took < freshness {
		t.Errorf("the gateway is asked again after %v", took)
	}
	e.crowd(t, 10, release, scrape)
	asking.Wait()
	if again < 10 {
		t.Errorf("%d scrapes are answered while one is fresh", again)
	}
	e.wantAsked(t, path, 2)
}

func testCoalescing(t *testing.T, e *edge) {
	const path = "/scrape?many"
	e.crowd(t, 30, e.hold(0), func() error {
		response, body, err := e.get(t, e.client(), path)
		if err == nil && (response.StatusCode != http.StatusOK || !isList(body)) {
			err = fmt.Errorf("a full scrape gets %d, %d bytes", response.StatusCode, len(body))
		}
		return err
	})
	e.wantAsked(t, path, 1)
}

// crowd lets so many clients ask at the same time, and releases the gateway's answers then.
func (e *edge) crowd(t *testing.T, n int, release func(), ask func() error) {
	t.Helper()
	var asking sync.WaitGroup
	defer asking.Wait()
	defer release()
	before := e.written.Load()
	for range n {
		asking.Go(func() {
			if err := ask(); err != nil {
				t.Error(err)
			}
		})
	}
	storetest.Eventually(t, 10*time.Second, func() error {
		if written := e.written.Load() - before; written < int64(n) {
			return fmt.Errorf("%d clients have asked", written)
		}
		return nil
	})
	// Announces pass meanwhile, also when they are alike, and what was written before them has come by then.
	announce := fmt.Sprintf("/announce?info_hash=eeeeeeeeeeeeeeeeeeee&port=%d", n)
	for range 2 {
		asking.Go(func() {
			if _, _, err := e.get(t, e.client(), announce); err != nil {
				t.Error(err)
			}
		})
	}
	storetest.Eventually(t, 10*time.Second, func() error {
		if passed := len(e.asked(announce)); passed != 2 {
			return fmt.Errorf("of two announces %d pass", passed)
		}
		return nil
	})
}

func testStreaming(t *testing.T, e *edge) {
	const path = "/scrape?streamed"
	release := e.hold(100_000)
	defer release()
	var lists []io.Reader
	for range e.streams {
		response, err := e.ask(t, e.client(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		begin := make([]byte, 10_000)
		if _, err := io.ReadFull(response.Body, begin); err != nil {
			t.Fatalf("before the end has come: %v", err)
		}
		lists = append(lists, io.MultiReader(bytes.NewReader(begin), response.Body))
	}
	release()
	for _, list := range lists {
		if body, err := io.ReadAll(list); err != nil || !isList(string(body)) {
			t.Errorf("%v, %d bytes", err, len(body))
		}
	}
	e.wantAsked(t, path, 1)
}

func testCodings(t *testing.T, e *edge) {
	const path = "/scrape?coded"
	asked := 0
	for _, test := range []struct {
		accepted, coding string
		first            bool // that has this coding
	}{
		{"gzip", "gzip", true},
		{"zstd", "zstd", true},
		{"identity", "", true},
		{"gzip, deflate", "gzip", false},
		{"gzip, deflate, br, zstd", "zstd", false},
		{"ZSTD", "zstd", false},
		{"zstd;q=0, gzip", "gzip", false},
		{"xzstd", "", false},
		{"", "", false},
	} {
		response, body := e.wantStatus(t, http.StatusOK, e.client(), path, "Accept-Encoding", test.accepted)
		if got := response.Header.Get("Content-Encoding"); got != test.coding {
			t.Errorf("%q gets %q", test.accepted, got)
			continue
		}
		if got := response.Header.Get("Vary"); got != "Accept-Encoding" {
			t.Errorf("%q: Vary is %q", test.accepted, got)
		}
		var in io.Reader = strings.NewReader(body)
		var err error
		switch test.coding {
		case "gzip":
			in, err = gzip.NewReader(in)
		case "zstd":
			in, err = zstd.NewReader(in)
		}
		if err != nil {
			t.Fatal(err)
		}
		if list, err := io.ReadAll(in); err != nil || !isList(string(list)) {
			t.Errorf("%q: %v, %d bytes", test.accepted, err, len(list))
		}
		if test.first {
			asked++
		}
		e.wantAsked(t, path, asked)
	}
}

func testLimit(t *testing.T, e *edge) {
	const one, other, third = "/scrape?one", "/stats?mode=tpbs", "/scrape?third"
	greedy, modest := e.client(), e.client()
	e.wantList(t, greedy, one)
	for n := range 2 {
		response, _ := e.wantStatus(t, http.StatusTooManyRequests, greedy, other, "X-Forwarded-For", "203.0.113.1")
		if response.Header.Get("Retry-After") == "" {
			t.Errorf("no Retry-After: %v", response.Header)
		}
		e.wantAsked(t, other, n+1)
	}
	e.wantList(t, modest, other)
	e.wantAsked(t, other, 3)
	for range 2 {
		e.wantList(t, greedy, other)
		e.wantList(t, greedy, one)
	}
	e.wantAsked(t, other, 3)
	e.wantAsked(t, one, 1)
	e.wantStatus(t, http.StatusTooManyRequests, modest, third)
	e.wantStatus(t, http.StatusTooManyRequests, greedy, third)

	response, _ := e.wantStatus(t, http.StatusOK, greedy, one)
	e.wantStatus(t, http.StatusNotModified, greedy, one, "If-None-Match", response.Header.Get("ETag"))
	e.wantAsked(t, one, 1)
}

func testBroken(t *testing.T, e *edge) {
	const path = "/scrape?broken"
	e.cutAfter(30_000)
	response, body, err := e.get(t, e.client(), path)
	if err == nil && response.StatusCode == http.StatusOK {
		t.Errorf("a list that breaks off looks whole: %v, %d bytes", response, len(body))
	}
	e.wantList(t, e.client(), path)
	e.wantAsked(t, path, 2)
	e.wantList(t, e.client(), path)
	e.wantAsked(t, path, 2)
}

func testOldHTTP(t *testing.T, e *edge) {
	e.wantList(t, e.client(), "/scrape") // which is kept from now on
	for path, want := range map[string]string{
		"/scrape":                                " 505 ",
		"/stats?mode=tpbs":                       " 505 ",
		"/scrape?info_hash=dddddddddddddddddddd": " 200 OK\r\n",
		"/announce?info_hash=ffffffffffffffffffff&port=1&left=0": " 200 OK\r\n",
	} {
		c, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, "GET "+path+" HTTP/1.0\r\n\r\n")
		raw, err := io.ReadAll(c)
		_ = c.Close()
		if err != nil || !strings.HasPrefix(string(raw), "HTTP/1.1"+want) {
			t.Errorf("%s gets %v, %.100q", path, err, raw)
		}
	}
}

// Each datagram tells the gateway its client's address, and no client may tell another.
func testNginxUDP(t *testing.T, program string) {
	storetest.Need(t, "nginx", "nginx")
	if _, err := os.Stat("/usr/lib/nginx/modules/ngx_stream_module.so"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: apt-get install libnginx-mod-stream", err)
		}
		t.Skipf("%v: apt-get install libnginx-mod-stream", err)
	}
	g := startGateway(t, program, "--proxy-protocol --view-ttl 0")
	front := storetest.FreeAddr(t)
	startShipped(t, "nginx-udp.conf", "nginx -p", "-g 'daemon off;'",
		"listen 6969 ", "listen "+front+" ", "listen [::]:6969 udp reuseport;", "", "127.0.0.1:6970", g.udp, "/var/cache/swarmgate-udp", filepath.Join(folder(t), "cache"))

	// exchange sends a datagram until there is an answer: none comes before nginx listens.
	exchange := func(c net.Conn, datagram []byte) (answer []byte) {
		storetest.Eventually(t, 10*time.Second, func() error {
			answer = make([]byte, 2048)
			if _, err := c.Write(datagram); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			n, err := c.Read(answer)
			answer = answer[:n]
			return err
		})
		return answer
	}
	connect := func(ip string) (c net.Conn, id uint64) {
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}).Dial("udp", front)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		answer := exchange(c, (&bep15.Request{Action: bep15.ActionConnect}).Append(nil))
		return c, binary.BigEndian.Uint64(answer[8:])
	}
	announce := bep15.Request{Action: bep15.ActionAnnounce, InfoHash: [20]byte{1}, Left: 5, NumWant: 50}

	c, id := connect("127.0.0.5")
	announce.ConnectionID, announce.Port = id, 1001
	exchange(c, announce.Append(nil))
	announce.Port = 1002
	forged := append([]byte("PROXY TCP4 127.0.0.7 127.0.0.1 1 1\r\n"), announce.Append(nil)...)
	if _, err := c.Write(forged); err != nil {
		t.Fatal(err)
	}
	g.wantMetric(t, `swarmgate_invalid_requests_total{transport="udp"} 1`)

	c, announce.ConnectionID = connect("127.0.0.6")
	announce.Port = 1003
	if answer := exchange(c, announce.Append(nil)); string(answer[20:]) != "\x7f\x00\x00\x05\x03\xe9" {
		t.Errorf("the peers are %q", answer[20:])
	}
}
