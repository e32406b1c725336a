package swarmstore_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/storetest"
)

func TestOnce(t *testing.T) {
	for name, start := range storetest.Backends() {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1_800_000_000, 0)
			b := start(t)
			stores := []*storetest.Gateway{b.Open(t, &now, nil), b.Open(t, &now, nil)}
			for i, ask := range []struct {
				what, client string
				now          bool
			}{
				{"list", "192.0.2.1", true},
				{"list", "192.0.2.1", false}, // on the other gateway
				{"list", "192.0.2.2", true},
				{"else", "192.0.2.1", true},
				{"list", "2001:db8:0:1::1", true},
				{"list", "2001:db8:0:1::2", false}, // whoever has the one may have the other
				{"list", "2001:db8:0:2::1", true},
			} {
				wait, err := stores[i%2].Once(t.Context(), ask.what, netip.MustParseAddr(ask.client), time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				if (wait == 0) != ask.now || wait > time.Minute {
					t.Errorf("%+v has to wait %v", ask, wait)
				}
			}
		})
	}
}

func TestOnceTellsNoAddressToRedis(t *testing.T) {
	server := storetest.Redis(t)
	now := time.Now()
	g := storetest.Real(t, server).Open(t, &now, nil)
	if _, err := g.Once(t.Context(), "list", netip.MustParseAddr("192.0.2.77"), time.Minute); err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(&redis.Options{Addr: server.Addr})
	defer c.Close()
	keys, err := c.Keys(context.Background(), "swarmgate:once:*").Result()
	if err != nil || len(keys) != 1 {
		t.Fatalf("%q, %v", keys, err)
	}
	if strings.Contains(keys[0], "192") || strings.Contains(keys[0], "\xc0\x00\x02\x4d") {
		t.Errorf("the key is %q", keys[0])
	}
	if ttl := c.TTL(context.Background(), keys[0]).Val(); ttl <= 0 || ttl > time.Minute {
		t.Errorf("it lasts %v", ttl)
	}
}

func TestNotOnce(t *testing.T) {
	now := time.Now()
	g := storetest.Embedded(t).Open(t, &now, nil)
	client := netip.MustParseAddr("192.0.2.1")
	for range 2 {
		if wait, err := g.Once(t.Context(), "list", client, time.Minute); wait != 0 || err != nil {
			t.Errorf("it has to wait %v, %v", wait, err)
		}
		if err := g.NotOnce(t.Context(), "list", client); err != nil {
			t.Error(err)
		}
	}
}

func TestWhoWasRefusedAsksRedisNoMore(t *testing.T) {
	server := storetest.Redis(t)
	now := time.Now()
	g := storetest.Real(t, server).Open(t, &now, nil)
	client := netip.MustParseAddr("192.0.2.1")
	for range 2 {
		if _, err := g.Once(t.Context(), "list", client, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if wait, err := g.Once(t.Context(), "list", client, time.Minute); err != nil || wait < 50*time.Second || wait > time.Minute {
		t.Errorf("it has to wait %v, %v", wait, err)
	}
	if _, err := g.Once(t.Context(), "list", netip.MustParseAddr("192.0.2.2"), time.Minute); err == nil {
		t.Error("who comes first is allowed without Redis")
	}
}
