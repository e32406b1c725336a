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
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/deploy/internal/audit"
	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

// project is one that a compose program runs.
type project struct {
	*testing.T
	compose  []string // the program, and its first arguments
	files    []string
	name     string
	env      []string
	port     int // of HTTP and UDP, and the first of twenty
	gateways int
	rounds   []*audit.Round
}

var (
	composeV1 = []string{"docker-compose"} // 1.29, the last of its line
	composeV2 = []string{"docker", "compose"}
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
	p.Helper()
	out, err := p.output(program, args...)
	if err != nil {
		p.Fatal(err)
	}
	return out
}

// command is the line that runs the compose program on the project.
func (p *project) command(args ...string) []string {
	line := slices.Clone(p.compose)
	for _, file := range p.files {
		line = append(line, "-f", file)
	}
	return slices.Concat(line, []string{"-p", p.name}, args)
}

func (p *project) do(args ...string) string {
	p.Helper()
	line := p.command(args...)
	return p.must(line[0], line[1:]...)
}

// up brings the project up with so many gateways, and waits for them.
func (p *project) up(gateways int) {
	p.Helper()
	p.gateways = gateways
	p.do("up", "-d", "--scale", fmt.Sprintf("gateway=%d", gateways))
	p.awaitReady()
}

// part of the test, which ends with the first that fails.
func (p *project) part(name string, do func()) {
	p.Helper()
	whole := p.T
	if !whole.Run(name, func(t *testing.T) {
		p.T = t
		defer func() { p.T = whole }()
		do()
	}) {
		whole.FailNow()
	}
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

func needCompose(t *testing.T, compose []string) {
	t.Helper()
	if exec.Command(compose[0], append(slices.Clone(compose[1:]), "version")...).Run() == nil {
		return
	}
	what := "needs " + strings.Join(compose, " ") + ": apt-get install docker-compose, or the docker-compose-plugin of docker.com"
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// Both compose programs take the files without a word.
func TestComposeFiles(t *testing.T) {
	files, err := filepath.Glob("compose/*.yml")
	if err != nil || len(files) < 4 {
		t.Fatalf("there are %q, %v", files, err)
	}
	for _, file := range append(files, "../docker-compose.yml") {
		for name, compose := range map[string][]string{"1.29": composeV1, "v2": composeV2} {
			t.Run(filepath.Base(file)+" "+name, func(t *testing.T) {
				needCompose(t, compose)
				p := &project{T: t, compose: compose, name: "swarmgate-test", files: []string{filepath.Join("deploy", file)}}
				if filepath.Base(file) == "desktop.yml" {
					if name == "1.29" {
						t.Skip("it knows no !reset, as the file says")
					}
					p.files = append([]string{"docker-compose.yml"}, p.files...)
				}
				line := p.command("config")
				cmd := exec.Command(line[0], line[1:]...)
				cmd.Dir = ".."
				var said bytes.Buffer
				cmd.Stderr = &said
				if out, err := cmd.Output(); err != nil || said.Len() > 0 || !bytes.Contains(out, []byte("image: ")) {
					t.Errorf("%v, and it says %q", err, said.String())
				}
			})
		}
	}
}

// All that the compose files start is started for real, and comes and goes under load.
func TestCompose(t *testing.T) {
	needEngine(t)
	needCompose(t, composeV2)
	image := fmt.Sprintf("swarmgate-test:%d", os.Getpid())
	newProject := func(t *testing.T, n int, compose []string, files ...string) *project {
		p := &project{
			T: t, compose: compose, files: files, name: fmt.Sprintf("swarmgate-test-%d-%d", os.Getpid(), n),
			port: 20000 + os.Getpid()%150*80 + 20*n,
		}
		p.env = []string{
			"GATEWAY_IMAGE=" + image,
			fmt.Sprintf("SWARMGATE_HTTP=:%d", p.port),
			fmt.Sprintf("SWARMGATE_UDP=:%d", p.port),
			fmt.Sprintf("SWARMGATE_ADMIN=127.0.0.1:%d-%d", 6970+10*n, 6979+10*n), // where Prometheus looks
			"SWARMGATE_INTERVAL=20m",
		}
		return p
	}
	builder := newProject(t, 0, composeV2, "docker-compose.yml")
	builder.do("build")
	t.Cleanup(func() { builder.must("docker", "image", "rm", image) })
	volumes := builder.must("docker", "volume", "ls", "-q")
	t.Cleanup(func() {
		if after := builder.must("docker", "volume", "ls", "-q"); after != volumes {
			t.Errorf("volumes are %q, before %q", after, volumes)
		}
	})

	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		p := newProject(t, 0, composeV2, "docker-compose.yml")
		p.env = append(p.env, "REDIS_IMAGE=valkey/valkey:8.1-alpine", "REDIS_NET=10.69.100", "NODE_MEMORY_MB=128", "SWARMGATE_WAIT_REPLICAS=1")
		t.Cleanup(p.goneAfterDown)
		prometheus := p.startPrometheus()
		p.part("up", p.comesUp)
		left := p.gatewaysComeAndGo(prometheus.sees)
		p.part("a master is killed", func() {
			p.masterFails(func(service string) {
				p.must("docker", "kill", p.containers(service)[0])
				p.up(2) // as the engine leaves alone what somebody killed by its name
			})
		})
		p.part("a replica is killed", func() { p.replicaFails(prometheus.seesRefusals) })
		p.part("Prometheus", func() { prometheus.saw(p, left) })
		p.part("desktop", p.isForDesktops)
	})
	t.Run("cluster with docker-compose 1.29", func(t *testing.T) {
		t.Parallel()
		needCompose(t, composeV1)
		p := newProject(t, 1, composeV1, "docker-compose.yml")
		p.env = append(p.env, "REDIS_NET=10.69.101", "NODE_MEMORY_MB=128", "SWARMGATE_WAIT_REPLICAS=1")
		t.Cleanup(p.goneAfterDown)
		p.part("up", p.comesUp)
		p.gatewaysComeAndGo(func([]int) {})
		p.part("a master ends", func() { p.masterFails(p.kill) })
		p.part("a gateway ends", func() {
			p.kill("gateway")
			p.awaitReady()
			p.scrapeAll()
		})
	})
	t.Run("single", func(t *testing.T) {
		t.Parallel()
		p := newProject(t, 2, composeV2, "deploy/compose/single.yml")
		p.env = append(p.env, fmt.Sprintf("REDIS_PORT=%d", p.port+1))
		t.Cleanup(p.goneAfterDown)
		p.part("up", func() {
			p.up(1)
			p.gatewaysAreConfined()
			p.announceToAll()
		})
		p.part("Redis is killed", p.singleRedisFails)
		p.part("down and up", func() {
			p.do("down")
			p.up(1)
			p.scrapeAll()
		})
	})
}

