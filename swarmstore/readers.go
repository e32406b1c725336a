package swarmstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// ReadFrom says which of the nodes that have a swarm its views are read from. Writes, and what tells where
// peers are, go to masters.
type ReadFrom string

const (
	ReadMaster  ReadFrom = "master"
	ReadNearest ReadFrom = "nearest" // the one that answers first, master or replica
	ReadReplica ReadFrom = "replica" // the replica that answers first; the master if none does
)

const (
	// choosing is the time between looks at how near nodes are.
	choosing = 5 * time.Second

	// silence is how long a replica that views are read from may not have heard of its master, which says something
	// each ten seconds. What it knows is older.
	silence = 15 * time.Second

	// nearer is the part of another node's round trip that a node's must be below to take its place.
	nearer = 0.8
)

// reader is a node that views are read from in place of a master.
type reader struct {
	addr   string
	client *redis.Client
	failed atomic.Bool // the master is read from until the next look
}

// readers by their masters' addresses: all slots of a master are its replicas' too.
type readers map[string]*reader

var noReader = trouble{what: "no views are read from a replica", warning: true}

// readsApart tells whether views may be read from others than masters.
func (s *Store) readsApart() bool { return s.opt.ReadFrom != "" && s.opt.ReadFrom != ReadMaster }

// reader of a master's swarms, or nil when the master is.
func (s *Store) reader(master string) *reader {
	if all := s.readers.Load(); all != nil {
		if r := (*all)[master]; r != nil && !r.failed.Load() {
			return r
		}
	}
	return nil
}

// chooseReaders looks which nodes are near and up to date.
func (s *Store) chooseReaders(b *backend) {
	if b.cluster == nil {
		s.complain("", trouble{what: "there is no replica to read from: this Redis is no cluster", help: "leave --read-from out", warning: true})
		return
	}
	shards, err := b.cluster.ClusterShards(s.ctx).Result()
	if err != nil {
		s.complain("", noReader, "error", err)
		return // what was chosen stays: it fails by itself
	}
	replicas := map[string][]string{} // of masters
	for _, shard := range shards {
		master := ""
		var others []string
		for _, n := range shard.Nodes {
			port := n.Port
			if s.redis.TLSConfig != nil {
				port = n.TLSPort
			}
			if addr := net.JoinHostPort(n.Endpoint, strconv.FormatInt(port, 10)); n.Role == "master" {
				master = addr
			} else {
				others = append(others, addr)
			}
		}
		if len(others) > 0 {
			replicas[master] = others
		}
	}
	var mu sync.Mutex
	trips := map[string]time.Duration{} // of nodes that may be read from
	var all sync.WaitGroup
	visit := func(addr string, master bool) {
		all.Go(func() {
			took, err := s.visit(addr, master)
			switch {
			case err == nil:
				mu.Lock()
				trips[addr] = took
				mu.Unlock()
			case !master:
				s.complain(addr, noReader, "error", err)
			}
		})
	}
	for master, own := range replicas {
		visit(master, true)
		for _, addr := range own {
			visit(addr, false)
		}
	}
	all.Wait()
	chosen := readers{}
	for master, candidates := range replicas {
		if s.opt.ReadFrom == ReadNearest {
			candidates = append(candidates, master)
		}
		best := master
		if before := s.reader(master); before != nil {
			best = before.addr
		}
		if best = nearest(best, candidates, trips); best != "" && best != master {
			chosen[master] = &reader{addr: best, client: s.replica(best)}
		}
	}
	s.readers.Store(&chosen)
}

// nearest of some nodes, by the round trips to those that may be read from; none if no candidate may be. The one that is read from
// stays unless another is clearly nearer.
func nearest(now string, candidates []string, trips map[string]time.Duration) (best string) {
	if _, fit := trips[now]; fit && slices.Contains(candidates, now) {
		best = now
	}
	for _, addr := range candidates {
		if took, fit := trips[addr]; fit && (best == "" || float64(took) < nearer*float64(trips[best])) {
			best = addr
		}
	}
	return best
}

// visit a node: how long a round trip to it takes. An error says that it is no replica which is up to date, where it
// has to be one.
func (s *Store) visit(addr string, master bool) (took time.Duration, err error) {
	client := s.replica(addr)
	for range 2 { // the first may have to connect
		begun := time.Now()
		info, err := client.Info(s.ctx, "replication").Result()
		if err != nil {
			return 0, err
		}
		if took = time.Since(begun); master {
			continue
		}
		if err := upToDate(info); err != nil {
			return 0, err
		}
	}
	return took, nil
}

// upToDate tells what is wrong with a replica, by its INFO.
func upToDate(info string) error {
	values := map[string]string{}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			values[name] = value
		}
	}
	seconds, err := strconv.Atoi(values["master_last_io_seconds_ago"])
	switch {
	case values["role"] != "slave":
		return errors.New("it is no replica")
	case values["master_link_status"] != "up":
		return errors.New("it has no link to its master")
	case err != nil || time.Duration(seconds)*time.Second > silence:
		return fmt.Errorf("it has not heard of its master for %d s", seconds)
	}
	return nil
}

// replica is the client of a node that is read from, whichever slots are its own (READONLY).
func (s *Store) replica(addr string) *redis.Client {
	return s.clientOf(&s.replicas, addr, func(o *redis.Options) {
		o.OnConnect = func(ctx context.Context, conn *redis.Conn) error { return conn.ReadOnly(ctx).Err() }
	})
}

// readApart runs reads on a reader. When it reports false nothing of what it read counts, and the reader is left alone until the next look.
func (s *Store) readApart(r *reader, cmds []redis.Cmder) bool {
	_, err := s.pipeline(r.client, cmds, false, false)
	for _, cmd := range cmds {
		if reply := cmdError(cmd); err == nil && reply != nil && reply != redis.Nil && !strings.HasPrefix(reply.Error(), "WRONGTYPE") {
			err = reply // it has other slots now, or reads its data from disk
		}
	}
	if err == nil {
		return true
	}
	r.failed.Store(true)
	s.complain(r.addr, noReader, "error", err)
	return false
}

// readAll runs commands that read views, wherever their keys are.
func (s *Store) readAll(cmds []routed) {
	if s.readers.Load() == nil {
		s.sendAll(cmds, false)
		return
	}
	parts, none := s.byNode(cmds)
	again := make([][]routed, len(parts))
	var all sync.WaitGroup
	for i, p := range parts {
		r := s.reader(p.node.addr)
		if r == nil {
			again[i] = p.routed
			continue
		}
		all.Go(func() {
			if !s.readApart(r, p.cmds()) {
				again[i] = p.routed
			}
		})
	}
	all.Wait()
	s.sendAll(append(none, slices.Concat(again...)...), false)
}
