package swarmstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

const (
	// A trouble is logged when it begins, each complaining while it lasts, and when it was not
	// seen for recovering.
	complaining = time.Minute
	recovering  = 3 * inspecting
)

// trouble is a state of Redis that an operator has to mend: what it is, and what to do.
type trouble struct {
	what, help string
	warning    bool // announces are answered nevertheless
	cluster    bool // it is the cluster's, whichever node tells of it
}

var (
	errHandshake = errors.New("no TLS handshake")
	errForeign   = errors.New("a key holds what no gateway wrote")
	errReplica   = errors.New("READONLY it follows a master")
	errLoading   = errors.New("LOADING it reads its data from disk")
)

// troubleOf tells what an error of a node's means. A command's reply begins with a word for it.
func troubleOf(err error) trouble {
	var file *fs.PathError
	var certificate *tls.CertificateVerificationError
	text := err.Error()
	says := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(text, part) })
	}
	switch {
	case errors.Is(err, errReplicas):
		return trouble{what: "writes reach too few replicas", help: "bring the replicas back, or lower --wait-replicas"}
	case errors.As(err, &certificate):
		return trouble{what: "the certificate of Redis is not good", help: certificateHelp(err)}
	case errors.As(err, &file):
		return trouble{what: "a file that connections to Redis need cannot be read", help: "let the gateway's user read it"}
	case says("remote error: tls:"):
		return trouble{what: "Redis does not accept the gateway's certificate", help: "--redis-cert and --redis-key, of the CA that Redis knows; or tls-auth-clients no in Redis"}
	case errors.Is(err, errHandshake): // to a port without TLS it waits in vain
		return trouble{what: "a Redis node speaks no TLS", help: "if it never does: redis:// in --redis, or the port that has TLS"}
	case says("WRONGPASS"):
		return trouble{what: "Redis does not know the user with this password", help: "the user in --redis, and --redis-password-file or SWARMGATE_REDIS_PASSWORD"}
	case says("NOAUTH"):
		return trouble{what: "Redis wants a password", help: "--redis-password-file or SWARMGATE_REDIS_PASSWORD"}
	case says("NOPERM"):
		return trouble{what: "Redis does not permit the gateway's user a command or a key", help: "the permissions in deploy/redis/swarmgate.acl"}
	case says("READONLY"):
		return trouble{what: "Redis is a replica, which takes no announces", help: "its master in --redis"}
	case says("CLUSTERDOWN"):
		return trouble{what: "slots of the cluster are on no node; swarms in them fail", help: "bring their nodes back: redis-cli --cluster check HOST:PORT tells which", cluster: true}
	case says("OOM "):
		return trouble{what: "Redis is full and refuses announces, except of who stops", help: "a higher maxmemory, or more masters; peers that expire make room too"}
	case says("WRONGTYPE"), errors.Is(err, errForeign):
		return trouble{what: "a key holds what no gateway wrote", help: "find out who writes there, and delete the key; until then what hangs on it fails"}
	case says("MISCONF"):
		return trouble{what: "Redis takes no writes because it cannot save to disk", help: "room on its disk, or save \"\" in Redis"}
	case says("LOADING"):
		return trouble{what: "Redis is starting", help: "wait until it has read its data"}
	case says("DENIED"):
		return trouble{what: "Redis is in protected mode", help: "a password in Redis, or protected-mode no on a private network"}
	case says("unknown command"):
		return trouble{what: "Redis lacks a command", help: "Redis 6.2 or later, or Valkey; with rename-command for none that is in deploy/redis/swarmgate.acl"}
	case isReply(err):
		return trouble{what: "Redis refuses a command"}
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return trouble{what: "a Redis node ends connections", help: "if it always does: rediss:// in --redis, as it may want TLS"}
	default:
		return trouble{what: "a Redis node does not answer"}
	}
}

func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

func certificateHelp(err error) string {
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &name):
		return "a certificate for the name or address by which the gateway reaches the node; nodes of a cluster are reached as they announce themselves"
	case errors.As(err, &unknown):
		return "--redis-ca with the CA that signed it"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "a new certificate for Redis, or the right time on this host"
	}
	return "another certificate for Redis"
}

// troubles are those that go on, by node and what is wrong, of which there are few.
type troubles struct {
	mu      sync.Mutex
	lasting map[[2]string]*lasting
}

type lasting struct {
	trouble
	seen, logged time.Time
}

// complain of a node's trouble, at most once in a while.
func (s *Store) complain(node string, t trouble, args ...any) {
	if s.ctx.Err() != nil {
		return // what fails now fails because the store closes
	}
	if t.cluster {
		node = ""
	}
	now := time.Now()
	s.troubles.mu.Lock()
	l := s.troubles.lasting[[2]string{node, t.what}]
	if l == nil {
		l = &lasting{trouble: t}
		s.troubles.lasting[[2]string{node, t.what}] = l
	}
	l.seen = now
	due := now.Sub(l.logged) >= complaining
	if due {
		l.logged = now
	}
	s.troubles.mu.Unlock()
	if !due {
		return
	}
	if node != "" {
		args = append([]any{"node", node}, args...)
	}
	if t.help != "" {
		args = append(args, "help", t.help)
	}
	level := slog.LevelError
	if t.warning {
		level = slog.LevelWarn
	}
	s.opt.Log.Log(s.ctx, level, t.what, args...)
}

// recovered notes which troubles are over.
func (s *Store) recovered(now time.Time) {
	s.troubles.mu.Lock()
	defer s.troubles.mu.Unlock()
	for at, l := range s.troubles.lasting {
		if now.Sub(l.seen) >= recovering {
			delete(s.troubles.lasting, at)
			s.opt.Log.Info("it seems to be over: "+l.what, "node", at[0])
		}
	}
}

