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
// swarms and peers as a Redis without memory does, with an OOM error; those that
// it has go on. Downloads of as many swarms and peers are counted, and no more.
type Limits struct {
	Swarms int
	Peers  int
}

// Server is an embedded store. Its methods may be called by many goroutines.
type Server struct {
	redis    *miniredis.Miniredis
	password string
	limits   Limits

	mu     sync.Mutex // guards the rest
	ticked time.Time
	// What the store holds at most: each new one is added, and all are counted anew
	// only when a limit is met. Expiry makes it too high meanwhile.
	held    held
	counted time.Time
}

// held is what the limits are for. The last character of a key tells what it holds: p the peers of
// a swarm, q more of a large one, d downloads, c whose download was counted, h held counts of a swarm.
type held struct {
	swarms, peers             int
	downloadKeys, downloaders int // numbers of downloads, and peers whose download was counted
	counts                    int // that are held
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
	switch {
	case command == "INFO" && len(args) == 1 && strings.EqualFold(args[0], "replication"):
		c.WriteBulk("# Replication\r\nrole:master\r\nmaster_repl_offset:0\r\n") // miniredis knows no such section
		return true
	case command == "ZRANGESTORE":
		c.WriteInt(0) // the store asks for it to make a set small again, which here it always is
		return true
	case command == "ZADD" && len(args) == 3:
		// The store's scores are never 0, which stands for a peer that is not there.
		if score, _ := s.redis.ZScore(args[0], args[2]); score != 0 {
			return false
		}
		more := held{peers: 1}
		switch {
		case len(args[2]) < 6:
			return false // no peer
		case strings.HasSuffix(args[0], "c"):
			more = held{downloaders: 1}
		case strings.HasSuffix(args[0], "p") && !s.redis.Exists(args[0]):
			more.swarms = 1
		}
		if s.add(more) {
			return false
		}
	case command == "SET" && len(args) > 1 && strings.HasPrefix(args[0], "{") && strings.HasSuffix(args[0], "h"):
		if s.redis.Exists(args[0]) || s.add(held{counts: 1}) {
			return false
		}
	case command == "INCR" && len(args) == 1:
		if s.redis.Exists(args[0]) || s.add(held{downloadKeys: 1}) {
			return false
		}
	default:
		return false
	}
	c.WriteError("OOM the embedded store is full")
	return true
}

// add notes that the store will hold more, unless it is full.
func (s *Server) add(more held) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.fits(more) {
		s.recount()
	}
	if !s.fits(more) {
		return false
	}
	s.held.swarms += more.swarms
	s.held.peers += more.peers
	s.held.downloadKeys += more.downloadKeys
	s.held.downloaders += more.downloaders
	s.held.counts += more.counts
	return true
}

func (s *Server) fits(more held) bool {
	return (more.swarms == 0 || s.held.swarms+more.swarms <= s.limits.Swarms) &&
		s.held.peers+more.peers <= s.limits.Peers &&
		(more.downloadKeys == 0 || s.held.downloadKeys+more.downloadKeys <= s.limits.Swarms) &&
		(more.counts == 0 || s.held.counts+more.counts <= s.limits.Swarms) &&
		s.held.downloaders+more.downloaders <= s.limits.Peers
}

// recounting bounds how often a full store is counted.
const recounting = 10 * time.Second

// recount finds out what the store really holds.
func (s *Server) recount() {
	now := time.Now()
	if now.Sub(s.counted) < recounting {
		return
	}
	s.counted = now
	s.held = held{}
	for _, key := range s.redis.Keys() {
		members, _ := s.redis.SortedSet(key)
		switch {
		case strings.HasSuffix(key, "d"):
			s.held.downloadKeys++
		case strings.HasPrefix(key, "{") && strings.HasSuffix(key, "h"):
			s.held.counts++
		case strings.HasSuffix(key, "c"):
			s.held.downloaders += len(members)
		case strings.HasSuffix(key, "p"):
			s.held.swarms++
			fallthrough
		case strings.HasSuffix(key, "q"):
			s.held.peers += len(members)
		}
	}
}
