package swarmstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore/swarm"
)

// Key of a swarm, for the tests outside of the package.
func Key(hash swarm.InfoHash, kind byte) string { return string(key(hash, kind)) }

func TestKeysOfASwarmShareASlot(t *testing.T) {
	hash := swarm.InfoHash{0: 0xff, 1: 0x7b, 2: 0x7d, 3: '}', 4: '{'}
	tag := string(appendTag(nil, hash, 0))
	for _, kind := range []byte{kindPeers, kindDownloads, kindCompleted, kindMover, kindHeld} {
		k := string(key(hash, kind))
		if !strings.HasPrefix(k, tag) || len(k) != keyLen || strings.IndexByte(tag, '}') != tagLen-1 {
			t.Errorf("key %q with tag %q", k, tag)
		}
	}
}

func TestScores(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for class := range swarm.Class(swarm.Classes) {
		for _, at := range []time.Time{time.Unix(0, 0), now, now.Add(time.Second), time.Unix(1<<33, 0)} {
			s := score(class, at)
			if s != int64(int32(s)) {
				t.Errorf("score %d of class %d has more than 32 bits", s, class)
			}
			if got, ok := classOf(s); !ok || got != class {
				t.Errorf("score %d of class %d is of class %d", s, class, got)
			}
		}
		if score(class, now.Add(time.Second)) >= score(class, now) {
			t.Error("a newer score does not come first")
		}
		ttl := time.Minute
		if score(class, now.Add(-ttl)) > oldest(class, now, ttl) || score(class, now.Add(-ttl-time.Second)) <= oldest(class, now, ttl) {
			t.Error("the oldest score is not a peer TTL old")
		}
	}
	for _, s := range []int64{scoreBase - 1, layout{3, 4}.score(), classStart(0) - 1, classStart(swarm.Classes)} {
		if _, ok := classOf(s); ok {
			t.Errorf("score %d has a class", s)
		}
	}
}

func TestPartitions(t *testing.T) {
	hash := swarm.InfoHash{0: 0xff, 1: 0x7b, 2: 0x7d, 3: '}', 4: '{'}
	keys := map[string]bool{}
	tags := map[string]bool{}
	for n := range 1 << maxLayout {
		k := string(peersKey(hash, n))
		if keys[k] || len(k) != keyLen || strings.IndexByte(k, '}') != tagLen-1 {
			t.Fatalf("partition %d is %q", n, k)
		}
		keys[k], tags[k[:tagLen]] = true, true
	}
	if len(tags) != 1<<maxLayout {
		t.Errorf("%d partitions have %d tags", 1<<maxLayout, len(tags))
	}
	for _, l := range []layout{{}, {0, 1}, {15, 15}, {7, 2}} {
		if got, ok := layoutOf(l.score()); !ok || got != l || l.score() != int64(int32(l.score())) || l.score() >= classStart(0) {
			t.Errorf("%v comes back as %v", l, got)
		}
	}
	for _, s := range []int64{scoreBase - 1, scoreBase + 1<<(2*layoutBits), classStart(0)} {
		if l, ok := layoutOf(s); ok {
			t.Errorf("score %d is the layout %v", s, l)
		}
	}
	// Doubling the partitions splits each in two, of about the same size.
	counts := make([]int, 16)
	for n := range 16_000 {
		peer := []byte{10, 0, byte(n >> 8), byte(n), 0x1a, 0xe1}
		at := layout{4, 4}.place(peer)
		counts[at]++
		if twice := (layout{4, 5}).place(peer); twice%16 != at {
			t.Fatalf("a peer of partition %d goes to %d", at, twice)
		}
	}
	for at, n := range counts {
		if n < 850 || n > 1150 {
			t.Errorf("partition %d has %d of 16,000 peers", at, n)
		}
	}
}

