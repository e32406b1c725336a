package swarmstore_test

import (
	"errors"
	"testing"
	"time"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

func TestImportedDownloads(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1_800_000_000, 0)
			g := start(t).Open(t, &now, func(o *swarmstore.Options) { o.ViewTTL = 0 })
			g.Put(storetest.Hash(0), storetest.Peer4(1), swarm.Completed, 0)
			const swarms = 3000 // some chunks, on all nodes
			var tallies []swarmstore.Tally
			for n := range swarms {
				tallies = append(tallies, swarmstore.Tally{InfoHash: storetest.Hash(n), Downloads: int64(n)})
			}
			tallies = append(tallies, swarmstore.Tally{InfoHash: storetest.Hash(7), Downloads: 70}, swarmstore.Tally{InfoHash: storetest.Hash(7), Downloads: 50})
			for range 2 { // the second one changes nothing
				if done, err := g.ImportDownloads(t.Context(), tallies); done != len(tallies) || err != nil {
					t.Fatalf("%d are imported, %v", done, err)
				}
				for n, want := range map[int]int{0: 1, 1: 1, 7: 70, 1500: 1500, swarms - 1: swarms - 1} {
					if got := g.Counts(storetest.Hash(n)).Downloads; got != want {
						t.Errorf("swarm %d has %d downloads, want %d", n, got, want)
					}
				}
			}
			g.Put(storetest.Hash(1500), storetest.Peer4(1), swarm.Completed, 0)
			if got := g.Counts(storetest.Hash(1500)).Downloads; got != 1501 {
				t.Errorf("one more makes %d", got)
			}
			g.Pass(26 * time.Hour) // the downloads TTL is 24
			if got := g.Counts(storetest.Hash(8)).Downloads; got != 0 {
				t.Errorf("after their TTL there are %d downloads", got)
			}
		})
	}
}

func TestImportWithoutRedis(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	g := (&storetest.Backend{URLs: []string{"redis://127.0.0.1:1"}}).Open(t, &now, nil)
	done, err := g.ImportDownloads(t.Context(), []swarmstore.Tally{{Downloads: 1}})
	if done != 0 || !errors.Is(err, swarm.ErrUnavailable) {
		t.Errorf("%d are imported, %v", done, err)
	}
}
