package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"swarmgate/gateway/internal/access"
	"swarmgate/gateway/internal/networks"
	"swarmgate/gateway/internal/tracker"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy"
)

// Config is all that an operator decides. Durations below a second make no sense
// to a tracker and are refused.
type Config struct {
	HTTP, UDP   []string
	SharePort   bool
	PathPrefix  string
	RedirectURL string
	Admin       string
	AdminFile   string
	User        string // to become; empty for who started it
	AdminToken  string

	Access     swarm.Listing // what counts: Denied or Allowed
	AccessFile string

	TrustedProxies networks.Set
	RealIPHeader   string // empty for none
	ProxyProtocol  bool
	IPFromQuery    networks.Set

	Redis           []string
	RedisAccess     redisAccess
	WaitReplicas    int
	RepeatWindow    time.Duration
	ViewTTL         time.Duration
	ViewMemory      int // MiB
	DownloadsTTL    time.Duration
	CompletedEvents string // off, log or stream

	EmbeddedSwarms, EmbeddedPeers int

	Interval, MinInterval time.Duration
	IntervalMax           time.Duration // 0: the interval is the same in all swarms
	PeerTTL               time.Duration

	Secret        string
	ConnectionTTL time.Duration
	Decoys        float64 // of all peers
	DecoyPrefixes networks.Set
	HTTPClients   int
	DrainDelay    time.Duration
	DrainTimeout  time.Duration

	Stats         networks.Set // of who may read them; empty: they are off
	StatsPath     string
	StatsInterval time.Duration
	FullScrape    networks.Set // of who may have one
	FullScrapeTTL time.Duration

	Log slog.Handler

	AccessCommand accessCommand // of the access command
	ImportFile    string        // of the import command
}

// The commands of the command line.
const (
	commandRun    = "run"
	commandHealth = "health"
	commandImport = "import" // statedump FILE
	commandAccess = "access"
	commandRotate = "secret rotate"
)

// realIPHeaders may tell a client's address, the first one by default.
var realIPHeaders = []string{"X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP"}

// errHelp says that help was asked for and printed.
var errHelp = errors.New("help")

