package main

import (
	"crypto/sha1"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"sort"

	"swarmgate/swarmstore/swarm"
)

// Work is who announces what.
type Work struct {
	Torrents      int
	Zipf          float64
	Each          bool // every torrent has as many peers
	Peers         int
	Addresses     int
	IPv6          bool // the addresses are
	NumWant       int
	SeederPercent int
	Seed          uint64

	torrent []uint32 // of each peer
	hashes  []swarm.InfoHash
}

// hashOf the nth torrent.
func hashOf(n int) swarm.InfoHash { return sha1.Sum(fmt.Appendf(nil, "swarmgate torrent %d", n)) }

// draw each peer's torrent.
func (w *Work) draw() {
	r := rand.New(rand.NewPCG(w.Seed, 0))
	w.hashes = make([]swarm.InfoHash, w.Torrents)
	sums := make([]float64, w.Torrents)
	sum := 0.0
	for n := range sums {
		w.hashes[n] = hashOf(n)
		sum += math.Pow(float64(n+1), -w.Zipf)
		sums[n] = sum
	}
	w.torrent = make([]uint32, w.Peers)
	for p := range w.torrent {
		if w.Each {
			w.torrent[p] = uint32(p % w.Torrents)
			continue
		}
		w.torrent[p] = uint32(min(sort.SearchFloat64s(sums, r.Float64()*sum), w.Torrents-1))
	}
}

// peer n of all.
type peer struct {
	hash   swarm.InfoHash
	port   uint16
	seeder bool
}

func (w *Work) peer(n int) peer {
	// Stirred, so that seeders are spread over torrents and addresses, which both count peers round.
	stirred := uint32(n+1) * 2654435769 >> 16
	return peer{w.hashes[w.torrent[n]], uint16(500 + n/w.Addresses), int(stirred%100) < w.SeederPercent}
}

// each numbers the peers of an address, which are every w.Addresses-th from it.
func (w *Work) each(address int) int { return (w.Peers - address + w.Addresses - 1) / w.Addresses }

// random peer of an address.
func (w *Work) random(r *rand.Rand, address int) peer {
	return w.peer(address + w.Addresses*r.IntN(w.each(address)))
}

// address n, of 127.1.0.0/16 or fd53::/64.
func (w *Work) address(n int) net.IP {
	a, b := byte(1+n/250), byte(1+n%250)
	if w.IPv6 {
		return net.IP{0: 0xfd, 1: 0x53, 14: a, 15: b}
	}
	return net.IPv4(127, 1, a, b)
}

// peerSize is what a compact peer takes in an answer.
func (w *Work) peerSize() int {
	if w.IPv6 {
		return swarm.Size6
	}
	return swarm.Size4
}
