package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

// fields of an answer, by name.
type fields map[string]string

// side is one of the two that are compared.
type side struct {
	t         *testing.T
	http, udp string
	id        uint64 // of a UDP connection
	conn      net.Conn
	from      byte // the last byte of the loopback address that asks; 0: any
}

// opentracker starts Debian's, which serves the torrents of a list only.
func opentracker(t *testing.T, hashes ...swarm.InfoHash) *side {
	t.Helper()
	path := storetest.Need(t, "opentracker", "opentracker")
	dir, err := os.MkdirTemp("", "swarmgate-opentracker-") // which nobody may read, other than t.TempDir's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var list strings.Builder
	for _, hash := range hashes {
		fmt.Fprintf(&list, "%X\n", hash)
	}
	config := "access.whitelist /whitelist\naccess.stats 127.0.0.1\ntracker.rootdir " + dir + "\ntracker.user nobody\n"
	if me, err := user.Current(); err != nil || me.Uid != "0" {
		config = "access.whitelist " + dir + "/whitelist\naccess.stats 127.0.0.1\n" // it stays who it is, where it is
	}
	addr := storetest.FreeAddr(t)
	if err := errors.Join(os.Chmod(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "whitelist"), []byte(list.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "config"), []byte("listen.tcp_udp "+addr+"\n"+config), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-f", filepath.Join(dir, "config"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s := &side{t: t, http: "http://" + addr, udp: addr}
	storetest.Eventually(t, 10*time.Second, func() error {
		response, err := httpClient.Get(s.http + "/")
		if err == nil {
			_ = response.Body.Close()
		}
		return err
	})
	return s
}

// get is the answer to a request: its status, and what its body says.
func (s *side) get(path string) fields {
	s.t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	if s.from != 0 {
		transport.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, s.from)}}).DialContext
	}
	response, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(s.http + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	f := fields{"status": strconv.Itoa(response.StatusCode)}
	switch {
	case response.StatusCode != 200:
	case bytes.HasPrefix(body, []byte("d")):
		value, rest := unbencode(s.t, body)
		if len(rest) > 0 {
			s.t.Errorf("%s: %q follows the answer", path, rest)
		}
		f.add("", value)
	default:
		f["body"] = string(body)
	}
	return f
}

// add adds a bencoded value and what it consists of.
func (f fields) add(name string, value any) {
	switch v := value.(type) {
	case map[string]any:
		if len(v) == 0 && name != "" {
			f[name] = "none"
		}
		for key, value := range v {
			if len(key) == 20 { // an info hash
				key = fmt.Sprintf("%x", key[:2])
			}
			f.add(strings.TrimPrefix(name+"/"+key, "/"), value)
		}
	case string:
		switch name {
		case "peers":
			f[name] = peerList(v)
		case "external ip":
			addr, _ := netip.AddrFromSlice([]byte(v))
			f[name] = addr.String()
		default:
			f[name] = v
		}
	case []any:
		f[name] = fmt.Sprint(v)
	case int:
		f[name] = interval(name, v)
	}
}

// interval is the same for all that both trackers draw by chance.
func interval(name string, n int) string {
	if name == "interval" && 1620 <= n && n <= 1980 {
		return "1620 to 1980"
	}
	if name == "min interval" && 810 <= n && n <= 990 {
		return "810 to 990"
	}
	return strconv.Itoa(n)
}

// peerList of compact IPv4 peers: their ports, in order.
func peerList(compact string) string {
	var ports []int
	for ; len(compact) >= swarm.Size4; compact = compact[swarm.Size4:] {
		ports = append(ports, int(binary.BigEndian.Uint16([]byte(compact[4:]))))
	}
	slices.Sort(ports)
	return strings.Trim(fmt.Sprint(ports), "[]")
}

