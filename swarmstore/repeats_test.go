package swarmstore

import (
	"net/netip"
	"testing"
	"time"

	"swarmgate/swarmstore/swarm"
)

func TestRepeats(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	r := newRepeats(2 * time.Minute)
	a := &swarm.Announce{InfoHash: swarm.InfoHash{1}, Peer: netip.MustParseAddrPort("10.0.0.1:1"), Left: 5}
	want := func(known bool, at time.Duration) {
		t.Helper()
		if r.has(a, now.Add(at)) != known {
			t.Errorf("after %v known is %v", at, !known)
		}
	}
	want(false, 0)
	r.put(a, now)
	want(true, 0)
	want(true, 2*time.Minute-time.Second)
	want(false, 2*time.Minute)
	want(false, -time.Second)
	a.Left = 0
	want(false, 0)
	a.Left = 5
	r.forget(a)
	want(false, 0)
	r.put(a, now)
	r.forgetAll()
	want(false, 0)

	// A table that is off remembers nothing and takes everything.
	r = newRepeats(0)
	r.put(a, now)
	r.forget(a)
	r.forgetAll()
	want(false, 0)
}

func TestRepeatsTakeNoMemory(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	r := newRepeats(time.Minute)
	a := &swarm.Announce{Peer: netip.MustParseAddrPort("[2001:db8::1]:1")}
	if n := testing.AllocsPerRun(100, func() { r.put(a, now); r.has(a, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
