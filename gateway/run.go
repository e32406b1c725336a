package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"swarmgate/gateway/internal/access"
	"swarmgate/gateway/internal/httpapi"
	"swarmgate/gateway/internal/stats"
	"swarmgate/gateway/internal/tracker"
	"swarmgate/swarmstore"
	"swarmgate/swarmstore/embedded"
	"swarmgate/udpproxy"
)

// listening says where a gateway listens; empty for what is turned off.
type listening struct {
	HTTP, UDP []string
	Admin     string
}

// misuseError is what only opening tells to be a wrong value of a flag.
type misuseError struct{ error }

func (e *misuseError) Unwrap() error { return e.error }

// Why a gateway is not ready.
var (
	errDraining     = errors.New("draining")
	errNoAccessList = errors.New("the access list is not known yet")
)

// gateway is all that runs.
type gateway struct {
	*Config
	clock   func() time.Time
	log     *slog.Logger
	metrics *metrics

	memory    *embedded.Server // nil when Redis has the swarms
	store     *swarmstore.Store
	access    *access.List
	completed *completedEvents // nil when they are off
	fleet     *stats.Fleet     // nil when statistics are off
	ids       *udpproxy.ConnectionIDs
	secrets   swarmstore.Secrets // that ids are made with
	decoys    *tracker.Decoys
	disguise  swarmstore.Secrets // that decoys follow from, the first alone

	udp   []*udpproxy.Server // one for each address, as the next
	http  []*httpFront
	looks *httpapi.Looks
	admin *admin // nil when turned off

	draining   atomic.Bool
	background sync.WaitGroup
}

// httpFront answers HTTP on one address.
type httpFront struct {
	*httpapi.Server
	listener *listener
}

// run starts a gateway, tells started where it listens, and returns when ctx has
// ended and the requests in flight are answered, or what made it fail.
func run(ctx context.Context, c *Config, stdout io.Writer, started func(listening)) error {
	hangups := make(chan os.Signal, 1) // from the start: unheard, one would end the process
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	g := &gateway{Config: c, clock: time.Now, log: slog.New(c.Log), metrics: newMetrics(!c.Stats.Empty())}
	c.outlives(g.log)
	defer g.close()
	var as *account
	if g.User != "" {
		var err error
		if as, err = findAccount(g.User); err != nil {
			return &misuseError{fmt.Errorf("--user: %w", err)}
		}
	}
	if err := g.openStore(ctx); err != nil {
		return err
	}
	if err := g.listen(ctx); err != nil {
		return err
	}
	if as != nil {
		if err := as.become(); err != nil {
			return fmt.Errorf("--user: %w", err)
		}
		if err := g.RedisAccess.try(); err != nil { // as who reads it from now on
			return &misuseError{fmt.Errorf("--user: %w", err)}
		}
	}

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer g.background.Wait()
	defer stop()
	g.keep(background, hangups)

	g.greet(stdout)
	if started != nil {
		started(g.listening())
	}
	// The first to fail ends the rest, as a signal does.
	serving, ctx := errgroup.WithContext(ctx)
	g.serve(serving)
	g.notify(daemon.SdNotifyReady)
	<-ctx.Done()
	return errors.Join(g.drain(), serving.Wait())
}