// comesUp brings up a cluster and two gateways, twice.
func (p *project) comesUp() {
	p.up(2)
	p.nodesAreSetUp()
	p.gatewaysAreConfined()
	p.announceToAll()

	before := p.cluster()
	p.up(2)
	if after := p.cluster(); after != before {
		p.Errorf("the second up formed another cluster:\n%s\nbefore:\n%s", after, before)
	}
	p.scrapeAll()
}

// fleet of clients, some 350 announces a second.
func (p *project) fleet() *audit.Fleet {
	at := fmt.Sprintf("127.0.0.1:%d", p.port)
	f := audit.NewFleet(p.T, []audit.Endpoint{{HTTP: at, UDP: at}})
	f.Pace = 300 * time.Millisecond // as two clusters have to share the machine
	return f
}

// begin a round under load.
func (p *project) begin() *audit.Round {
	p.Helper()
	var nodes []string
	for _, service := range redisNodes {
		nodes = append(nodes, p.inspect(p.containers(service)[0], "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")+":6379")
	}
	return audit.Begin(p.T, audit.NewCluster(p.T, nodes...), p.fleet(), 1+len(p.rounds))
}

// end a round, and look for what was answered in earlier ones too.
func (p *project) end(r *audit.Round, want audit.Want) {
	p.Helper()
	var earlier []*audit.Fleet
	for _, r := range p.rounds {
		earlier = append(earlier, r.Fleet)
	}
	r.Judge(want, earlier...)
	p.rounds = append(p.rounds, r)
}

var redisNodes = []string{"redis-1", "redis-2", "redis-3", "redis-4", "redis-5", "redis-6"}

