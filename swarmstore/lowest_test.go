package swarmstore

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"swarmgate/swarmstore/swarm"
)

// Rounds hand on what sorting all at once does, wherever they are cut.
func TestRounds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		spread := []int{2, 5, 256}[rnd.IntN(3)] // of the first byte
		var all []swarm.InfoHash
		for range rnd.IntN(3000) {
			all = append(all, swarm.InfoHash{0: byte(rnd.IntN(spread)), 1: byte(rnd.IntN(8)), 19: byte(rnd.IntN(256))})
		}
		want := slices.Clone(all)
		slices.SortFunc(want, func(a, b swarm.InfoHash) int { return bytes.Compare(a[:], b[:]) })
		want = slices.Compact(want)

		l := lowest{most: 1 + rnd.IntN(1000)}
		var got []swarm.InfoHash
		for more := true; more; more = l.next() {
			rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			for _, hash := range all {
				l.add(hash)
				if len(l.hashes) >= 2*l.most {
					if err := l.cut(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := l.cut(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(l.hashes) > l.most {
				t.Fatalf("a round of %d has %d hashes", l.most, len(l.hashes))
			}
			got = append(got, l.hashes...)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%d hashes of %d in rounds of %d", len(got), len(want), l.most)
		}
	}
}
