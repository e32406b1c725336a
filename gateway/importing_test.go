package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/storetest"
)

func TestParseStatedump(t *testing.T) {
	hash := strings.Repeat("6a", 20)
	for line, want := range map[string]int64{
		strings.ToUpper(hash) + ":29000000:17": 17,
		hash + ":0:0":                          0,
		hash + ":29000000:17\r":                17,
		hash + ":1:9223372036854775807":        1<<63 - 1,
		"":                                     -1,
		hash:                                   -1,
		hash + ":1":                            -1,
		hash + ":1:2:3":                        -1,
		hash + ":1:":                           -1,
		hash + "::1":                           -1,
		hash + ":1:-2":                         -1,
		hash + ":1:+2":                         -1,
		hash + ":x:2":                          -1,
		hash + ":1:9223372036854775808":        -1,
		hash[1:] + ":1:2":                      -1,
		hash + "6a:1:2":                        -1,
		"g" + hash[1:] + ":1:2":                -1,
	} {
		got, err := parseStatedump([]byte(line))
		switch {
		case want < 0 && (err == nil || got != swarmstore.Tally{}):
			t.Errorf("%q is %+v", line, got)
		case want >= 0 && (err != nil || got.Downloads != want || got.InfoHash[19] != 'j'):
			t.Errorf("%q is %+v, %v", line, got, err)
		}
	}
}

func FuzzParseStatedump(f *testing.F) {
	f.Add([]byte(strings.Repeat("6A", 20) + ":29000000:17"))
	f.Add([]byte(strings.Repeat("6a", 20) + ":1:+2\r"))
	f.Fuzz(func(t *testing.T, line []byte) {
		got, err := parseStatedump(line)
		if err != nil {
			return
		}
		// What is good says the same when it is written anew.
		fields := strings.Split(string(line), ":")
		again := fmt.Sprintf("%x:%s:%d", got.InfoHash, fields[1], got.Downloads)
		if same, err := parseStatedump([]byte(again)); err != nil || same != got || got.Downloads < 0 || !strings.EqualFold(hex.EncodeToString(got.InfoHash[:]), fields[0]) {
			t.Errorf("%q is %+v, and %q is %+v, %v", line, got, again, same, err)
		}
	})
}

func TestImport(t *testing.T) {
	const hashA, hashB = "6161616161616161616161616161616161616161", "6262626262626262626262626262626262626262"
	dump := func(t *testing.T, lines ...string) string {
		file := filepath.Join(t.TempDir(), "dump")
		if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	run := func(t *testing.T, args ...string) (code int, said string) {
		var stdout, stderr bytes.Buffer
		code = start(t.Context(), append([]string{"import", "statedump"}, args...), func(string) (string, bool) { return "", false }, &stdout, &stderr)
		if stdout.Len() > 0 {
			t.Errorf("stdout is %q", &stdout)
		}
		return code, stderr.String()
	}
	for name, servers := range map[string]func(t *testing.T) []*storetest.Process{
		"one Redis": func(t *testing.T) []*storetest.Process { return []*storetest.Process{storetest.Redis(t)} },
		"a cluster": func(t *testing.T) []*storetest.Process { return storetest.Cluster(t, 3, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			redis := redisFlags(servers(t)...)
			many := &strings.Builder{} // of more than one batch
			for n := range importBatch + 1 {
				fmt.Fprintf(many, "%040X:29000000:%d\n", n+1, n)
			}
			file := dump(t, hashA+":29000000:41\n", many.String(), hashB+":29000000:3")
			for range 2 {
				if code, said := run(t, append(redis, file)...); code != 0 || !strings.Contains(said, fmt.Sprintf("%d swarms are imported", importBatch+3)) {
					t.Fatalf("exit code %d, %q", code, said)
				}
			}
			g := gatewayWith(t, redis...)
			if body := g.scrape(); !strings.Contains(body, "10:downloadedi41e") {
				t.Errorf("the scrape is %q", body)
			}
			g.announce("port=1&left=0&event=completed")
			storetest.Eventually(t, 5*time.Second, func() error {
				if body := g.scrape(); !strings.Contains(body, "10:downloadedi42e") {
					return fmt.Errorf("after a download the scrape is %q", body)
				}
				return nil
			})
			code, said := run(t, append(redis, dump(t, "nonsense\n", hashB+":1:5\n", hashB+"\n"))...)
			if code != 1 || !strings.Contains(said, "line 1 ") || !strings.Contains(said, "line 3 ") || !strings.Contains(said, "2 of 3 lines") {
				t.Errorf("exit code %d, %q", code, said)
			}
			if _, body := g.get("http://" + g.HTTP + "/scrape?info_hash=bbbbbbbbbbbbbbbbbbbb"); !strings.Contains(body, "10:downloadedi5e") {
				t.Errorf("what was good is %q", body)
			}
			c, err := parse(t, nil, append(redis, "import", "statedump", "-")...)
			if err != nil {
				t.Fatal(err)
			}
			if err := importStatedump(t.Context(), c, strings.NewReader("6363636363636363636363636363636363636363:1:9"), io.Discard); err != nil {
				t.Error(err)
			}
			if _, body := g.get("http://" + g.HTTP + "/scrape?info_hash=cccccccccccccccccccc"); !strings.Contains(body, "10:downloadedi9e") {
				t.Errorf("what came from stdin is %q", body)
			}
		})
	}
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no store":       {[]string{dump(t, hashA+":1:1\n")}, 2, "--redis"},
		"no file":        {[]string{"--redis", "redis://127.0.0.1:1", filepath.Join(t.TempDir(), "none")}, 1, "none"},
		"nothing in it":  {[]string{"--redis", "redis://127.0.0.1:1", dump(t)}, 1, "nothing"},
		"an endless one": {[]string{"--redis", "redis://127.0.0.1:1", dump(t, strings.Repeat("6", 1<<20))}, 1, "line 1"},
		"Redis is away":  {[]string{"--redis", "redis://127.0.0.1:1", dump(t, hashA+":1:1\n")}, 1, "0 swarms are imported"},
	} {
		if code, said := run(t, test.args...); code != test.code || !strings.Contains(said, test.want) {
			t.Errorf("%s: exit code %d, %q", name, code, said)
		}
	}
}
