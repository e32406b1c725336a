//go:build unix

package failover

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy"
	"swarmgate/udpproxy/bep15"
)

// The secret of connection ids is rotated under load, in which ids are used first on another
// gateway than the one that gave them.
func TestSecretIsRotated(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	server := storetest.Redis(t)
	url := storetest.URLs(server)[0]
	endpoints := []endpoint{newEndpoint(t), newEndpoint(t)}
	gateways := []*gateway{startGateway(t, endpoints[0], "--redis", url), startGateway(t, endpoints[1], "--redis", url)}
	f := newFleet(t, endpoints)

	db := redis.NewClient(&redis.Options{Addr: server.Addr, Protocol: 2})
	defer db.Close()
	secret := func() string { return db.Get(t.Context(), "swarmgate:secret").Val() }
	before := secret()
	c, err := f.newClient(largeHash)
	if err != nil {
		t.Fatal(err)
	}
	defer c.udp.Close()
	connect := func(at int) uint64 {
		t.Helper()
		reply, err := c.ask(at, bep15.Request{Action: bep15.ActionConnect})
		if err != nil {
			t.Fatal(err)
		}
		return reply.ConnectionID
	}
	old := connect(0)

	f.start(1)
	command := exec.CommandContext(t.Context(), binary, "secret", "rotate", "--redis", url)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	current, other, _ := strings.Cut(secret(), " ")
	if other != before || current == before {
		t.Fatal("the secret is the one before, or that is not kept")
	}
	key, err := hex.DecodeString(current)
	if err != nil {
		t.Fatal(err)
	}
	rotated := udpproxy.NewConnectionIDs(time.Hour, [16]byte(key))
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	storetest.Eventually(t, 15*time.Second, func() error {
		for at := range endpoints {
			if !rotated.Valid(time.Now(), loopback, connect(at)) {
				return fmt.Errorf("gateway %d gives ids of the secret before", at)
			}
		}
		return nil
	})
	time.Sleep(time.Second) // of ids that are all new
	f.end()

	all := f.spell(time.Time{}, func(swarm.InfoHash) bool { return true })
	t.Logf("%v", all)
	if all.answered < 1000 || all.refused+all.broken > 0 {
		t.Errorf("%v: %q", all, all.why)
	}
	for at, g := range gateways {
		if n := g.metric(`swarmgate_invalid_requests_total{transport="udp"}`); n > 0 {
			t.Errorf("gateway %d rejected %v ids", at, n)
		}
		c.id = old
		if _, err := c.ask(at, bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{largeHash}}); err != nil {
			t.Errorf("gateway %d does not accept an id of the secret before: %v", at, err)
		}
	}

	// A gateway that starts later gives and takes the same ids.
	late := newEndpoint(t)
	startGateway(t, late, "--redis", url)
	c.endpoints = append(c.endpoints, late)
	for _, id := range []uint64{old, connect(0)} {
		c.id = id
		if _, err := c.ask(2, bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{largeHash}}); err != nil {
			t.Errorf("a gateway that started later does not accept an id: %v", err)
		}
	}
	c.id = connect(2)
	if _, err := c.ask(0, bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{largeHash}}); err != nil {
		t.Error(errors.Join(errors.New("an id of a gateway that started later is not accepted"), err))
	}
}
