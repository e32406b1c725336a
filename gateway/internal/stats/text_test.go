package stats

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"swarmgate/swarmstore/swarm"
)

// known is a report with other numbers everywhere.
func known() *Report {
	r := &Report{Time: 1_800_000_000, Version: "swarmgate <1> & more", TrackerID: 7, Gateways: 2, Uptime: 7300}
	for _, e := range []swarm.Entry{
		{InfoHash: swarm.InfoHash([]byte("aaaaaaaaaaaaaaaaaaaa")), Counts: swarm.Counts{Seeders: 3, Leechers: 1, Downloads: 3}},
		{InfoHash: swarm.InfoHash([]byte("bbbbbbbbbbbbbbbbbbbb")), Counts: swarm.Counts{Leechers: 5, PartialSeeds: 1, Downloads: 4}},
		{InfoHash: swarm.InfoHash([]byte("\xAB\xCDcccccccccccccccccc")), Counts: swarm.Counts{Downloads: 9}},
	} {
		r.Swarms.add(&e)
	}
	r.Swarms.Time, r.Swarms.Took, r.Swarms.Replicated = 1_799_999_990, 1.5, 123456
	c := &r.Counts
	c.HTTP.Received = Families{73001, 7301}
	c.HTTP.Announces.IPv4 = Outcomes{OK: 14600, Unavailable: 1, Busy: 2, Full: 3, Failed: 4}
	c.HTTP.Announces.IPv6 = Outcomes{OK: 7300}
	c.HTTP.Scrapes = Outcomes{OK: 7311, Busy: 5}
	c.UDP.Received = Families{146000, 21900}
	c.UDP.Announces.IPv4 = Outcomes{OK: 60000}
	c.UDP.Announces.IPv6 = Outcomes{OK: 6000}
	c.UDP.Scrapes = Outcomes{OK: 600}
	c.ConnectionIDs = Families{30000, 3000}
	c.WrongIDs, c.InvalidUDP, c.Downloads, c.FullScrapes, c.FullScrapeBytes = 11, 17, 9, 2, 1_000_000
	c.Refused = Refused{1, 2, 3, 4, 5, 6, 7}
	for i := range c.Renewed {
		c.Renewed[i] = uint64(64 * i)
	}
	c.NumWants[0], c.NumWants[50], c.NumWants[200] = 1, 4, 2
	r.Busiest = []Networks{
		{28, []Network{{netip.MustParseAddr("192.0.2.16"), 123456789}, {netip.MustParseAddr("127.0.0.0"), 64}}},
		{24, []Network{{netip.MustParseAddr("192.0.2.0"), 128}}},
		{64, []Network{{netip.MustParseAddr("2001:db8:1:2::"), 192}}},
		{48, []Network{}},
	}
	r.Woodpeckers = []Networks{{28, []Network{{netip.MustParseAddr("192.0.2.16"), 64}}}, {64, []Network{}}}
	return r
}

// TestPages holds every page against its bytes in testdata.
func TestPages(t *testing.T) {
	seen := map[string]bool{}
	for mode, render := range pages {
		var got strings.Builder
		render(known(), &got)
		want, err := os.ReadFile(filepath.Join("testdata", mode))
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("mode %s: %q, want %q", mode, got.String(), want)
		}
		seen[mode] = true
	}
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !file.IsDir() && !seen[file.Name()] {
			t.Errorf("no page is like %s", file.Name())
		}
	}
}

// shape of a page: numbers, hashes and networks are all the same.
func shape(page string) string {
	for _, r := range []struct{ like, is string }{
		{`\t\d+\t[0-9A-F]{40}\n`, "\tN\tHASH\n"},
		{`(\tN\tHASH\n)+`, "\tN\tHASH\n"},
		{`\d{8,}: [0-9.]+\n`, "COUNT: NETWORK\n"},
		{`(COUNT: NETWORK\n)+`, "COUNT: NETWORK\n"},
		{`( =>|RED|\.\.\.|PAR|COM|IP |INV|SRV|\n\d\d|^\d\d) \d+\n`, "$1 N\n"},
	} {
		page = regexp.MustCompile(r.like).ReplaceAllString(page, r.is)
	}
	return numbers.ReplaceAllString(page, "${1}N")
}

// numbers are those that are not part of a name or of a prefix length.
var numbers = regexp.MustCompile(`(^|[\n, (:]|:: )\d+\b`)

// TestPagesHaveTheShapesOfOpentrackers holds them against what Debian's opentracker
// 0.0~git20210823.110868e-3 answered, in testdata/opentracker.
func TestPagesHaveTheShapesOfOpentrackers(t *testing.T) {
	files, err := os.ReadDir("testdata/opentracker")
	if err != nil || len(files) < 10 {
		t.Fatal(err, len(files))
	}
	for _, file := range files {
		mode := file.Name()
		theirs, err := os.ReadFile(filepath.Join("testdata/opentracker", mode))
		if err != nil {
			t.Fatal(err)
		}
		var ours strings.Builder
		pages[mode](known(), &ours)
		got, want := shape(ours.String()), shape(string(theirs))
		if mode == "everything" {
			got, want = strings.Join(elements(t, ours.String()), "\n"), strings.Join(elements(t, string(theirs)), "\n")
		}
		// What is new comes behind the rest: leechers, IPv6.
		if more := mode == "top10" || mode == "s24s"; more && !strings.HasPrefix(got, want) || !more && got != want {
			t.Errorf("mode %s has the shape %q, opentracker's %q", mode, got, want)
		}
	}
}

// elements of an XML document, in order, with their attributes.
func elements(t *testing.T, document string) (list []string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(document))
	depth := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			line := strings.Repeat(" ", depth) + token.Name.Local
			for _, a := range token.Attr {
				line += " " + a.Name.Local + "=" + a.Value
			}
			list = append(list, line)
			depth++
		case xml.EndElement:
			depth--
		}
	}
}

func TestReportIsJSONAndBack(t *testing.T) {
	text, err := json.Marshal(known())
	if err != nil {
		t.Fatal(err)
	}
	var again Report
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	text2, err := json.Marshal(&again)
	if err != nil || string(text) != string(text2) {
		t.Errorf("%s\nand back\n%s, %v", text, text2, err)
	}
}

func TestTopIsBoundedAndSorted(t *testing.T) {
	var list top
	for n := range 1000 {
		h := swarm.InfoHash{byte(n), byte(n >> 8)}
		list.add(h, n*7919%1000)
	}
	if len(list) != topTorrents {
		t.Fatalf("%d torrents", len(list))
	}
	for i, torrent := range list {
		if torrent.Count != 999-i {
			t.Errorf("place %d has %d peers", i, torrent.Count)
		}
	}
}
