package swarmstore

import (
	"bytes"
	"time"

	"github.com/cespare/xxhash/v2"

	"swarmgate/swarmstore/swarm"
)

// The keys of a swarm:
//
//	{tag}<info hash>p   sorted set  peers: compact address -> score
//	{tag}<info hash>q   sorted set  more peers of a large swarm, likewise
//	{tag}<info hash>d   string      completed downloads
//	{tag}<info hash>c   sorted set  peers whose download was counted -> Unix time
//	{tag}<info hash>m   string      who moves the swarm's peers between partitions
//	{tag}<info hash>h   string      the counts that decoys follow, with Options.Hold
//
// The tag is three characters drawn from the info hash: all keys of a small swarm lie
// in one slot of a cluster, and go in one pipeline. The hash stands in 20 raw
// bytes; a key of 26 bytes fits the allocator's class of 32.
//
// The peers of a large swarm are spread over partitions. The first is the small swarm's
// key; the others differ from it in the tag, and so lie in slots all over the cluster.
const (
	kindPeers     = 'p'
	kindPartition = 'q'
	kindDownloads = 'd'
	kindCompleted = 'c'
	kindMover     = 'm'
	kindHeld      = 'h'

	tagLen = len("{abc}")
	keyLen = tagLen + len(swarm.InfoHash{}) + 1
)

const tagAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// tagStep is how far the tags of two partitions that follow each other are apart, of 2^18;
// odd, so that none comes twice.
const tagStep = 0x1e379

// appendTag appends the hash tag that routes a partition of a swarm; that of the first
// routes all the rest of the swarm.
func appendTag(dst []byte, hash swarm.InfoHash, partition int) []byte {
	n := int(hash[0]>>2)<<12 | int(hash[1]>>2)<<6 | int(hash[2]>>2)
	n += partition * tagStep
	return append(dst, '{',
		tagAlphabet[n>>12&63],
		tagAlphabet[n>>6&63],
		tagAlphabet[n&63],
		'}')
}

// key of a swarm, other than its peers'.
func key(hash swarm.InfoHash, kind byte) []byte {
	return appendKey(make([]byte, 0, keyLen), hash, kind, 0)
}

// peersKey is the key of a partition, the first of which is all of a small swarm.
func peersKey(hash swarm.InfoHash, partition int) []byte {
	return appendKey(make([]byte, 0, keyLen), hash, kindPeers, partition)
}

func appendKey(dst []byte, hash swarm.InfoHash, kind byte, partition int) []byte {
	if partition > 0 {
		kind = kindPartition
	}
	return append(append(appendTag(dst, hash, partition), hash[:]...), kind)
}

// swarmOf is the swarm that a key tells of: that of its first partition or of its downloads. All
// other keys are of no swarm, or of one that has such a key too.
func swarmOf(k []byte) (hash swarm.InfoHash, ok bool) {
	if len(k) != keyLen || k[keyLen-1] != kindPeers && k[keyLen-1] != kindDownloads {
		return hash, false
	}
	copy(hash[:], k[tagLen:])
	var tag [tagLen]byte
	return hash, bytes.HasPrefix(k, appendTag(tag[:0], hash, 0))
}

// layout says over how many partitions a swarm is spread: two to the power of to, and
// while peers are being moved, those of two to the power of from as well. It stands in the
// first partition as the score of a member that is no peer; a swarm without is small.
type layout struct{ from, to uint8 }

const (
	layoutMember = "p"
	layoutBits   = 4
	maxLayout    = 1<<layoutBits - 1
)

func (l layout) settled() bool { return l.from == l.to }

// partitions that may hold peers.
func (l layout) partitions() int { return 1 << max(l.from, l.to) }

// place is the partition that a peer belongs to.
func (l layout) place(compact []byte) int {
	return int(xxhash.Sum64(compact) & (1<<l.to - 1))
}

// A score is 32 bits, which a listpack stores in 5 bytes: a layout, or a class and the
// second of the last announce. Classes are ranges of 2^30, in their order; the range of layouts comes
// first, so that the head of a set tells that it is a partition. Within a class newer announces come first, so that
// a small set, which Redis searches from its head, is searched briefly.
const (
	scoreBase  = -1 << 31
	scoreRange = 1 << 30
	scoreEpoch = 1577836800 // 2020-01-01; scores last until 2054
)

func (l layout) score() int64 { return scoreBase + int64(l.from)<<layoutBits + int64(l.to) }

// layoutOf tells the layout that a score stands for, if it is one.
func layoutOf(score int64) (l layout, ok bool) {
	n := score - scoreBase
	if n < 0 || n >= 1<<(2*layoutBits) {
		return layout{}, false
	}
	return layout{uint8(n >> layoutBits), uint8(n & maxLayout)}, true
}

// classStart is the lowest score of a class.
func classStart(class swarm.Class) int64 { return scoreBase + (int64(class)+1)*scoreRange }

func score(class swarm.Class, at time.Time) int64 {
	age := min(max(at.Unix()-scoreEpoch, 0), scoreRange-1)
	return classStart(class) + scoreRange - 1 - age
}

// announcedAt is the time in a score.
func announcedAt(score int64) time.Time {
	return time.Unix(scoreEpoch+scoreRange-1-(score-scoreBase)%scoreRange, 0)
}

// oldest is the highest score of a class that is not stale at now.
func oldest(class swarm.Class, now time.Time, ttl time.Duration) int64 {
	return score(class, now.Add(-ttl))
}

// classOf tells the class of a score; ok is false for a score that is none of ours.
func classOf(score int64) (class swarm.Class, ok bool) {
	n := (score-scoreBase)/scoreRange - 1
	if score < classStart(0) || n >= swarm.Classes {
		return 0, false
	}
	return swarm.Class(n), true
}
