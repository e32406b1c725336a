// Package anycast holds tests of gateways on several hosts, all of which have the service's addresses: a router spreads
// clients over them, and one after the other fails or is withdrawn. Hosts are network namespaces.
//
//	go test -count 1 -v ./deploy/anycast
package anycast

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"swarmgate/deploy/internal/audit"
	"swarmgate/swarmstore/storetest"
)

// TestMain runs the tests in a network namespace of their own, which is the clients' host.
func TestMain(m *testing.M) { os.Exit(audit.MainAlone(m)) }

// Addresses of the service, as in bird.conf.
var (
	service4 = netip.MustParsePrefix("192.0.2.1/32")
	service6 = netip.MustParsePrefix("2001:db8::1/128")
)

// Hosts on links of their own to the router: first those with gateways, from 1 on.
const (
	gatewayHosts = 3
	redisHost    = 4
	clientHost   = 5
)

// network of a router and hosts. Host n is 10.0.n.2 and fd00:n::2, the router 10.0.n.1 and fd00:n::1.
type network struct {
	*testing.T
	router string // a namespace
	hosts  map[int]storetest.Host
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	audit.NeedAlone(t)
	storetest.Need(t, "ip", "iproute2")
	n := &network{t, fmt.Sprintf("sganycast%d", os.Getpid()), map[int]storetest.Host{}}
	n.ip("netns add " + n.router)
	t.Cleanup(func() { n.ip("netns del " + n.router) }) // and with it all links
	n.ip("link set lo up")
	n.ip("-n " + n.router + " link set lo up")
	for host := 1; host <= clientHost; host++ {
		in, where := "", fmt.Sprint(os.Getpid())
		if host != clientHost {
			where = fmt.Sprintf("%sh%d", n.router, host)
			in = "-n " + where + " "
			n.ip("netns add " + where)
			t.Cleanup(func() { n.ip("netns del " + where) })
			n.ip(in + "link set lo up")
		}
		n.hosts[host] = storetest.Host{Namespace: strings.TrimSpace(strings.TrimPrefix(in, "-n ")), IP: fmt.Sprintf("10.0.%d.2", host)}
		n.ip(fmt.Sprintf("-n %s link add host%d type veth peer name router netns %s", n.router, host, where))
		for _, end := range []struct {
			in, link string
			last     int
		}{{"-n " + n.router + " ", fmt.Sprintf("host%d", host), 1}, {in, "router", 2}} {
			n.ip(fmt.Sprintf("%saddr add 10.0.%d.%d/24 dev %s", end.in, host, end.last, end.link))
			n.ip(fmt.Sprintf("%saddr add fd00:%d::%d/64 dev %s nodad", end.in, host, end.last, end.link))
			n.ip(end.in + "link set " + end.link + " up")
		}
		n.ip(fmt.Sprintf("%sroute add default via 10.0.%d.1", in, host), fmt.Sprintf("%s-6 route add default via fd00:%d::1", in, host))
		if host <= gatewayHosts {
			n.ip(fmt.Sprintf("%saddr add %v dev lo", in, service4), fmt.Sprintf("%saddr add %v dev lo", in, service6))
		}
	}
	// It forwards, flows are told apart by their ports, and addresses survive a cut.
	for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/fib_multipath_hash_policy", "ipv6/fib_multipath_hash_policy",
		"ipv6/conf/host2/keep_addr_on_down"} {
		cmd := exec.Command("ip", "netns", "exec", n.router, "sh", "-c", "echo 1 >/proc/sys/net/"+file)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", file, err, out)
		}
	}
	for _, addr := range clients() {
		n.ip(fmt.Sprintf("addr add %v/%d dev lo", addr, addr.BitLen()))
		n.ip(fmt.Sprintf("-n %s route add %v via %v", n.router, addr, n.addr(clientHost, addr)))
	}
	return n
}

// clients' addresses.
func clients() (addrs []netip.Addr) {
	for k := range 8 {
		addrs = append(addrs, netip.MustParseAddr(fmt.Sprintf("10.1.0.%d", k+1)), netip.MustParseAddr(fmt.Sprintf("fd01::%d", k+1)))
	}
	return addrs
}