func (g *gateway) openStore(ctx context.Context) (err error) {
	urls := g.Redis
	if len(urls) == 0 {
		g.memory, err = embedded.Start(embedded.Limits{Swarms: g.EmbeddedSwarms, Peers: g.EmbeddedPeers})
		if err != nil {
			return err
		}
		g.memory.Tick(g.clock())
		urls = []string{g.memory.URL()}
	}
	if g.CompletedEvents != completedOff {
		publish := logDownloads(g.log)
		if g.CompletedEvents == completedStream {
			publish = func(ctx context.Context, d []swarmstore.Download) error { return g.store.PublishDownloads(ctx, d) }
		}
		g.completed = newCompletedEvents(publish, g.metrics.lost, g.log)
	}
	if err := g.RedisAccess.try(); err != nil {
		return &misuseError{err}
	}
	g.store, err = swarmstore.Open(ctx, swarmstore.Options{
		URLs:         urls,
		PeerTTL:      g.PeerTTL,
		DownloadsTTL: g.DownloadsTTL,
		ViewTTL:      g.ViewTTL,
		ViewMemory:   g.ViewMemory << 20,
		RepeatWindow: g.RepeatWindow,
		WaitReplicas: g.WaitReplicas,
		Downloaded:   g.downloaded,
		Hold:         g.Decoys > 0,
		Renewals:     !g.Stats.Empty(),
		Password:     g.RedisAccess.password(),
		TLS:          g.RedisAccess.tls,
		Log:          g.log,
		Metrics:      g.metrics,
	})
	if errors.Is(err, swarmstore.ErrURL) {
		return &misuseError{fmt.Errorf("--redis: %w", err)}
	}
	if err != nil {
		return err
	}
	g.access, err = access.New(access.Options{Store: g.store, Mode: g.Access, File: g.AccessFile, Log: g.log})
	if err != nil {
		return &misuseError{fmt.Errorf("--access-file: %w", err)}
	}
	return nil
}

// downloaded is told of each download that the store counts.
func (g *gateway) downloaded(d swarmstore.Download) {
	g.metrics.counters.Downloaded()
	if g.completed != nil {
		g.completed.add(d)
	}
}

// version of this program, as the Go toolchain noted it.
func version() string {
	info, _ := debug.ReadBuildInfo()
	text := "swarmgate"
	if info != nil {
		text += " " + info.Main.Version
	}
	return text
}

// newTracker makes what the front ends and the statistics share.
func (g *gateway) newTracker() *tracker.Tracker {
	if g.Decoys > 0 {
		g.decoys = tracker.NewDecoys(g.Decoys, g.DecoyPrefixes.Prefixes())
		g.disguise = newSecret(g.Secret, "decoys")
		if g.Secret != "" {
			g.decoys.SetKey(g.disguise[0])
		}
	}
	p := g.policy()
	p.Decoys = g.decoys
	return tracker.New(g.store, g.access, p)
}

// listen binds everything before anything is answered. Of what the service manager has bound
// nothing is bound here.
func (g *gateway) listen(ctx context.Context) error {
	var bound sockets
	if err := bound.adopt(activation.Files(true)); err != nil {
		return err
	}
	policy := g.newTracker()
	if !g.Stats.Empty() {
		g.fleet = stats.NewFleet(stats.Options{
			Store:    g.store,
			Swarms:   policy,
			Permits:  g.access.Permits,
			Counters: g.metrics.counters,
			ID:       rand.Text(),
			Version:  version(),
			Interval: g.StatsInterval,
			Now:      g.clock,
			Log:      g.log,
		})
	}
	if err := g.listenHTTP(ctx, policy, bound.http); err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	if err := g.listenUDP(ctx, policy, bound.udp); err != nil {
		return fmt.Errorf("--udp: %w", err)
	}
	if g.Admin == "" && bound.admin == nil {
		return nil
	}
	if bound.admin == nil {
		addrs, err := adminAddrs(g.Admin)
		if err == nil {
			bound.admin, err = listenFirst(addrs)
		}
		if err != nil {
			return fmt.Errorf("--admin: %w", err)
		}
	}
	var err error
	g.admin, err = newAdmin(bound.admin, g.AdminFile, g.metrics, g.ready, g.store.Troubles, newAccessAPI(g.store, g.AdminToken, g.log))
	return err
}