// unbencode insists on sorted keys.
func unbencode(t *testing.T, b []byte) (value any, rest []byte) {
	t.Helper()
	switch {
	case len(b) > 0 && b[0] == 'd':
		d, last := map[string]any{}, ""
		for b = b[1:]; len(b) > 0 && b[0] != 'e'; {
			var key any
			key, b = unbencode(t, b)
			if len(d) > 0 && key.(string) <= last {
				t.Errorf("the key %q follows %q", key, last)
			}
			last = key.(string)
			d[last], b = unbencode(t, b)
		}
		if len(b) > 0 {
			return d, b[1:]
		}
	case len(b) > 0 && b[0] == 'i':
		if digits, rest, ok := bytes.Cut(b[1:], []byte("e")); ok {
			if n, err := strconv.Atoi(string(digits)); err == nil {
				return n, rest
			}
		}
	case len(b) > 0 && b[0] == 'l':
		l := []any{}
		for b = b[1:]; len(b) > 0 && b[0] != 'e'; {
			value, b = unbencode(t, b)
			l = append(l, value)
		}
		if len(b) > 0 {
			return l, b[1:]
		}
	default:
		if digits, rest, ok := bytes.Cut(b, []byte(":")); ok {
			if n, err := strconv.Atoi(string(digits)); err == nil && n >= 0 && n <= len(rest) {
				return string(rest[:n]), rest[n:]
			}
		}
	}
	t.Fatalf("%q is not bencoded", b)
	return nil, nil
}

// send is the answer to a datagram, if there is one.
func (s *side) send(datagram []byte) fields {
	s.t.Helper()
	if s.conn == nil {
		conn, err := net.Dial("udp", s.udp)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = conn.Close() })
		s.conn = conn
	}
	if _, err := s.conn.Write(datagram); err != nil {
		s.t.Fatal(err)
	}
	// Where there is no answer, one to a second question comes alone.
	const second = 0xfeedface
	probe := bep15.Request{Action: bep15.ActionConnect, TransactionID: second}
	if _, err := s.conn.Write(probe.Append(nil)); err != nil {
		s.t.Fatal(err)
	}
	var answer []byte
	_ = s.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for b, probed := make([]byte, 2048), false; answer == nil || !probed; {
		n, err := s.conn.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) && probed {
			break
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if n >= 8 && binary.BigEndian.Uint32(b[4:]) == second {
			probed = true
			_ = s.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		} else {
			answer = bytes.Clone(b[:n])
		}
	}
	if answer == nil {
		return fields{"answer": "none"}
	}
	var reply bep15.Reply
	if err := reply.Parse(answer); err != nil {
		return fields{"answer": fmt.Sprintf("%d bytes", len(answer))}
	}
	f := fields{"action": fmt.Sprint(reply.Action), "transaction": fmt.Sprint(reply.TransactionID)}
	switch reply.Action {
	case bep15.ActionConnect:
		s.id = reply.ConnectionID
	case bep15.ActionAnnounce:
		f["interval"] = interval("interval", int(reply.Interval))
		f["seeders"], f["leechers"] = fmt.Sprint(reply.Seeders), fmt.Sprint(reply.Leechers)
		f["peers"] = peerList(string(reply.Peers))
	case bep15.ActionScrape:
		f["counts"] = fmt.Sprint(reply.Counts)
	case bep15.ActionError:
		f["reason"] = reply.Reason
	}
	return f
}

// rule is a difference that is meant: of the field in answers to questions whose names match, ours is one thing and
// opentracker's another.
type rule struct {
	question, field string // regular expressions of the whole
	ours, theirs    string // likewise
	fewer           bool   // besides, all that ours lists theirs does too
	why             string
}

const anything = ".*"