// gatewaysComeAndGo scales up to four gateways and, when their admin ports were seen, down to two again, which nobody
// notices. It returns the ports of those that left.
func (p *project) gatewaysComeAndGo(seen func(ports []int)) (left []int) {
	p.part("four gateways, and two again", func() {
		r := p.begin()
		p.up(4)
		four := p.readyAdmins()
		seen(four)
		for _, port := range four {
			for _, transport := range []string{"http", "udp"} {
				storetest.Eventually(p, time.Minute, func() error {
					if p.counted(port, "swarmgate_announces_total", transport) == 0 {
						return fmt.Errorf("the gateway with admin port %d has no clients over %s yet", port, transport)
					}
					return nil
				})
			}
		}
		r.Fails()
		p.up(2)
		r.GoesOn()
		p.end(r, audit.Want{Busy: true})
		two := p.readyAdmins()
		left = slices.DeleteFunc(four, func(port int) bool { return slices.Contains(two, port) })
	})
	return left
}

// masterFails has a master killed and come back, of which other masters' swarms notice nothing.
func (p *project) masterFails(kill func(service string)) {
	r := p.begin()
	replica, err := r.Replica(r.Victim, r.Watch)
	if err != nil {
		p.Fatal(err)
	}
	r.Fails()
	kill(serviceOf(r, r.Victim))
	r.Promoted(p, replica, r.Watch)
	storetest.Eventually(p, time.Minute, r.Replicated)
	r.Whole(0)
	back := time.Now()
	r.GoesOn()
	p.end(r, audit.Want{Refused: true, Busy: true})
	if theirs := r.Spell(time.Time{}, r.Theirs); theirs.Refused == 0 {
		p.Errorf("the master's swarms did not notice: %v", theirs)
	}
	if again := r.Spell(back, r.Theirs); again.Answered == 0 {
		p.Errorf("the master's swarms are not served again: %v %q", again, again.Why)
	}
}

// replicaFails has the only replica of a master killed, without which that one's swarms are refused until noticed returns and all is
// brought up again.
func (p *project) replicaFails(noticed func()) {
	r := p.begin()
	replica, err := r.Replica(r.Victim, r.Watch)
	if err != nil {
		p.Fatal(err)
	}
	r.Fails()
	p.must("docker", "kill", p.containers(serviceOf(r, replica))[0])
	noticed()
	p.up(2)
	storetest.Eventually(p, time.Minute, r.Replicated)
	r.Whole(0)
	r.GoesOn()
	p.end(r, audit.Want{Refused: true, Busy: true})
}

func serviceOf(r *audit.Round, node string) string { return redisNodes[slices.Index(r.Nodes(), node)] }

// singleRedisFails kills the only Redis, which comes back with all that was answered.
func (p *project) singleRedisFails() {
	f := p.fleet()
	f.Start(1)
	await := func(what string, of func(audit.Spell) int, more int) {
		p.Helper()
		before := of(f.Spell(time.Time{}, audit.All))
		storetest.Eventually(p, time.Minute, func() error {
			if n := of(f.Spell(time.Time{}, audit.All)); n < before+more {
				return fmt.Errorf("%d announces are %s", n-before, what)
			}
			return nil
		})
	}
	answered := func(s audit.Spell) int { return s.Answered }
	await("answered", answered, 1000)
	p.must("docker", "kill", p.containers("redis")[0])
	await("refused", func(s audit.Spell) int { return s.Refused }, 100)
	p.up(1)
	await("answered", answered, 1000)
	f.End()

	client := redis.NewClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", p.port+1), Protocol: 2})
	defer client.Close()
	found, err := audit.Peers(client)
	if err != nil {
		p.Fatal(err)
	}
	all, a := f.Spell(time.Time{}, audit.All), f.Audit(p, found)
	p.Logf("%v, %+v", all, a)
	if a.Lost() > 0 || all.Broken > 0 {
		p.Errorf("of %d announces that were answered %+v; %d got no answer: %q", a.Announces, a, all.Broken, all.Why)
	}
	p.scrapeAll()
}