func (g *gateway) listenHTTP(ctx context.Context, policy *tracker.Tracker, listeners []*listener) error {
	if len(listeners) == 0 && len(g.HTTP) == 0 {
		return nil
	}
	f := g.metrics.front("http", g.metrics.counters.HTTP())
	o := httpapi.Options{
		Tracker: policy.Front(f), Metrics: httpMetrics{f, g.metrics.counters}, Now: g.clock,
		MaxClients:  g.HTTPClients,
		PathPrefix:  g.PathPrefix,
		RedirectURL: g.RedirectURL,

		ScrapeMaxAge: g.ViewTTL,

		Trusted:       g.TrustedProxies,
		RealIPHeader:  g.RealIPHeader,
		ProxyProtocol: g.ProxyProtocol,
		MayName:       g.IPFromQuery,
	}
	o.StatsPath = g.StatsPath
	if g.fleet != nil {
		o.Stats, o.StatsNetworks = g.fleet, g.Stats
	}
	if !g.FullScrape.Empty() {
		o.FullScrapes = &httpapi.FullScrapes{Networks: g.FullScrape, Public: g.FullScrape.String() == everybody, Once: g.fullScrapeOnce, NotOnce: g.fullScrapeNot}
	}
	g.looks = httpapi.NewLooks(policy, g.FullScrapeTTL, g.clock, g.log)
	o.Looks, o.Access = g.looks, g.access
	for _, l := range listeners {
		g.http = append(g.http, &httpFront{httpapi.New(o), l})
	}
	if len(listeners) > 0 {
		return nil
	}
	for _, addr := range g.HTTP {
		l, err := listenTCP(ctx, addr, g.SharePort)
		if err != nil {
			return err
		}
		g.http = append(g.http, &httpFront{httpapi.New(o), l})
	}
	return nil
}

// fullScrapeOnce says that a client may have a full scrape now, or how long it has to wait.
func (g *gateway) fullScrapeOnce(client netip.Addr) (wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return g.store.Once(ctx, onceFullScrape, client, httpapi.FullScrapeWindow)
}

func (g *gateway) fullScrapeNot(client netip.Addr) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := g.store.NotOnce(ctx, onceFullScrape, client); err != nil {
		g.log.Debug("a client without its full scrape has to wait", "error", err)
	}
}

const onceFullScrape = "fullscrape"

func (g *gateway) listenUDP(ctx context.Context, policy *tracker.Tracker, sockets []*net.UDPConn) error {
	if len(sockets) == 0 && len(g.UDP) == 0 {
		return nil
	}
	g.secrets = newSecret(g.Secret, "")
	g.ids = udpproxy.NewConnectionIDs(g.ConnectionTTL, g.secrets[0])
	f := g.metrics.front("udp", g.metrics.counters.UDP())
	o := udpproxy.Options{
		SharePort: g.SharePort,
		Sockets:   runtime.GOMAXPROCS(0),
		IDs:       g.ids,
		Tracker:   policy.Front(f),
		Metrics:   udpMetrics{f, g.metrics},
		Now:       g.clock,
		MayName:   g.IPFromQuery,
	}
	if g.ProxyProtocol {
		o.Proxies = g.TrustedProxies
	}
	add := func() error {
		server, err := udpproxy.Listen(ctx, o)
		if err == nil {
			g.udp = append(g.udp, server)
		}
		return err
	}
	for _, o.Socket = range sockets {
		if err := add(); err != nil {
			return err
		}
	}
	if len(sockets) > 0 {
		return nil
	}
	for _, o.Addr = range g.UDP {
		if err := add(); err != nil {
			return err
		}
	}
	return nil
}

// ready says why the gateway shall get no requests, or nil.
func (g *gateway) ready(ctx context.Context) error {
	if g.draining.Load() {
		return errDraining
	}
	if !g.access.Known() {
		return errNoAccessList
	}
	return g.store.Ping(ctx)
}

func (g *gateway) serve(group *errgroup.Group) {
	if g.admin != nil {
		g.admin.serve(g.log)
	}
	for _, h := range g.http {
		group.Go(func() error { return h.Serve(h.listener) })
	}
	for _, u := range g.udp {
		group.Go(u.Serve)
	}
}

