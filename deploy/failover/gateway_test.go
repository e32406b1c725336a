//go:build unix

package failover

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"swarmgate/deploy/internal/audit"
	"swarmgate/swarmstore/storetest"
)

// binary is the gateway, built by TestMain.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	logging.Disable() // go-redis's own lines
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "failover")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "gateway")
		if out, err := exec.Command("go", "build", "-o", binary, "swarmgate/gateway").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func newEndpoint(t testing.TB) audit.Endpoint {
	return audit.Endpoint{HTTP: storetest.FreeAddr(t), UDP: storetest.FreeAddr(t)}
}

// gateway is a process of its own.
type gateway struct {
	t     testing.TB
	cmd   *exec.Cmd
	ended chan struct{}
	admin string
	log   logged
}

// logged is what a process wrote.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startGateway returns when the gateway is ready. It ends with the test.
func startGateway(t testing.TB, at audit.Endpoint, args ...string) *gateway {
	t.Helper()
	file := filepath.Join(t.TempDir(), "admin")
	g := &gateway{t: t, ended: make(chan struct{})}
	g.cmd = exec.Command(binary, append([]string{"--http", at.HTTP, "--udp", at.UDP, "--admin", "127.0.0.1:0", "--admin-file", file}, args...)...)
	g.cmd.Stdout, g.cmd.Stderr = &g.log, &g.log
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = g.cmd.Wait()
		close(g.ended)
	}()
	t.Cleanup(func() {
		_ = g.cmd.Process.Kill()
		<-g.ended
		if t.Failed() {
			t.Logf("a gateway logged:\n%s", g.log.String())
		}
	})
	storetest.Eventually(t, 20*time.Second, func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w, and it logged: %s", err, g.log.String())
		}
		g.admin = strings.TrimSpace(string(b))
		_, err = g.get("/readyz")
		return err
	})
	return g
}

func (g *gateway) get(path string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get("http://" + g.admin + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, response.Status, b)
	}
	return string(b), err
}

// drain is SIGTERM. It returns when the gateway has ended, which it must with exit code 0.
func (g *gateway) drain() {
	g.t.Helper()
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.ended:
	case <-time.After(20 * time.Second):
		g.t.Fatal("the gateway does not end")
	}
	if code := g.cmd.ProcessState.ExitCode(); code != 0 {
		g.t.Errorf("a gateway that drained ended with exit code %d: %s", code, g.log.String())
	}
}

func (g *gateway) kill() {
	_ = g.cmd.Process.Kill()
	<-g.ended
}

// size is what a gateway holds.
type size struct{ goroutines, files, memory float64 }

// metric of the gateway, without labels or with all of them.
func (g *gateway) metric(name string) float64 {
	g.t.Helper()
	text, err := g.get("/metrics")
	if err != nil {
		g.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				g.t.Fatal(err)
			}
			return v
		}
	}
	g.t.Fatalf("no metric %s", name)
	return 0
}

func (g *gateway) size() size {
	return size{g.metric("go_goroutines"), g.metric("process_open_fds"), g.metric("process_resident_memory_bytes") / (1 << 20)}
}
