//go:build linux

// Package deploy holds what Swarmgate is run with, and the tests that run it so.
package deploy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

// project is one that a compose program runs from docker-compose.yml.
type project struct {
	t       *testing.T
	compose []string
	name    string
	env     []string
	port    int // of HTTP and UDP
	admin   int // the first of the admin listeners' ports
}

const (
	gateways   = 3
	adminPorts = 10
)

// output runs a program to its end.
func (p *project) output(program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = "..", append(os.Environ(), p.env...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

func (p *project) must(program string, args ...string) string {
	p.t.Helper()
	out, err := p.output(program, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// do runs the compose program on the project.
func (p *project) do(args ...string) string {
	p.t.Helper()
	args = append(append(p.compose[1:len(p.compose):len(p.compose)], "-p", p.name), args...)
	return p.must(p.compose[0], args...)
}

func needEngine(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes some minutes")
	}
	storetest.Need(t, "docker", "docker.io")
	if out, err := exec.Command("docker", "info").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no Docker engine answers: %s", out)
		}
		t.Skip("needs a Docker engine that answers: apt-get install docker.io docker-compose")
	}
}

// docker compose up, for real: Redis Clusters that form themselves and gateways that share their ports.
func TestCompose(t *testing.T) {
	needEngine(t)
	image := fmt.Sprintf("swarmgate-test:%d", os.Getpid())
	t.Cleanup(func() { _ = exec.Command("docker", "image", "rm", image).Run() })
	for n, c := range []struct {
		name    string
		compose []string
		redis   string
	}{
		{"docker-compose 1.29", []string{"docker-compose"}, "redis:8-alpine"},
		{"compose v2", []string{"docker", "compose"}, "valkey/valkey:8.1-alpine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			needCompose(t, c.compose)
			base := 21000 + (os.Getpid()%400)*(adminPorts+1)
			p := &project{
				t: t, compose: c.compose, port: base, admin: base + 1,
				name: fmt.Sprintf("swarmgate-test-%d-%d", os.Getpid(), n),
			}
			p.env = []string{
				"GATEWAY_IMAGE=" + image,
				"REDIS_IMAGE=" + c.redis,
				fmt.Sprintf("REDIS_NET=10.69.%d", 100+n),
				"NODE_MEMORY_MB=128",
				fmt.Sprintf("SWARMGATE_HTTP=:%d", p.port),
				fmt.Sprintf("SWARMGATE_UDP=:%d", p.port),
				fmt.Sprintf("SWARMGATE_ADMIN=127.0.0.1:%d-%d", p.admin, p.admin+adminPorts-1),
				"SWARMGATE_VIEW_TTL=0s",
				"SWARMGATE_INTERVAL=20m",
				"DOCKER_BUILDKIT=0",
			}
			p.run()
		})
	}
}

func needCompose(t *testing.T, compose []string) {
	t.Helper()
	if exec.Command(compose[0], append(compose[1:len(compose):len(compose)], "version")...).Run() == nil {
		return
	}
	what := "needs " + strings.Join(compose, " ") + ": apt-get install docker-compose, or the docker-compose-plugin of docker.com"
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func (p *project) run() {
	t := p.t
	p.do("config", "-q")
	p.do("build")
	volumes := p.must("docker", "volume", "ls", "-q")
	t.Cleanup(func() { p.goneAfterDown(volumes) })
	p.do("up", "-d", "--scale", fmt.Sprintf("gateway=%d", gateways))
	p.awaitReady()

	p.nodesAreSetUp()
	p.gatewaysAreConfined()
	p.announceToAll()

	before := p.cluster()
	p.do("up", "-d", "--scale", fmt.Sprintf("gateway=%d", gateways))
	p.awaitReady()
	if after := p.cluster(); after != before {
		t.Errorf("the second up formed another cluster:\n%s\nbefore:\n%s", after, before)
	}
	p.scrapeAll()

	for _, service := range []string{"gateway", "redis-1"} {
		p.kill(service)
	}
	p.awaitReady()
	p.scrapeAll()
}

// readyAdmins are the ports of the admin listeners that are ready.
func (p *project) readyAdmins() (ports []int) {
	for port := p.admin; port < p.admin+adminPorts; port++ {
		if status, _, err := get("127.0.0.1", port, "/readyz"); err == nil && status == http.StatusOK {
			ports = append(ports, port)
		}
	}
	return ports
}

func (p *project) awaitReady() {
	p.t.Helper()
	storetest.Eventually(p.t, 2*time.Minute, func() error {
		if ports := p.readyAdmins(); len(ports) != gateways {
			return fmt.Errorf("ready are the admin listeners %v\n%s", ports, p.do("ps"))
		}
		return nil
	})
}

// get asks from a loopback address of choice.
func get(from string, port int, path string) (status int, body string, err error) {
	dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	host := "127.0.0.1"
	if strings.Contains(from, ":") {
		host = "::1"
	}
	c, err := dialer.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path); err != nil {
		return 0, "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, "", err
	}
	b, err := io.ReadAll(response.Body)
	return response.StatusCode, string(b), errors.Join(err, response.Body.Close())
}