// keep does what has to be done again and again, until ctx ends, and at hangups.
func (g *gateway) keep(ctx context.Context, hangups <-chan os.Signal) {
	if g.memory != nil {
		every := min(max(g.PeerTTL/90, time.Second), 30*time.Second)
		g.background.Go(func() { repeat(ctx, every, func() { g.memory.Tick(g.clock()) }) })
	}
	g.access.Refresh(ctx, false) // before the first announce
	g.background.Go(func() {
		repeat(ctx, access.Every, func() {
			reread := received(hangups)
			if reread && g.AccessFile == "" {
				g.log.Debug("SIGHUP changes nothing without --access-file")
			}
			g.access.Refresh(ctx, reread)
		})
	})
	if g.completed != nil {
		g.background.Go(func() { g.completed.run(ctx) })
	}
	if g.Secret == "" && (g.ids != nil || g.decoys != nil) {
		g.shareSecrets(ctx) // so that the first ids are good on the other gateways
		g.background.Go(func() { repeat(ctx, secretEvery, func() { g.shareSecrets(ctx) }) })
	}
	if g.fleet != nil {
		g.background.Go(func() { g.fleet.Run(ctx) })
	}
}

const (
	// secretEvery is how often the shared secrets are looked up. Where Redis lost them, the
	// gateways agree on one again within this.
	secretEvery = 5 * time.Second

	// secretKnown is how long a new secret is given until all gateways must have looked it up,
	// also those that failed once or twice.
	secretKnown = 3*secretEvery + 2*time.Second
)

// shareSecrets makes the connection ids and the decoys follow the secrets that all gateways share. Unless
// it was rotated, which names another one, the one before stays good for ids that clients still have.
func (g *gateway) shareSecrets(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if g.ids != nil {
		shared, ok := g.shared(ctx, swarmstore.ConnectionSecret, g.secrets)
		rotated := shared[0] != shared[1]
		if ok && (rotated || shared[0] != g.secrets[0]) {
			if !rotated {
				shared[1] = g.secrets[0]
			}
			g.ids.SetSecrets(shared[0], shared[1])
			g.secrets = shared
		}
	}
	if g.decoys != nil {
		if shared, ok := g.shared(ctx, swarmstore.DecoySecret, g.disguise); ok {
			g.decoys.SetKey(shared[0])
			g.disguise = shared
		}
	}
}

func (g *gateway) shared(ctx context.Context, key string, own swarmstore.Secrets) (secrets swarmstore.Secrets, ok bool) {
	secrets, err := g.store.Secrets(ctx, key, own)
	if err != nil {
		g.log.Debug("the shared secret cannot be read", "error", err)
	}
	return secrets, err == nil
}

// rotateSecret lets all gateways make connection ids with another secret than before.
func rotateSecret(ctx context.Context, c *Config, stdout io.Writer) error {
	g := &gateway{Config: c, log: slog.New(c.Log), metrics: newMetrics(false)}
	defer g.close()
	if err := g.openStore(ctx); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "A new secret is made known to the gateways; it is in use in %v.\n", secretKnown)
	if err := g.store.RotateSecret(ctx, swarmstore.ConnectionSecret, newSecret("", "")[0], secretKnown); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "Done. Ids made with the one before stay good until the next rotation.")
	return nil
}

// newSecret is made from the operator's text for a purpose, or of chance without one.
func newSecret(text, purpose string) (s swarmstore.Secrets) {
	if text == "" {
		_, _ = rand.Read(s[0][:])
	} else {
		sum := sha256.Sum256([]byte(purpose + text))
		copy(s[0][:], sum[:])
	}
	s[1] = s[0]
	return s
}

// received tells whether a signal came.
func received(signals <-chan os.Signal) bool {
	select {
	case <-signals:
		return true
	default:
		return false
	}
}

