package swarmstore_test

import (
	"testing"

	"go.uber.org/goleak"

	"swarmgate/swarmstore/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	backends := storetest.Backends()
	backends["replicas"] = replicated
	for name, start := range backends {
		t.Run(name, func(t *testing.T) { storetest.Run(t, start(t)) })
	}
}
