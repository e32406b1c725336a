package udpproxy

import (
	"net/netip"
	"testing"
	"time"
)

var (
	secretA = [16]byte{1}
	secretB = [16]byte{2}
	client4 = netip.MustParseAddr("192.0.2.1")
	client6 = netip.MustParseAddr("2001:db8::1")
	epoch   = time.Unix(1_800_000_000, 0)
)

func TestConnectionIDsProveAnAddressForAWhile(t *testing.T) {
	const ttl = 30 * time.Minute
	ids := NewConnectionIDs(ttl, secretA)
	for _, client := range []netip.Addr{client4, client6} {
		id := ids.New(epoch, client)
		for _, test := range []struct {
			name   string
			now    time.Time
			client netip.Addr
			id     uint64
			want   bool
		}{
			{"at once", epoch, client, id, true},
			{"at the end of its life", epoch.Add(ttl), client, id, true},
			{"after it", epoch.Add(ttl + 2*tick), client, id, false},
			{"a day later", epoch.Add(24 * time.Hour), client, id, false},
			{"when the 16 bits come round to it", epoch.Add(1 << 15 * tick), client, id, false},
			{"from a gateway whose clock is ahead", epoch.Add(-ahead * tick), client, id, true},
			{"from the future", epoch.Add(-(ahead + 1) * tick), client, id, false},
			{"of a neighbour", epoch, client.Next(), id, false},
			{"with a bit of its MAC flipped", epoch, client, id ^ 1, false},
			{"with a bit of its time flipped", epoch, client, id ^ 1<<macBits, false},
			{"zero", epoch, client, 0, false},
		} {
			if got := ids.Valid(test.now, test.client, test.id); got != test.want {
				t.Errorf("%v: an id %s: %v", client, test.name, got)
			}
		}
		if again := ids.New(epoch.Add(tick), client); again == id {
			t.Error("an id does not change with time")
		}
	}
}

func TestSecretsAreSharedAndRotated(t *testing.T) {
	here, there := NewConnectionIDs(time.Hour, secretA), NewConnectionIDs(time.Hour, secretA)
	id := here.New(epoch, client4)
	if !there.Valid(epoch, client4, id) {
		t.Error("an id is not valid on a gateway with the same secret")
	}
	there.SetSecrets(secretB, secretA)
	if !there.Valid(epoch, client4, id) {
		t.Error("an id is not valid after a rotation")
	}
	if here.Valid(epoch, client4, there.New(epoch, client4)) {
		t.Error("an id of another secret is valid")
	}
	there.SetSecrets(secretB, secretB)
	if there.Valid(epoch, client4, id) {
		t.Error("an id of a secret that is gone is valid")
	}
}
