//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Ports of the servers.
const (
	portTracker = 16969
	portAdmin   = 16970
	portRedis   = 16379
)

// addrTracker is where trackers answer.
var addrTracker = fmt.Sprintf("127.0.0.1:%d", portTracker)

// command is a program in the network of what runs.
func (b *bench) command(program string, args ...string) *exec.Cmd {
	line := append(append(b.namespace[:len(b.namespace):len(b.namespace)], program), args...)
	cmd := exec.CommandContext(b.ctx, line[0], line[1:]...)
	cmd.Dir = b.dir
	return cmd
}

// spawn starts a server.
func (b *bench) spawn(program string, args ...string) (int, error) {
	cmd := b.command(program, args...)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	b.running = append(b.running, cmd)
	return cmd.Process.Pid, nil
}

// stop ends all servers.
func (b *bench) stop() {
	for _, cmd := range b.running {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	b.running, b.namespace = nil, nil
	if b.container != "" {
		if _, err := docker("rm", "--force", "--volumes", b.container); err != nil {
			b.note("%v", err)
		}
		b.container = ""
	}
}

// missingError says what a measurement needs and this machine has not.
type missingError struct{ what string }

func (e *missingError) Error() string { return e.what }

// docker runs to its end even on Ctrl-C, so that it is known what it did.
func docker(args ...string) (string, error) {
	cmd := exec.Command("docker", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// contain starts the server of an image. Its container has a network of its own, with no way out, and all
// that is started after it joins that one.
func (b *bench) contain(image string, args ...string) (int, error) {
	if _, err := exec.LookPath("docker"); err != nil {
		return 0, &missingError{"no docker"}
	}
	if _, err := docker("image", "inspect", image); err != nil {
		return 0, &missingError{"no image " + image + ": docker pull " + image}
	}
	name, _, _ := strings.Cut(path.Base(image), ":")
	b.container = fmt.Sprintf("swarmgate-bench-%d-%d", os.Getpid(), time.Now().UnixNano())
	if _, err := docker(append([]string{"run", "--detach", "--pull", "never", "--network", "none", "--name", b.container, image, name + "-server"}, args...)...); err != nil {
		return 0, err
	}
	text, err := docker("inspect", "--format", "{{.State.Pid}}", b.container)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(text)
	if err != nil || pid == 0 {
		return 0, fmt.Errorf("the container of %s does not run", image)
	}
	b.namespace = []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid)}
	return pid, nil
}

func (b *bench) cli(port int, args ...string) (string, error) {
	out, err := b.command("redis-cli", append([]string{"-p", strconv.Itoa(port)}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("redis-cli: %w: %s", err, out)
	}
	return string(out), nil
}

// info is a number of a Redis's INFO.
func (b *bench) info(port int, name string) (int, error) {
	info, err := b.cli(port, "info")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("no %s in INFO", name)
}

// setup is gateways and their store. They absorb no repeats unless told to.
type setup struct {
	masters  int    // of a cluster; one Redis below two
	replicas int    // of each master
	image    string // that the Redis runs from
	embedded bool   // no Redis at all
	gateways int    // that share the port; one below two
	ipv6     bool
	flags    []string // further ones
}

func (s setup) start(b *bench, _ work) (map[string]int, string, error) {
	pids := map[string]int{}
	addr := addrTracker
	if s.ipv6 {
		addr = fmt.Sprintf("[::1]:%d", portTracker)
	}
	flags := []string{"--http", addr, "--udp", addr, "--repeat-window", "0", "--log-level", "error"}
	if !s.embedded {
		urls, err := s.startRedis(b, pids)
		if err != nil {
			return nil, "", err
		}
		flags = append(flags, "--redis", urls)
	}
	flags = append(flags, s.flags...)
	if s.gateways > 1 {
		flags = append(flags, "--share-port")
	}
	for n := range max(1, s.gateways) {
		admin := []string{"--admin", fmt.Sprintf("127.0.0.1:%d", portAdmin+n)}
		pid, err := b.spawn(filepath.Join(b.dir, "gateway"), append(admin, flags...)...)
		if err != nil {
			return nil, "", err
		}
		pids[fmt.Sprintf("gateway%d", n)] = pid
		if err := b.await(func() error {
			return b.command(filepath.Join(b.dir, "gateway"), append([]string{"health"}, admin...)...).Run()
		}); err != nil {
			return nil, "", fmt.Errorf("gateway %d: %w", n, err)
		}
	}
	return pids, addr, nil
}

// startRedis starts one, or a cluster, adds the processes to pids and tells the URLs.
func (s setup) startRedis(b *bench, pids map[string]int) (string, error) {
	var urls []string
	create := []string{"--cluster", "create"}
	for n := range max(1, s.masters) * (1 + s.replicas) {
		port := portRedis + n
		args := []string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning",
			"--repl-diskless-load", "on-empty-db"} // a file would be read by the next one
		if s.masters > 1 {
			args = append(args, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(port+100),
				"--cluster-config-file", fmt.Sprintf("nodes-%d-%d.conf", port, time.Now().UnixNano()))
		}
		var pid int
		var err error
		if s.image != "" {
			pid, err = b.contain(s.image, args...)
		} else {
			pid, err = b.spawn("redis-server", args...)
		}
		if err != nil {
			return "", err
		}
		if n < max(1, s.masters) {
			pids[fmt.Sprintf("redis%d", n)] = pid
		} else {
			pids[fmt.Sprintf("replica%d", n)] = pid
		}
		urls = append(urls, fmt.Sprintf("redis://127.0.0.1:%d", port))
		create = append(create, fmt.Sprintf("127.0.0.1:%d", port))
		if err := b.await(func() error { _, err := b.cli(port, "ping"); return err }); err != nil {
			return "", err
		}
	}
	if s.masters < 2 {
		return urls[0], nil
	}
	if _, err := b.cli(portRedis, append(create, "--cluster-replicas", strconv.Itoa(s.replicas), "--cluster-yes")...); err != nil {
		return "", err
	}
	for n := range urls {
		if err := b.await(func() error {
			info, err := b.cli(portRedis+n, "cluster", "info")
			if err == nil && !strings.Contains(info, "cluster_state:ok") {
				err = errors.New("the cluster does not form")
			}
			if err != nil || n >= s.masters || s.replicas == 0 {
				return err
			}
			if info, err = b.cli(portRedis+n, "info", "replication"); err == nil && !strings.Contains(info, "state=online") {
				err = errors.New("no replica is there")
			}
			return err
		}); err != nil {
			return "", err
		}
	}
	return strings.Join(urls, ","), nil
}

// opentracker as Debian has it serves the torrents of a list only.
var opentracker = side{"opentracker", func(b *bench, w work) (map[string]int, string, error) {
	hashes, err := exec.CommandContext(b.ctx, filepath.Join(b.dir, "loadtest"), append([]string{"--hashes", "--target", w.scheme + "://" + addrTracker}, w.load...)...).Output()
	if err != nil {
		return nil, "", err
	}
	config := filepath.Join(b.dir, "opentracker.conf")
	text := fmt.Sprintf("listen.tcp_udp %s\naccess.whitelist /whitelist\ntracker.rootdir %s\ntracker.user nobody\n", addrTracker, b.dir)
	if err := errors.Join(os.WriteFile(filepath.Join(b.dir, "whitelist"), hashes, 0o644), os.WriteFile(config, []byte(text), 0o644)); err != nil {
		return nil, "", err
	}
	pid, err := b.spawn("opentracker", "-f", config)
	if err != nil {
		return nil, "", err
	}
	// It tells nobody when it is ready: when it answers an announce.
	probe := work{"udp", []string{"--torrents", "1", "--peers", "1", "--addresses", "1", "--warmup", "0s"}}
	return map[string]int{"opentracker": pid}, addrTracker, b.await(func() error {
		res, err := b.load(probe, nil, addrTracker, 20*time.Millisecond)
		if err == nil && res.Answers == 0 {
			err = errors.New("opentracker does not answer")
		}
		return err
	})
}}
