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
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"swarmgate/gateway/internal/httpapi"
	"swarmgate/gateway/internal/tracker"
	"swarmgate/swarmstore"
	"swarmgate/swarmstore/embedded"
	"swarmgate/udpproxy"
)

// listening says where a gateway listens; empty for what is turned off.
type listening struct{ HTTP, UDP, Admin string }

// misuseError is what only opening tells to be a wrong value of a flag.
type misuseError struct{ error }

func (e *misuseError) Unwrap() error { return e.error }

var errDraining = errors.New("draining")

// gateway is all that runs.
type gateway struct {
	*Config
	clock   func() time.Time
	log     *slog.Logger
	metrics *metrics

	memory   *embedded.Server // nil when Redis has the swarms
	store    *swarmstore.Store
	ids      *udpproxy.ConnectionIDs
	secrets  swarmstore.Secrets // that ids are made with
	decoys   *tracker.Decoys
	disguise swarmstore.Secrets // that decoys follow from, the first alone

	udp          *udpproxy.Server // nil when turned off, as the next two
	http         *httpapi.Server
	admin        *admin
	httpListener *listener

	draining   atomic.Bool
	background sync.WaitGroup
}

// run starts a gateway, tells started where it listens, and returns when ctx has
// ended and the requests in flight are answered, or what made it fail.
func run(ctx context.Context, c *Config, stdout io.Writer, started func(listening)) error {
	g := &gateway{Config: c, clock: time.Now, log: slog.New(c.Log), metrics: newMetrics()}
	c.outlives(g.log)
	defer g.close()
	if err := g.openStore(ctx); err != nil {
		return err
	}
	if err := g.listen(ctx); err != nil {
		return err
	}

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer g.background.Wait()
	defer stop()
	g.keep(background)

	g.greet(stdout)
	if started != nil {
		started(g.listening())
	}
	// The first to fail ends the rest, as a signal does.
	serving, ctx := errgroup.WithContext(ctx)
	g.serve(serving)
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
	g.store, err = swarmstore.Open(ctx, swarmstore.Options{
		URLs:         urls,
		PeerTTL:      g.PeerTTL,
		DownloadsTTL: g.DownloadsTTL,
		ViewTTL:      g.ViewTTL,
		ViewMemory:   g.ViewMemory << 20,
		RepeatWindow: g.RepeatWindow,
		WaitReplicas: g.WaitReplicas,
		Log:          g.log,
		Metrics:      g.metrics,
	})
	if errors.Is(err, swarmstore.ErrURL) {
		return &misuseError{fmt.Errorf("--redis: %w", err)}
	}
	return err
}

// listen binds everything before anything is answered.
func (g *gateway) listen(ctx context.Context) (err error) {
	if g.Decoys > 0 {
		g.decoys = tracker.NewDecoys(g.Decoys, g.DecoyPrefixes)
		g.disguise = newSecret(g.Secret, "decoys")
		if g.Secret != "" {
			g.decoys.SetKey(g.disguise[0])
		}
	}
	policy := tracker.New(g.store, tracker.Policy{Interval: g.Interval, MinInterval: g.MinInterval, Decoys: g.decoys})
	if g.HTTP != "" {
		if g.httpListener, err = listenTCP(ctx, g.HTTP, g.SharePort); err != nil {
			return fmt.Errorf("--http: %w", err)
		}
		f := g.metrics.front("http")
		g.http = httpapi.New(httpapi.Options{Tracker: policy.Front(f), Metrics: f, Now: g.clock, MaxClients: g.HTTPClients})
	}
	if g.UDP != "" {
		g.secrets = newSecret(g.Secret, "")
		g.ids = udpproxy.NewConnectionIDs(g.ConnectionTTL, g.secrets[0])
		f := g.metrics.front("udp")
		g.udp, err = udpproxy.Listen(ctx, udpproxy.Options{
			Addr:      g.UDP,
			SharePort: g.SharePort,
			Sockets:   runtime.GOMAXPROCS(0),
			IDs:       g.ids,
			Tracker:   policy.Front(f),
			Metrics:   udpFront{f, g.metrics},
			Now:       g.clock,
		})
		if err != nil {
			return fmt.Errorf("--udp: %w", err)
		}
	}
	if g.Admin != "" {
		addrs, err := adminAddrs(g.Admin)
		if err != nil {
			return fmt.Errorf("--admin: %w", err)
		}
		if g.admin, err = newAdmin(addrs, g.AdminFile, g.metrics, g.log, g.ready); err != nil {
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
	return g.store.Ping(ctx)
}

func (g *gateway) serve(group *errgroup.Group) {
	if g.http != nil {
		group.Go(func() error { return g.http.Serve(g.httpListener) })
	}
	if g.udp != nil {
		group.Go(g.udp.Serve)
	}
}

// keep does what has to be done again and again, until ctx ends.
func (g *gateway) keep(ctx context.Context) {
	if g.memory != nil {
		every := min(max(g.PeerTTL/90, time.Second), 30*time.Second)
		g.background.Go(func() { repeat(ctx, every, func() { g.memory.Tick(g.clock()) }) })
	}
	if g.Secret == "" && (g.ids != nil || g.decoys != nil) {
		g.shareSecrets(ctx) // so that the first ids are good on the other gateways
		g.background.Go(func() { repeat(ctx, secretEvery, func() { g.shareSecrets(ctx) }) })
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
	g := &gateway{Config: c, log: slog.New(c.Log), metrics: newMetrics()}
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

// drain ends the front ends when they have answered what is in flight.
func (g *gateway) drain() error {
	g.draining.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), g.DrainTimeout)
	defer cancel()
	var group errgroup.Group
	if g.udp != nil {
		group.Go(func() error { return g.udp.Shutdown(ctx) })
	}
	if g.http != nil {
		group.Go(func() error {
			defer g.httpListener.Close() // also when Serve did not come to begin
			return g.http.Shutdown(ctx)
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
		if g.udp != nil {
			_ = g.udp.Shutdown(context.Background())
		}
		if g.httpListener != nil {
			_ = g.httpListener.TCPListener.Close() // nobody accepts
		}
	}
}

func (g *gateway) listening() (l listening) {
	if g.http != nil {
		l.HTTP = g.httpListener.Addr().String()
	}
	if g.udp != nil {
		l.UDP = g.udp.Addr().String()
	}
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
	for _, line := range []struct{ what, scheme, addr, path string }{
		{"HTTP", "http", l.HTTP, "/announce"},
		{"UDP", "udp", l.UDP, "/announce"},
		{"Admin", "http", l.Admin, "/metrics"},
	} {
		if line.addr == "" {
			continue
		}
		host, port, _ := net.SplitHostPort(line.addr)
		where := "on " + line.addr
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			host, where = "HOST", "on port "+port+", IPv4 and IPv6"
			if ip.To4() != nil {
				where = "on port " + port + ", IPv4"
			}
		}
		fmt.Fprintf(&b, "  %-6s %-33s %s://%s%s\n", line.what, where, line.scheme, net.JoinHostPort(host, port), line.path)
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
