// Command loadtest makes announces, over UDP or HTTP, and tells how many a tracker answers, how fast, and what
// CPU time the tracker's processes took for each.
//
//	go run ./deploy/loadtest --target udp://127.0.0.1:6969 --pid gateway=1234 --pid redis=1235
//
// It first announces every peer once, then random ones, in a closed loop (each address has a number of
// announces under way) or at a fixed rate. Peers have loopback addresses of their own: the target has to be
// on this machine. An IPv6 target is announced to from addresses of fd53::/64, which root makes local by
//
//	ip -6 route add local fd53::/64 dev lo && sysctl -w net.ipv6.ip_nonlocal_bind=1
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// Config is a command line.
type Config struct {
	Target    string // host:port
	HTTP      bool
	Close     bool
	Work      Work
	Window    int
	Rate      int // per second in all; 0 for a closed loop
	Warmup    time.Duration
	Duration  time.Duration
	Fill      bool
	Processes map[string]int // pids by name
	JSON      bool
	Quiet     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, err := parse(os.Args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil && c == nil { // the hashes were asked for
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "loadtest: %v\n", err)
		os.Exit(2)
	}
	r, err := run(ctx, c)
	if err != nil {
		fmt.Fprintf(os.Stderr, "loadtest: %v\n", err)
		os.Exit(1)
	}
	if c.JSON {
		_ = json.NewEncoder(os.Stdout).Encode(r)
		return
	}
	fmt.Print(r)
}

func parse(args []string) (*Config, error) {
	c := &Config{Processes: map[string]int{}}
	fs := pflag.NewFlagSet("loadtest", pflag.ContinueOnError)
	fs.SortFlags = false
	target := fs.String("target", "udp://127.0.0.1:6969", "`URL` of the tracker, udp://HOST:PORT or http://HOST:PORT")
	fs.BoolVar(&c.Close, "close", false, "make a connection for each announce (HTTP)")
	fs.IntVar(&c.Work.Torrents, "torrents", 10_000, "`N` torrents")
	fs.Float64Var(&c.Work.Zipf, "zipf", 1.1, "exponent by which torrents are drawn; 0 draws them uniformly")
	fs.BoolVar(&c.Work.Each, "each", false, "give every torrent as many peers, instead of drawing them")
	fs.IntVar(&c.Work.Peers, "peers", 128_000, "`N` peers, each of one torrent")
	fs.IntVar(&c.Work.Addresses, "addresses", 64, "`N` addresses, in 127.0.0.0/8 or fd53::/64 as the target is, that the peers share")
	fs.IntVar(&c.Work.NumWant, "numwant", 50, "`N` peers asked for")
	fs.IntVar(&c.Work.SeederPercent, "seeders", 30, "`PERCENT` of the peers are seeders")
	fs.Uint64Var(&c.Work.Seed, "seed", 1, "`N` that the draws start from")
	fs.IntVar(&c.Window, "window", 4, "`N` announces that each address has under way")
	fs.IntVar(&c.Rate, "rate", 0, "`N` announces a second, whether answered or not; 0 for a closed loop")
	fs.BoolVar(&c.Fill, "fill", true, "announce each peer once before")
	fs.DurationVar(&c.Warmup, "warmup", 2*time.Second, "announce this long before measuring")
	fs.DurationVar(&c.Duration, "duration", 10*time.Second, "measure this long")
	pids := fs.StringArray("pid", nil, "`NAME=PID` of a process whose CPU time is counted; may be given again")
	fs.BoolVar(&c.JSON, "json", false, "print the result as JSON")
	fs.BoolVar(&c.Quiet, "quiet", false, "show no progress")
	hashes := fs.Bool("hashes", false, "print the torrents' info hashes, 40 digits a line, and end")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if len(fs.Args()) > 0 {
		return nil, fmt.Errorf("unknown argument %q", fs.Arg(0))
	}
	for _, p := range *pids {
		name, text, _ := strings.Cut(p, "=")
		pid, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("--pid: %q is not NAME=PID", p)
		}
		c.Processes[name] = pid
	}
	u, err := url.Parse(*target)
	if err != nil || u.Port() == "" || u.Scheme != "udp" && u.Scheme != "http" {
		return nil, fmt.Errorf("--target: %q is neither udp://HOST:PORT nor http://HOST:PORT", *target)
	}
	ip, err := net.ResolveIPAddr("ip", u.Hostname())
	if err != nil {
		return nil, fmt.Errorf("--target: %w", err)
	}
	c.Target, c.HTTP = net.JoinHostPort(ip.String(), u.Port()), u.Scheme == "http"
	c.Work.IPv6 = ip.IP.To4() == nil
	switch {
	case c.Work.Torrents < 1:
		return nil, fmt.Errorf("--torrents: %d is below 1", c.Work.Torrents)
	case c.Work.Zipf < 0:
		return nil, fmt.Errorf("--zipf: %v is below 0", c.Work.Zipf)
	case c.Work.Addresses < 1 || c.Work.Addresses > 250*250:
		return nil, fmt.Errorf("--addresses: %d is not from 1 to %d", c.Work.Addresses, 250*250)
	case c.Work.Peers < c.Work.Addresses || c.Work.Peers > c.Work.Addresses*65_000:
		return nil, fmt.Errorf("--peers: %d are not from 1 to 65,000 for each of %d addresses", c.Work.Peers, c.Work.Addresses)
	case c.Work.NumWant < 0:
		return nil, fmt.Errorf("--numwant: %d is below 0", c.Work.NumWant)
	case c.Work.SeederPercent < 0 || c.Work.SeederPercent > 100:
		return nil, fmt.Errorf("--seeders: %d is not from 0 to 100", c.Work.SeederPercent)
	case c.Window < 1 || c.Window > slots:
		return nil, fmt.Errorf("--window: %d is not from 1 to %d", c.Window, slots)
	case c.Rate < 0:
		return nil, fmt.Errorf("--rate: %d is below 0", c.Rate)
	case c.Duration <= 0 || c.Warmup < 0:
		return nil, errors.New("--duration must be above 0, --warmup not below")
	case c.Close && !c.HTTP:
		return nil, errors.New("--close: UDP has no connections")
	}
	if *hashes {
		for n := range c.Work.Torrents {
			fmt.Printf("%X\n", hashOf(n))
		}
		return nil, nil
	}
	return c, nil
}