// isForDesktops makes of two gateways on the host's network one with published ports, on the same Redis.
func (p *project) isForDesktops() {
	before := p.cluster()
	p.files = append(p.files, "deploy/compose/desktop.yml")
	p.env = slices.DeleteFunc(p.env, func(v string) bool { return regexp.MustCompile("^SWARMGATE_(HTTP|UDP|ADMIN)=").MatchString(v) })
	p.env = append(p.env, fmt.Sprintf("GATEWAY_PORT=%d", p.port), fmt.Sprintf("GATEWAY_ADMIN_PORT=%d", p.port+1))
	p.do("up", "-d")
	storetest.Eventually(p, time.Minute, func() error {
		status, body, err := get("127.0.0.1", p.port+1, "/readyz")
		if err == nil && status != http.StatusOK {
			err = errors.New(body)
		}
		return err
	})
	status, body, err := get("127.0.0.1", p.port, fmt.Sprintf("/announce?info_hash=%s&port=999&left=1", hash[:]))
	if err != nil || status != 200 || !strings.Contains(body, scraped) {
		p.Errorf("over HTTP it answers %d %q, %v", status, body, err)
	}
	p.announceUDP("127.0.0.1")
	if after := p.cluster(); after != before {
		p.Errorf("the cluster is another one:\n%s\nbefore:\n%s", after, before)
	}
}

// readyAdmins are the ports of the admin listeners of gateways that are ready.
func (p *project) readyAdmins() (ports []int) {
	p.Helper()
	for _, id := range p.containers("gateway") {
		log, err := p.output("docker", "logs", id)
		at := adminLine.FindAllStringSubmatch(log, -1)
		if err != nil || len(at) == 0 {
			continue
		}
		port, _ := strconv.Atoi(at[len(at)-1][1]) // of its last start
		if status, _, err := get("127.0.0.1", port, "/readyz"); err == nil && status == http.StatusOK {
			ports = append(ports, port)
		}
	}
	return ports
}

var adminLine = regexp.MustCompile(`Admin +on 127\.0\.0\.1:([0-9]+)`)

