package swarmstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// The keys of the access list, which lie in one slot, so that a change and the note of it
// are one transaction:
//
//	swarmgate:{access}:0 to 255  hash  raw info hash -> what the list says of it, one character
//	swarmgate:{access}           hash  0 to 255, and "all" -> a text that differs after each change;
//	                                   "generation" -> one of chance since the first change
//
// A hash holds what begins with one byte: of a million info hashes some 4,000, which are read
// and replaced without holding Redis up.
const (
	accessKey        = "swarmgate:{access}"
	accessAll        = "all"
	accessGeneration = "generation"
)

func accessPart(first byte) string { return accessKey + ":" + strconv.Itoa(int(first)) }

// What stands for an info hash. A command's word outlasts that of the file.
var (
	commanded = map[swarm.Listing]string{swarm.Denied: "d", swarm.Allowed: "a"}
	filed     = map[swarm.Listing]string{swarm.Denied: "D", swarm.Allowed: "A"}
)

func listingOf(value string) swarm.Listing {
	switch value {
	case "d", "D":
		return swarm.Denied
	case "a", "A":
		return swarm.Allowed
	}
	return swarm.Unlisted
}

// AccessVersion is another text after each change of the access list, and generation another one
// when the list was lost and begun anew (HMGET). Both are empty when there is none.
func (s *Store) AccessVersion(ctx context.Context) (version, generation string, err error) {
	b := s.backend.Load()
	if b == nil {
		return "", "", swarm.ErrUnavailable
	}
	values, err := b.client.HMGet(ctx, accessKey, accessAll, accessGeneration).Result()
	if err != nil {
		return "", "", fmt.Errorf("access list: %w", err)
	}
	version, _ = values[0].(string)
	generation, _ = values[1].(string)
	return version, generation, nil
}

// AccessVersions are other texts after each change for the info hashes that begin with each byte (HGETALL).
func (s *Store) AccessVersions(ctx context.Context) (versions [256]string, err error) {
	b := s.backend.Load()
	if b == nil {
		return versions, swarm.ErrUnavailable
	}
	all, err := b.client.HGetAll(ctx, accessKey).Result()
	if err != nil {
		return versions, fmt.Errorf("access list: %w", err)
	}
	for first := range versions {
		versions[first] = all[strconv.Itoa(first)]
	}
	return versions, nil
}

// Access is what the list says of the info hashes that begin with first, in no order (HGETALL).
func (s *Store) Access(ctx context.Context, first byte) ([]swarm.Listed, error) {
	b := s.backend.Load()
	if b == nil {
		return nil, swarm.ErrUnavailable
	}
	values, err := b.client.HGetAll(ctx, accessPart(first)).Result()
	if err != nil {
		return nil, fmt.Errorf("access list: %w", err)
	}
	list := make([]swarm.Listed, 0, len(values))
	for hash, value := range values {
		if l := listingOf(value); l != swarm.Unlisted && len(hash) == len(swarm.InfoHash{}) {
			list = append(list, swarm.Listed{InfoHash: swarm.InfoHash([]byte(hash)), Listing: l, Filed: value == filed[l]})
		}
	}
	return list, nil
}

// ChangeAccess makes the list say what it is told, as a command's word, Unlisted meaning nothing. Of two words on
// one info hash the later one counts. After an error a part of the changes may be made; to
// make them again does no harm.
func (s *Store) ChangeAccess(ctx context.Context, changes []swarm.Listed) error {
	var parts [256][]accessEdit
	for _, c := range changes {
		first := c.InfoHash[0]
		parts[first] = append(parts[first], accessEdit{string(c.InfoHash[:]), commanded[c.Listing]})
	}
	for first, edits := range parts {
		if len(edits) == 0 {
			continue
		}
		err := s.editAccess(ctx, byte(first), func(*redis.Tx) ([]accessEdit, error) { return edits, nil })
		if err != nil {
			return err
		}
	}
	return nil
}

// RestoreAccess makes the list say again what it said of info hashes that begin with first, where it
// says nothing now.
func (s *Store) RestoreAccess(ctx context.Context, first byte, said []swarm.Listed) error {
	return s.editAccess(ctx, first, func(tx *redis.Tx) (edits []accessEdit, err error) {
		listed, err := tx.HGetAll(ctx, accessPart(first)).Result()
		for _, l := range said {
			hash, words := string(l.InfoHash[:]), commanded
			if l.Filed {
				words = filed
			}
			if listed[hash] == "" {
				edits = append(edits, accessEdit{hash, words[l.Listing]})
			}
		}
		return edits, err
	})
}

// SetAccessFile makes hashes all that the access file says: what it said before and says no
// more is listed no more, and what a command has said of an info hash stays. hashes is sorted.
func (s *Store) SetAccessFile(ctx context.Context, listing swarm.Listing, hashes []swarm.InfoHash) error {
	for first := range 256 {
		n := 0
		for n < len(hashes) && int(hashes[n][0]) == first {
			n++
		}
		part := hashes[:n]
		hashes = hashes[n:]
		err := s.editAccess(ctx, byte(first), func(tx *redis.Tx) ([]accessEdit, error) {
			listed, err := tx.HGetAll(ctx, accessPart(byte(first))).Result()
			return fileEdits(listed, filed[listing], part), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// fileEdits are the changes that make hashes all that the file says, with value for each.
func fileEdits(listed map[string]string, value string, hashes []swarm.InfoHash) (edits []accessEdit) {
	for i := range hashes {
		hash := string(hashes[i][:])
		switch old := listed[hash]; old {
		case filed[swarm.Denied], filed[swarm.Allowed], "":
			if old != value {
				edits = append(edits, accessEdit{hash, value})
			}
		}
		delete(listed, hash)
	}
	for hash, old := range listed {
		if old == filed[swarm.Denied] || old == filed[swarm.Allowed] {
			edits = append(edits, accessEdit{hash, ""})
		}
	}
	return edits
}

// accessEdit gives an info hash a value, or takes it from the list when that is empty.
type accessEdit struct{ hash, value string }

// editAccess changes the part of the list that begins with first, in a transaction (WATCH,
// MULTI): decide is asked again when somebody else has changed the part meanwhile.
func (s *Store) editAccess(ctx context.Context, first byte, decide func(*redis.Tx) ([]accessEdit, error)) error {
	b := s.backend.Load()
	if b == nil {
		return swarm.ErrUnavailable
	}
	key := accessPart(first)
	edit := func(tx *redis.Tx) error {
		edits, err := decide(tx)
		if err != nil || len(edits) == 0 {
			return err
		}
		// Of chance, so that two changes never have the same one, also when a failover undid the
		// first of them.
		version := chance()
		_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
			for _, e := range edits {
				if e.value == "" {
					p.HDel(ctx, key, e.hash)
				} else {
					p.HSet(ctx, key, e.hash, e.value)
				}
			}
			p.HSet(ctx, accessKey, strconv.Itoa(int(first)), version, accessAll, version)
			p.HSetNX(ctx, accessKey, accessGeneration, chance())
			return nil
		})
		if err != nil || s.opt.WaitReplicas == 0 {
			return err
		}
		acks, err := tx.Wait(ctx, s.opt.WaitReplicas, replicaTimeout).Result()
		if err == nil && int(acks) < s.opt.WaitReplicas {
			err = errReplicas
		}
		return err
	}
	for {
		err := b.client.Watch(ctx, edit, key)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, redis.TxFailedErr):
			return fmt.Errorf("access list: %w", err)
		}
	}
}

func chance() string { return strconv.FormatUint(rand.Uint64(), 36) }
