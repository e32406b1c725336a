package swarmstore

import (
	"bytes"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// peers are those of one set of a swarm, as they are read: the stale left out.
type peers struct {
	ttl time.Duration

	compact [2][swarm.Classes][]byte // by address family and class
	held    int                      // members of the reply
	most    int                      // of one class, after readClasses
	stale   bool                     // some are too old
	layout  layout
	marked  bool // layout was there
}

// read the reply to a ZRANGE or ZRANDMEMBER with scores. stray, which may be nil, is asked of each peer whether
// it is to be left out.
func (p *peers) read(cmd *redis.RawCmd, now time.Time, stray func(compact []byte, score int64) bool) error {
	for f := range p.compact {
		for class := range p.compact[f] {
			p.compact[f][class] = p.compact[f][class][:0]
		}
	}
	p.held, p.stale, p.marked, p.layout = 0, false, false, layout{}
	if err := cmdError(cmd); err != nil {
		return err
	}
	if err := parsePeers(cmd.Val(), func(member []byte, score int64) {
		if l, ok := layoutOf(score); ok && string(member) == layoutMember {
			p.layout, p.marked = l, true
			return
		}
		p.held++
		class, ok := classOf(score)
		if !ok || len(member) != swarm.Size4 && len(member) != swarm.Size6 {
			return
		}
		if score > oldest(class, now, p.ttl) {
			p.stale = true
			return
		}
		if stray != nil && stray(member, score) {
			return
		}
		f := 0
		if len(member) == swarm.Size6 {
			f = 1
		}
		p.compact[f][class] = append(p.compact[f][class], member...)
	}); err != nil {
		return foreign(cmd)
	}
	return nil
}

// readPartition likewise, and appends to strays the peers that belong elsewhere.
func (p *peers) readPartition(cmd *redis.RawCmd, now time.Time, l layout, partition int, strays []stray) ([]stray, error) {
	err := p.read(cmd, now, func(compact []byte, score int64) bool {
		if l.place(compact) == partition {
			return false
		}
		class, _ := classOf(score)
		strays = append(strays, stray{partition: partition, peer: bytes.Clone(compact), class: class, score: score})
		return true
	})
	return strays, err
}

// readClasses reads the replies to the ranges of a partition, and appends to strays likewise, without scores.
func (p *peers) readClasses(b *bucket, l layout, strays []stray) ([]stray, error) {
	p.most = 0
	for class, cmd := range b.heads {
		for f := range p.compact {
			p.compact[f][class] = p.compact[f][class][:0]
		}
		if err := cmdError(cmd); err != nil {
			return strays, err
		}
		held := 0
		if err := parseMembers(cmd.Val(), func(member []byte) {
			held++
			if len(member) != swarm.Size4 && len(member) != swarm.Size6 {
				return
			}
			if l.place(member) != b.partition {
				strays = append(strays, stray{partition: b.partition, peer: bytes.Clone(member), class: swarm.Class(class)})
				return
			}
			f := 0
			if len(member) == swarm.Size6 {
				f = 1
			}
			p.compact[f][class] = append(p.compact[f][class], member...)
		}); err != nil {
			return strays, err
		}
		p.most = max(p.most, held)
	}
	return strays, nil
}

// counts of the peers.
func (p *peers) counts() (c swarm.Counts) {
	for class := range swarm.Class(swarm.Classes) {
		*c.Of(class) = len(p.compact[0][class])/swarm.Size4 + len(p.compact[1][class])/swarm.Size6
	}
	return c
}

// part copies the peers.
func (p *peers) part() swarm.Part { return swarm.NewPart(&p.compact) }

// trim are the commands that remove the stale peers of a set.
func (s *Store) trim(key []byte, now time.Time) (cmds [swarm.Classes]redis.Cmder) {
	for class := range swarm.Class(swarm.Classes) {
		cmds[class] = redis.NewIntCmd(s.ctx, "zremrangebyscore", key, oldest(class, now, s.opt.PeerTTL)+1, classStart(class+1)-1)
	}
	return cmds
}
