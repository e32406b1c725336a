//go:build linux

// Command bench compares what an announce costs Swarmgate, Redis included, with what it costs opentracker, in
// CPU time, side by side on this machine and on the same work, and prints tables for the README.
//
//	go run ./deploy/bench                # all of it, about an hour
//	go run ./deploy/bench --only zipf    # one row; a table likewise
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
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// bench measures; what it started last it stops before the next run.
type bench struct {
	ctx       context.Context
	dir       string // with the programs
	rounds    int
	duration  time.Duration
	out       io.Writer
	running   []*exec.Cmd
	container string   // that runs, by name
	namespace []string // command that enters the container's network; none without one
}

// groups are what --only picks, besides single rows.
var groups = []struct {
	key string
	run func(b *bench) error
}{
	{"memory", (*bench).memory},
	{"growth", (*bench).growth},
	{"hot", (*bench).hot},
	{"scaling", (*bench).scaling},
	{"latency", (*bench).latency},
	{"fullscrape", (*bench).fullScrape},
	{"embedded", (*bench).embedded},
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
	var keys []string
	for _, t := range tables {
		keys = append(keys, t.key)
		for _, r := range t.rows {
			keys = append(keys, r.key)
		}
	}
	for _, g := range groups {
		keys = append(keys, g.key)
	}
	fs := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	rounds := fs.Int("rounds", 3, "`N` runs of each side, in turns")
	duration := fs.Duration("duration", 10*time.Second, "what of each run is measured")
	only := fs.StringSlice("only", nil, "`NAMES` of tables and rows: "+strings.Join(keys, ", ")+"; all by default")
	if err := fs.Parse(args); err != nil {
		return err
	}
	switch {
	case len(fs.Args()) > 0:
		return fmt.Errorf("unknown argument %q", fs.Arg(0))
	case *rounds < 1:
		return fmt.Errorf("--rounds: %d is below 1", *rounds)
	case *duration <= 0:
		return fmt.Errorf("--duration: %v is not above 0", *duration)
	}
	for _, key := range *only {
		if !slices.Contains(keys, key) {
			return fmt.Errorf("--only: %q is none of %s", key, strings.Join(keys, ", "))
		}
	}
	dir := os.Getenv(builtIn)
	if dir == "" {
		return inNamespace(ctx, args)
	}
	b := &bench{ctx: ctx, dir: dir, rounds: *rounds, duration: *duration, out: os.Stdout}
	defer b.stop()
	if err := b.ip("link", "set", "lo", "up"); err != nil {
		return err
	}
	wanted := func(key string) bool { return len(*only) == 0 || slices.Contains(*only, key) }
	for _, t := range tables {
		var rows []row
		for _, r := range t.rows {
			if wanted(t.key) || wanted(r.key) {
				rows = append(rows, r)
			}
		}
		if err := b.table(rows); err != nil {
			return err
		}
	}
	for _, g := range groups {
		if wanted(g.key) {
			if err := g.run(b); err != nil {
				return fmt.Errorf("%s: %w", g.key, err)
			}
		}
	}
	return nil
}

// heading of a table: where and how it was measured, and its columns.
func (b *bench) heading(how string, columns ...string) {
	fmt.Fprintf(b.out, "\n%s, %d cores, %s; %s\n\n| %s |\n|%s\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.Version(), how,
		strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
}

// medians are what a heading says of figures that are.
func (b *bench) medians() string { return fmt.Sprintf("median of %d runs", b.rounds) }

func (b *bench) ip(args ...string) error {
	if out, err := exec.CommandContext(b.ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
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
	P50, P99, P999        time.Duration
}

// on is the part of the CPU time that some servers took.
func (r *result) on(servers string) float64 {
	sum := 0.0
	for name, cpu := range r.CPU {
		if strings.HasPrefix(name, servers) {
			sum += cpu
		}
	}
	return sum
}

func (r *result) gateways() float64 { return r.on("gateway") }

func (r *result) cpu() float64   { return r.CPUTotal }
func (r *result) peers() float64 { return r.Peers }
func (r *result) rate() float64  { return r.PerSecond }

// of results, the median of a value.
func of[R any](results []R, value func(R) float64) float64 {
	var values []float64
	for _, r := range results {
		values = append(values, value(r))
	}
	return median(values)
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// attempt is work on servers.
type attempt struct {
	work
	side
}

// turns measures attempts one after the other, as often as there are rounds, every other time backwards, and
// tells the results of each. What they share a slow moment with is each other.
func (b *bench) turns(key string, attempts ...attempt) ([][]*result, error) {
	results := make([][]*result, len(attempts))
	for round := range b.rounds {
		for n := range attempts {
			if round%2 == 1 {
				n = len(attempts) - 1 - n
			}
			a := attempts[n]
			res, err := b.measure(a)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", a.name, err)
			}
			b.note("%s, %s: %.2f µs %v, %.0f/s, %.1f peers, %d failed, %d lost", key, a.name, res.CPUTotal, res.CPU, res.PerSecond, res.Peers, res.Failed, res.Lost)
			results[n] = append(results[n], res)
		}
	}
	return results, nil
}

// note tells how it goes.
func (b *bench) note(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// measure starts a side anew and loads it.
func (b *bench) measure(a attempt) (*result, error) {
	defer b.stop()
	pids, addr, err := a.start(b, a.work)
	if err != nil {
		return nil, err
	}
	res, err := b.load(a.work, pids, addr, b.duration)
	if err == nil && res.Failed+res.Lost > res.Answers/100 {
		err = fmt.Errorf("%d announces failed and %d were lost, of %d: no measure of what an answer costs", res.Failed, res.Lost, res.Answers)
	}
	return res, err
}

// load announces to a tracker, and tells what that took of some processes.
func (b *bench) load(w work, pids map[string]int, addr string, duration time.Duration, flags ...string) (*result, error) {
	args := append([]string{"--json", "--quiet", "--target", w.scheme + "://" + addr, "--duration", duration.String()}, w.load...)
	args = append(args, flags...)
	for name, pid := range pids {
		args = append(args, "--pid", fmt.Sprintf("%s=%d", name, pid))
	}
	cmd := b.command(filepath.Join(b.dir, "loadtest"), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, &stderr)
	}
	res := &result{}
	return res, json.Unmarshal(out, res)
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
