package swarmstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"swarmgate/swarmstore/swarm"
)

// A scan reads every swarm of the cluster in the order of their hashes. SCAN gives keys in no
// order, so it goes in rounds: each walks over all keys, keeps the lowest hashes above those of
// the round before, and reads their swarms.
const (
	// scanHashes is how many hashes a round keeps: 20 MiB, and twice that while it collects them.
	scanHashes = 1 << 20

	// scanKeys is what one SCAN looks at, scanSwarms the swarms or partitions of a node that one
	// pipeline reads: Redis answers nobody else for less than a millisecond.
	scanKeys    = 1000
	scanSwarms  = 128
	scanEntries = 512 // that are handed on at once, at most

	// scanShare is the part of the time in which a scan keeps a node busy, so that announces become
	// dearer by a tenth at most. maxPause bounds a pause after a pipeline that took very long.
	scanShare = 10
	maxPause  = 2 * time.Second

	maxRecounts = 10 // of a swarm
)

var errClusterChanges = errors.New("the cluster changes")

// Scan hands on every swarm that has peers or downloads, each once, in ascending order of the info hash. A slice
// of them, of 512 at most, is valid during the call of yield, whose error ends the scan. What
// changes meanwhile is in it or not.
//
// A scan that returns an error is incomplete. It fails when a node does, and when slots move or a
// replica takes its master's place, as swarms could have been missed then.
func (s *Store) Scan(ctx context.Context, now func() time.Time, yield func([]swarm.Entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	b := s.backend.Load()
	if b == nil {
		return swarm.ErrUnavailable
	}
	masters, before, err := b.survey(ctx)
	if err != nil {
		return err
	}
	round := lowest{most: s.scanHashes}
	chunk := min(scanSwarms*len(masters), scanEntries)
	for {
		if err := walk(ctx, masters, &round); err != nil {
			return err
		}
		if err := round.cut(ctx); err != nil {
			return err
		}
		for hashes := range slices.Chunk(round.hashes, chunk) {
			entries, err := s.readEntries(ctx, hashes, now())
			if err == nil && len(entries) > 0 {
				err = yield(entries)
			}
			if err != nil {
				return err
			}
		}
		_, after, err := b.survey(ctx)
		switch {
		case err != nil:
			return err
		case after != before:
			return errClusterChanges
		case !round.next():
			return nil
		}
	}
}

// survey finds the servers that hold all keys, and the state that they are in. While that stays the
// same no key goes from one to another, and none restarts or is replaced.
func (b *backend) survey(ctx context.Context) (masters []*redis.Client, state string, err error) {
	if b.single != nil {
		run, err := runID(ctx, b.single)
		return []*redis.Client{b.single}, run, err
	}
	var mu sync.Mutex
	var runs, views, own []string
	err = b.cluster.ForEachMaster(ctx, func(ctx context.Context, client *redis.Client) error {
		run, err := runID(ctx, client)
		if err != nil {
			return err
		}
		nodes, err := client.ClusterNodes(ctx).Result()
		if err != nil {
			return fmt.Errorf("%s: %w", client.Options().Addr, err)
		}
		view, self, err := slotsOf(nodes)
		mu.Lock()
		defer mu.Unlock()
		masters, runs, views, own = append(masters, client), append(runs, run), append(views, view), append(own, self)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	slices.Sort(own)
	if len(slices.Compact(views)) != 1 || strings.Join(own, "\n") != views[0] {
		return nil, "", errClusterChanges // the nodes, or this gateway, do not all know yet who has which slots
	}
	slices.Sort(runs)
	return masters, views[0] + strings.Join(runs, "\n"), nil
}

// runID is what a server calls itself from its start to its end; the embedded store has none.
func runID(ctx context.Context, client *redis.Client) (string, error) {
	info, err := client.Info(ctx).Result()
	if err != nil {
		return "", fmt.Errorf("%s: %w", client.Options().Addr, err)
	}
	_, id, _ := strings.Cut(info, "run_id:")
	id, _, _ = strings.Cut(id, "\r\n")
	return id, nil
}

// slotsOf reads the reply to CLUSTER NODES: which node has which slots, a line each, and the line of the
// node that was asked. It fails while slots move.
func slotsOf(nodes string) (view, self string, err error) {
	var lines []string
	for line := range strings.Lines(nodes) {
		words := strings.Fields(line)
		if len(words) <= 8 {
			continue // without slots
		}
		if strings.Contains(line, "[") {
			return "", "", errClusterChanges
		}
		of := words[0] + " " + strings.Join(words[8:], " ")
		lines = append(lines, of)
		if slices.Contains(strings.Split(words[2], ","), "myself") {
			self = of
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), self, nil
}

// walk collects the hashes of all keys, on all masters at once.
func walk(ctx context.Context, masters []*redis.Client, round *lowest) error {
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex // guards round
	for _, client := range masters {
		group.Go(func() error {
			for cursor := "0"; ; {
				start := time.Now()
				cmd := redis.NewRawCmd(ctx, "scan", cursor, "count", scanKeys)
				_ = client.Process(ctx, cmd)
				err := cmdError(cmd)
				took := time.Since(start)
				if err == nil {
					mu.Lock()
					cursor, err = parseScan(cmd.Val(), func(key []byte) {
						if hash, ok := swarmOf(key); ok {
							round.add(hash)
						}
					})
					if err == nil && len(round.hashes) >= 2*round.most {
						err = round.cut(ctx)
					}
					mu.Unlock()
				}
				if err != nil {
					return fmt.Errorf("%s: %w", client.Options().Addr, err)
				}
				if cursor == "0" {
					return nil
				}
				if err := pause(ctx, took); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// pause after a pipeline, so that its node has the rest of the time for announces.
func pause(ctx context.Context, took time.Duration) error {
	timer := time.NewTimer(min(took*(scanShare-1), maxPause))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// lowest collects the lowest hashes of those that are left, each once.
type lowest struct {
	most   int
	after  []byte           // only hashes above it are left; nil: all
	hashes []swarm.InfoHash // after cut: sorted, each once
	waits  bool             // some above the last of hashes were not kept
	upTo   swarm.InfoHash   // with waits: there are enough up to it
}

func (l *lowest) add(hash swarm.InfoHash) {
	if bytes.Compare(hash[:], l.after) > 0 && (!l.waits || bytes.Compare(hash[:], l.upTo[:]) <= 0) {
		l.hashes = append(l.hashes, hash)
	}
}

// cut sorts the hashes, drops what comes twice, and leaves the highest to the next round if there are too many. It does
// that in parts and pauses in between: a million keep a core busy for a second.
func (l *lowest) cut(ctx context.Context) error {
	ends := byFirstByte(l.hashes)
	kept, from := l.hashes[:0], 0
	for _, to := range ends {
		start := time.Now()
		part := l.hashes[from:to]
		slices.SortFunc(part, func(a, b swarm.InfoHash) int { return bytes.Compare(a[:], b[:]) })
		kept = append(kept, slices.Compact(part)...)
		if from = to; len(kept) > l.most || len(kept) == l.most && to < len(l.hashes) {
			kept = kept[:l.most]
			l.waits, l.upTo = true, kept[l.most-1]
			break
		}
		if len(part) > scanKeys {
			if err := pause(ctx, time.Since(start)); err != nil {
				return err
			}
		}
	}
	l.hashes = kept
	return nil
}

// byFirstByte brings hashes into the order of their first bytes, and tells where those of each end.
func byFirstByte(hashes []swarm.InfoHash) (ends [256]int) {
	for i := range hashes {
		ends[hashes[i][0]]++
	}
	var next [256]int // place for a hash that begins with it
	for b := range ends {
		if b > 0 {
			next[b] = ends[b-1]
		}
		ends[b] += next[b]
	}
	for b := range ends {
		for i := next[b]; i < ends[b]; i = next[b] {
			for hashes[i][0] != byte(b) {
				to := &next[hashes[i][0]]
				hashes[i], hashes[*to] = hashes[*to], hashes[i]
				*to++
			}
			next[b]++
		}
	}
	return ends
}

// next begins a round above this one; false if nothing is left.
func (l *lowest) next() bool {
	if !l.waits {
		return false
	}
	l.after, l.hashes, l.waits = bytes.Clone(l.upTo[:]), l.hashes[:0], false
	return true
}

// readEntries reads swarms, and leaves out those that have neither peers nor downloads.
func (s *Store) readEntries(ctx context.Context, hashes []swarm.InfoHash, now time.Time) ([]swarm.Entry, error) {
	heads := make([]*redis.RawCmd, len(hashes))
	downloads := make([]*redis.StringCmd, len(hashes))
	slow := make([]*redis.StringCmd, len(hashes))
	cmds := make([]routed, 0, 3*len(hashes))
	for i, hash := range hashes {
		heads[i] = redis.NewRawCmd(s.ctx, "zrange", peersKey(hash, 0), 0, smallSwarm, "withscores")
		// Not GETEX: the downloads of a swarm that nobody asks for shall expire.
		downloads[i] = redis.NewStringCmd(s.ctx, "get", key(hash, kindDownloads))
		cmds = append(cmds, routed{hash, 0, heads[i]}, routed{hash, 0, downloads[i]})
		if s.opt.Hold {
			slow[i] = s.getHeld(hash)
			cmds = append(cmds, routed{hash, 0, slow[i]})
		}
	}
	if err := s.sendPaced(ctx, cmds); err != nil {
		return nil, err
	}
	entries := make([]swarm.Entry, 0, len(hashes))
	p := &peers{ttl: s.opt.PeerTTL}
	for i, hash := range hashes {
		e := swarm.Entry{InfoHash: hash}
		err := p.read(heads[i], now, nil)
		if err == nil && (p.marked || p.held > smallSwarm) {
			e.Counts, err = s.countLarge(ctx, hash, p.layout, now)
		} else if err == nil {
			e.Counts = p.counts()
		}
		if err == nil {
			e.Downloads, err = number(downloads[i])
		}
		if err == nil && s.opt.Hold {
			err = holdEntry(&e, slow[i], now)
		}
		if err != nil {
			return nil, fmt.Errorf("a swarm cannot be read: %w", err)
		}
		if e.Seeders+e.Incomplete()+e.Downloads > 0 {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// holdEntry gives an entry its held counts. Those of a swarm that has none are its live ones; that is left to
// who asks for the swarm to store.
func holdEntry(e *swarm.Entry, get *redis.StringCmd, now time.Time) (err error) {
	live := e.Counts
	if e.Held, err = held(get); e.Held == (swarm.Held{}) {
		lookAgain(&e.Held, now, live, [swarm.Classes]int{})
	}
	return err
}

// countLarge counts the peers of a large swarm, again if it was spread anew meanwhile: those who had gone on
// to further partitions would be missing.
func (s *Store) countLarge(ctx context.Context, hash swarm.InfoHash, l layout, now time.Time) (c swarm.Counts, err error) {
	for range maxRecounts {
		if c, err = s.countPartitions(ctx, hash, l, now); err != nil {
			return c, err
		}
		head := redis.NewRawCmd(s.ctx, "zrange", peersKey(hash, 0), 0, 0, "withscores")
		if err := s.sendPaced(ctx, []routed{{hash, 0, head}}); err != nil {
			return c, err
		}
		p := &peers{ttl: s.opt.PeerTTL}
		if err := p.read(head, now, nil); err != nil {
			return c, err
		}
		if p.layout == l {
			return c, nil
		}
		l = p.layout
	}
	return c, fmt.Errorf("%w: a swarm is spread anew again and again", errClusterChanges)
}

// countPartitions counts the peers in all partitions of a layout. While they are moved, one may be
// counted twice.
func (s *Store) countPartitions(ctx context.Context, hash swarm.InfoHash, l layout, now time.Time) (c swarm.Counts, err error) {
	for from := 0; from < l.partitions(); from += scanSwarms {
		var cmds []routed
		for partition := from; partition < min(from+scanSwarms, l.partitions()); partition++ {
			for class := range swarm.Class(swarm.Classes) {
				cmds = append(cmds, routed{hash, partition, redis.NewIntCmd(s.ctx, "zcount",
					peersKey(hash, partition), classStart(class), oldest(class, now, s.opt.PeerTTL))})
			}
		}
		if err := s.sendPaced(ctx, cmds); err != nil {
			return c, err
		}
		for i, r := range cmds {
			n, err := r.cmd.(*redis.IntCmd).Result()
			if err != nil {
				return c, err
			}
			*c.Of(swarm.Class(i % swarm.Classes)) += int(n)
		}
	}
	return c, nil
}

// sendPaced runs commands and pauses.
func (s *Store) sendPaced(ctx context.Context, cmds []routed) error {
	start := time.Now()
	s.sendAll(cmds, false)
	return pause(ctx, time.Since(start))
}
