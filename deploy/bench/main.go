//go:build linux

// Command bench compares what an announce costs Swarmgate, Redis included, with what it costs opentracker, in
// CPU time, side by side on this machine and on the same work, and prints tables for the README.
//
//	go run ./deploy/bench                # all of it, about half an hour
//	go run ./deploy/bench --only zipf    # one row
//
// It needs Linux, redis-server, redis-cli, opentracker and ip (Debian: apt-get install redis-server opentracker iproute2), and
// root. Servers are started anew for every run, in turns, in a network namespace of the bench's own: the
// host's firewall would track each connection, and run out of room for them.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// row is a kind of work, done by two sides.
type row struct {
	name, key string
	scheme    string
	load      []string // flags of loadtest
	ours      side
	peer      side
}

// side is what a run measures.
type side struct {
	name  string
	start func(b *bench, r row) (pids map[string]int, port int, err error)
}

// bench runs rows; what it started last it stops before the next run.
type bench struct {
	ctx      context.Context
	dir      string // with the programs
	duration time.Duration
	running  []*exec.Cmd
	out      io.Writer
}

var zipf = []string{"--torrents", "10000", "--zipf", "1.1", "--peers", "128000"}

var rows = []row{
	{"UDP, 10,000 torrents Zipf 1.1, 128,000 peers", "zipf", "udp", zipf, gatewayOn("Swarmgate", 1), opentracker},
	{"UDP, 500,000 torrents uniform, 640,000 peers", "uniform", "udp",
		[]string{"--torrents", "500000", "--zipf", "0", "--peers", "640000"}, gatewayOn("Swarmgate", 1), opentracker},
	{"UDP, one swarm of 500,000 peers", "one", "udp",
		[]string{"--torrents", "1", "--peers", "500000"}, gatewayOn("Swarmgate", 1), opentracker},
	{"HTTP keep-alive, Zipf (opentracker closes)", "http", "http", zipf, gatewayOn("Swarmgate", 1), opentracker},
	{"HTTP, a connection each, Zipf", "close", "http", append([]string{"--close"}, zipf...), gatewayOn("Swarmgate", 1), opentracker},
	{"UDP Zipf, three masters against one Redis", "cluster", "udp", zipf, gatewayOn("three masters", 3), gatewayOn("one Redis", 1)},
	{"UDP Zipf, repeats absorbed", "absorbed", "udp", zipf, gatewayOn("Swarmgate", 1, "--repeat-window", "2m"), opentracker},
	{"HTTP keep-alive Zipf, repeats absorbed", "absorbed-http", "http", zipf, gatewayOn("Swarmgate", 1, "--repeat-window", "2m"), opentracker},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	fs := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	rounds := fs.Int("rounds", 3, "`N` runs of each side, in turns")
	duration := fs.Duration("duration", 10*time.Second, "what of each run is measured")
	only := fs.StringSlice("only", nil, "`NAMES` of rows: zipf, uniform, one, http, close, cluster, absorbed, absorbed-http, memory; all by default")
	if err := fs.Parse(args); err != nil {
		return err
	}
	dir := os.Getenv(builtIn)
	if dir == "" {
		return inNamespace(ctx, args)
	}
	if out, err := exec.CommandContext(ctx, "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	b := &bench{ctx: ctx, dir: dir, duration: *duration, out: os.Stdout}
	defer b.stop()
	wanted := func(key string) bool { return len(*only) == 0 || slices.Contains(*only, key) }

	fmt.Fprintf(b.out, "%s, %d cores, %s; median of %d runs, least and most in brackets\n\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.Version(), *rounds)
	fmt.Fprintln(b.out, "| work | ratio | ours, µs | of which gateway | the other, µs | peers an answer, ours / other | answers a second, ours / other |")
	fmt.Fprintln(b.out, "|---|---|---|---|---|---|---|")
	for _, r := range rows {
		if wanted(r.key) {
			if err := b.compare(r, *rounds); err != nil {
				return fmt.Errorf("%s: %w", r.key, err)
			}
		}
	}
	if wanted("memory") {
		return b.memory()
	}
	return nil
}

// builtIn is the environment variable that tells a bench in its namespace where the programs are.
const builtIn = "SWARMGATE_BENCH_DIR"

// inNamespace builds the programs and runs the bench again, in a network namespace of its own.
func inNamespace(ctx context.Context, args []string) error {
	for _, program := range []string{"redis-server", "redis-cli", "opentracker", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing: apt-get install redis-server opentracker iproute2", program)
		}
	}
	dir, err := os.MkdirTemp("", "swarmgate-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // opentracker steps down to nobody
		return err
	}
	for program, source := range map[string]string{"gateway": "./gateway", "loadtest": "./deploy/loadtest"} {
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, program), source).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it ends its servers
	cmd.Env = append(os.Environ(), builtIn+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return cmd.Run()
}

// result of loadtest.
type result struct {
	Answers, Failed, Lost int64
	PerSecond, Peers      float64
	CPU                   map[string]float64
	CPUTotal              float64
}

func (b *bench) compare(r row, rounds int) error {
	var ours, others []*result
	var ratios []float64
	for n := range rounds {
		sides := []side{r.ours, r.peer}
		if n%2 == 1 {
			slices.Reverse(sides)
		}
		got := map[string]*result{}
		for _, s := range sides {
			res, err := b.measure(r, s)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			got[s.name] = res
			fmt.Fprintf(os.Stderr, "%s, %s: %.2f µs %v, %.0f/s, %.1f peers, %d failed, %d lost\n", r.key, s.name, res.CPUTotal, res.CPU, res.PerSecond, res.Peers, res.Failed, res.Lost)
		}
		ours, others = append(ours, got[r.ours.name]), append(others, got[r.peer.name])
		ratios = append(ratios, got[r.ours.name].CPUTotal/got[r.peer.name].CPUTotal)
	}
	of := func(results []*result, value func(*result) float64) float64 {
		var values []float64
		for _, r := range results {
			values = append(values, value(r))
		}
		return median(values)
	}
	cpu := func(r *result) float64 { return r.CPUTotal }
	gateway := func(r *result) float64 { return r.CPU["gateway"] }
	peers := func(r *result) float64 { return r.Peers }
	rate := func(r *result) float64 { return r.PerSecond }
	fmt.Fprintf(b.out, "| %s | **%.2f** (%.2f to %.2f) | %.1f | %.1f | %.1f | %.1f / %.1f | %.0f / %.0f |\n", r.name,
		median(ratios), slices.Min(ratios), slices.Max(ratios), of(ours, cpu), of(ours, gateway), of(others, cpu),
		of(ours, peers), of(others, peers), of(ours, rate), of(others, rate))
	return nil
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// measure starts a side anew and loads it.
func (b *bench) measure(r row, s side) (*result, error) {
	defer b.stop()
	pids, port, err := s.start(b, r)
	if err != nil {
		return nil, err
	}
	return b.load(r, pids, port, b.duration)
}

func (b *bench) load(r row, pids map[string]int, port int, duration time.Duration) (*result, error) {
	args := append([]string{"--json", "--quiet", "--target", fmt.Sprintf("%s://127.0.0.1:%d", r.scheme, port), "--duration", duration.String()}, r.load...)
	for name, pid := range pids {
		args = append(args, "--pid", fmt.Sprintf("%s=%d", name, pid))
	}
	cmd := exec.CommandContext(b.ctx, filepath.Join(b.dir, "loadtest"), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, &stderr)
	}
	res := &result{}
	return res, json.Unmarshal(out, res)
}

// spawn starts a server.
func (b *bench) spawn(program string, args ...string) (int, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = b.dir
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	b.running = append(b.running, cmd)
	return cmd.Process.Pid, nil
}

// stop ends all servers.
func (b *bench) stop() {
	for _, cmd := range b.running {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	b.running = nil
}

// await tries until it succeeds, for ten seconds at most.
func (b *bench) await(try func() error) error {
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && b.ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return nil
		}
	}
	return errors.Join(err, b.ctx.Err())
}

