// Package embedded is the store of a gateway that was started without Redis: a
// miniredis in the process, reached like any Redis. What it holds ends with the
// process. It is made for one gateway and some thousand announces a second.
//
//	server, err := embedded.Start(embedded.Limits{Swarms: 100_000, Peers: 1_000_000})
//	store, err := swarmstore.Open(ctx, swarmstore.Options{URLs: []string{server.URL()}})
//
// miniredis expires nothing by itself: whoever owns the clock calls Tick.
package embedded

import (
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
)

// Limits bound the memory of the embedded store. Beyond them it refuses new
// peers as a Redis without memory does, with an OOM error; the peers that it
// has go on.
type Limits struct {
	Swarms int // of three keys each: peers on IPv4, peers on IPv6, downloads
	Peers  int
}

// Server is an embedded store. Its methods may be called by many goroutines.
type Server struct {
	redis    *miniredis.Miniredis
	password string
	limits   Limits

	mu     sync.Mutex // guards the rest
	ticked time.Time
	// What the store holds at most: both are counted up by each new one, and
	// counted anew only when a limit is met. Expiry makes them too high meanwhile.
	keys, peers int
	counted     time.Time
}

// Start a server. It listens on a port of its own on the loopback address, behind
// a random password.
func Start(limits Limits) (*Server, error) {
	s := &Server{redis: miniredis.NewMiniRedis(), password: rand.Text(), limits: limits}
	s.redis.RequireAuth(s.password)
	if err := s.redis.Start(); err != nil {
		return nil, fmt.Errorf("embedded store: %w", err)
	}
	s.redis.Server().SetPreHook(s.admit)
	return s, nil
}

// URL of the server, with its password.
func (s *Server) URL() string { return "redis://:" + s.password + "@" + s.redis.Addr() }

// Close ends the server and forgets all it holds.
func (s *Server) Close() { s.redis.Close() }

// Tick moves the store's clock to now, and so expires what has to. The first call
// sets the clock. Its cost grows with the number of keys.
func (s *Server) Tick(now time.Time) {
	s.mu.Lock()
	passed := now.Sub(s.ticked)
	first := s.ticked.IsZero()
	s.ticked = now
	s.mu.Unlock()
	if !first && passed > 0 {
		s.redis.FastForward(passed)
	}
}

// admit looks at each command before it runs, and refuses one that would add to
// a full store. True means that the command is dealt with.
func (s *Server) admit(c *server.Peer, command string, args ...string) bool {
	var key string
	peers := 0
	switch {
	case command == "INFO" && len(args) == 1 && strings.EqualFold(args[0], "cluster"):
		c.WriteBulk("# Cluster\r\ncluster_enabled:0\r\n") // miniredis knows no such section
		return true
	case command == "ZADD" && len(args) == 3:
		key, peers = args[0], 1
		// The store's scores are never 0, which stands for a peer that is not there.
		if score, _ := s.redis.ZScore(key, args[2]); score != 0 {
			return false
		}
	case command == "EVAL" && len(args) > 3:
		key = args[3] // the number of downloads
	default:
		return false
	}
	keys := 1
	if s.redis.Exists(key) {
		keys = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full(keys, peers) {
		s.recount()
	}
	if s.full(keys, peers) {
		c.WriteError("OOM the embedded store is full")
		return true
	}
	s.keys += keys
	s.peers += peers
	return false
}

func (s *Server) full(keys, peers int) bool {
	return s.peers+peers > s.limits.Peers || s.keys+keys > keysPerSwarm*s.limits.Swarms
}

const (
	// keysPerSwarm that count: peers on IPv4 and on IPv6, and downloads.
	keysPerSwarm = 3

	// recounting bounds how often a full store is counted.
	recounting = 10 * time.Second
)

// recount finds out what the store really holds.
func (s *Server) recount() {
	now := time.Now()
	if now.Sub(s.counted) < recounting {
		return
	}
	s.counted = now
	s.keys, s.peers = 0, 0
	for _, key := range s.redis.Keys() {
		s.keys++
		if members, err := s.redis.SortedSet(key); err == nil {
			s.peers += len(members)
		}
	}
}
