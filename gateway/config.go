package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"swarmgate/gateway/internal/tracker"
	"swarmgate/udpproxy"
)

// Config is all that an operator decides. Durations below a second make no sense
// to a tracker and are refused.
type Config struct {
	HTTP, UDP string
	SharePort bool
	Admin     string
	AdminFile string

	Redis        []string
	WaitReplicas int
	RepeatWindow time.Duration
	ViewTTL      time.Duration
	ViewMemory   int // MiB
	DownloadsTTL time.Duration

	EmbeddedSwarms, EmbeddedPeers int

	Interval, MinInterval time.Duration
	PeerTTL               time.Duration

	Secret        string
	ConnectionTTL time.Duration
	Decoys        float64 // of all peers
	DecoyPrefixes []netip.Prefix
	HTTPClients   int
	DrainTimeout  time.Duration

	Log slog.Handler
}

// The commands of the command line.
const (
	commandRun    = "run"
	commandHealth = "health"
	commandRotate = "secret rotate"
)

// errHelp says that help was asked for and printed.
var errHelp = errors.New("help")

// parseConfig reads the command line, and where it is silent the environment:
// --peer-ttl is SWARMGATE_PEER_TTL. What is wrong names its flag.
func parseConfig(args []string, lookupEnv func(string) (string, bool), stdout, stderr io.Writer) (command string, c *Config, err error) {
	c = &Config{}
	fs := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(io.Discard)
	fs.StringVar(&c.HTTP, "http", ":6969", "`ADDR` that answers HTTP; empty turns it off")
	fs.StringVar(&c.UDP, "udp", ":6969", "`ADDR` that answers UDP; empty turns it off")
	fs.BoolVar(&c.SharePort, "share-port", false, "let further gateways on this host answer on the same HTTP and UDP ports")
	fs.StringVar(&c.Admin, "admin", "127.0.0.1:6970", "`ADDR` for health, readiness, metrics and profiling; of ports FIRST-LAST the first free one; empty turns it off")
	fs.StringVar(&c.AdminFile, "admin-file", "", "`FILE` that the admin address in use is written to, for the health command")
	redis := fs.String("redis", "", "`URL` of Redis, redis:// or rediss://, or several with commas between; a cluster is detected (default: a store in this process)")
	fs.IntVar(&c.WaitReplicas, "wait-replicas", 0, "answer an announce when `N` replicas have it too")
	fs.DurationVar(&c.Interval, "interval", 30*time.Minute, "between a client's announces, give or take a tenth")
	fs.DurationVar(&c.MinInterval, "min-interval", 15*time.Minute, "between a client's announces at least; never above --interval")
	fs.DurationVar(&c.PeerTTL, "peer-ttl", 45*time.Minute, "a peer is gone this long after its last announce")
	fs.DurationVar(&c.DownloadsTTL, "downloads-ttl", 7*24*time.Hour, "the number of downloads outlives its swarm by this")
	fs.DurationVar(&c.ViewTTL, "view-ttl", time.Second, "how long a swarm that was read answers further announces; 0 reads for each")
	fs.IntVar(&c.ViewMemory, "view-memory", 64, "`MIB` of memory for such swarms")
	fs.DurationVar(&c.RepeatWindow, "repeat-window", 2*time.Minute, "a repeat of an announce stored within it is answered without a write, within a tenth of --peer-ttl; 0 turns it off")
	fs.IntVar(&c.EmbeddedSwarms, "embedded-swarms", 100_000, "`N` swarms that the store in this process holds at most")
	fs.IntVar(&c.EmbeddedPeers, "embedded-peers", 1_000_000, "`N` peers that the store in this process holds at most")
	fs.StringVar(&c.Secret, "secret", "", "`TEXT` of 16 characters or more that keys connection ids, the same on all gateways (default: shared through Redis); better given as SWARMGATE_SECRET")
	fs.DurationVar(&c.ConnectionTTL, "connection-ttl", 30*time.Minute, "how long a UDP connection id is good for, in steps of 32s")
	fs.Float64Var(&c.Decoys, "decoys", 0, "`SHARE` of all peers that are made up, 0.25 at most, so that an address in an answer proves nothing; the same on all gateways")
	prefixes := fs.StringSlice("decoy-prefixes", nil, "`NETWORKS` that made-up peers have their addresses of (default: all public ones)")
	fs.IntVar(&c.HTTPClients, "http-clients", 16384, "`N` HTTP connections at a time at most")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", 10*time.Second, "how long requests in flight may take at the end")
	level := fs.String("log-level", "info", "`LEVEL`: debug, info, warn or error")
	format := fs.String("log-format", "text", "`FORMAT`: text or json")

	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			printHelp(stdout, fs)
			return "", nil, errHelp
		}
		return "", nil, err
	}
	fs.VisitAll(func(f *pflag.Flag) {
		value, given := lookupEnv(envName(f.Name))
		if f.Changed || !given || err != nil || value == "" && f.Value.Type() != "string" {
			return
		}
		if fs.Set(f.Name, value) != nil {
			err = fmt.Errorf("--%s: the value of %s is no %s", f.Name, envName(f.Name), f.Value.Type())
		}
	})
	if err != nil {
		return "", nil, err
	}

	command = commandRun
	switch rest := strings.Join(fs.Args(), " "); rest {
	case "":
	case commandHealth, commandRotate:
		command = rest
	default:
		return "", nil, fmt.Errorf("unknown command %q (there are %q and %q)", rest, commandHealth, commandRotate)
	}
	for _, url := range strings.Split(*redis, ",") {
		if url = strings.TrimSpace(url); url != "" {
			c.Redis = append(c.Redis, url)
		}
	}
	if *redis != "" && len(c.Redis) == 0 {
		return "", nil, errors.New("--redis: names no address")
	}
	for _, text := range *prefixes {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return "", nil, fmt.Errorf("--decoy-prefixes: %q is no network, like 192.0.2.0/24", text)
		}
		c.DecoyPrefixes = append(c.DecoyPrefixes, prefix)
	}
	if c.Log, err = logHandler(stderr, *level, *format); err != nil {
		return "", nil, err
	}
	if err := c.check(fs.Changed("min-interval")); err != nil {
		return "", nil, err
	}
	if command == commandRotate && len(c.Redis) == 0 {
		return "", nil, errors.New("--redis: names no Redis whose secret is to be rotated")
	}
	if command == commandRotate && c.Secret != "" {
		return "", nil, errors.New("--secret: gateways that were given one share none that could be rotated")
	}
	c.MinInterval = min(c.MinInterval, c.Interval)
	return command, c, nil
}

