package swarmstore_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
)

// knownReplicas starts a cluster of masters, each with a replica that all nodes know of. The masters come first.
func knownReplicas(t *testing.T) []*storetest.Process {
	t.Helper()
	nodes := storetest.Cluster(t, 3, 1)
	for _, p := range nodes {
		c := redis.NewClient(&redis.Options{Addr: p.Addr})
		defer c.Close()
		storetest.Eventually(t, 20*time.Second, func() error {
			shards, err := c.ClusterShards(t.Context()).Result()
			for _, s := range shards {
				if len(shards) != 3 || len(s.Nodes) != 2 {
					err = fmt.Errorf("%s does not know all replicas", p.Addr)
				}
			}
			return err
		})
		storetest.Eventually(t, 20*time.Second, func() error {
			info, err := c.Info(t.Context(), "replication").Result()
			if err == nil && strings.Contains(info, "role:slave") && !strings.Contains(info, "master_link_status:up") {
				err = errors.New("a replica has no link to its master")
			}
			return err
		})
	}
	return nodes
}

// replicated is a cluster whose stores read from replicas, which have what an answer was given for.
func replicated(t *testing.T) *storetest.Backend {
	nodes := knownReplicas(t)
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