// exec runs a command of Redis's on a node.
func (p *project) exec(node string, command string) string {
	p.t.Helper()
	return p.do("exec", "-T", node, "sh", "-c", `"$(command -v valkey-cli || command -v redis-cli)" `+command)
}

// cluster tells who has which slots and who copies whom.
func (p *project) cluster() string {
	p.t.Helper()
	var b strings.Builder
	for line := range strings.Lines(p.exec("redis-1", "cluster nodes | sort")) {
		words := strings.Fields(line)
		fmt.Fprintln(&b, words[0], strings.TrimPrefix(words[2], "myself,"), words[3], words[8:])
	}
	return b.String()
}

func (p *project) nodesAreSetUp() {
	t := p.t
	t.Helper()
	nodes := p.cluster()
	if strings.Count(nodes, "master") != 3 || strings.Count(nodes, "slave") != 3 {
		t.Errorf("the cluster is\n%s", nodes)
	}
	for n := 1; n <= 6; n++ {
		node := fmt.Sprintf("redis-%d", n)
		for name, want := range map[string]string{
			"maxmemory": "100663296", "maxmemory-policy": "noeviction", "save": "", "appendonly": "no",
		} {
			got := strings.TrimSpace(strings.TrimPrefix(p.exec(node, "config get "+name), name))
			if got != want {
				t.Errorf("%s: %s is %q, want %q", node, name, got, want)
			}
		}
	}
}

// containers of a service.
func (p *project) containers(service string) []string {
	p.t.Helper()
	ids := strings.Fields(p.do("ps", "-q", service))
	if len(ids) == 0 {
		p.t.Fatalf("%s has no container", service)
	}
	return ids
}

func (p *project) inspect(id, format string) string {
	p.t.Helper()
	return p.must("docker", "inspect", "-f", format, id)
}

func (p *project) gatewaysAreConfined() {
	p.t.Helper()
	const format = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.NetworkMode}} {{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}"
	for _, id := range p.containers("gateway") {
		if got := p.inspect(id, format); got != "65532:65532 true host 536870912 unless-stopped" {
			p.t.Errorf("a gateway runs as %q", got)
		}
		storetest.Eventually(p.t, time.Minute, func() error {
			if health := p.inspect(id, "{{.State.Health.Status}}"); health != "healthy" {
				return errors.New(health)
			}
			return nil
		})
	}
}

// seeders that announce, half of them over HTTP, each from an address of its own.
const seeders = 120

var (
	hash    = swarm.InfoHash([]byte("composecomposecompos"))
	scraped = fmt.Sprintf("8:completei%de", seeders+1) // and one on IPv6
)

// announceToAll announces until every gateway had some over either transport.
func (p *project) announceToAll() {
	t := p.t
	t.Helper()
	for n := range seeders / 2 {
		from := fmt.Sprintf("127.0.7.%d", 1+n)
		status, body, err := get(from, p.port, fmt.Sprintf("/announce?info_hash=%s&port=%d&left=0", hash[:], 1000+n))
		if own := "11:external ip4:\x7f\x00\x07" + string([]byte{byte(1 + n)}); err != nil || status != 200 || !strings.Contains(body, own) {
			t.Fatalf("%s gets %d %q, %v", from, status, body, err)
		}
		p.announceUDP(fmt.Sprintf("127.0.8.%d", 1+n))
	}
	if _, body, err := get("::1", p.port, fmt.Sprintf("/announce?info_hash=%s&port=1&left=0", hash[:])); err != nil || !strings.Contains(body, "11:external ip16:") {
		t.Fatalf("on IPv6: %q, %v", body, err)
	}
	for _, port := range p.readyAdmins() {
		for _, transport := range []string{"http", "udp"} {
			if p.counted(port, "swarmgate_announces_total", transport) == 0 {
				t.Errorf("the gateway with admin port %d answered none of %d announces over %s", port, seeders/2, transport)
			}
		}
	}
	p.scrapeAll()
}