// addr of a host, in the family of another address.
func (n *network) addr(host int, like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.MustParseAddr(fmt.Sprintf("10.0.%d.2", host))
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:%d::2", host))
}

// ip runs commands of ip(8).
func (n *network) ip(commands ...string) string {
	n.Helper()
	out, err := storetest.IP(commands...)
	if err != nil {
		n.Fatal(err)
	}
	return out
}

// route the service to some hosts. With resilient, flows to hosts that stay keep theirs.
func (n *network) route(resilient bool, hosts ...int) {
	n.Helper()
	for family, service := range map[int]netip.Prefix{4: service4, 6: service6} {
		command := fmt.Sprintf("-n %s -%d route replace %v", n.router, family, service)
		if !resilient {
			for _, host := range hosts {
				command += fmt.Sprintf(" nexthop via %v dev host%d", n.addr(host, service.Addr()), host)
			}
			n.ip(command)
			continue
		}
		var group []string
		for _, host := range hosts {
			n.ip(fmt.Sprintf("-n %s nexthop replace id %d%d via %v dev host%d", n.router, family, host, n.addr(host, service.Addr()), host))
			group = append(group, fmt.Sprintf("%d%d", family, host))
		}
		n.ip(fmt.Sprintf("-n %s nexthop replace id %d group %s type resilient buckets 64", n.router, family, strings.Join(group, "/")))
		n.ip(fmt.Sprintf("%s nhid %d", command, family))
	}
}

// daemon runs a program on a host until the test ends.
func (n *network) daemon(host storetest.Host, command ...string) {
	n.Helper()
	command = append(host.Enter(n), command...)
	cmd := exec.Command(command[0], command[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if n.Failed() {
			n.Logf("%s said: %s", command, &out)
		}
	})
}

// routed tells to which hosts the router sends the service's clients, of both families.
func (n *network) routed() (hosts []int) {
	n.Helper()
	for host := 1; host <= gatewayHosts; host++ {
		ways := 0
		for family, service := range map[int]netip.Prefix{4: service4, 6: service6} {
			routes := n.ip(fmt.Sprintf("-n %s -%d route show %v", n.router, family, service))
			if strings.Contains(routes, fmt.Sprintf("dev host%d ", host)) {
				ways++
			}
		}
		if ways > 0 {
			hosts = append(hosts, host)
		}
		if ways == 1 {
			hosts = append(hosts, -host) // in one family only: as wanted by nobody
		}
	}
	return hosts
}

// wantRouted waits until the service is routed to these hosts.
func (n *network) wantRouted(t *testing.T, want ...int) {
	t.Helper()
	storetest.Eventually(t, 30*time.Second, func() error {
		if hosts := n.routed(); !slices.Equal(hosts, want) {
			return fmt.Errorf("the service is routed to %v, not %v", hosts, want)
		}
		return nil
	})
}

// fleet is gateways on hosts, and their Redis Cluster.
type fleet struct {
	*network
	redis    *audit.Cluster
	urls     string
	gateways map[int]*audit.Gateway
	rounds   int
}

func newFleet(n *network) *fleet {
	n.Helper()
	f := &fleet{network: n, gateways: map[int]*audit.Gateway{}}
	var nodes []*storetest.Process
	var addrs []string
	for range 3 {
		p := storetest.ClusterNode(n, n.hosts[redisHost])
		nodes, addrs = append(nodes, p), append(addrs, p.Addr)
	}
	storetest.FormCluster(n, 0, nodes...)
	f.redis, f.urls = audit.NewCluster(n, addrs...), strings.Join(storetest.URLs(nodes...), ",")
	for host := 1; host <= gatewayHosts; host++ {
		f.start(host)
	}
	return f
}

func (f *fleet) start(host int) {
	f.Helper()
	f.gateways[host] = audit.StartGatewayOn(f, f.hosts[host], "--admin", f.hosts[host].IP+":6970", "--redis", f.urls, "--drain-delay", "3s")
}

// columns of what rounds log.
const columns = "| what happens | announces answered | of them missing | failed | for |"

