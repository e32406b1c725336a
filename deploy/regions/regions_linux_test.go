// Package regions holds a test of gateways that are far from the masters of their Redis Cluster, with replicas nearby. The
// way between the two regions is a pair of tunnel devices in network namespaces, with what the test lets packets take in between.
//
//	go test -count 1 -v ./deploy/regions
package regions

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"swarmgate/deploy/internal/audit"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

func TestMain(m *testing.M) { os.Exit(audit.MainAlone(m)) }

const (
	oneWay    = 40 * time.Millisecond
	roundTrip = 2 * oneWay

	home = "10.2.0.1" // the region of the masters, and the gateway there, as it is reached from the other
	away = "10.2.0.2" // the region of the test, the replicas and the gateways that are measured

	swarms = 50
)

// newWay makes a tunnel device here, one in a namespace, and carries packets between them, each in its time.
func newWay(t *testing.T, namespace string) {
	t.Helper()
	here, there := tunnel(t, "away"), tunnel(t, "home")
	in := "-n " + namespace + " "
	ip(t, "link set home netns "+namespace, in+"addr add "+home+"/24 dev home", in+"link set home up",
		"addr add "+away+"/24 dev away", "link set away up")
	for _, ends := range [][2]*os.File{{here, there}, {there, here}} {
		type packet struct {
			due  time.Time
			data []byte
		}
		under := make(chan packet, 1<<14)
		go func() {
			defer close(under)
			for {
				data := make([]byte, 2048)
				n, err := ends[0].Read(data)
				if err != nil {
					return // the test is over
				}
				under <- packet{time.Now().Add(oneWay), data[:n]}
			}
		}()
		go func() {
			for p := range under {
				time.Sleep(time.Until(p.due))
				_, _ = ends[1].Write(p.data)
			}
		}()
	}
}

// tunnel makes a device whose packets are read from the file.
func tunnel(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("/dev/net/tun: %v", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		t.Fatalf("/dev/net/tun: %v", err)
	}
	file := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { _ = file.Close() })
	return file
}

func ip(t *testing.T, commands ...string) {
	t.Helper()
	if _, err := storetest.IP(commands...); err != nil {
		t.Fatal(err)
	}
}

// newCluster is three masters at home with a replica each away. It returns the masters.
func newCluster(t *testing.T, namespace string) []*storetest.Process {
	t.Helper()
	var masters []*storetest.Process
	for range 3 {
		masters = append(masters, storetest.ClusterNode(t, storetest.Host{Namespace: namespace, IP: home}))
	}
	storetest.FormCluster(t, 0, masters...)
	c := audit.NewCluster(t)
	for _, p := range masters {
		c.Add(p.Addr)
	}
	for _, p := range masters {
		replica := storetest.ClusterNode(t, storetest.Host{IP: away}).Addr
		c.Add(replica)
		master := c.Client(p.Addr)
		id, err := master.ClusterMyID(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		host, port, _ := strings.Cut(p.Addr, ":")
		bus := master.ConfigGet(t.Context(), "cluster-port").Val()["cluster-port"]
		if err := c.Client(replica).Do(t.Context(), "cluster", "meet", host, port, bus).Err(); err != nil {
			t.Fatal(err)
		}
		storetest.Eventually(t, 30*time.Second, func() error { return c.Client(replica).ClusterReplicate(t.Context(), id).Err() })
	}
	storetest.Eventually(t, 30*time.Second, c.Agreed)
	storetest.Eventually(t, 30*time.Second, c.Replicated)
	return masters
}

// asker asks one gateway over UDP.
type asker struct {
	*testing.T
	*audit.Client
}

func newAsker(t *testing.T, at audit.Endpoint, addr string) *asker {
	t.Helper()
	f := audit.NewFleet(t, []audit.Endpoint{at})
	f.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
	c, err := f.NewClient(audit.LargeHash)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	a := &asker{t, c}
	a.ID = a.ask(bep15.Request{Action: bep15.ActionConnect}).ConnectionID
	return a
}

func (a *asker) ask(r bep15.Request) bep15.Reply {
	a.Helper()
	reply, err := a.Ask(0, r)
	if err != nil || reply.Action == bep15.ActionError {
		a.Fatalf("%+v, %v", reply, err)
	}
	return reply
}

func (a *asker) announce(n, peer int, event swarm.Event) {
	a.Helper()
	a.ask(bep15.Request{Action: bep15.ActionAnnounce, InfoHash: storetest.Hash(n), Left: 1, NumWant: -1, Port: uint16(peer), Event: event})
}

func (a *asker) leechers(n int) int {
	a.Helper()
	return a.ask(bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{storetest.Hash(n)}}).Counts[0].Incomplete()
}

