package stats

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"slices"
	"strings"

	"swarmgate/swarmstore/swarm"
)

// Summary is what a look at all swarms tells.
type Summary struct {
	Time       int64   `json:"time"` // Unix time of its end; 0: none was taken yet
	Took       float64 `json:"took"` // seconds
	Torrents   uint64  `json:"torrents"`
	Peers      uint64  `json:"peers"`
	Seeds      uint64  `json:"seeds"`
	Leechers   uint64  `json:"leechers"` // with the partial seeds
	Downloads  uint64  `json:"downloads"`
	Replicated uint64  `json:"replicated_bytes"` // by the masters, ever

	TopPeers    top `json:"top_by_peers"`
	TopSeeds    top `json:"top_by_seeds"`
	TopLeechers top `json:"top_by_leechers"`
}

// newSummary is empty, its lists too in JSON.
func newSummary() *Summary { return &Summary{TopPeers: top{}, TopSeeds: top{}, TopLeechers: top{}} }

func (s *Summary) add(e *swarm.Entry) {
	s.Torrents++
	s.Peers += uint64(e.Seeders + e.Incomplete())
	s.Seeds += uint64(e.Seeders)
	s.Leechers += uint64(e.Incomplete())
	s.Downloads += uint64(e.Downloads)
	s.TopPeers.add(e.InfoHash, e.Seeders+e.Incomplete())
	s.TopSeeds.add(e.InfoHash, e.Seeders)
	s.TopLeechers.add(e.InfoHash, e.Incomplete())
}

// topTorrents are as many as the longest list shows.
const topTorrents = 100

// top is a list of the largest swarms, the largest first.
type top []torrent

type torrent struct {
	InfoHash hash `json:"info_hash"`
	Count    int  `json:"count"`
}

func (t *top) add(h swarm.InfoHash, count int) {
	if count == 0 || len(*t) == topTorrents && count <= (*t)[topTorrents-1].Count {
		return
	}
	new := torrent{hash(h), count}
	at, _ := slices.BinarySearchFunc(*t, new, func(x, y torrent) int {
		return cmp.Or(cmp.Compare(y.Count, x.Count), bytes.Compare(x.InfoHash[:], y.InfoHash[:]))
	})
	*t = slices.Insert((*t)[:min(len(*t), topTorrents-1)], at, new)
}

// hash is written as 40 upper-case hexadecimal digits.
type hash swarm.InfoHash

func (h hash) String() string { return strings.ToUpper(hex.EncodeToString(h[:])) }

func (h hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

func (h *hash) UnmarshalText(text []byte) error {
	_, err := hex.Decode(h[:], text)
	return err
}
