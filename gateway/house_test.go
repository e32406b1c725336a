package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Each room of the house may import these packages of ours, and these of others
// where the room is what keeps them in.
var house = map[string][]string{
	"swarmgate/swarmstore/swarm":          {},
	"swarmgate/swarmstore":                {"swarmgate/swarmstore/swarm", goRedis},
	"swarmgate/swarmstore/embedded":       {miniredis},
	"swarmgate/udpproxy/bep15":            {"swarmgate/swarmstore/swarm"},
	"swarmgate/udpproxy/proxyprotocol":    {},
	"swarmgate/udpproxy":                  {"swarmgate/swarmstore/swarm", "swarmgate/udpproxy/bep15", proxyprotocol},
	"swarmgate/gateway/internal/access":   {"swarmgate/swarmstore/swarm"},
	"swarmgate/gateway/internal/networks": {},
	"swarmgate/gateway/internal/tracker":  {"swarmgate/swarmstore/swarm"},
	"swarmgate/gateway/internal/stats":    {"swarmgate/swarmstore/swarm"},
	"swarmgate/gateway/internal/httpapi":  {"swarmgate/swarmstore/swarm", proxyprotocol, fiber},
}

const (
	proxyprotocol = "swarmgate/udpproxy/proxyprotocol" // a codec of both front ends

	goRedis   = "github.com/redis/go-redis/v9"
	miniredis = "github.com/alicebob/miniredis/v2"
	fiber     = "github.com/gofiber/fiber/v2"
	promPkg   = "github.com/prometheus/client_golang/prometheus"
)

func TestTheHouse(t *testing.T) {
	for room, allowed := range house {
		t.Run(room, func(t *testing.T) {
			out, err := exec.Command("go", "list", "-deps", room).Output()
			if err != nil {
				t.Fatal(err)
			}
			deps := strings.Fields(string(out))
			if !slices.Contains(deps, room) {
				t.Fatalf("go list says %q", out)
			}
			for _, dep := range deps {
				ours := strings.HasPrefix(dep, "swarmgate/") && dep != room
				kept := slices.Contains([]string{goRedis, miniredis, fiber, promPkg}, dep)
				if (ours || kept) && !slices.Contains(allowed, dep) {
					t.Errorf("imports %s", dep)
				}
			}
		})
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}: {{join .Imports " "}}`, "swarmgate/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		room, imports, _ := strings.Cut(line, ": ")
		if slices.Contains(strings.Fields(imports), "swarmgate/gateway") {
			t.Errorf("%s imports the gateway", room)
		}
	}
}
