package swarmstore

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

const (
	// maxRedirects bounds how often one pipeline follows moving slots.
	maxRedirects = 3

	// replicaTimeout bounds the wait for replicas, below the read timeout.
	replicaTimeout = readTimeout / 2
)

// errNotSent stands in a command until it is answered.
var errNotSent = errors.New("not sent to Redis")

// send runs commands as one pipeline; short says that its writes, if it has some, are on
// too few replicas. What a node sends elsewhere, as it does while slots move, is sent
// there. An error means that the node did not answer; what a single command failed
// with stands in it.
func (s *Store) send(client *redis.Client, cmds []redis.Cmder, writes bool) (short bool, err error) {
	short, err = s.pipeline(client, cmds, writes, false)
	if err != nil {
		return short, err
	}
	for range maxRedirects {
		type target struct {
			addr string
			ask  bool
		}
		var elsewhere map[target][]redis.Cmder
		for _, cmd := range cmds {
			err := cmdError(cmd)
			if err == nil || err == redis.Nil { // the usual ones, cheaply
				continue
			}
			addr, ask, ok := redirection(err)
			if !ok {
				s.refused(client.Options().Addr, cmd, err)
				continue
			}
			if elsewhere == nil {
				elsewhere = map[target][]redis.Cmder{}
			}
			to := target{addr, ask}
			elsewhere[to] = append(elsewhere[to], cmd)
		}
		if len(elsewhere) == 0 {
			break
		}
		s.rerouted()
		for to, cmds := range elsewhere {
			// That another node does not answer is no fault of this one's.
			few, err := s.pipeline(s.redirected(to.addr), cmds, writes, to.ask)
			short = short || few
			if err != nil {
				for _, cmd := range cmds {
					cmd.SetErr(err)
				}
				s.failed(to.addr, err)
			}
		}
	}
	return short, nil
}

func (s *Store) pipeline(client *redis.Client, cmds []redis.Cmder, writes, ask bool) (short bool, err error) {
	ctx := s.ctx
	pipe := client.Pipeline()
	for _, cmd := range cmds {
		cmd.SetErr(errNotSent)
		if ask {
			_ = pipe.Process(ctx, redis.NewStatusCmd(ctx, "asking"))
		}
		_ = pipe.Process(ctx, cmd)
	}
	want := s.opt.WaitReplicas
	var acks *redis.IntCmd
	if want > 0 && writes {
		acks = redis.NewIntCmd(ctx, "wait", want, replicaTimeout.Milliseconds())
		_ = pipe.Process(ctx, acks)
	}
	_, err = pipe.Exec(ctx)
	var reply redis.Error
	if err != nil && (!errors.As(err, &reply) || cmds[0].Err() == errNotSent) {
		return false, err // also when a new connection was refused, which no command is told
	}
	if acks == nil || int(acks.Val()) >= want {
		return false, nil
	}
	// A master that has become a replica cannot wait, and has sent all of it elsewhere.
	return slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool {
		_, _, elsewhere := redirection(cmdError(cmd))
		return !elsewhere
	}), nil
}

// redirection tells where a command was sent on to, by "MOVED slot addr", or for
// this once "ASK slot addr".
func redirection(err error) (addr string, ask, ok bool) {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return "", false, false
	}
	words := strings.Fields(reply.Error())
	if len(words) != 3 || words[0] != "MOVED" && words[0] != "ASK" {
		return "", false, false
	}
	return words[2], words[0] == "ASK", true
}

// cmdError is what a command failed with.
func cmdError(cmd redis.Cmder) error {
	if raw, is := cmd.(*redis.RawCmd); is && cmd.Err() == nil {
		return replyError(raw.Val())
	}
	return cmd.Err()
}

// routed is a command with the partition of a swarm that it goes to.
type routed struct {
	hash      swarm.InfoHash
	partition int
	cmd       redis.Cmder
}

// part is what of some commands goes to one node.
type part struct {
	node   *node
	routed []routed
}

func (p *part) cmds() []redis.Cmder {
	cmds := make([]redis.Cmder, len(p.routed))
	for i, r := range p.routed {
		cmds[i] = r.cmd
	}
	return cmds
}

// byNode sorts commands by the masters of their slots; none are those of slots without one.
func (s *Store) byNode(cmds []routed) (parts []*part, none []routed) {
	for _, r := range cmds {
		n := s.nodeOf(r.hash, r.partition)
		if n == nil {
			none = append(none, r)
			continue
		}
		var p *part
		for _, known := range parts {
			if known.node == n {
				p = known
			}
		}
		if p == nil {
			p = &part{node: n}
			parts = append(parts, p)
		}
		p.routed = append(p.routed, r)
	}
	return parts, none
}

// sendAll runs commands wherever their keys are, all nodes at once. What commands fail
// with stands in them; short says that writes are on too few replicas.
func (s *Store) sendAll(cmds []routed, writes bool) (short bool) {
	parts, none := s.byNode(cmds)
	for _, r := range none {
		r.cmd.SetErr(swarm.ErrUnavailable)
	}
	few := make([]bool, len(parts))
	var wg sync.WaitGroup
	for i, p := range parts {
		run := func() {
			var err error
			if p.node.contact.err() != nil {
				err = swarm.ErrUnavailable
			} else if few[i], err = s.send(p.node.client.Load(), p.cmds(), writes); err != nil {
				s.failed(p.node.addr, err)
			}
			if err != nil {
				for _, r := range p.routed {
					r.cmd.SetErr(err)
				}
			}
		}
		if i == len(parts)-1 {
			run()
		} else {
			wg.Go(run)
		}
	}
	wg.Wait()
	for _, f := range few {
		short = short || f
	}
	return short
}