func (p *project) awaitReady() {
	p.Helper()
	storetest.Eventually(p, 2*time.Minute, func() error {
		if ports := p.readyAdmins(); len(ports) != p.gateways {
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
	p.Helper()
	return p.must("docker", "exec", p.containers(node)[0], "sh", "-c", `"$(command -v valkey-cli || command -v redis-cli)" `+command)
}

// cluster tells who has which slots and who copies whom.
func (p *project) cluster() string {
	p.Helper()
	var b strings.Builder
	for line := range strings.Lines(p.exec("redis-1", "cluster nodes | sort")) {
		words := strings.Fields(line)
		fmt.Fprintln(&b, words[0], strings.TrimPrefix(words[2], "myself,"), words[3], words[8:])
	}
	return b.String()
}

func (p *project) nodesAreSetUp() {
	p.Helper()
	nodes := p.cluster()
	if strings.Count(nodes, "master") != 3 || strings.Count(nodes, "slave") != 3 {
		p.Errorf("the cluster is\n%s", nodes)
	}
	for _, node := range redisNodes {
		for name, want := range map[string]string{
			"maxmemory": "100663296", "maxmemory-policy": "noeviction", "save": "", "appendonly": "no",
		} {
			got := strings.TrimSpace(strings.TrimPrefix(p.exec(node, "config get "+name), name))
			if got != want {
				p.Errorf("%s: %s is %q, want %q", node, name, got, want)
			}
		}
	}
}

// containers of a service that run.
func (p *project) containers(service string) []string {
	p.Helper()
	return strings.Fields(p.must("docker", "ps", "-q", "--filter", "label=com.docker.compose.project="+p.name, "--filter", "label=com.docker.compose.service="+service))
}

func (p *project) inspect(id, format string) string {
	p.Helper()
	return p.must("docker", "inspect", "-f", format, id)
}

func (p *project) gatewaysAreConfined() {
	p.Helper()
	const format = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.NetworkMode}} {{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}"
	for _, id := range p.containers("gateway") {
		if got := p.inspect(id, format); got != "65532:65532 true host 536870912 unless-stopped" {
			p.Errorf("a gateway runs as %q", got)
		}
		storetest.Eventually(p, time.Minute, func() error {
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
	p.Helper()
	for n := range seeders / 2 {
		from := fmt.Sprintf("127.0.7.%d", 1+n)
		status, body, err := get(from, p.port, fmt.Sprintf("/announce?info_hash=%s&port=%d&left=0", hash[:], 1000+n))
		if own := "11:external ip4:\x7f\x00\x07" + string([]byte{byte(1 + n)}); err != nil || status != 200 || !strings.Contains(body, own) {
			p.Fatalf("%s gets %d %q, %v", from, status, body, err)
		}
		p.announceUDP(fmt.Sprintf("127.0.8.%d", 1+n))
	}
	if _, body, err := get("::1", p.port, fmt.Sprintf("/announce?info_hash=%s&port=1&left=0", hash[:])); err != nil || !strings.Contains(body, "11:external ip16:") {
		p.Fatalf("on IPv6: %q, %v", body, err)
	}
	for _, port := range p.readyAdmins() {
		for _, transport := range []string{"http", "udp"} {
			if p.counted(port, "swarmgate_announces_total", transport) == 0 {
				p.Errorf("the gateway with admin port %d answered none of %d announces over %s", port, seeders/2, transport)
			}
		}
	}
	p.scrapeAll()
}

func (p *project) announceUDP(from string) {
	p.Helper()
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: p.port})
	if err != nil {
		p.Fatal(err)
	}
	defer c.Close()
	ask := func(r bep15.Request) (reply bep15.Reply) {
		p.Helper()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 2048)
		if _, err := c.Write(r.Append(nil)); err != nil {
			p.Fatal(err)
		}
		n, err := c.Read(b)
		if err = errors.Join(err, reply.Parse(b[:n])); err != nil {
			p.Fatal(err)
		}
		return reply
	}
	id := ask(bep15.Request{Action: bep15.ActionConnect}).ConnectionID
	r := ask(bep15.Request{Action: bep15.ActionAnnounce, ConnectionID: id, InfoHash: hash, Port: 6881})
	if r.Action != bep15.ActionAnnounce || r.Interval < 1080 || r.Interval > 1320 {
		p.Fatalf("%s gets %+v", from, r)
	}
}

// counted is a gateway's count of answers over a transport.
func (p *project) counted(admin int, name, transport string) (n int) {
	p.Helper()
	_, body, err := get("127.0.0.1", admin, "/metrics")
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, fmt.Sprintf("%s{result=\"ok\",transport=%q} ", name, transport)); ok {
			n, err = strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				p.Fatal(err)
			}
		}
	}
	return n
}

// scrapeAll scrapes until every gateway has answered, and wants all seeders of each.
func (p *project) scrapeAll() {
	p.Helper()
	before := map[int]int{}
	for _, port := range p.readyAdmins() {
		before[port] = p.counted(port, "swarmgate_scrapes_total", "http")
	}
	storetest.Eventually(p, time.Minute, func() error {
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
	p.Helper()
	id := p.containers(service)[0]
	pid, err := strconv.Atoi(p.inspect(id, "{{.State.Pid}}"))
	if err != nil || pid < 2 {
		p.Fatalf("the pid of %s is %d, %v", service, pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		p.Fatalf("%s: %v", service, err)
	}
	storetest.Eventually(p, time.Minute, func() error {
		if state := p.inspect(id, "{{.State.Pid}} {{.State.Health.Status}}"); !strings.HasSuffix(state, " healthy") || strings.HasPrefix(state, strconv.Itoa(pid)+" ") {
			return fmt.Errorf("%s is %s", service, state)
		}
		return nil
	})
}

// goneAfterDown ends the project, volumes included, and looks for what it left behind.
func (p *project) goneAfterDown() {
	if p.Failed() {
		line := p.command("logs", "--tail", "20")
		logs, err := p.output(line[0], line[1:]...)
		p.Log(logs, err)
	}
	p.do("down", "-v", "-t", "15")
	label := "label=com.docker.compose.project=" + p.name
	var left bytes.Buffer
	for _, list := range [][]string{{"ps", "-a"}, {"network", "ls"}, {"volume", "ls"}} {
		left.WriteString(p.must("docker", append(list, "-q", "--filter", label)...))
	}
	if left.Len() > 0 {
		p.Errorf("down leaves behind %s", left.String())
	}
}
