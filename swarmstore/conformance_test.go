package swarmstore_test

import (
	"testing"

	"go.uber.org/goleak"

	"swarmgate/swarmstore/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) { storetest.Run(t, start(t)) })
	}
}