func (p *project) announceUDP(from string) {
	t := p.t
	t.Helper()
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: p.port})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func(r bep15.Request) (reply bep15.Reply) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 2048)
		if _, err := c.Write(r.Append(nil)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err = errors.Join(err, reply.Parse(b[:n])); err != nil {
			t.Fatal(err)
		}
		return reply
	}
	id := ask(bep15.Request{Action: bep15.ActionConnect}).ConnectionID
	r := ask(bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: id, InfoHash: hash, Port: 6881})
	if r.Action != bep15.ActionAnnounce || r.Interval < 1080 || r.Interval > 1320 {
		t.Fatalf("%s gets %+v", from, r)
	}
}

// counted is a gateway's count of answers over a transport.
func (p *project) counted(admin int, name, transport string) (n int) {
	p.t.Helper()
	_, body, err := get("127.0.0.1", admin, "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, fmt.Sprintf("%s{result=\"ok\",transport=%q} ", name, transport)); ok {
			n, err = strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				p.t.Fatal(err)
			}
		}
	}
	return n
}

// scrapeAll scrapes until every gateway has answered, and wants all seeders of each.
func (p *project) scrapeAll() {
	t := p.t
	t.Helper()
	before := map[int]int{}
	for _, port := range p.readyAdmins() {
		before[port] = p.counted(port, "swarmgate_scrapes_total", "http")
	}
	storetest.Eventually(t, time.Minute, func() error {
		_, body, err := get("127.0.0.1", p.port, fmt.Sprintf("/scrape?info_hash=%s", hash[:]))
		if err != nil || !strings.Contains(body, scraped) {
			return fmt.Errorf("a scrape is %q, %v", body, err)
		}
		for port, n := range before {
			if p.counted(port, "swarmgate_scrapes_total", "http") == n {
				return fmt.Errorf("the gateway with admin port %d has answered no scrape", port)
			}
		}
		return nil
	})
}

// kill kills a service's process and waits until it runs again by itself.
func (p *project) kill(service string) {
	t := p.t
	t.Helper()
	id := p.containers(service)[0]
	pid, err := strconv.Atoi(p.inspect(id, "{{.State.Pid}}"))
	if err != nil || pid < 2 {
		t.Fatalf("the pid of %s is %d, %v", service, pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("%s: %v", service, err)
	}
	storetest.Eventually(t, time.Minute, func() error {
		if state := p.inspect(id, "{{.State.Pid}} {{.State.Health.Status}}"); !strings.HasSuffix(state, " healthy") || strings.HasPrefix(state, strconv.Itoa(pid)+" ") {
			return fmt.Errorf("%s is %s", service, state)
		}
		return nil
	})
}

// goneAfterDown ends the project and looks for what it left behind.
func (p *project) goneAfterDown(volumes string) {
	t := p.t
	t.Helper()
	if t.Failed() {
		logs, err := p.output(p.compose[0], append(p.compose[1:len(p.compose):len(p.compose)], "-p", p.name, "logs", "--tail", "20")...)
		t.Log(logs, err)
	}
	p.do("down", "-t", "15")
	label := "label=com.docker.compose.project=" + p.name
	var left bytes.Buffer
	for _, list := range [][]string{{"ps", "-a"}, {"network", "ls"}, {"volume", "ls"}} {
		left.WriteString(p.must("docker", append(list, "-q", "--filter", label)...))
	}
	if left.Len() > 0 {
		t.Errorf("down leaves behind %s", left.String())
	}
	if after := p.must("docker", "volume", "ls", "-q"); after != volumes {
		t.Errorf("volumes are %q, before %q", after, volumes)
	}
}
