package swarmstore

import (
	"time"

	"swarmgate/swarmstore/swarm"
)

// The keys of a swarm:
//
//	{tag}<info hash>4   sorted set  IPv4 peers: compact address -> score
//	{tag}<info hash>6   sorted set  IPv6 peers: compact address -> score
//	{tag}<info hash>d   string      completed downloads
//	{tag}<info hash>c   sorted set  peers whose download was counted -> Unix time
//
// The tag is three characters drawn from the info hash: all keys of a swarm lie
// in one slot of a cluster, and go in one pipeline. The hash stands in 20 raw
// bytes; a key of 26 bytes fits the allocator's class of 32 with 2 to spare, which
// a partition's number is to take.
const (
	kindPeers4    = '4'
	kindPeers6    = '6'
	kindDownloads = 'd'
	kindCompleted = 'c'

	tagLen = len("{abc}")
	keyLen = tagLen + len(swarm.InfoHash{}) + 1
)

const tagAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// appendTag appends the hash tag that routes all keys of a swarm.
func appendTag(dst []byte, hash swarm.InfoHash) []byte {
	return append(dst, '{',
		tagAlphabet[hash[0]>>2],
		tagAlphabet[hash[1]>>2],
		tagAlphabet[hash[2]>>2],
		'}')
}

func key(hash swarm.InfoHash, kind byte) []byte {
	return appendKey(make([]byte, 0, keyLen), hash, kind)
}

func appendKey(dst []byte, hash swarm.InfoHash, kind byte) []byte {
	return append(append(appendTag(dst, hash), hash[:]...), kind)
}

// peersKind is the kind of key that a compact peer of this size is kept under.
func peersKind(size int) byte {
	if size == swarm.Size4 {
		return kindPeers4
	}
	return kindPeers6
}

// A score is a class and the second of the last announce in one 32-bit integer,
// which a listpack stores in 5 bytes. Classes are ranges of 2^30, in their order;
// within a range newer announces come first, so that a small set, which Redis
// searches from its head, is searched briefly.
const (
	scoreBase  = -1 << 31
	scoreRange = 1 << 30
	scoreEpoch = 1577836800 // 2020-01-01; scores last until 2054
)

// classStart is the lowest score of a class.
func classStart(class swarm.Class) int64 { return scoreBase + int64(class)*scoreRange }

func score(class swarm.Class, at time.Time) int64 {
	age := min(max(at.Unix()-scoreEpoch, 0), scoreRange-1)
	return classStart(class) + scoreRange - 1 - age
}

// oldest is the highest score of a class that is not stale at now.
func oldest(class swarm.Class, now time.Time, ttl time.Duration) int64 {
	return score(class, now.Add(-ttl))
}

// classOf tells the class of a score; ok is false for a score that is none of ours.
func classOf(score int64) (class swarm.Class, ok bool) {
	n := (score - scoreBase) / scoreRange
	if score < scoreBase || n >= swarm.Classes {
		return 0, false
	}
	return swarm.Class(n), true
}
