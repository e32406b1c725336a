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

	"swarmgate/deploy/internal/audit"
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
	endpoints := []audit.Endpoint{audit.NewEndpoint(t), audit.NewEndpoint(t)}
	gateways := []*audit.Gateway{audit.StartGateway(t, endpoints[0], "--redis", url), audit.StartGateway(t, endpoints[1], "--redis", url)}
	f := audit.NewFleet(t, endpoints)

	db := redis.NewClient(&redis.Options{Addr: server.Addr, Protocol: 2})
	defer db.Close()
	secret := func() string { return db.Get(t.Context(), "swarmgate:secret").Val() }
	before := secret()
	c, err := f.NewClient(audit.LargeHash)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	connect := func(at int) uint64 {
		t.Helper()
		reply, err := c.Ask(at, bep15.Request{Action: bep15.ActionConnect})
		if err != nil {
			t.Fatal(err)
		}
		return reply.ConnectionID
	}
	old := connect(0)

	f.Start(1)
	command := exec.CommandContext(t.Context(), audit.Program, "secret", "rotate", "--redis", url)
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
	f.End()

	all := f.Spell(time.Time{}, audit.All)
	t.Logf("%v", all)
	if all.Answered < 1000 || all.Refused+all.Broken > 0 {
		t.Errorf("%v: %q", all, all.Why)
	}
	for at, g := range gateways {
		if n := g.Metric(`swarmgate_invalid_requests_total{transport="udp"}`); n > 0 {
			t.Errorf("gateway %d rejected %v ids", at, n)
		}
		c.ID = old
		if _, err := c.Ask(at, bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{audit.LargeHash}}); err != nil {
			t.Errorf("gateway %d does not accept an id of the secret before: %v", at, err)
		}
	}

	// A gateway that starts later gives and takes the same ids.
	late := audit.NewEndpoint(t)
	audit.StartGateway(t, late, "--redis", url)
	f.Endpoints = append(f.Endpoints, late)
	if c, err = f.NewClient(audit.LargeHash); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, id := range []uint64{old, connect(0)} {
		c.ID = id
		if _, err := c.Ask(2, bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{audit.LargeHash}}); err != nil {
			t.Errorf("a gateway that started later does not accept an id: %v", err)
		}
	}
	c.ID = connect(2)
	if _, err := c.Ask(0, bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{audit.LargeHash}}); err != nil {
		t.Error(errors.Join(errors.New("an id of a gateway that started later is not accepted"), err))
	}
}