func envName(flag string) string {
	return "SWARMGATE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func printHelp(w io.Writer, fs *pflag.FlagSet) {
	fmt.Fprintf(w, `Swarmgate, a BitTorrent tracker: HTTP and UDP in front of Redis.

  gateway [flags]         answer announces and scrapes
  gateway health [flags]  exit with 0 if the gateway with these flags is up
  gateway secret rotate --redis URL
                          let all gateways of a Redis make connection ids with a new secret

Each flag has an environment variable: --peer-ttl is SWARMGATE_PEER_TTL.

%s`, fs.FlagUsages())
}

func logHandler(w io.Writer, level, format string) (slog.Handler, error) {
	var o slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: %q is none of debug, info, warn, error", level)
	}
	o.Level = l
	switch format {
	case "text":
		return slog.NewTextHandler(w, &o), nil
	case "json":
		return slog.NewJSONHandler(w, &o), nil
	}
	return nil, fmt.Errorf("--log-format: %q is none of text, json", format)
}

// check refuses values that make no sense, before anything listens.
func (c *Config) check(minIntervalGiven bool) error {
	for _, a := range []struct{ flag, addr string }{{"http", c.HTTP}, {"udp", c.UDP}} {
		if a.addr == "" {
			continue
		}
		if _, err := splitAddr(a.addr); err != nil {
			return fmt.Errorf("--%s: %w", a.flag, err)
		}
	}
	if c.HTTP == "" && c.UDP == "" {
		return errors.New("--http and --udp are both empty: nothing would answer")
	}
	if c.Admin != "" {
		if _, err := adminAddrs(c.Admin); err != nil {
			return fmt.Errorf("--admin: %w", err)
		}
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
		zero  bool // turns it off
	}{
		{"interval", c.Interval, false},
		{"min-interval", c.MinInterval, false},
		{"peer-ttl", c.PeerTTL, false},
		{"downloads-ttl", c.DownloadsTTL, false},
		{"connection-ttl", c.ConnectionTTL, false},
		{"drain-timeout", c.DrainTimeout, false},
		{"repeat-window", c.RepeatWindow, true},
	} {
		if d.value < time.Second && !(d.zero && d.value == 0) {
			return fmt.Errorf("--%s: %v is below one second", d.flag, d.value)
		}
	}
	if c.ViewTTL < 0 {
		return fmt.Errorf("--view-ttl: %v is below zero", c.ViewTTL)
	}
	if minIntervalGiven && c.MinInterval > c.Interval {
		return fmt.Errorf("--min-interval: %v is above --interval %v", c.MinInterval, c.Interval)
	}
	for _, n := range []struct {
		flag  string
		value int
		least int
	}{
		{"wait-replicas", c.WaitReplicas, 0},
		{"view-memory", c.ViewMemory, 1},
		{"embedded-swarms", c.EmbeddedSwarms, 1},
		{"embedded-peers", c.EmbeddedPeers, 1},
		{"http-clients", c.HTTPClients, 1},
	} {
		if n.value < n.least {
			return fmt.Errorf("--%s: %d is below %d", n.flag, n.value, n.least)
		}
	}
	if c.WaitReplicas > 0 && len(c.Redis) == 0 {
		return errors.New("--wait-replicas: the store in this process has no replicas; --redis names one that has")
	}
	if c.ConnectionTTL > udpproxy.MaxConnectionTTL {
		return fmt.Errorf("--connection-ttl: %v is above %v", c.ConnectionTTL, udpproxy.MaxConnectionTTL)
	}
	if !(c.Decoys >= 0 && c.Decoys <= tracker.MaxDecoys) {
		return fmt.Errorf("--decoys: %v is not from 0 to %v", c.Decoys, tracker.MaxDecoys)
	}
	if len(c.DecoyPrefixes) > 0 && c.Decoys == 0 {
		return errors.New("--decoy-prefixes: there are no decoys without --decoys")
	}
	if c.SharePort && !canSharePort {
		return errors.New("--share-port: only Linux spreads clients over processes")
	}
	if c.Secret != "" && len(c.Secret) < 16 {
		return errors.New("--secret: shorter than 16 characters")
	}
	return nil
}

