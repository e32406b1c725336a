package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"swarmgate/swarmstore/storetest"
)

// network is one of the test's own: namespaces that are joined by a bridge in the first,
// which is the tracker's. Clients do not take each other for real on loopback addresses,
// nor two for different ones on one address.
type network struct {
	t     *testing.T
	names []string
}

// namespace is a host of the network.
type namespace struct{ name, addr4, addr6 string }

func newNetwork(t *testing.T) *network {
	t.Helper()
	storetest.Need(t, "ip", "iproute2")
	return &network{t: t}
}

func (n *network) ip(args string) error {
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w %s", args, err, out)
	}
	return nil
}

// host adds a host to the network.
func (n *network) host() *namespace {
	n.t.Helper()
	number := len(n.names) + 1
	h := &namespace{fmt.Sprintf("swarmgate-%d-%d", os.Getpid(), number), fmt.Sprintf("10.69.0.%d", number), fmt.Sprintf("2001:db8:69::%x", number)}
	if err := n.ip("netns add " + h.name); err != nil {
		const what = "the test with real clients needs root, for network namespaces"
		if os.Getenv("CI") == "true" {
			n.t.Fatalf("%s: %v", what, err)
		}
		n.t.Skip(what)
	}
	n.t.Cleanup(func() {
		if err := n.ip("netns del " + h.name); err != nil {
			n.t.Error(err)
		}
	})
	n.names = append(n.names, h.name)
	link := []string{"link add net0 type bridge"}
	if number > 1 {
		port := fmt.Sprintf("to%d", number)
		link = []string{"link add net0 type veth peer name " + port + " netns " + n.names[0]}
		defer func() {
			if err := n.ip("-n " + n.names[0] + " link set " + port + " master net0 up"); err != nil {
				n.t.Fatal(err)
			}
		}()
	}
	for _, command := range append(link,
		"link set lo up",
		"addr add "+h.addr4+"/24 dev net0",
		"addr add "+h.addr6+"/64 dev net0 nodad",
		"link set net0 up",
		"route add default dev net0",
		"-6 route add default dev net0",
	) {
		if err := n.ip("-n " + h.name + " " + command); err != nil {
			n.t.Fatal(err)
		}
	}
	return h
}

// process is a program that runs in a namespace.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// start runs a program in the namespace until the test ends. Its output is shown when
// the test has failed.
func (n *namespace) start(t *testing.T, program string, args ...string) *process {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", n.name, program}, args...)...)
	var output storetest.Text
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(program), output.String())
		}
	})
	return p
}

// httpClient asks from within the namespace.
func (n *namespace) httpClient() *http.Client {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		// A socket belongs to the namespace of the thread that makes it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var there, here int
		var err error
		if here, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY, 0); err != nil {
			return nil, err
		}
		defer unix.Close(here)
		if there, err = unix.Open("/run/netns/"+n.name, unix.O_RDONLY, 0); err != nil {
			return nil, err
		}
		defer unix.Close(there)
		if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
			return nil, err
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return conn, errors.Join(err, unix.Setns(here, unix.CLONE_NEWNET))
	}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// content is the file that is shared.
const (
	contentName = "content.bin"
	contentSize = 1 << 20
	pieceSize   = 1 << 15
)