// notify tells a service manager that waits for it (sd_notify(3)).
func (g *gateway) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		g.log.Warn("the service manager is not told", "state", state, "error", err)
	}
}

// repeat calls f each interval until ctx ends.
func repeat(ctx context.Context, interval time.Duration, f func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f()
		}
	}
}

// drain ends the front ends when nobody is sent here any more and they have answered what is in flight.
func (g *gateway) drain() error {
	g.draining.Store(true)
	g.notify(daemon.SdNotifyStopping)
	if g.DrainDelay > 0 {
		for _, h := range g.http {
			h.Leave()
		}
		time.Sleep(g.DrainDelay)
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.DrainTimeout)
	defer cancel()
	var group errgroup.Group
	for _, u := range g.udp {
		group.Go(func() error { return u.Shutdown(ctx) })
	}
	for _, h := range g.http {
		group.Go(func() error {
			defer h.listener.Close() // also when Serve did not come to begin
			return h.Shutdown(ctx)
		})
	}
	err := group.Wait()
	if errors.Is(err, context.DeadlineExceeded) {
		g.log.Warn("requests were still in flight at the end of --drain-timeout")
		err = nil
	}
	return err
}

// close ends the rest, also of a gateway that did not get to run. Readiness can be asked
// for until the end.
func (g *gateway) close() {
	if g.looks != nil {
		g.looks.Close()
	}
	if g.store != nil {
		g.store.Close()
	}
	if g.memory != nil {
		g.memory.Close()
	}
	if g.admin != nil {
		g.admin.close()
	}
	if !g.draining.Load() {
		for _, u := range g.udp {
			_ = u.Shutdown(context.Background())
		}
		for _, h := range g.http {
			_ = h.listener.TCPListener.Close() // nobody accepts
		}
	}
}

func (g *gateway) listening() (l listening) {
	for _, h := range g.http {
		l.HTTP = append(l.HTTP, h.listener.Addr().String())
	}
	for _, u := range g.udp {
		l.UDP = append(l.UDP, u.Addr().String())
	}
	// A service manager may pass on several sockets of one address.
	l.HTTP, l.UDP = slices.Compact(l.HTTP), slices.Compact(l.UDP)
	if g.admin != nil {
		l.Admin = g.admin.listener.Addr().String()
	}
	return l
}

// greet tells an operator at the terminal what runs.
func (g *gateway) greet(w io.Writer) {
	l := g.listening()
	var b strings.Builder
	b.WriteString("Swarmgate is up.\n")
	for _, line := range []struct {
		what, scheme, path string
		addrs              []string
	}{
		{"HTTP", "http", "/announce", l.HTTP},
		{"UDP", "udp", "/announce", l.UDP},
		{"Admin", "http", "/metrics", []string{l.Admin}},
	} {
		for _, addr := range line.addrs {
			if addr == "" {
				continue
			}
			host, port, _ := net.SplitHostPort(addr)
			where := "on " + addr
			if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
				host, where = "HOST", "on port "+port+", IPv4 and IPv6"
				if ip.To4() != nil {
					where = "on port " + port + ", IPv4"
				}
			}
			fmt.Fprintf(&b, "  %-6s %-33s %s://%s%s\n", line.what, where, line.scheme, net.JoinHostPort(host, port), line.path)
		}
	}
	if g.memory != nil {
		fmt.Fprintf(&b, "  Store  in this process, for %d swarms and %d peers at most; it ends with the process.\n"+
			"         For real: --redis redis://HOST:6379, a Redis or any node of a Redis Cluster.\n", g.EmbeddedSwarms, g.EmbeddedPeers)
	} else {
		var hosts []string
		for _, redis := range g.Redis {
			if u, err := url.Parse(redis); err == nil { // without its password
				hosts = append(hosts, u.Host)
			}
		}
		fmt.Fprintf(&b, "  Store  Redis at %s\n", strings.Join(hosts, ", "))
	}
	_, _ = io.WriteString(w, b.String())
}
