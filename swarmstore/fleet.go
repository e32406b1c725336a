package swarmstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// What the gateways of a fleet tell each other. The store does not look into it.
const (
	fleetKey   = "swarmgate:fleet"   // hash: id of a gateway -> Unix time, space, its state
	summaryKey = "swarmgate:summary" // string: what one of them found out for all
	leaderKey  = "swarmgate:leader"  // string: who does so, until it expires
)

// fleetTTL is how long a gateway is heard of after it last published.
const fleetTTL = time.Minute

// forgotten is after which what a gateway published is removed: longer, as clocks differ.
const forgotten = 10 * time.Minute

// reached is the Redis that was found, or swarm.ErrUnavailable.
func (s *Store) reached() (*backend, error) {
	if b := s.backend.Load(); b != nil {
		return b, nil
	}
	return nil, swarm.ErrUnavailable
}

// Publish tells the fleet the state of the gateway called id (HSET). It counts for a minute.
func (s *Store) Publish(ctx context.Context, now time.Time, id string, state []byte) error {
	b, err := s.reached()
	if err != nil {
		return err
	}
	_, err = b.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, fleetKey, id, append(append(strconv.AppendInt(nil, now.Unix(), 10), ' '), state...))
		p.Expire(ctx, fleetKey, fleetTTL)
		return nil
	})
	return wrap("publish", err)
}

// Leave takes back what the gateway published (HDEL).
func (s *Store) Leave(ctx context.Context, id string) error {
	b, err := s.reached()
	if err != nil {
		return err
	}
	return wrap("leave the fleet", b.client.HDel(ctx, fleetKey, id).Err())
}

// Fleet is the state of each gateway, by its id (HGETALL). States older than a minute
// are left out, and much older ones removed.
func (s *Store) Fleet(ctx context.Context, now time.Time) (map[string][]byte, error) {
	b, err := s.reached()
	if err != nil {
		return nil, err
	}
	all, err := b.client.HGetAll(ctx, fleetKey).Result()
	if err != nil {
		return nil, wrap("fleet", err)
	}
	fleet := map[string][]byte{}
	var stale []string
	for id, value := range all {
		at, state, _ := strings.Cut(value, " ")
		n, err := strconv.ParseInt(at, 10, 64)
		switch age := now.Sub(time.Unix(n, 0)).Abs(); {
		case err != nil || age > forgotten:
			stale = append(stale, id)
		case age <= fleetTTL:
			fleet[id] = []byte(state)
		}
	}
	if len(stale) > 0 {
		err = b.client.HDel(ctx, fleetKey, stale...).Err()
	}
	return fleet, wrap("fleet", err)
}

// Lead tells whether holder is the one gateway that may do what one has to do for all,
// and makes it so for ttl from now (SET NX PX, GET, PEXPIRE). A leader that dies is
// followed by another one when the ttl is over.
func (s *Store) Lead(ctx context.Context, holder string, ttl time.Duration) (bool, error) {
	b, err := s.reached()
	if err != nil {
		return false, err
	}
	first, err := b.client.SetNX(ctx, leaderKey, holder, ttl).Result()
	if err != nil || first {
		return first, wrap("lead", err)
	}
	leads, err := b.leads(ctx, holder)
	if err != nil || !leads {
		return false, err
	}
	// It may have expired since, and this prolong another's: that does no harm.
	leads, err = b.client.PExpire(ctx, leaderKey, ttl).Result()
	return leads, wrap("lead", err)
}

func (b *backend) leads(ctx context.Context, holder string) (bool, error) {
	leader, err := b.client.Get(ctx, leaderKey).Result()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	return err == nil && leader == holder, wrap("lead", err)
}

// Resign lets another gateway lead at once.
func (s *Store) Resign(ctx context.Context, holder string) error {
	b, err := s.reached()
	if err != nil {
		return err
	}
	leads, err := b.leads(ctx, holder)
	if err != nil || !leads {
		return err
	}
	return wrap("resign", b.client.Del(ctx, leaderKey).Err())
}

// PutSummary keeps what was found out for all gateways, for ttl (SET PX).
func (s *Store) PutSummary(ctx context.Context, summary []byte, ttl time.Duration) error {
	b, err := s.reached()
	if err != nil {
		return err
	}
	return wrap("summary", b.client.Set(ctx, summaryKey, summary, ttl).Err())
}

// Summary is what PutSummary kept, or nil.
func (s *Store) Summary(ctx context.Context) ([]byte, error) {
	b, err := s.reached()
	if err != nil {
		return nil, err
	}
	summary, err := b.client.Get(ctx, summaryKey).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return summary, wrap("summary", err)
}

// Replicated is how many bytes the masters have told their replicas, ever (INFO replication).
func (s *Store) Replicated(ctx context.Context) (uint64, error) {
	b, err := s.reached()
	if err != nil {
		return 0, err
	}
	var sum atomic.Uint64
	ask := func(ctx context.Context, client *redis.Client) error {
		info, err := client.Info(ctx, "replication").Bytes()
		if err != nil {
			return err
		}
		for line := range bytes.Lines(info) {
			if text, ok := bytes.CutPrefix(line, []byte("master_repl_offset:")); ok {
				n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
				if err != nil {
					return err
				}
				sum.Add(n)
			}
		}
		return nil
	}
	if b.cluster != nil {
		err = b.cluster.ForEachMaster(ctx, ask)
	} else {
		err = ask(ctx, b.single)
	}
	return sum.Load(), wrap("replication", err)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
