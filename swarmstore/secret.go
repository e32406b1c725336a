package swarmstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// The keys of secrets that all gateways share, as 32 hexadecimal digits each.
const (
	ConnectionSecret = "swarmgate:secret"
	DecoySecret      = "swarmgate:secret:decoys"
)

// Secret is the 16 bytes under a key that every gateway of the fleet knows and nobody else:
// those of whoever came first. Who finds none there gives its own, so that a
// Redis that lost everything gets back the one in use.
func (s *Store) Secret(ctx context.Context, key string, own [16]byte) (secret [16]byte, err error) {
	b := s.backend.Load()
	if b == nil {
		return secret, swarm.ErrUnavailable
	}
	text, err := b.client.Get(ctx, key).Result()
	if errors.Is(err, redis.Nil) {
		if err = b.client.SetNX(ctx, key, hex.EncodeToString(own[:]), 0).Err(); err == nil {
			text, err = b.client.Get(ctx, key).Result()
		}
	}
	if err == nil {
		if len(text) == hex.EncodedLen(len(secret)) {
			if _, err := hex.Decode(secret[:], []byte(text)); err == nil {
				return secret, nil
			}
		}
		err = errForeign
	}
	if isReply(err) || errors.Is(err, errForeign) {
		s.complain("", troubleOf(err), "error", err, "key", key)
	}
	return [16]byte{}, fmt.Errorf("%s: %w", key, err)
}