// makeTorrent makes a file of chance and its torrent, private so that no client looks for
// peers but at the tracker.
func makeTorrent(t *testing.T, announce string) (content []byte, torrent string, hash [20]byte) {
	t.Helper()
	content = make([]byte, contentSize)
	r := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%32s", announce)[:32])))
	_, _ = r.Read(content)
	var pieces bytes.Buffer
	for at := 0; at < contentSize; at += pieceSize {
		sum := sha1.Sum(content[at : at+pieceSize])
		pieces.Write(sum[:])
	}
	info := fmt.Sprintf("d6:lengthi%de4:name%d:%s12:piece lengthi%de6:pieces%d:%s7:privatei1ee",
		contentSize, len(contentName), contentName, pieceSize, pieces.Len(), pieces.String())
	torrent = filepath.Join(t.TempDir(), "content.torrent")
	file := fmt.Sprintf("d8:announce%d:%s4:info%se", len(announce), announce, info)
	if err := os.WriteFile(torrent, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return content, torrent, sha1.Sum([]byte(info))
}

// A startClient starts a BitTorrent client that downloads or seeds a torrent in dir. What it
// returns stops it, so that it takes its leave of the tracker.
type startClient func(t *testing.T, n *namespace, torrent, dir string) (stop func())

func transmission(t *testing.T, n *namespace, torrent, dir string) (stop func()) {
	t.Helper()
	config, watch := t.TempDir(), t.TempDir()
	settings := fmt.Sprintf(`{"dht-enabled": false, "pex-enabled": false, "lpd-enabled": false, "utp-enabled": false,
		"port-forwarding-enabled": false, "download-dir": %q,
		"watch-dir": %q, "watch-dir-enabled": true}`, dir, watch)
	copied, err := os.ReadFile(torrent)
	if err = errors.Join(err, os.WriteFile(filepath.Join(config, "settings.json"), []byte(settings), 0o600),
		os.WriteFile(filepath.Join(watch, "content.torrent"), copied, 0o600)); err != nil {
		t.Fatal(err)
	}
	n.start(t, storetest.Need(t, "transmission-daemon", "transmission-daemon"), "--foreground", "--config-dir", config)
	return func() {
		out, err := exec.Command("ip", "netns", "exec", n.name, storetest.Need(t, "transmission-remote", "transmission-cli"), "--torrent", "all", "--stop").CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// aria2 speaks UDP to trackers through its DHT, which knows nobody and is not asked about a
// private torrent.
func aria2(t *testing.T, n *namespace, torrent, dir string) (stop func()) {
	t.Helper()
	p := n.start(t, storetest.Need(t, "aria2c", "aria2"), "--enable-dht=true", "--enable-dht6=false",
		"--dht-file-path="+filepath.Join(t.TempDir(), "dht"), "--enable-peer-exchange=false",
		"--bt-enable-lpd=false", "--seed-ratio=0", "--dir="+dir, torrent)
	return p.terminate
}

// libtorrent runs in Python. Its announces are those of qBittorrent and Deluge.
func libtorrent(t *testing.T, n *namespace, torrent, dir string) (stop func()) {
	t.Helper()
	const python = "/usr/bin/python3" // Debian's, which has Debian's modules
	if exec.Command(python, "-c", "import libtorrent").Run() != nil {
		storetest.Need(t, "libtorrent for python3", "python3-libtorrent")
	}
	p := n.start(t, python, "-c", `
import libtorrent, signal, sys, time
torrent, dir, addr4, addr6 = sys.argv[1:]
session = libtorrent.session({
    "listen_interfaces": "%s:6881,[%s]:6881" % (addr4, addr6), "enable_dht": False, "enable_lsd": False,
    "enable_upnp": False, "enable_natpmp": False, "stop_tracker_timeout": 2})
handle = session.add_torrent({"ti": libtorrent.torrent_info(torrent), "save_path": dir})
def stop(*_):
    session.remove_torrent(handle)
    time.sleep(1)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
while True:
    time.sleep(0.1)
`, torrent, dir, n.addr4, n.addr6)
	return p.terminate
}

func (p *process) terminate() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }

// Real clients find each other through the tracker alone: a seeder and two leechers, of
// which both complete, and a third that joins when the seeder has stopped.
func TestRealClients(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	network := newNetwork(t)
	tracker := network.host()
	program := filepath.Join(t.TempDir(), "gateway")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tracker.start(t, program)

	at4, at6 := tracker.addr4+":6969/announce", "["+tracker.addr6+"]:6969/announce"
	for _, leg := range []struct {
		announce                    string
		seeder, first, second, late startClient
	}{
		{"http://" + at4, transmission, transmission, aria2, aria2},
		{"http://" + at6, transmission, transmission, aria2, aria2},
		{"udp://" + at4, transmission, transmission, aria2, aria2},
		// Debian's aria2 and transmission speak UDP to trackers over IPv4 only.
		{"udp://" + at6, libtorrent, libtorrent, libtorrent, libtorrent},
	} {
		var hosts [4]*namespace
		for i := range hosts {
			hosts[i] = network.host()
		}
		t.Run(leg.announce, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			content, torrent, hash := makeTorrent(t, leg.announce)
			scrape := "http://" + tracker.addr4 + ":6969/scrape?info_hash=" + url.QueryEscape(string(hash[:]))
			client := tracker.httpClient()
			await := func(what, counts string) {
				t.Helper()
				storetest.Eventually(t, time.Minute, func() error {
					response, err := client.Get(scrape)
					if err != nil {
						return err
					}
					defer response.Body.Close()
					body, err := io.ReadAll(response.Body)
					if err != nil || !strings.Contains(string(body), counts) {
						return fmt.Errorf("%s: the scrape is %q, %v", what, body, err)
					}
					return nil
				})
			}
			joined := 0
			join := func(start startClient, with []byte) (stop func(), dir string) {
				t.Helper()
				dir = t.TempDir()
				if with != nil {
					if err := os.WriteFile(filepath.Join(dir, contentName), with, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				joined++
				return start(t, hosts[joined-1], torrent, dir), dir
			}
			complete := func(dir string) {
				t.Helper()
				storetest.Eventually(t, time.Minute, func() error {
					got, err := os.ReadFile(filepath.Join(dir, contentName))
					if err == nil && !bytes.Equal(got, content) {
						err = errors.New("the download is not complete")
					}
					return err
				})
			}

			stop, _ := join(leg.seeder, content)
			await("the seeder", "8:completei1e")
			_, first := join(leg.first, nil)
			_, second := join(leg.second, nil)
			complete(first)
			complete(second)
			await("all have it", "8:completei3e10:downloadedi2e11:downloadersi0e10:incompletei0e")
			stop()
			await("the seeder stopped", "8:completei2e")
			_, late := join(leg.late, nil)
			complete(late)
			await("the late one has it", "8:completei3e10:downloadedi3e11:downloadersi0e10:incompletei0e")
			t.Logf("took %v", time.Since(begun))
		})
	}
}
