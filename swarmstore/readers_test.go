package swarmstore_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
)

// replicated is a cluster whose stores read from replicas, which have what an answer was given for.
func replicated(t *testing.T) *storetest.Backend {
	nodes := storetest.Cluster(t, 3, 1)
	b := storetest.Real(t, nodes[:3]...)
	b.ReadsApart = true
	b.Set = func(o *swarmstore.Options) { o.ReadFrom, o.WaitReplicas = swarmstore.ReadReplica, 1 }
	// What the test changes by itself is on the replicas before it goes on.
	advance, reset := b.Advance, b.Reset
	clients := admins(t, b)
	acknowledged := func() {
		for _, c := range clients {
			for n := 0; ; n++ {
				pipe, key := c.Pipeline(), strconv.Itoa(n)
				pipe.Set(t.Context(), key, "", 0)
				pipe.Del(t.Context(), key)
				acks := pipe.Do(t.Context(), "wait", 1, 5000)
				_, err := pipe.Exec(t.Context())
				if err != nil && strings.HasPrefix(err.Error(), "MOVED") {
					continue // to a key that is this master's
				}
				if err != nil || acks.Val() == int64(0) {
					t.Errorf("a replica does not follow: %v, %v", acks.Val(), err)
				}
				break
			}
		}
	}
	b.Advance = func(d time.Duration) { advance(d); acknowledged() }
	b.Reset = func() { reset(); acknowledged() }
	return b
}

func TestNearest(t *testing.T) {
	trips := map[string]time.Duration{"far": 80 * time.Millisecond, "near": 2 * time.Millisecond, "as near": 1900 * time.Microsecond}
	for _, c := range []struct {
		now        string
		candidates []string
		want       string
	}{
		{"far", []string{"far", "near"}, "near"},
		{"near", []string{"far", "near"}, "near"},
		{"near", []string{"as near", "near"}, "near"}, // it stays
		{"master", []string{"near", "as near"}, "near"},
		{"far", []string{"near"}, "near"},        // the master is no candidate
		{"dead", []string{"dead", "far"}, "far"}, // it may not be read from any more
		{"dead", []string{"dead", "behind"}, ""}, // none may
		{"far", []string{"dead", "far"}, "far"},
		{"gone", []string{"far"}, "far"},
	} {
		if got := swarmstore.Nearest(c.now, c.candidates, trips); got != c.want {
			t.Errorf("after %s, of %v %q is the nearest, not %q", c.now, c.candidates, got, c.want)
		}
	}
}
