package storetest

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"testing"

	"swarmgate/swarmstore/swarm"
)

// accessList is all that is listed.
func (g *Gateway) accessList() map[swarm.InfoHash]swarm.Listing {
	g.t.Helper()
	all := map[swarm.InfoHash]swarm.Listing{}
	for first := range 256 {
		list, err := g.Access(g.t.Context(), byte(first))
		must(g.t, err)
		for _, l := range list {
			if l.InfoHash[0] != byte(first) {
				g.t.Errorf("%x is listed under %02x", l.InfoHash, first)
			}
			all[l.InfoHash] = l.Listing
		}
	}
	return all
}

func (g *Gateway) wantAccess(want map[swarm.InfoHash]swarm.Listing) {
	g.t.Helper()
	if got := g.accessList(); !maps.Equal(got, want) {
		g.t.Errorf("listed are %v, want %v", got, want)
	}
}

// accessVersions tells the version of all, and of what begins like hash.
func (g *Gateway) accessVersions(hash swarm.InfoHash) (all, part string) {
	g.t.Helper()
	all, _, err := g.AccessVersion(g.t.Context())
	must(g.t, err)
	parts, err := g.AccessVersions(g.t.Context())
	must(g.t, err)
	return all, parts[hash[0]]
}

// sortedHashes are the info hashes from one to another, as a file brings them.
func sortedHashes(from, to int) (hashes []swarm.InfoHash) {
	for n := from; n < to; n++ {
		hashes = append(hashes, Hash(n))
	}
	slices.SortFunc(hashes, func(a, b swarm.InfoHash) int { return bytes.Compare(a[:], b[:]) })
	return hashes
}

func lastWordOnAccess(t *testing.T, g *Gateway) {
	ctx := t.Context()
	if all, part := g.accessVersions(Hash(1)); all != "" || part != "" {
		t.Errorf("without a list the versions are %q and %q", all, part)
	}
	zeros := swarm.InfoHash{}
	must(t, g.ChangeAccess(ctx, []swarm.Listed{
		{InfoHash: Hash(1), Listing: swarm.Denied}, {InfoHash: Hash(2), Listing: swarm.Allowed},
		{InfoHash: Hash(3), Listing: swarm.Denied}, {InfoHash: Hash(3), Listing: swarm.Unlisted},
		{InfoHash: zeros, Listing: swarm.Denied},
	}))
	g.wantAccess(map[swarm.InfoHash]swarm.Listing{Hash(1): swarm.Denied, Hash(2): swarm.Allowed, zeros: swarm.Denied})
	all, part := g.accessVersions(Hash(1))
	_, other := g.accessVersions(Hash(2))

	must(t, g.ChangeAccess(ctx, []swarm.Listed{{InfoHash: Hash(1), Listing: swarm.Allowed}, {InfoHash: zeros}}))
	g.wantAccess(map[swarm.InfoHash]swarm.Listing{Hash(1): swarm.Allowed, Hash(2): swarm.Allowed})
	all2, part2 := g.accessVersions(Hash(1))
	_, other2 := g.accessVersions(Hash(2))
	if all == "" || all2 == all || part == "" || part2 == part || other2 != other {
		t.Errorf("versions were %q, %q, %q, and are %q, %q, %q", all, part, other, all2, part2, other2)
	}

	must(t, g.ChangeAccess(ctx, []swarm.Listed{{InfoHash: Hash(1)}, {InfoHash: Hash(2)}}))
	g.wantAccess(nil)
	if all3, _ := g.accessVersions(Hash(1)); all3 == "" || all3 == all2 {
		t.Errorf("the version of the emptied list is %q", all3)
	}
}

