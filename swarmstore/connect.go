package swarmstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"swarmgate/swarmstore/swarm"
)

const (
	readTimeout  = time.Second // of one pipeline; a node that takes longer has failed
	dialTimeout  = time.Second
	reconnecting = time.Second // between attempts to reach Redis for the first time
)

// backend is the Redis that was found: one server, or a cluster.
type backend struct {
	client  redis.UniversalClient
	single  *redis.Client // one of these two
	cluster *redis.ClusterClient
}

// master of the slot that holds a partition of a swarm.
func (b *backend) master(ctx context.Context, hash swarm.InfoHash, partition int) (*redis.Client, error) {
	if b.single != nil {
		return b.single, nil
	}
	var buf [tagLen]byte
	return b.cluster.MasterForKey(ctx, string(appendTag(buf[:0], hash, partition)))
}

// redirected is the client of a node that a command was sent on to. The cluster client
// may not know it yet, and would have to ask nodes that may be slow.
func (s *Store) redirected(addr string) *redis.Client { return s.clientOf(&s.elsewhere, addr, nil) }

// clientOf finds or makes the client of a node, with options of its own.
func (s *Store) clientOf(clients *sync.Map, addr string, set func(*redis.Options)) *redis.Client {
	if client, ok := clients.Load(addr); ok {
		return client.(*redis.Client)
	}
	o := *s.redis
	o.Addr = addr
	if set != nil {
		set(&o)
	}
	client := redis.NewClient(&o)
	if other, loaded := clients.LoadOrStore(addr, client); loaded {
		_ = client.Close()
		return other.(*redis.Client)
	}
	return client
}

// parseURLs fills in how to reach Redis. What it says of a wrong address repeats no
// part of it, as any may be a piece of a password.
func (s *Store) parseURLs() error {
	for _, u := range s.opt.URLs {
		o, err := redis.ParseURL(strings.TrimSpace(u))
		if err != nil {
			return ErrURL
		}
		if s.redis == nil {
			s.redis = o
		}
		s.addrs = append(s.addrs, o.Addr)
	}
	if s.redis == nil {
		return ErrURL
	}
	o := s.redis
	o.Protocol = 2 // parsePeers reads its replies
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout = dialTimeout, readTimeout, readTimeout
	o.DialerRetries = 1
	o.MaxRetries = -1 // the client retries its announce; a lane must not wait
	o.ConnMaxIdleTime = -1
	o.PoolSize = 32 // for the lane, and readings of large swarms
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.Dialer = s.dial
	if s.opt.Password != nil {
		user := o.Username
		o.CredentialsProviderContext = func(context.Context) (string, string, error) {
			password, err := s.opt.Password()
			return user, password, err
		}
	}
	// A new connection may lead to a server that lost what an earlier one stored.
	o.OnConnect = func(context.Context, *redis.Conn) error {
		s.forget()
		return nil
	}
	return nil
}

// dial connects to a node, unless it is lost.
func (s *Store) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c := s.contact(addr)
	if err := c.err(); err != nil {
		return nil, err
	}
	conn, err := s.reach(ctx, network, addr)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		c.lose(err)
	}
	return conn, err
}

// reach connects to a node.
func (s *Store) reach(ctx context.Context, network, addr string) (net.Conn, error) {
	if s.redis.TLSConfig != nil {
		return s.dialTLS(ctx, network, addr)
	}
	return dialTCP(ctx, network, addr)
}

// dialTCP connects to a node without TLS. A connection that is given up takes along what the node has not received yet: sent again when
// the network is back, it would undo what other gateways have written since.
func dialTCP(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, addr)
	if tcp, is := conn.(*net.TCPConn); is {
		_ = tcp.SetLinger(0)
	}
	return conn, err
}

// dialTLS connects to a node. What it needs is asked for anew each time, so that certificates can be
// replaced.
func (s *Store) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	config := s.redis.TLSConfig.Clone()
	if s.opt.TLS != nil {
		if err := s.opt.TLS(config); err != nil {
			return nil, err
		}
	}
	// Each node has to have a certificate for the name or address by which it is reached.
	config.ServerName, _, _ = net.SplitHostPort(addr)
	plain, err := dialTCP(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(plain, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = plain.Close()
		return nil, fmt.Errorf("%w: %w", errHandshake, err)
	}
	return conn, nil
}

// connect finds out whether Redis is one server or a cluster.
func (s *Store) connect(ctx context.Context) {
	for _, addr := range s.addrs {
		o := *s.redis
		o.Addr = addr
		client := redis.NewClient(&o)
		info, err := s.inspect(ctx, client)
		if err != nil {
			_ = client.Close()
			continue
		}
		b := &backend{client: client, single: client}
		if isCluster(info) {
			_ = client.Close()
			c := redis.NewClusterClient(s.clusterOptions())
			b = &backend{client: c, cluster: c}
			s.inspectAll(b)
		}
		if s.readsApart() {
			s.chooseReaders(b)
		}
		s.backend.Store(b)
		s.opt.Log.Info("the store is there", "cluster", b.cluster != nil)
		return
	}
}

func (s *Store) clusterOptions() *redis.ClusterOptions {
	o := s.redis
	return &redis.ClusterOptions{
		Addrs:                      s.addrs,
		Username:                   o.Username,
		Password:                   o.Password,
		CredentialsProviderContext: o.CredentialsProviderContext,
		Dialer:                     o.Dialer,
		TLSConfig:                  o.TLSConfig,
		Protocol:                   o.Protocol,
		DialTimeout:                o.DialTimeout,
		ReadTimeout:                o.ReadTimeout,
		WriteTimeout:               o.WriteTimeout,
		DialerRetries:              o.DialerRetries,
		MaxRetries:                 o.MaxRetries,
		ConnMaxIdleTime:            o.ConnMaxIdleTime,
		PoolSize:                   o.PoolSize,
		OnConnect:                  o.OnConnect,
		DisableIdentity:            o.DisableIdentity,
		MaintNotificationsConfig:   o.MaintNotificationsConfig,
	}
}

// Ping tells whether the store can be reached: swarm.ErrUnavailable if not one
// node answers that stores announces. Troubles tells why.
func (s *Store) Ping(ctx context.Context) error {
	b := s.backend.Load()
	if b == nil {
		return swarm.ErrUnavailable
	}
	ctx, cancel := context.WithCancel(ctx) // the first answer is enough
	defer cancel()
	clients := b.masters(ctx)
	answers := make(chan error, len(clients))
	for client := range clients {
		go func() {
			_, err := s.inspect(ctx, client)
			answers <- err
		}()
	}
	for range clients {
		if <-answers == nil {
			return nil
		}
	}
	return swarm.ErrUnavailable
}

// masters as far as they are known, without asking: those of slots all over the cluster.
func (b *backend) masters(ctx context.Context) map[*redis.Client]struct{} {
	found := map[*redis.Client]struct{}{}
	for n := range 256 {
		if client, err := b.master(ctx, swarm.InfoHash{byte(n), byte(n << 2)}, 0); err == nil {
			found[client] = struct{}{}
		}
	}
	return found
}

// forget what was stored: it may be lost.
func (s *Store) forget() {
	s.repeats.forgetAll()
	s.expired.forgetAll()
}

// rerouted notes that slots may be elsewhere than was thought.
func (s *Store) rerouted() {
	s.forget()
	s.lookAround()
}

// lookAround finds out, in the background, where the slots are.
func (s *Store) lookAround() {
	if b := s.backend.Load(); b != nil && b.cluster != nil {
		b.cluster.ReloadState(s.ctx)
	}
}