// outlives warns of what works but is seldom meant.
func (c *Config) outlives(log *slog.Logger) {
	longest := tracker.Policy{Interval: c.Interval}.MaxInterval()
	if c.PeerTTL <= longest {
		log.Warn("peers expire before they announce again", "peer-ttl", c.PeerTTL, "longest interval", longest)
	}
}

// splitAddr checks HOST:PORT with a numeric port.
func splitAddr(addr string) (port int, err error) {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, fmt.Errorf("%q is not HOST:PORT", addr)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q has no port from 0 to 65535", addr)
	}
	if _, err := net.ResolveTCPAddr("tcp", addr); err != nil {
		return 0, fmt.Errorf("%q: the host is not known", addr)
	}
	return int(n), nil
}

// adminAddrs are the addresses that --admin names: one, or one for each port of
// FIRST-LAST.
func adminAddrs(addr string) ([]string, error) {
	host, ports, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%q is not HOST:PORT", addr)
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	lo, err1 := splitAddr(net.JoinHostPort(host, first))
	hi, err2 := splitAddr(net.JoinHostPort(host, last))
	if err1 != nil || err2 != nil || lo > hi || isRange && lo == 0 {
		return nil, fmt.Errorf("%q has no port, nor ports FIRST-LAST, from 0 to 65535", addr)
	}
	var addrs []string
	for port := lo; port <= hi; port++ {
		addrs = append(addrs, net.JoinHostPort(host, strconv.Itoa(port)))
	}
	return addrs, nil
}

// loadAdminAddr finds the gateway that the same flags started.
func (c *Config) loadAdminAddr() (string, error) {
	if c.AdminFile != "" {
		addr, err := os.ReadFile(c.AdminFile)
		if err != nil {
			return "", fmt.Errorf("--admin-file: %w", err)
		}
		return strings.TrimSpace(string(addr)), nil
	}
	addrs, err := adminAddrs(c.Admin)
	if err != nil {
		return "", fmt.Errorf("--admin: %w", err)
	}
	if len(addrs) > 1 {
		return "", errors.New("--admin names several ports: only --admin-file can tell which one is in use")
	}
	return addrs[0], nil
}