var rules = []rule{
	{"HTTP announce.*", "external ip", `127\.0\.0\.1`, "", false, "BEP 24, which opentracker does not know"},
	{".* announce.*", "peers", anything, anything, true, "nobody is handed itself, and who wants nothing more only who does"},
	{"HTTP announce of 4 GiB left", "complete|incomplete", `\d+`, `\d+`, false, "opentracker takes the lower 32 bits, and a seeder for it"},
	{"HTTP announce of (a stop|who is not there)", "downloaded", "1", "", false, "every answer has the same keys"},
	{"HTTP announce with.* port.*", "failure reason", "Your client .* port.*", "", false, "a peer without a port is of no use to anybody, and a client shows the reason"},
	{"HTTP announce with.* port.*", anything, anything, anything, false, "as above"},
	{"HTTP announce of dictionaries", "failure reason|status", "|200", "|400", false, "BEP 3's list of dictionaries"},
	{"HTTP announce of dictionaries", anything, ".+", "", false, "as above"},
	{"HTTP announce with words.*", "failure reason", "What your client sent as .* is not a number.", "", false, "a client shows the reason"},
	{"HTTP announce with words.*", anything, anything, anything, false, "as above"},
	{"HTTP (announce|scrape) of (a short info hash|two info hashes)", "failure reason", "Your client sent .*info_hash.*", "", false, "a client shows the reason"},
	{"HTTP (announce|scrape) of (a short info hash|two info hashes)", "status", "200", "400", false, "clients show the reason only then"},
	{"HTTP scrape.*", "files/.*/downloaders", `\d+`, "", false, "BEP 21"},
	{"HTTP scrape of an unknown swarm", "files", "", "none", false, "ours tells of every swarm that it was asked for"},
	{"HTTP scrape of an unknown swarm", "files/.*", "0", "", false, "as above"},
	{"HTTP statistics top10", "body", "(.*)Top 10 torrents by leechers:\n.*", ".*", false, "opentracker has them since 2024, Debian's is older"},
	{"HTTP announce of what is not served", "interval|retry in", "1620 to 1980|never", "", false, "BEP 31, and for who does not know it a time"},
	{"UDP announce of what is not served", "answer", "", "8 bytes", false, "an error that a client can show"},
	{"UDP announce of what is not served", "action|transaction|reason", "3|77|Requested download is not authorized for use with this tracker.", "", false, "as above"},
	{"UDP with an id that nobody gave", "answer", "none", "", false, "nothing is sent to who has not proved to be there"},
	{"UDP with an id that nobody gave", anything, "", anything, false, "as above"},
	{"UDP announce with port 0", "reason", "Your client sent port 0.", "", false, "a peer without a port is of no use to anybody"},
	{"UDP announce with port 0", anything, "3|", anything, false, "as above"},
}

// handed are the ports of the peers that ours hands out.
var handed = map[string]string{
	"HTTP announce of a leecher":                    "1001",
	"HTTP announce of another leecher":              "1001 1002",
	"HTTP announce of a completed download":         "1003",
	"HTTP announce that a download completed again": "1003",
	"HTTP announce of dictionaries":                 "[map[ip:127.0.0.1 port:1006]]",
	"HTTP announce that wants less than none":       "1001 1002",
	"HTTP announce that wants many":                 "1001 1002",
	"HTTP announce of a partial seed":               "1003",
	"HTTP announce without left":                    "1001 1002 1003 1005",
	"HTTP announce in escapes of both cases":        "1002 1005 1006",
	"UDP announce of a seeder":                      "2001",
	"UDP announce of another leecher":               "2001 2002",
	"UDP announce of a completed download":          "2003",
	"UDP announce of a partial seed":                "2003",
}

func match(pattern, text string) bool {
	return regexp.MustCompile("^(?s:" + pattern + ")$").MatchString(text)
}

func contains(all, some []string) bool {
	return !slices.ContainsFunc(some, func(one string) bool { return !slices.Contains(all, one) })
}

