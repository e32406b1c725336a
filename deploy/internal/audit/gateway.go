//go:build unix

package audit

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"swarmgate/swarmstore/storetest"
)

// Program is the gateway, built by Main.
var Program string

// Main builds the gateway, runs the tests of a package and tells the exit code; it is what a TestMain calls.
func Main(m *testing.M) int {
	flag.Parse()
	logging.Disable() // go-redis's own lines
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	Program = filepath.Join(dir, "gateway")
	if out, err := exec.Command("go", "build", "-o", Program, "swarmgate/gateway").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// NewEndpoint is one on the loopback address where nothing listens.
func NewEndpoint(t testing.TB) Endpoint {
	return Endpoint{HTTP: storetest.FreeAddr(t), UDP: storetest.FreeAddr(t)}
}

// Gateway is a process of its own.
type Gateway struct {
	Ended chan struct{} // closed when it has

	t     testing.TB
	cmd   *exec.Cmd
	admin string
	log   storetest.Text
}

// StartGateway on the loopback address returns when it is ready. It ends with the test.
func StartGateway(t testing.TB, at Endpoint, args ...string) *Gateway {
	t.Helper()
	return StartGatewayOn(t, storetest.Host{IP: "127.0.0.1"}, append([]string{"--http", at.HTTP, "--udp", at.UDP}, args...)...)
}

// StartGatewayOn starts one on a host.
func StartGatewayOn(t testing.TB, host storetest.Host, args ...string) *Gateway {
	t.Helper()
	file := filepath.Join(t.TempDir(), "admin")
	command := append(host.Enter(t), Program, "--admin", host.IP+":0", "--admin-file", file)
	g := &Gateway{t: t, Ended: make(chan struct{}), cmd: exec.Command(command[0], append(command[1:], args...)...)}
	g.cmd.Stdout, g.cmd.Stderr = &g.log, &g.log
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = g.cmd.Wait()
		close(g.Ended)
	}()
	t.Cleanup(func() {
		g.Kill()
		if t.Failed() {
			t.Logf("a gateway logged:\n%s", g.Log())
		}
	})
	storetest.Eventually(t, 20*time.Second, func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w, and it logged: %s", err, g.Log())
		}
		g.admin = strings.TrimSpace(string(b))
		_, err = g.Get("/readyz")
		return err
	})
	return g
}

// Log is what it wrote.
func (g *Gateway) Log() string { return g.log.String() }

// Admin is the address of its admin listener.
func (g *Gateway) Admin() string { return g.admin }

// Get asks the admin listener.
func (g *Gateway) Get(path string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
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

// Signal it.
func (g *Gateway) Signal(s os.Signal) error { return g.cmd.Process.Signal(s) }

// Terminate is SIGTERM.
func (g *Gateway) Terminate() { _ = g.Signal(syscall.SIGTERM) }

// Drained returns when the gateway has ended after SIGTERM, with exit code 0.
func (g *Gateway) Drained() {
	g.t.Helper()
	select {
	case <-g.Ended:
	case <-time.After(20 * time.Second):
		g.t.Fatal("the gateway does not end")
	}
	if code := g.cmd.ProcessState.ExitCode(); code != 0 {
		g.t.Errorf("a gateway that drained ended with exit code %d: %s", code, g.Log())
	}
}

// Kill ends it at once.
func (g *Gateway) Kill() {
	_ = g.cmd.Process.Kill()
	<-g.Ended
}

// Metric of the gateway, without labels or with all of them.
func (g *Gateway) Metric(name string) float64 {
	g.t.Helper()
	text, err := g.Get("/metrics")
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

// Size is what a gateway holds; memory in MiB.
type Size struct{ Goroutines, Files, Memory float64 }

// Size of the gateway now.
func (g *Gateway) Size() Size {
	return Size{g.Metric("go_goroutines"), g.Metric("process_open_fds"), g.Metric("process_resident_memory_bytes") / (1 << 20)}
}