// Troubles are the states of Redis that an operator has to mend, a line for each, as the log
// tells them. They hold no secrets.
func (s *Store) Troubles() (lines []string) {
	s.troubles.mu.Lock()
	defer s.troubles.mu.Unlock()
	for at, l := range s.troubles.lasting {
		line := l.what
		if at[0] != "" {
			line = at[0] + ": " + line
		}
		if l.help != "" {
			line += " (" + l.help + ")"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// failed notes that a node did not answer: what it stored may be lost, and
// another may have taken its place.
func (s *Store) failed(node string, err error) {
	s.contact(node).lose(err)
	s.rerouted()
	s.complain(node, troubleOf(err), "error", err)
}

// refused notes what a node answered a command with, if it did answer.
func (s *Store) refused(node string, cmd redis.Cmder, err error) {
	if !isReply(err) {
		return
	}
	// The reply to an unknown command goes on with its arguments, a peer perhaps.
	text, _, _ := strings.Cut(err.Error(), ", with args")
	args := []any{"error", text, "command", cmd.Name()}
	if words := cmd.Args(); len(words) > 1 {
		if key, is := words[1].([]byte); is {
			args = append(args, "key", printable(key))
		}
	}
	s.complain(node, troubleOf(err), args...)
}

// foreign is the error of a command whose key holds what no gateway wrote.
func foreign(cmd redis.Cmder) error {
	key, _ := cmd.Args()[1].([]byte)
	return fmt.Errorf("%w: %s", errForeign, printable(key))
}

// printable is a key as redis-cli takes it between double quotes.
func printable(key []byte) string {
	if len(key) != keyLen {
		return fmt.Sprintf("%q", key)
	}
	var b strings.Builder
	b.Write(key[:tagLen])
	for _, c := range key[tagLen : keyLen-1] {
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	b.WriteByte(key[keyLen-1])
	return b.String()
}

// explain turns what an operation failed with into one of swarm's errors. What a node said is
// logged already.
func (s *Store) explain(err error) error {
	s.opt.Metrics.Refused()
	text := err.Error()
	switch {
	case errors.Is(err, errForeign):
		s.complain("", troubleOf(err), "error", err)
	case errors.Is(err, errReplicas):
		s.complain("", troubleOf(err), "error", err)
		s.lookAround() // one of them may be the master by now
	case !isReply(err):
		// The node as such failed.
	case strings.HasPrefix(text, "OOM"):
		return swarm.ErrFull
	case strings.HasPrefix(text, "WRONGTYPE"), strings.HasPrefix(text, "NOPERM"):
		// Slots are where they were.
	default:
		s.rerouted()
	}
	return swarm.ErrUnavailable
}

const (
	// inspecting is the time between two looks at how all masters are set up.
	inspecting = 10 * time.Second

	littleMemory = 64 << 20 // bytes
)

// watch looks after Redis until the store closes: it tries to reach it, and then looks at its nodes.
func (s *Store) watch() {
	tick := time.NewTicker(reconnecting)
	defer tick.Stop()
	inspected := time.Now() // when it was reached
	chosen := inspected     // when it was looked which nodes are near
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		b := s.backend.Load()
		if b != nil && s.readsApart() && time.Since(chosen) >= choosing {
			s.chooseReaders(b)
			chosen = time.Now()
		}
		if b == nil {
			s.connect(s.ctx)
			inspected = time.Now()
		} else if time.Since(inspected) >= inspecting {
			s.inspectAll(b)
			inspected = time.Now()
		}
		s.recovered(time.Now())
	}
}

// inspectAll masters, at the same time.
func (s *Store) inspectAll(b *backend) {
	if _, err := b.master(s.ctx, swarm.InfoHash{}, 0); err != nil {
		s.complain("", troubleOf(err), "error", err) // no master is known
	}
	var all sync.WaitGroup
	for client := range b.masters(s.ctx) {
		all.Go(func() { _, _ = s.inspect(s.ctx, client) })
	}
	all.Wait()
}

// inspect asks a node how it is, and complains of what is not as it should be. An error means
// that no announce can be stored there.
func (s *Store) inspect(ctx context.Context, client *redis.Client) (info string, err error) {
	node := client.Options().Addr
	info, err = client.Info(ctx).Result()
	if err == nil {
		err = s.assess(node, info)
	}
	if err != nil && ctx.Err() == nil {
		s.complain(node, troubleOf(err), "error", err)
	}
	return info, err
}

// assess what a node says of itself.
func (s *Store) assess(node, info string) error {
	if policy := field(info, "maxmemory_policy"); policy != "" && policy != "noeviction" {
		s.complain(node, trouble{what: "Redis forgets swarms when it is full", help: "maxmemory-policy noeviction in Redis", warning: true}, "maxmemory-policy", policy)
	}
	limit, _ := strconv.ParseInt(field(info, "maxmemory"), 10, 64)
	used, _ := strconv.ParseInt(field(info, "used_memory"), 10, 64)
	if limit > 0 && (limit < littleMemory || used > limit/10*9) {
		s.complain(node, trouble{what: "Redis has little memory", help: "a higher maxmemory in Redis; README.md tells what a peer takes", warning: true}, "maxmemory", limit, "used", used)
	}
	switch {
	case field(info, "loading") == "1":
		return errLoading
	case field(info, "role") == "slave" && !isCluster(info):
		return errReplica
	}
	return nil
}

func isCluster(info string) bool { return field(info, "cluster_enabled") == "1" }

// field of a reply to INFO, "" where there is none.
func field(info, name string) string {
	_, rest, _ := strings.Cut(info, "\n"+name+":")
	value, _, _ := strings.Cut(rest, "\r\n")
	return value
}
