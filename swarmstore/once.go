package swarmstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/dchest/siphash"

	"swarmgate/swarmstore/swarm"
)

// oncePrefix and a MAC of an address begin the keys of those who may not do something again yet.
const (
	oncePrefix = "swarmgate:once:"
	onceSecret = "swarmgate:secret:once"
)

// clientBits6 is how much of an IPv6 address tells one client from another, who has all of the rest.
const clientBits6 = 64

// Once lets a client do something once within a window, on whichever gateway (SET with NX and PX). Wait is 0 if it
// may now, and else how long it has to wait. Which address a key stands for only the fleet can tell.
func (s *Store) Once(ctx context.Context, what string, client netip.Addr, window time.Duration) (wait time.Duration, err error) {
	b := s.backend.Load()
	if b == nil {
		return 0, swarm.ErrUnavailable
	}
	key, err := s.onceKey(ctx, what, client)
	if err != nil {
		return 0, err
	}
	if wait = s.refusals.left(key); wait > 0 {
		return wait, nil
	}
	first, err := b.client.SetNX(ctx, key, "", window).Result()
	if err == nil && !first {
		wait, err = b.client.PTTL(ctx, key).Result()
		wait = max(wait, time.Second) // it may have expired meanwhile
		s.refusals.put(key, wait)
	}
	if err != nil {
		return 0, fmt.Errorf("once: %w", err)
	}
	return wait, nil
}

// NotOnce takes back what Once allowed and then did not happen.
func (s *Store) NotOnce(ctx context.Context, what string, client netip.Addr) error {
	b := s.backend.Load()
	if b == nil {
		return swarm.ErrUnavailable
	}
	key, err := s.onceKey(ctx, what, client)
	if err == nil {
		s.refusals.forget(key)
		err = b.client.Del(ctx, key).Err()
	}
	if err != nil {
		return fmt.Errorf("once: %w", err)
	}
	return nil
}

func (s *Store) onceKey(ctx context.Context, what string, client netip.Addr) (string, error) {
	secret := s.once.Load()
	if secret == nil {
		var own Secrets
		_, _ = rand.Read(own[0][:])
		own[1] = own[0]
		shared, err := s.Secrets(ctx, onceSecret, own)
		if err != nil {
			return "", err
		}
		secret = &shared[0]
		s.once.Store(secret)
	}
	if client.Is6() {
		prefix, _ := client.Prefix(clientBits6)
		client = prefix.Addr()
	}
	mac := siphash.Hash(binary.LittleEndian.Uint64(secret[:]), binary.LittleEndian.Uint64(secret[8:]), client.AsSlice())
	return oncePrefix + what + ":" + strconv.FormatUint(mac, 36), nil
}

// refusals are who was refused a moment ago, so that a flood of those asks Redis no more.
type refusals struct {
	mu    sync.Mutex
	until map[string]time.Time // by key
}

const maxRefusals = 1 << 14

func (r *refusals) left(key string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(0, time.Until(r.until[key]))
}

func (r *refusals) put(key string, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until == nil || len(r.until) >= maxRefusals {
		r.until = map[string]time.Time{}
	}
	r.until[key] = time.Now().Add(wait)
}

func (r *refusals) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.until, key)
}
