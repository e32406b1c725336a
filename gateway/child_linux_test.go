package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
)

// child is a gateway in a process of its own.
type child struct {
	*running
	cmd    *exec.Cmd
	banner []string
}

// startChild starts a gateway by a command line in which $0 is the program, and returns when it has
// said what it listens on.
func startChild(t *testing.T, shell string, change func(*exec.Cmd)) *child {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{running: &running{t: t}, cmd: exec.Command("/bin/sh", "-c", "exec "+shell, program)}
	c.cmd.Env = append(os.Environ(), "TEST_IS_GATEWAY=1")
	c.cmd.Stderr = &c.log
	if change != nil {
		change(c.cmd)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.cmd.Process.Kill(); _ = c.cmd.Wait() })
	deadline := time.AfterFunc(20*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer deadline.Stop()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		c.banner = append(c.banner, lines.Text())
		fields := strings.Fields(lines.Text())
		_, addr, _ := strings.Cut(fields[len(fields)-1], "://")
		addr, _, _ = strings.Cut(addr, "/")
		switch fields[0] {
		case "HTTP":
			c.HTTP, c.listening.HTTP = addr, append(c.listening.HTTP, addr)
		case "UDP":
			c.UDP, c.listening.UDP = addr, append(c.listening.UDP, addr)
		case "Admin":
			c.Admin = addr
		case "Store":
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return c
		}
	}
	_ = c.cmd.Wait()
	t.Fatalf("the gateway ends: %v, %s", c.cmd.ProcessState, c.log.String())
	return nil
}

// terminate ends it as its supervisor does.
func (c *child) terminate() {
	c.t.Helper()
	if err := errors.Join(c.cmd.Process.Signal(syscall.SIGTERM), c.cmd.Wait()); err != nil {
		c.t.Errorf("it ends with %v: %s", err, c.log.String())
	}
}

// status is a line of /proc/PID/task/TID/status of each thread.
func (c *child) status(name string) (values []string) {
	c.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		c.t.Fatalf("no threads: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			c.t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(line, name+":"); ok {
				values = append(values, strings.Join(strings.Fields(value), " "))
			}
		}
	}
	return values
}

// lowPort is a free port that only root can bind.
func lowPort(t *testing.T) string {
	t.Helper()
	for port := 1023; port > 512; port-- {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatal("no port below 1024 is free")
	return ""
}

func TestRootBecomesAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	const name = "daemon"
	u, err := user.Lookup(name)
	if err != nil {
		t.Skip(err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(groups, func(a, b string) int { n, _ := strconv.Atoi(a); m, _ := strconv.Atoi(b); return n - m })
	addr := lowPort(t)
	c := startChild(t, fmt.Sprintf("$0 --user %s --http %s --udp %s --admin 127.0.0.1:0", name, addr, addr), nil)
	if body := c.announce("port=1&left=0"); !strings.Contains(body, "8:completei1e") {
		t.Errorf("an announce gets %q", body)
	}
	c.dialUDP()
	for what, want := range map[string]string{
		"Uid":    strings.Repeat(" "+u.Uid, 4)[1:],
		"Gid":    strings.Repeat(" "+u.Gid, 4)[1:],
		"Groups": strings.Join(groups, " "),
		"CapEff": "0000000000000000",
		"CapPrm": "0000000000000000",
	} {
		got := c.status(what)
		if len(got) < 2 || slices.ContainsFunc(got, func(s string) bool { return s != want }) {
			t.Errorf("%s of its threads is %q, want %q", what, got, want)
		}
	}
	if _, body := c.get("http://" + c.Admin + "/metrics"); !strings.Contains(body, "process_open_fds ") {
		t.Error("it cannot see its own file descriptors any more")
	}
	c.terminate()
}

func TestOnlyRootBecomesAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to start as another user")
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "") // the test's own is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "gateway")
	if err := errors.Join(os.WriteFile(path, program, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	nobody := func(cmd *exec.Cmd) {
		cmd.Args[3], cmd.Dir = path, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	const rest = " --http 127.0.0.1:0 --udp '' --admin ''"
	c := startChild(t, "$0 --user 65534"+rest, nobody)
	c.announce("port=1&left=0")
	c.terminate()

	cmd := exec.Command("/bin/sh", "-c", "exec $0 --user daemon"+rest, path)
	nobody(cmd)
	cmd.Env = append(os.Environ(), "TEST_IS_GATEWAY=1")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "--user") {
		t.Errorf("%v, %q", err, out)
	}
}

// A hangup of the terminal, or a "reload" of the service manager, ends no gateway.
func TestSIGHUPEndsNoGateway(t *testing.T) {
	c := startChild(t, "$0 --http 127.0.0.1:0 --udp 127.0.0.1:0 --admin 127.0.0.1:0 --log-level debug", nil)
	if err := c.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, inForce, func() error {
		if !strings.Contains(c.log.String(), "SIGHUP changes nothing without --access-file") {
			return errors.New("the signal shows nowhere")
		}
		return nil
	})
	if body := c.announce("port=1&left=0"); !strings.Contains(body, "8:completei1e") {
		t.Errorf("an announce gets %q", body)
	}
	c.terminate()
}
