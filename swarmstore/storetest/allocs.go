package storetest

import (
	"runtime/debug"
	"slices"
	"testing"
)

// Allocs fails the test when f, which is called often, allocates more than want times
// a call. It skips under the race detector, whose sync.Pool forgets on purpose.
func Allocs(t *testing.T, want float64, f func()) {
	t.Helper()
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector allocates")
	}
	if got := testing.AllocsPerRun(1000, f); got > want {
		t.Errorf("%v allocations a call, want %v at most", got, want)
	}
}