func FuzzParsePeers(f *testing.F) {
	f.Add([]byte("*4\r\n$6\r\nabcdef\r\n$11\r\n-2147483648\r\n$6\r\n\r\n$1\r\n\r\n$1\r\n1\r\n"))
	f.Add([]byte("*0\r\n"))
	f.Add([]byte("-MOVED 1 127.0.0.1:1\r\n"))
	f.Add([]byte("*2\r\n$-1\r\n$99999999999999999999\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		held := 0
		err := parsePeers(raw, func(member []byte, _ int64) { held += len(member) + len("$0\r\n\r\n$1\r\n0\r\n") })
		if err == nil && held > len(raw) {
			t.Fatalf("%d bytes of reply hold %d", len(raw), held)
		}
		held = 0
		if parseMembers(raw, func(member []byte) { held += len(member) + len("$0\r\n\r\n") }) == nil && held > len(raw) {
			t.Fatalf("%d bytes of reply hold %d of members", len(raw), held)
		}
	})
}

func TestParsePeers(t *testing.T) {
	for _, test := range []struct {
		raw, want string
		ok        bool
	}{
		{"*0\r\n", "", true},
		{"*4\r\n$6\r\nabcdef\r\n$11\r\n-2147483648\r\n$6\r\nab\r\nef\r\n$1\r\n7\r\n", `"abcdef" -2147483648, "ab\r\nef" 7, `, true},
		{"*2\r\n$6\r\nabcdef\r\n$3\r\n1.5\r\n", "", false},
		{"*2\r\n$6\r\nabcdef\r\n", "", false},
		{"*1\r\n$6\r\nabcdef\r\n", "", false},
		{"*2\r\n$7\r\nabcdef\r\n$1\r\n1\r\n", "", false},
		{"*0\r\nx", "", false},
		{"*-1\r\n", "", false},
		{"", "", false},
		{":1\r\n", "", false},
	} {
		var got strings.Builder
		err := parsePeers([]byte(test.raw), func(member []byte, score int64) { fmt.Fprintf(&got, "%q %d, ", member, score) })
		if (err == nil) != test.ok || test.ok && got.String() != test.want {
			t.Errorf("%q is %q, %v", test.raw, got.String(), err)
		}
	}
}

func TestParseMembers(t *testing.T) {
	for _, test := range []struct {
		raw, want string
		ok        bool
	}{
		{"*0\r\n", "", true},
		{"*2\r\n$6\r\nabcdef\r\n$6\r\nab\r\nef\r\n", `"abcdef" "ab\r\nef" `, true},
		{"*2\r\n$6\r\nabcdef\r\n", "", false},
		{"*1\r\n$6\r\nabcdef\r\nx", "", false},
		{"*-1\r\n", "", false},
		{"$1\r\na\r\n", "", false},
		{"", "", false},
	} {
		var got strings.Builder
		err := parseMembers([]byte(test.raw), func(member []byte) { fmt.Fprintf(&got, "%q ", member) })
		if (err == nil) != test.ok || test.ok && got.String() != test.want {
			t.Errorf("%q is %q, %v", test.raw, got.String(), err)
		}
	}
}

func TestReplyError(t *testing.T) {
	if err := replyError([]byte("-MOVED 1 127.0.0.1:1\r\n")); err == nil || err.Error() != "MOVED 1 127.0.0.1:1" {
		t.Errorf("an error reads %v", err)
	}
	if err := replyError([]byte("*0\r\n")); err != nil {
		t.Errorf("an array reads %v", err)
	}
}

func TestSwarmOfAKey(t *testing.T) {
	hash := swarm.InfoHash{0: 0xff, 1: 0x7b, 2: 0x7d, 3: '}', 4: '{'}
	for _, c := range []struct {
		key  []byte
		want bool
	}{
		{key(hash, kindPeers), true},
		{key(hash, kindDownloads), true},
		{peersKey(hash, 1), false},
		{key(hash, kindCompleted), false},
		{key(hash, kindMover), false},
		{[]byte(DecoySecret), false},
		{append([]byte("{xyz}"), key(hash, kindPeers)[tagLen:]...), false},
		{append(key(hash, kindPeers), 'p'), false},
		{nil, false},
	} {
		if got, ok := swarmOf(c.key); ok != c.want || ok && got != hash {
			t.Errorf("%q is of %x, %v", c.key, got, ok)
		}
	}
}