// round lets clients announce through all gateways while something happens, and some more. most is how many
// announces may be refused or get no answer.
func (f *fleet) round(t *testing.T, most int, happens func()) {
	t.Helper()
	f.rounds++
	clientsAt := []audit.Endpoint{}
	for _, service := range []netip.Prefix{service4, service6} {
		at := netip.AddrPortFrom(service.Addr(), 6969).String()
		clientsAt = append(clientsAt, audit.Endpoint{HTTP: at, UDP: at})
	}
	load := audit.NewFleet(t, clientsAt)
	load.Addresses = clients()
	load.Start(f.rounds)
	f.wantAllBusy(t)
	began := time.Now()
	happens()
	time.Sleep(time.Second) // of clients that are where they belong
	load.End()
	spell := load.Spell(began, audit.All)
	found, err := f.redis.Peers(f.redis.Nodes()[0])
	if err != nil {
		t.Fatal(err)
	}
	a := load.Audit(t, found)
	name := t.Name()[strings.LastIndex(t.Name(), "/")+1:]
	t.Logf("| %s | %d | %d | %d | %.1f s |", strings.ReplaceAll(name, "_", " "), a.Announces, a.Lost(), spell.Refused+spell.Broken, spell.Errors().Seconds())
	t.Logf("%v %q", spell, spell.Why)
	if a.Lost() > 0 || a.Announces < 500 {
		t.Errorf("%+v", a)
	}
	if spell.Refused+spell.Broken > most {
		t.Errorf("more than %d announces failed", most)
	}
}

// wantAllBusy waits until every gateway answers further announces over HTTP and UDP.
func (f *fleet) wantAllBusy(t *testing.T) {
	t.Helper()
	for host, g := range f.gateways {
		for _, transport := range []string{"http", "udp"} {
			metric := `swarmgate_announces_total{result="ok",transport="` + transport + `"}`
			before := g.Metric(metric)
			storetest.Eventually(t, 20*time.Second, func() error {
				if g.Metric(metric) < before+10 {
					return fmt.Errorf("gateway %d gets no announces over %s", host, transport)
				}
				return nil
			})
		}
	}
}

// ends tells a gateway to end, which it must not have before the router leaves it out.
func (f *fleet) ends(host int, leaveOut func()) {
	f.Helper()
	g := f.gateways[host]
	g.Terminate()
	storetest.Eventually(f, 5*time.Second, func() error {
		if _, err := g.Get("/readyz"); err == nil || !strings.Contains(err.Error(), "503") {
			return fmt.Errorf("/readyz says %v", err)
		}
		return nil
	})
	leaveOut()
	select {
	case <-g.Ended:
		f.Errorf("the gateway did not wait for the router")
	default:
	}
	g.Drained()
}

func TestAnycast(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	f := newFleet(newNetwork(t))
	t.Log(columns)
	t.Run("routes", func(t *testing.T) { testRoutes(t, f) })
	t.Run("BIRD", func(t *testing.T) { testBIRD(t, f) })
}

// few are announces that are under way when flows move to other hosts.
const few = 20

// A router with routes to all hosts leaves one of them out: when its gateway tells that it is going, or some time after it was
// killed.
func testRoutes(t *testing.T, f *fleet) {
	n := f.network
	for _, resilient := range []bool{false, true} {
		name := ", flows hashed anew"
		if resilient {
			name = ", other flows kept"
		}
		all := func() {
			n.route(false, 1, 2, 3)
			n.ip("-n " + n.router + " nexthop flush") // a group would keep the flows that it has
			n.route(resilient, 1, 2, 3)
		}
		all()
		leaveOut := func() {
			time.Sleep(time.Second) // until the router knows
			n.route(resilient, 1, 3)
		}
		t.Run("a gateway ends"+name, func(t *testing.T) {
			f.round(t, few, func() { f.ends(2, leaveOut) })
		})
		f.start(2)
		all()
		t.Run("a gateway is killed"+name, func(t *testing.T) {
			f.round(t, many, func() {
				f.gateways[2].Kill()
				leaveOut()
				time.Sleep(audit.Patience)
			})
		})
		f.start(2)
	}
	n.ip("-n " + n.router + " -4 route del " + service4.String())
	n.ip("-n " + n.router + " -6 route del " + service6.String())
}

// many are those of a gateway's clients within some seconds.
const many = 500

