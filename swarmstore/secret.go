package swarmstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// The keys of secrets that all gateways share. Each holds one secret as 32 hexadecimal
// digits, and once it was rotated another one after a space.
const (
	ConnectionSecret = "swarmgate:secret"
	DecoySecret      = "swarmgate:secret:decoys"
)

// Secrets are the one that something is made with, and another that it may have been
// made with. They are the same where there is but one.
type Secrets [2][16]byte

// Secrets under a key that every gateway of the fleet knows and nobody else:
// those of whoever came first. Who finds none there gives its own, so that a
// Redis that lost everything gets back the ones in use.
func (s *Store) Secrets(ctx context.Context, key string, own Secrets) (secrets Secrets, err error) {
	b := s.backend.Load()
	if b == nil {
		return secrets, swarm.ErrUnavailable
	}
	text, err := b.client.Get(ctx, key).Result()
	if errors.Is(err, redis.Nil) {
		if err = b.client.SetNX(ctx, key, own.text(), 0).Err(); err == nil {
			text, err = b.client.Get(ctx, key).Result()
		}
	}
	if err == nil {
		secrets, err = parseSecrets(text)
	}
	if err == nil {
		return secrets, nil
	}
	if isReply(err) || errors.Is(err, errForeign) {
		s.complain("", troubleOf(err), "error", err, "key", key)
	}
	return secrets, fmt.Errorf("%s: %w", key, err)
}

// What RotateSecret fails with besides what Redis does.
var (
	ErrNoSecret = errors.New("no gateway has shared a secret here yet")
	ErrRotating = errors.New("the secret was changed by somebody else meanwhile")
)

// RotateSecret makes fresh the secret under a key, in two steps: first it stands there as the
// other one, which all gateways accept when they look next, and after wait, in which all must
// have looked, it changes places with the one in use. That one stays good until the next
// rotation. A rotation that ends between the steps has changed nothing that anyone was given.
func (s *Store) RotateSecret(ctx context.Context, key string, fresh [16]byte, wait time.Duration) error {
	b := s.backend.Load()
	if b == nil {
		return swarm.ErrUnavailable
	}
	var announced Secrets
	err := change(ctx, b.client, key, func(now Secrets) (Secrets, error) {
		announced = Secrets{now[0], fresh}
		return announced, nil
	})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(wait):
	}
	return change(ctx, b.client, key, func(now Secrets) (Secrets, error) {
		if now != announced {
			return now, ErrRotating
		}
		return Secrets{fresh, now[0]}, nil
	})
}

// change replaces secrets by what follows from them, if nobody else does.
func change(ctx context.Context, client redis.UniversalClient, key string, next func(Secrets) (Secrets, error)) error {
	err := client.Watch(ctx, func(tx *redis.Tx) error {
		text, err := tx.Get(ctx, key).Result()
		if errors.Is(err, redis.Nil) {
			return ErrNoSecret
		}
		if err != nil {
			return err
		}
		secrets, err := parseSecrets(text)
		if err != nil {
			return err
		}
		if secrets, err = next(secrets); err != nil {
			return err
		}
		_, err = tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
			return pipe.Set(ctx, key, secrets.text(), 0).Err()
		})
		if errors.Is(err, redis.TxFailedErr) {
			return ErrRotating
		}
		return err
	}, key)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func (s Secrets) text() string {
	first := hex.EncodeToString(s[0][:])
	if s[0] == s[1] {
		return first
	}
	return first + " " + hex.EncodeToString(s[1][:])
}

func parseSecrets(text string) (s Secrets, err error) {
	first, other, two := strings.Cut(text, " ")
	if !two {
		other = first
	}
	for i, digits := range []string{first, other} {
		secret, err := hex.DecodeString(digits)
		if err != nil || len(secret) != len(s[i]) {
			return Secrets{}, errForeign
		}
		s[i] = [16]byte(secret)
	}
	return s, nil
}