// Ports of the servers.
const (
	portTracker = 16969
	portAdmin   = 16970
	portRedis   = 16379
)

func (b *bench) cli(port int, args ...string) (string, error) {
	out, err := exec.CommandContext(b.ctx, "redis-cli", append([]string{"-p", strconv.Itoa(port)}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("redis-cli: %w: %s", err, out)
	}
	return string(out), nil
}

// gatewayOn is a gateway on one Redis, or on a cluster of so many masters, that absorbs no repeats unless told to.
func gatewayOn(name string, masters int, flags ...string) side {
	return side{name, func(b *bench, _ row) (map[string]int, int, error) {
		pids := map[string]int{}
		var urls []string
		create := []string{"--cluster", "create", "--cluster-yes"}
		for n := range masters {
			port := portRedis + n
			args := []string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning"}
			if masters > 1 {
				args = append(args, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(port+100),
					"--cluster-config-file", fmt.Sprintf("nodes-%d-%d.conf", port, time.Now().UnixNano()))
			}
			pid, err := b.spawn("redis-server", args...)
			if err != nil {
				return nil, 0, err
			}
			pids[fmt.Sprintf("redis%d", n)] = pid
			urls = append(urls, fmt.Sprintf("redis://127.0.0.1:%d", port))
			create = append(create, fmt.Sprintf("127.0.0.1:%d", port))
			if err := b.await(func() error { _, err := b.cli(port, "ping"); return err }); err != nil {
				return nil, 0, err
			}
		}
		if masters > 1 {
			if _, err := b.cli(portRedis, create...); err != nil {
				return nil, 0, err
			}
			for n := range masters {
				if err := b.await(func() error {
					info, err := b.cli(portRedis+n, "cluster", "info")
					if err == nil && !strings.Contains(info, "cluster_state:ok") {
						err = errors.New("the cluster does not form")
					}
					return err
				}); err != nil {
					return nil, 0, err
				}
			}
		}
		tracker := fmt.Sprintf("127.0.0.1:%d", portTracker)
		admin := fmt.Sprintf("127.0.0.1:%d", portAdmin)
		args := append([]string{"--http", tracker, "--udp", tracker, "--admin", admin, "--redis", strings.Join(urls, ","),
			"--repeat-window", "0", "--log-level", "error"}, flags...)
		pid, err := b.spawn(filepath.Join(b.dir, "gateway"), args...)
		if err != nil {
			return nil, 0, err
		}
		pids["gateway"] = pid
		return pids, portTracker, b.await(func() error {
			return exec.CommandContext(b.ctx, filepath.Join(b.dir, "gateway"), "health", "--admin", admin).Run()
		})
	}}
}

// opentracker as Debian has it serves the torrents of a list only.
var opentracker = side{"opentracker", func(b *bench, r row) (map[string]int, int, error) {
	hashes, err := exec.CommandContext(b.ctx, filepath.Join(b.dir, "loadtest"), append([]string{"--hashes"}, r.load...)...).Output()
	if err != nil {
		return nil, 0, err
	}
	config := filepath.Join(b.dir, "opentracker.conf")
	text := fmt.Sprintf("listen.tcp_udp 127.0.0.1:%d\naccess.whitelist /whitelist\ntracker.rootdir %s\ntracker.user nobody\n", portTracker, b.dir)
	if err := errors.Join(os.WriteFile(filepath.Join(b.dir, "whitelist"), hashes, 0o644), os.WriteFile(config, []byte(text), 0o644)); err != nil {
		return nil, 0, err
	}
	pid, err := b.spawn("opentracker", "-f", config)
	if err != nil {
		return nil, 0, err
	}
	// It tells nobody when it is ready: when it answers an announce.
	probe := row{scheme: "udp", load: []string{"--torrents", "1", "--peers", "1", "--addresses", "1", "--warmup", "0s"}}
	return map[string]int{"opentracker": pid}, portTracker, b.await(func() error {
		res, err := b.load(probe, nil, portTracker, 20*time.Millisecond)
		if err == nil && res.Answers == 0 {
			err = errors.New("opentracker does not answer")
		}
		return err
	})
}}
