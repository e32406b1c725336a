package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

// passedOn is a socket as a service manager keeps it.
func passedOn(t *testing.T, socket any, err error) *os.File {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.(io.Closer).Close()
	f, err := socket.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// activate starts a gateway as systemd does, on sockets that are bound.
func activate(t *testing.T, names, notify string, files ...*os.File) *child {
	t.Helper()
	shell := fmt.Sprintf("env LISTEN_PID=$$ LISTEN_FDS=%d LISTEN_FDNAMES=%s $0 --secret 0123456789abcdef", len(files), names)
	return startChild(t, shell, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify)
		cmd.ExtraFiles = files
	})
}

func TestSocketActivation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	told := func(want string) {
		t.Helper()
		b := make([]byte, 64)
		_ = notify.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := notify.Read(b); err != nil || string(b[:n]) != want {
			t.Errorf("the service manager is told %q, %v, want %q", b[:n], err, want)
		}
	}

	l, err := net.Listen("tcp", "[::]:0")
	http := passedOn(t, l, err)
	a, err := net.Listen("tcp", "127.0.0.1:0")
	admin := passedOn(t, a, err)
	reuse := net.ListenConfig{Control: controlSharePort}
	u1, err := reuse.ListenPacket(t.Context(), "udp", "[::]:0")
	udp1 := passedOn(t, u1, err)
	u2, err := reuse.ListenPacket(t.Context(), "udp", u1.LocalAddr().String())
	udp2 := passedOn(t, u2, err)
	start := func() *child {
		t.Helper()
		c := activate(t, "swarmgate.socket:swarmgate.socket:udp:admin", path, http, udp1, udp2, admin)
		told("READY=1")
		if len(c.listening.HTTP) != 1 || len(c.listening.UDP) != 1 || c.Admin != a.Addr().String() ||
			!strings.Contains(strings.Join(c.banner, "\n"), "on port "+port(l.Addr())+", IPv4 and IPv6") {
			t.Errorf("the banner is %q", c.banner)
		}
		c.HTTP = "127.0.0.1:" + port(l.Addr())
		c.UDP = "127.0.0.1:" + port(u1.LocalAddr())
		return c
	}

	c := start()
	for n := range 20 { // by which both UDP sockets get some
		if body := c.announce(fmt.Sprintf("port=%d&left=0", 1+n)); !strings.Contains(body, fmt.Sprintf("8:completei%de", n+1)) {
			t.Errorf("an announce gets %q", body)
		}
		c.dialUDP()
	}
	u := c.dialUDP()
	if status, _ := c.get("http://" + c.Admin + "/readyz"); status != 200 {
		t.Errorf("/readyz is %d", status)
	}
	c.terminate()
	told("STOPPING=1")

	// What comes while no gateway runs is answered by the next one.
	conn, err := net.Dial("tcp", c.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	request := bep15.Request{Action: bep15.ActionScrape, ConnectionID: u.id, TransactionID: 78, Hashes: []swarm.InfoHash{hashA}}
	_, err1 := io.WriteString(conn, "GET /announce?info_hash=aaaaaaaaaaaaaaaaaaaa&port=1&left=0 HTTP/1.0\r\n\r\n")
	_, err2 := u.conn.Write(request.Append(nil))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	c = start()
	if b, err := io.ReadAll(conn); err != nil || !strings.Contains(string(b), "8:completei1e") {
		t.Errorf("who came between two gateways gets %q, %v", b, err)
	}
	_ = u.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 2048)
	n, err := u.conn.Read(b)
	var reply bep15.Reply
	if err != nil || reply.Parse(b[:n]) != nil || reply.TransactionID != 78 {
		t.Errorf("over UDP %x, %v", b[:n], err)
	}
	c.terminate()
	told("STOPPING=1")
}

func port(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

func TestSocketsThatAreNone(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	u, err := new(net.ListenConfig).Listen(context.Background(), "unix", filepath.Join(t.TempDir(), "socket"))
	unix := passedOn(t, u, err)
	for _, f := range []*os.File{file, unix} {
		var s sockets
		if err := s.adopt([]*os.File{f}); err == nil || !strings.Contains(err.Error(), f.Name()) {
			t.Errorf("%s: %v", f.Name(), err)
		}
	}
}