// BIRD as it is configured here leaves hosts out by itself, and takes them in again.
func testBIRD(t *testing.T, f *fleet) {
	n, bird := f.network, storetest.Need(t, "bird", "bird2")
	storetest.Need(t, "curl", "curl")
	dir := t.TempDir()
	start := func(host storetest.Host, name, config string) {
		n.daemon(host, bird, "-f", "-c", config, "-s", filepath.Join(dir, name), "-P", filepath.Join(dir, name+".pid"))
	}
	start(storetest.Host{Namespace: n.router}, "router", "bird-router.conf")
	for host := 1; host <= gatewayHosts; host++ {
		shipped, err := os.ReadFile("bird.conf")
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("host%d", host)
		config := filepath.Join(dir, name+".conf")
		own := strings.NewReplacer("10.0.1.", fmt.Sprintf("10.0.%d.", host), "fd00:1::", fmt.Sprintf("fd00:%d::", host)).Replace(string(shipped))
		if err := os.WriteFile(config, []byte(own), 0o644); err != nil {
			t.Fatal(err)
		}
		start(n.hosts[host], name, config)
		n.daemon(n.hosts[host], "./healthcheck.sh", "http://"+f.gateways[host].Admin()+"/readyz", "-s", filepath.Join(dir, name))
	}
	n.wantRouted(t, 1, 2, 3)

	t.Cleanup(func() {
		for _, name := range []string{"router", "host2"} {
			if t.Failed() {
				out, err := exec.Command("birdc", "-s", filepath.Join(dir, name), "show", "protocols").CombinedOutput()
				t.Logf("%s: %v: %s", name, err, out)
			}
		}
	})

	t.Run("a gateway ends, and starts", func(t *testing.T) {
		f.round(t, few, func() {
			f.ends(2, func() { n.wantRouted(t, 1, 3) })
			f.start(2)
			n.wantRouted(t, 1, 2, 3)
			f.wantAllBusy(t)
		})
	})
	t.Run("a gateway is killed", func(t *testing.T) {
		f.round(t, many, func() {
			f.gateways[2].Kill()
			n.wantRouted(t, 1, 3)
			time.Sleep(audit.Patience)
			f.start(2)
			n.wantRouted(t, 1, 2, 3)
		})
	})
	t.Run("a host is cut off, its cable seems whole", func(t *testing.T) {
		// BFD begins anew with each session of BGP, and takes some seconds.
		storetest.Eventually(t, 30*time.Second, func() error {
			out, err := exec.Command("birdc", "-s", filepath.Join(dir, "router"), "show", "bfd", "sessions").CombinedOutput()
			if n := strings.Count(string(out), " Up "); err != nil || n != 2*gatewayHosts {
				return fmt.Errorf("%d sessions of BFD are up, %v: %s", n, err, out)
			}
			return nil
		})
		f.round(t, many, func() {
			for _, addr := range []string{"10.0.2.2", "fd00:2::2"} { // what goes there comes to nobody
				n.ip("-n " + n.router + " neigh replace " + addr + " lladdr 02:00:00:00:00:99 nud permanent dev host2")
			}
			n.wantRouted(t, 1, 3)
			time.Sleep(audit.Patience)
			for _, addr := range []string{"10.0.2.2", "fd00:2::2"} {
				n.ip("-n " + n.router + " neigh del " + addr + " dev host2")
			}
			n.wantRouted(t, 1, 2, 3)
		})
	})
	t.Run("a cable is cut", func(t *testing.T) {
		f.round(t, many, func() {
			n.ip("-n " + n.router + " link set host2 down")
			n.wantRouted(t, 1, 3)
			time.Sleep(audit.Patience)
			n.ip("-n " + n.router + " link set host2 up")
			n.wantRouted(t, 1, 2, 3)
		})
	})
	t.Run("a gateway does not reach Redis", func(t *testing.T) {
		f.round(t, many, func() {
			blackhole := " blackhole " + n.hosts[redisHost].IP
			n.ip("-n " + n.hosts[2].Namespace + " route add" + blackhole)
			n.wantRouted(t, 1, 3)
			n.ip("-n " + n.hosts[2].Namespace + " route del" + blackhole)
			n.wantRouted(t, 1, 2, 3)
		})
	})
}