// TestSideBySideWithOpentracker asks both the same and compares the answers field by field.
func TestSideBySideWithOpentracker(t *testing.T) {
	theirs := opentracker(t, hashA, hashB, hashC)
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, fmt.Appendf(nil, "%X\n%x\n%x\n", hashA, hashB, hashC), 0o644); err != nil {
		t.Fatal(err)
	}
	g := gatewayWith(t, "--access", "allow", "--access-file", list, "--view-ttl", "0", "--stats-interval", "1s", "--fullscrape-ttl", "1s")
	ours := &side{t: t, http: "http://" + g.HTTP, udp: g.UDP}

	used := make([]bool, len(rules))
	compare := func(question string, a, b fields) {
		t.Helper()
		t.Logf("%s: %v, opentracker %v", question, a, b)
		if got := a["peers"]; strings.Contains(question, " announce") && got != handed[question] {
			t.Errorf("%s: handed out are %q, want %q", question, got, handed[question])
		}
		names := maps.Clone(a)
		maps.Copy(names, b)
	next:
		for field := range names {
			if a[field] == b[field] {
				continue
			}
			for i, r := range rules {
				if match(r.question, question) && match(r.field, field) && match(r.ours, a[field]) && match(r.theirs, b[field]) &&
					(!r.fewer || contains(strings.Fields(b[field]), strings.Fields(a[field]))) {
					used[i] = true
					continue next
				}
			}
			t.Errorf("%s: %s is %q, opentracker's %q", question, field, a[field], b[field])
		}
	}
	get := func(question, path string) {
		t.Helper()
		compare("HTTP "+question, ours.get(path), theirs.get(path))
	}
	send := func(question string, r bep15.Request) {
		t.Helper()
		ask := func(s *side) fields {
			r.TransactionID, r.ConnectionID = 77, s.id
			return s.send(r.Append(nil))
		}
		compare("UDP "+question, ask(ours), ask(theirs))
	}
	const a = "/announce?peer_id=-XX0000-000000000000&info_hash=aaaaaaaaaaaaaaaaaaaa&"
	get("announce of a seeder", a+"port=1001&left=0&event=started")
	get("announce of a leecher", a+"port=1002&left=5&event=started")
	get("announce of another leecher", a+"port=1003&left=5")
	get("announce of a completed download", a+"port=1002&left=0&event=completed")
	get("announce that a download completed again", a+"port=1002&left=0&event=completed")
	get("announce that wants none", a+"port=1003&left=5&numwant=0")
	get("announce that wants less than none", a+"port=1003&left=5&numwant=-5")
	get("announce that wants many", a+"port=1003&left=5&numwant=100000")
	get("announce of a partial seed", a+"port=1005&left=5&event=paused")
	get("announce without left", a+"port=1006")
	get("announce of a stop", a+"port=1001&left=0&event=stopped")
	get("announce of who is not there", a+"port=1999&left=0&event=stopped")
	get("announce in escapes of both cases", strings.ReplaceAll(a, "=aa", "=%61%61")+"port=1003&left=5&ip=%C3%bc")
	get("scrape", "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa")
	get("scrape of an unknown swarm", "/scrape?info_hash=cccccccccccccccccccc")

	send("connect", bep15.Request{Action: bep15.ActionConnect})
	announce := bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashB, NumWant: -1}
	with := func(change func(r *bep15.Request)) bep15.Request {
		r := announce
		change(&r)
		return r
	}
	send("announce of a leecher", with(func(r *bep15.Request) { r.Port, r.Left, r.Event = 2001, 5, swarm.Started }))
	send("announce of a seeder", with(func(r *bep15.Request) { r.Port, r.Event = 2002, swarm.Started }))
	send("announce of another leecher", with(func(r *bep15.Request) { r.Port, r.Left = 2003, 5 }))
	send("announce that wants none", with(func(r *bep15.Request) { r.Port, r.Left, r.NumWant = 2003, 5, 0 }))
	send("announce of a completed download", with(func(r *bep15.Request) { r.Port, r.Event = 2001, swarm.Completed }))
	send("announce of a partial seed", with(func(r *bep15.Request) { r.Port, r.Left, r.Event = 2004, 5, swarm.Paused }))
	send("announce of a stop", with(func(r *bep15.Request) { r.Port, r.Event = 2002, swarm.Stopped }))
	send("scrape", bep15.Request{Action: bep15.ActionScrape, Hashes: []swarm.InfoHash{hashB, hashA, {}}})
	for _, format := range []string{"ben", "bin", "txt", "txtp", "url"} {
		ours.from++ // a client may have one in five minutes
		get("full scrape as "+format, "/stats?mode=tpbs&format="+format)
	}
	ours.from++
	get("full scrape", "/scrape")
	ours.from = 0
	storetest.Eventually(t, 10*time.Second, func() error { // until all swarms were looked at
		if got := ours.get("/stats?mode=peer")["body"]; !strings.HasPrefix(got, "7\n") {
			return fmt.Errorf("the statistics are %q", got)
		}
		return nil
	})
	for _, mode := range []string{"peer", "torr", "top10"} {
		get("statistics "+mode, "/stats?mode="+mode)
	}
	minute := regexp.MustCompile(`:\d{8}:`) // which may be the next one for the second who is asked
	dump := func(s *side) fields {
		f := s.get("/stats?mode=statedump")
		f["body"] = minute.ReplaceAllString(f["body"], ":MINUTE:")
		return f
	}
	compare("HTTP statistics statedump", dump(ours), dump(theirs))
	get("statistics without a mode", "/stats")
	get("statistics of an unknown mode", "/stats?mode=nosuch")
	// Of what counts requests and time the words are compared.
	number, version := regexp.MustCompile(`\d+`), regexp.MustCompile(`(?s)<version>.*</version>`)
	for _, mode := range []string{"conn", "tcp4", "udp4", "scrp", "fscr", "completed", "syncs", "renew", "herr", "everything"} {
		shape := func(s *side) fields {
			f := s.get("/stats?mode=" + mode)
			f["body"] = number.ReplaceAllString(version.ReplaceAllString(f["body"], ""), "N")
			return f
		}
		compare("HTTP statistics "+mode, shape(ours), shape(theirs))
	}

	const c = "/announce?peer_id=-XX0000-000000000000&info_hash=cccccccccccccccccccc&"
	get("announce of 4 GiB left", c+"port=1006&left=4294967296")
	get("announce without a port", c+"left=5")
	get("announce with port 0", c+"left=5&port=0")
	get("announce with a port too large", c+"left=5&port=65536")
	get("announce of dictionaries", c+"port=1003&left=5&compact=0")
	get("announce with words for numwant", c+"port=1003&left=5&numwant=x")
	get("announce with words for left", c+"port=1003&left=x")
	get("announce without an info hash", "/announce?port=1003&left=5")
	get("announce of a short info hash", "/announce?info_hash=aaa&port=1003&left=5")
	get("announce of two info hashes", c+"info_hash=bbbbbbbbbbbbbbbbbbbb&port=1003&left=5")
	get("scrape of a short info hash", "/scrape?info_hash=bb")
	get("announce of what is not served", "/announce?info_hash=dddddddddddddddddddd&port=1003&left=5")
	get("scrape of what is not served", "/scrape?info_hash=dddddddddddddddddddd")
	send("announce of what is not served", with(func(r *bep15.Request) { r.InfoHash, r.Port, r.Left = swarm.InfoHash{}, 1003, 5 }))
	get("no such path", "/nothing")
	get("the root", "/")

	send("announce with port 0", with(func(r *bep15.Request) { r.InfoHash, r.Left = hashC, 5 }))
	header := func(id uint64, action byte) []byte {
		return append(binary.BigEndian.AppendUint64(nil, id), 0, 0, 0, action, 0, 0, 0, 77)
	}
	for name, datagram := range map[string]func(id uint64) []byte{
		"empty":                       func(uint64) []byte { return nil },
		"short":                       func(id uint64) []byte { return header(id, 1)[:15] },
		"wrong magic":                 func(uint64) []byte { return header(5, 0) },
		"unknown action":              func(id uint64) []byte { return header(id, 9) },
		"short announce":              func(id uint64) []byte { return append(header(id, 1), make([]byte, 97-16)...) },
		"with an id that nobody gave": func(uint64) []byte { return append(header(5, 1), make([]byte, 98-16)...) },
	} {
		compare("UDP "+name, ours.send(datagram(ours.id)), theirs.send(datagram(theirs.id)))
	}

	for i, r := range rules {
		if !used[i] {
			t.Errorf("%s: %s does not differ any more (%s)", r.question, r.field, r.why)
		}
	}
}

var (
	hashB = swarm.InfoHash([]byte("bbbbbbbbbbbbbbbbbbbb"))
	hashC = swarm.InfoHash([]byte("cccccccccccccccccccc"))
)