// took is how long one request for each swarm takes, in the median and at most.
func took(do func(n int)) (p50, longest time.Duration) {
	var all []time.Duration
	for n := range swarms {
		begun := time.Now()
		do(n)
		all = append(all, time.Since(begun))
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)-1]
}

func TestRegions(t *testing.T) {
	if testing.Short() {
		t.Skip("takes most of a minute")
	}
	audit.NeedAlone(t)
	namespace := fmt.Sprintf("sgregions%d", os.Getpid())
	storetest.Need(t, "ip", "iproute2")
	ip(t, "netns add "+namespace)
	t.Cleanup(func() { ip(t, "netns del "+namespace) })
	in := "-n " + namespace + " "
	ip(t, "link set lo up", in+"link set lo up")
	newWay(t, namespace)
	// Clients at home are near the gateway there.
	ip(t, "link add client type veth peer name client netns "+namespace,
		"addr add 10.3.0.2/24 dev client", "link set client up", in+"addr add 10.3.0.1/24 dev client", in+"link set client up")

	urls := strings.Join(storetest.URLs(newCluster(t, namespace)...), ",")
	at := audit.Endpoint{HTTP: "10.3.0.1:6969", UDP: "10.3.0.1:6969"}
	audit.StartGatewayOn(t, storetest.Host{Namespace: namespace, IP: "10.3.0.1"}, "--http", at.HTTP, "--udp", at.UDP, "--redis", urls)
	atHome := newAsker(t, at, "10.3.0.2")
	for n := range swarms {
		for peer := range 20 {
			atHome.announce(n, 1+peer, swarm.Started)
		}
	}
	t.Logf("the regions are %v apart, there and back; each request in the median / the slowest", roundTrip)
	t.Log("| read from | new peer | repeat | scrape | known away after | known at home after |")
	peer := 1000
	for _, mode := range []string{"master", "nearest", "replica"} {
		t.Run(mode, func(t *testing.T) {
			here := audit.NewEndpoint(t)
			audit.StartGateway(t, here, "--redis", urls, "--read-from", mode)
			a := newAsker(t, here, "127.0.0.1")
			peer++
			forget := func() { time.Sleep(2100 * time.Millisecond) } // what the gateway has read
			near := mode != "master"
			started, startedMost := took(func(n int) { a.announce(n, peer, swarm.Started) })
			var repeated, repeatedMost time.Duration
			for range 5 { // a new connection makes the gateway forget what it stored, and it has made some just now
				forget()
				if repeated, repeatedMost = took(func(n int) { a.announce(n, peer, swarm.None) }); repeated < oneWay == near {
					break
				}
			}
			forget()
			scraped, scrapedMost := took(func(n int) { a.leechers(n) })
			known := func(announcer, looker *asker) time.Duration {
				t.Helper()
				peer++
				count := looker.leechers(0)
				announcer.announce(0, peer, swarm.Started)
				begun := time.Now()
				storetest.Eventually(t, 10*time.Second, func() error {
					if n := looker.leechers(0); n <= count {
						return fmt.Errorf("%d peers are known", n)
					}
					return nil
				})
				return time.Since(begun)
			}
			knownAway, knownHome := known(atHome, a), known(a, atHome)
			ms := time.Millisecond
			t.Logf("| %s | %d / %d ms | %d / %d ms | %d / %d ms | %.1f s | %.1f s |", mode, started/ms, startedMost/ms, repeated/ms, repeatedMost/ms,
				scraped/ms, scrapedMost/ms, knownAway.Seconds(), knownHome.Seconds())

			if started < roundTrip {
				t.Errorf("a new peer took %v: it cannot be with its master", started)
			}
			if (repeated < oneWay) != near || (scraped < oneWay) != near {
				t.Errorf("repeats took %v and scrapes %v", repeated, scraped)
			}
		})
	}
}
