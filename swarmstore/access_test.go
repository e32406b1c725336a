package swarmstore_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// A change of the access list that is on too few replicas is told to be so.
func TestAccessChangesWaitForReplicas(t *testing.T) {
	nodes := storetest.Cluster(t, 3, 1)
	deny := func(replicas int) error {
		t.Helper()
		store, err := swarmstore.Open(t.Context(), swarmstore.Options{URLs: storetest.URLs(nodes...), WaitReplicas: replicas, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		return store.ChangeAccess(t.Context(), []swarm.Listed{{InfoHash: swarm.InfoHash{1}, Listing: swarm.Denied}})
	}
	storetest.Eventually(t, 20*time.Second, func() error { return deny(1) }) // when the replica has come
	if err := deny(2); err == nil || !strings.Contains(err.Error(), "replicas") {
		t.Errorf("with two replicas wanted and one there: %v", err)
	}
}