func fileOnAccess(t *testing.T, g *Gateway) {
	ctx := t.Context()
	must(t, g.ChangeAccess(ctx, []swarm.Listed{
		{InfoHash: Hash(1), Listing: swarm.Denied}, {InfoHash: Hash(2), Listing: swarm.Allowed},
	}))
	must(t, g.SetAccessFile(ctx, swarm.Denied, sortedHashes(1, 5)))
	g.wantAccess(map[swarm.InfoHash]swarm.Listing{
		Hash(1): swarm.Denied, Hash(2): swarm.Allowed, Hash(3): swarm.Denied, Hash(4): swarm.Denied,
	})

	all, _ := g.accessVersions(Hash(1))
	must(t, g.SetAccessFile(ctx, swarm.Denied, sortedHashes(1, 5)))
	if again, _ := g.accessVersions(Hash(1)); again != all {
		t.Error("a file that says the same changes the list")
	}

	// What a command said outlasts the file.
	must(t, g.ChangeAccess(ctx, []swarm.Listed{{InfoHash: Hash(3), Listing: swarm.Denied}}))
	must(t, g.SetAccessFile(ctx, swarm.Denied, sortedHashes(5, 7)))
	g.wantAccess(map[swarm.InfoHash]swarm.Listing{
		Hash(1): swarm.Denied, Hash(2): swarm.Allowed, Hash(3): swarm.Denied, Hash(5): swarm.Denied, Hash(6): swarm.Denied,
	})
	must(t, g.SetAccessFile(ctx, swarm.Allowed, sortedHashes(6, 8)))
	g.wantAccess(map[swarm.InfoHash]swarm.Listing{
		Hash(1): swarm.Denied, Hash(2): swarm.Allowed, Hash(3): swarm.Denied, Hash(6): swarm.Allowed, Hash(7): swarm.Allowed,
	})
	must(t, g.SetAccessFile(ctx, swarm.Allowed, nil))
	g.wantAccess(map[swarm.InfoHash]swarm.Listing{
		Hash(1): swarm.Denied, Hash(2): swarm.Allowed, Hash(3): swarm.Denied,
	})
}

// A list that was lost gets another generation, and what it said can be said again.
func restoreAccess(t *testing.T, g *Gateway) {
	ctx := t.Context()
	generation := func() string {
		t.Helper()
		_, generation, err := g.AccessVersion(ctx)
		must(t, err)
		return generation
	}
	if first := generation(); first != "" {
		t.Errorf("without a list its generation is %q", first)
	}
	first := func(n byte) swarm.InfoHash { return swarm.InfoHash{7, n} }
	must(t, g.ChangeAccess(ctx, []swarm.Listed{{InfoHash: first(1), Listing: swarm.Denied}}))
	before := generation()
	must(t, g.SetAccessFile(ctx, swarm.Denied, []swarm.InfoHash{first(1), first(2)}))
	if before == "" || generation() != before {
		t.Errorf("the generation was %q, and is %q after a change", before, generation())
	}
	said, err := g.Access(ctx, 7)
	must(t, err)
	g.backend.Reset()

	must(t, g.ChangeAccess(ctx, []swarm.Listed{{InfoHash: first(1), Listing: swarm.Allowed}, {InfoHash: first(3), Listing: swarm.Denied}}))
	if after := generation(); after == "" || after == before {
		t.Errorf("the generation was %q, and is %q when the list was lost", before, after)
	}
	must(t, g.RestoreAccess(ctx, 7, said))
	g.wantAccess(map[swarm.InfoHash]swarm.Listing{first(1): swarm.Allowed, first(2): swarm.Denied, first(3): swarm.Denied})
	must(t, g.SetAccessFile(ctx, swarm.Denied, nil)) // it was the file's word
	g.wantAccess(map[swarm.InfoHash]swarm.Listing{first(1): swarm.Allowed, first(3): swarm.Denied})
}

// Commands and files change the same parts of the list, all at once.
func manyChangeAccess(t *testing.T, g *Gateway) {
	const writers, each = 8, 10
	hash := func(writer, n int) swarm.InfoHash { return swarm.InfoHash{7, byte(writer), byte(n)} }
	file := []swarm.InfoHash{hash(writers, 0), hash(writers, 1)}
	want := map[swarm.InfoHash]swarm.Listing{file[0]: swarm.Denied, file[1]: swarm.Denied}
	for w := range writers {
		for n := range each {
			want[hash(w, n)] = swarm.Denied
		}
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				if err := g.ChangeAccess(t.Context(), []swarm.Listed{{InfoHash: hash(w, n), Listing: swarm.Denied}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for n := range 3 {
				if err := g.SetAccessFile(t.Context(), swarm.Denied, file[:n]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, g.SetAccessFile(t.Context(), swarm.Denied, file))
	g.wantAccess(want)
}