// parseConfig reads the command line, and where it is silent the environment:
// --peer-ttl is SWARMGATE_PEER_TTL. What is wrong names its flag.
func parseConfig(args []string, lookupEnv func(string) (string, bool), stdout, stderr io.Writer) (command string, c *Config, err error) {
	c = &Config{}
	fs := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(io.Discard)
	fs.StringArrayVar(&c.HTTP, "http", []string{":6969"}, "`ADDR` that answers HTTP, or several with commas between; empty turns it off")
	fs.StringArrayVar(&c.UDP, "udp", []string{":6969"}, "`ADDR` that answers UDP, or several with commas between; empty turns it off")
	fs.BoolVar(&c.SharePort, "share-port", false, "let further gateways on this host answer on the same HTTP and UDP ports")
	fs.StringVar(&c.PathPrefix, "path-prefix", "", "`PATH` below which announces and scrapes are answered too, as in PATH/KEY/announce; / is any")
	fs.StringVar(&c.RedirectURL, "redirect-url", "", "`URL` that a browser which asks for / is sent to")
	fs.StringVar(&c.Admin, "admin", "127.0.0.1:6970", "`ADDR` for health, readiness, metrics and profiling; of ports FIRST-LAST the first free one; empty turns it off")
	fs.StringVar(&c.AdminFile, "admin-file", "", "`FILE` that the admin address in use is written to, for the health command")
	fs.StringVar(&c.User, "user", "", "`NAME` of the user to become, from root, before anything is answered")
	fs.StringVar(&c.AdminToken, "admin-token", "", "`TEXT` of 16 characters or more that changes of the access list through --admin need; better given as SWARMGATE_ADMIN_TOKEN")
	mode := fs.String("access", "deny", "`MODE`: deny serves all swarms but the denied, allow none but the allowed; the same on all gateways")
	fs.StringVar(&c.AccessFile, "access-file", "", "`FILE` of info hashes, 40 hexadecimal digits a line, that --access counts; read again on SIGHUP and when it changes")
	fs.Var(&c.TrustedProxies, "trusted-proxies", "`NETWORKS` of proxies whose word on where their clients are counts, or addresses, with commas between (default: none)")
	fs.StringVar(&c.RealIPHeader, "real-ip-header", realIPHeaders[0], "`NAME` of the HTTP header in which they say it: "+strings.Join(realIPHeaders, ", ")+"; empty for none")
	fs.BoolVar(&c.ProxyProtocol, "proxy-protocol", false, "they may also say it in a PROXY header, before an HTTP connection or in a UDP datagram")
	fs.Var(&c.IPFromQuery, "ip-from-query", "`NETWORKS` of clients whose announces may name another address than their own, with commas between (default: none)")
	redis := fs.String("redis", "", "`URL` of Redis, redis:// or rediss://, or several with commas between; a cluster is detected (default: a store in this process)")
	fs.StringVar(&c.RedisAccess.PasswordFile, "redis-password-file", "", "`FILE` that holds the password of the user in --redis, read at each connection; or SWARMGATE_REDIS_PASSWORD holds it")
	fs.StringVar(&c.RedisAccess.CA, "redis-ca", "", "`FILE` with the certificates in PEM that one of Redis is checked with, for rediss:// (default: those of the system)")
	fs.StringVar(&c.RedisAccess.Cert, "redis-cert", "", "`FILE` with the gateway's own certificate for Redis, where it asks for one")
	fs.StringVar(&c.RedisAccess.Key, "redis-key", "", "`FILE` with its key")
	fs.IntVar(&c.WaitReplicas, "wait-replicas", 0, "answer an announce when `N` replicas have it too")
	fs.DurationVar(&c.Interval, "interval", 30*time.Minute, "between a client's announces, give or take a tenth")
	fs.DurationVar(&c.IntervalMax, "interval-max", 0, "what the interval grows to in swarms of 1,000 to 1,000,000 peers, or when announces take 0.1 to 1 s; 0: it does not")
	fs.DurationVar(&c.MinInterval, "min-interval", 15*time.Minute, "between a client's announces at least; never above --interval")
	fs.DurationVar(&c.PeerTTL, "peer-ttl", 45*time.Minute, "a peer is gone this long after its last announce")
	fs.DurationVar(&c.DownloadsTTL, "downloads-ttl", 7*24*time.Hour, "the number of downloads outlives its swarm by this")
	fs.StringVar(&c.CompletedEvents, "completed-events", completedOff, "`WHERE` each counted download is told, without its peer: off, log, or stream (swarmgate:completed in Redis)")
	fs.DurationVar(&c.ViewTTL, "view-ttl", time.Second, "how long a swarm that was read answers further announces; 0 reads for each")
	fs.IntVar(&c.ViewMemory, "view-memory", 64, "`MIB` of memory for such swarms")
	fs.DurationVar(&c.RepeatWindow, "repeat-window", 2*time.Minute, "a repeat of an announce stored within it is answered without a write, within a tenth of --peer-ttl; 0 turns it off")
	fs.IntVar(&c.EmbeddedSwarms, "embedded-swarms", 100_000, "`N` swarms that the store in this process holds at most")
	fs.IntVar(&c.EmbeddedPeers, "embedded-peers", 1_000_000, "`N` peers that the store in this process holds at most")
	fs.StringVar(&c.Secret, "secret", "", "`TEXT` of 16 characters or more that keys connection ids and decoys, the same on all gateways (default: shared through Redis); better given as SWARMGATE_SECRET")
	fs.DurationVar(&c.ConnectionTTL, "connection-ttl", 30*time.Minute, "how long a UDP connection id is good for, in steps of 32s")
	fs.Float64Var(&c.Decoys, "decoys", 0, "`SHARE` of all peers that are made up, 0.25 at most, so that an address in an answer proves nothing; the same on all gateways")
	fs.Var(&c.DecoyPrefixes, "decoy-prefixes", "`NETWORKS` that made-up peers have their addresses of, with commas between (default: all public ones)")
	fs.IntVar(&c.HTTPClients, "http-clients", 16384, "`N` HTTP connections at a time at most, on each address")
	fs.DurationVar(&c.DrainDelay, "drain-delay", 0, "how long to go on at the end, not ready, until clients are sent elsewhere")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", 10*time.Second, "how long requests in flight may take at the end")
	if err := c.Stats.Set("127.0.0.0/8,::1/128"); err != nil {
		return "", nil, err
	}
	fs.Var((*audience)(&c.Stats), "stats", "who may read statistics over HTTP: open, off, or `NETWORKS` with commas between")
	fs.StringVar(&c.StatsPath, "stats-path", "/stats", "`PATH` of the statistics; the same with .json behind it has all of them in one document")
	c.FullScrape, _ = networks.Parse(everybody)
	fs.Var((*audience)(&c.FullScrape), "fullscrape", "who may have a list of all swarms, once in five minutes: on, off, or `NETWORKS` with commas between")
	fs.DurationVar(&c.FullScrapeTTL, "fullscrape-ttl", 5*time.Minute, "how long one look at all swarms answers all who want a list")
	fs.DurationVar(&c.StatsInterval, "stats-interval", time.Minute, "between looks at all swarms, which one gateway takes for all; 0 takes none")
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
		text := strings.HasPrefix(f.Value.Type(), "string") // or several
		if f.Changed || !given || err != nil || value == "" && !text {
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
	switch rest := fs.Args(); {
	case len(rest) == 1 && rest[0] == commandHealth:
		command = commandHealth
	case strings.Join(rest, " ") == commandRotate:
		command = commandRotate
	case len(rest) == 3 && rest[0] == commandImport && rest[1] == "statedump":
		command, c.ImportFile = commandImport, rest[2]
	case len(rest) > 0 && rest[0] == commandAccess:
		command = commandAccess
		if c.AccessCommand, err = parseAccessCommand(rest[1:]); err != nil {
			return "", nil, err
		}
	case len(rest) > 0:
		return "", nil, fmt.Errorf("unknown command %q (there are %q, %q, %q and %q)", strings.Join(rest, " "), commandHealth, commandAccess, commandImport+" statedump FILE", commandRotate)
	}
	var ok bool
	if c.Access, ok = access.ParseWord(*mode); !ok || c.Access == swarm.Unlisted {
		return "", nil, fmt.Errorf("--access: %q is none of deny, allow", *mode)
	}
	for _, l := range []struct {
		flag  string
		given []string
		list  *[]string
	}{
		{"http", c.HTTP, &c.HTTP},
		{"udp", c.UDP, &c.UDP},
		{"redis", []string{*redis}, &c.Redis},
	} {
		if *l.list, err = splitList(l.given); err != nil {
			return "", nil, fmt.Errorf("--%s: %w", l.flag, err)
		}
	}
	c.RedisAccess.Password, _ = lookupEnv(passwordVariable)
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
  gateway access deny|allow|remove HASH... [flags]
                          list info hashes as denied or allowed, or not at all
  gateway access import FILE [flags]
                          list those in FILE as what --access counts
  gateway access list [flags]
                          print what is listed
  gateway import statedump FILE --redis URL
                          take over the downloads that opentracker counted; - is stdin
  gateway secret rotate --redis URL
                          let all gateways of a Redis make connection ids with a new secret

The access commands change the list in --redis; without, that of the gateway at --admin.
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
	for _, l := range []struct {
		flag  string
		addrs []string
	}{{"http", c.HTTP}, {"udp", c.UDP}} {
		for _, addr := range l.addrs {
			if _, err := splitAddr(addr); err != nil {
				return fmt.Errorf("--%s: %w", l.flag, err)
			}
		}
	}
	if len(c.HTTP) == 0 && len(c.UDP) == 0 {
		return errors.New("--http and --udp are both empty: nothing would answer")
	}
	if c.PathPrefix != "" && !pathPrefix.MatchString(c.PathPrefix) {
		return fmt.Errorf("--path-prefix: %q is not made of /, and letters, digits, - and _ between", c.PathPrefix)
	}
	if c.RedirectURL != "" {
		u, err := url.Parse(c.RedirectURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
			return fmt.Errorf("--redirect-url: %q is no http or https URL with a host", c.RedirectURL)
		}
	}
	if c.Admin != "" {
		if _, err := adminAddrs(c.Admin); err != nil {
			return fmt.Errorf("--admin: %w", err)
		}
	}
	if c.RealIPHeader != "" {
		known := slices.IndexFunc(realIPHeaders, func(name string) bool { return strings.EqualFold(name, c.RealIPHeader) })
		if known < 0 {
			return fmt.Errorf("--real-ip-header: %q is none of %s", c.RealIPHeader, strings.Join(realIPHeaders, ", "))
		}
		c.RealIPHeader = realIPHeaders[known]
	}
	if c.ProxyProtocol && c.TrustedProxies.Empty() {
		return errors.New("--proxy-protocol: --trusted-proxies names nobody who may send a PROXY header")
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
		zero  bool // turns it off
	}{
		{"interval", c.Interval, false},
		{"interval-max", c.IntervalMax, true},
		{"min-interval", c.MinInterval, false},
		{"peer-ttl", c.PeerTTL, false},
		{"downloads-ttl", c.DownloadsTTL, false},
		{"connection-ttl", c.ConnectionTTL, false},
		{"drain-delay", c.DrainDelay, true},
		{"drain-timeout", c.DrainTimeout, false},
		{"repeat-window", c.RepeatWindow, true},
		{"stats-interval", c.StatsInterval, true},
		{"fullscrape-ttl", c.FullScrapeTTL, false},
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
	if c.IntervalMax > 0 && c.IntervalMax < c.Interval {
		return fmt.Errorf("--interval-max: %v is below --interval %v", c.IntervalMax, c.Interval)
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
	if !statsPath.MatchString(c.StatsPath) || c.StatsPath == "/announce" || c.StatsPath == "/scrape" {
		return fmt.Errorf("--stats-path: %q is not / and letters, digits and any of -_./ other than /announce and /scrape", c.StatsPath)
	}
	if err := c.RedisAccess.check(c.Redis); err != nil {
		return err
	}
	if c.WaitReplicas > 0 && len(c.Redis) == 0 {
		return errors.New("--wait-replicas: the store in this process has no replicas; --redis names one that has")
	}
	switch c.CompletedEvents {
	case completedOff, completedLog:
	case completedStream:
		if len(c.Redis) == 0 {
			return errors.New("--completed-events: nobody can read a stream of the store in this process; --redis names another")
		}
	default:
		return fmt.Errorf("--completed-events: %q is none of off, log, stream", c.CompletedEvents)
	}
	if c.ConnectionTTL > udpproxy.MaxConnectionTTL {
		return fmt.Errorf("--connection-ttl: %v is above %v", c.ConnectionTTL, udpproxy.MaxConnectionTTL)
	}
	if !(c.Decoys >= 0 && c.Decoys <= tracker.MaxDecoys) {
		return fmt.Errorf("--decoys: %v is not from 0 to %v", c.Decoys, tracker.MaxDecoys)
	}
	if !c.DecoyPrefixes.Empty() && c.Decoys == 0 {
		return errors.New("--decoy-prefixes: there are no decoys without --decoys")
	}
	if c.SharePort && !canSharePort {
		return errors.New("--share-port: only Linux spreads clients over processes")
	}
	for _, s := range []struct{ flag, value string }{{"secret", c.Secret}, {"admin-token", c.AdminToken}} {
		if s.value != "" && len(s.value) < 16 {
			return fmt.Errorf("--%s: shorter than 16 characters", s.flag)
		}
	}
	return nil
}

var pathPrefix = regexp.MustCompile(`^(/[A-Za-z0-9_-]+)*/?$`)

func (c *Config) policy() tracker.Policy {
	return tracker.Policy{Interval: c.Interval, MinInterval: c.MinInterval, IntervalMax: c.IntervalMax}
}

// statsPath is what a path may be that HTTP takes by its letter.
var statsPath = regexp.MustCompile(`^/[A-Za-z0-9_./-]+$`)

// audience is the networks of who may read something, as a flag that has words for all and none.
type audience networks.Set

const everybody = "0.0.0.0/0,::/0"

func (a *audience) Set(text string) error {
	switch text {
	case "open", "on":
		text = everybody
	case "off":
		text = ""
	case "":
		return errors.New("names nobody; off does")
	}
	set, err := networks.Parse(text)
	if err != nil {
		return fmt.Errorf("%w, nor open or off", err)
	}
	*a = audience(set)
	return nil
}

func (a *audience) String() string { return (*networks.Set)(a).String() }

func (a *audience) Type() string { return "list of networks, nor open or off" }

// outlives warns of what works but is seldom meant.
func (c *Config) outlives(log *slog.Logger) {
	longest := c.policy().MaxInterval()
	if c.PeerTTL <= longest {
		log.Warn("peers expire before they announce again", "peer-ttl", c.PeerTTL, "longest interval", longest)
	}
}

// splitList takes lists with commas apart. An empty text stands for no address.
func splitList(lists []string) (addrs []string, err error) {
	text := strings.Join(lists, ",")
	for _, addr := range strings.Split(text, ",") {
		if addr = strings.TrimSpace(addr); addr != "" {
			addrs = append(addrs, addr)
		}
	}
	if text != "" && len(addrs) == 0 {
		return nil, errors.New("names no address")
	}
	return addrs, nil
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