// run loads the tracker: every peer once, a while to warm up, and the time that is measured.
func run(ctx context.Context, c *Config) (*Result, error) {
	c.Work.draw()
	clients := make([]client, c.Work.Addresses)
	for n := range clients {
		var err error
		if c.HTTP {
			clients[n], err = newHTTPClient(c, n)
		} else {
			clients[n], err = newUDPClient(c, n)
		}
		if err != nil {
			return nil, err
		}
		defer clients[n].close()
	}
	if c.Fill {
		s := &stats{}
		if err := phase(ctx, c, clients, func(cl client, ctx context.Context, s *stats) error { return cl.fill(ctx, s) }, s, 0); err != nil {
			return nil, err
		}
		if failed := s.failed.Load(); failed > 0 {
			return nil, fmt.Errorf("of the first announces of %d peers %d failed", c.Work.Peers, failed)
		}
	}
	work := func(cl client, ctx context.Context, s *stats) error { return cl.work(ctx, s) }
	if c.Warmup > 0 {
		if err := phase(ctx, c, clients, work, &stats{}, c.Warmup); err != nil {
			return nil, err
		}
	}
	before, err := cpuTimes(c.Processes)
	if err != nil {
		return nil, err
	}
	s := &stats{}
	if err := phase(ctx, c, clients, work, s, c.Duration); err != nil {
		return nil, err
	}
	after, err := cpuTimes(c.Processes)
	if err != nil {
		return nil, err
	}
	return s.result(c.Duration, before, after), nil
}

// phase lets all clients work, for a while or to their end.
func phase(ctx context.Context, c *Config, clients []client, do func(client, context.Context, *stats) error, s *stats, d time.Duration) error {
	inner, cancel := context.WithCancel(ctx)
	if d > 0 {
		inner, cancel = context.WithTimeout(ctx, d)
	}
	defer cancel()
	var group sync.WaitGroup
	errs := make([]error, len(clients))
	for n, cl := range clients {
		group.Go(func() {
			if errs[n] = do(cl, inner, s); errs[n] != nil {
				cancel()
			}
		})
	}
	done := make(chan struct{})
	if !c.Quiet {
		go s.progress(done)
	}
	group.Wait()
	close(done)
	return errors.Join(append(errs, ctx.Err())...)
}
