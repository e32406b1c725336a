package access

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"swarmgate/swarmstore/swarm"
)

// Line is an info hash as a file has it.
func Line(hash swarm.InfoHash) string { return hex.EncodeToString(hash[:]) }

func TestLinesOfAFile(t *testing.T) {
	one, two := Line(hash1), Line(hash2)
	for name, test := range map[string]struct {
		text    string
		hashes  []swarm.InfoHash
		ignored int
	}{
		"one":                       {one, []swarm.InfoHash{hash1}, 0},
		"two":                       {two + "\n" + one + "\n", []swarm.InfoHash{hash1, hash2}, 0},
		"one, twice":                {one + "\n" + one + "\n", []swarm.InfoHash{hash1}, 0},
		"capital digits":            {strings.ToUpper(Line(hash3)), []swarm.InfoHash{hash3}, 0},
		"lines end as on DOS":       {one + "\r\n" + two + "\r\n", []swarm.InfoHash{hash1, hash2}, 0},
		"more on a line":            {one + ":12 why\n" + two + " # why", []swarm.InfoHash{hash1, hash2}, 0},
		"too many digits":           {one + "0\n" + two, []swarm.InfoHash{hash2}, 1},
		"too few":                   {one[1:] + "\n" + two, []swarm.InfoHash{hash2}, 1},
		"another first":             {" " + one + "\n" + two, []swarm.InfoHash{hash2}, 1},
		"a wrong digit":             {"g" + one[1:] + "\n" + one[:39] + "@\n" + two, []swarm.InfoHash{hash2}, 2},
		"empty lines, and comments": {"\n \n\r\n# " + one + "\n#\n" + two, []swarm.InfoHash{hash2}, 0},
		"nothing but a comment":     {"# nothing yet\n", nil, 0},
		"a long line":               {strings.Repeat("x", 1<<20) + one + "\n" + two, []swarm.InfoHash{hash2}, 1},
		"a long line, and a hash":   {one + strings.Repeat(" ", 1<<20) + "\n" + two, []swarm.InfoHash{hash1, hash2}, 0},
		"a hash at a buffer's end":  {strings.Repeat("#"+strings.Repeat("-", 62)+"\n", 63) + "#" + strings.Repeat("-", 62) + "\n" + one, []swarm.InfoHash{hash1}, 0},
		"zeros":                     {strings.Repeat("0", 40), []swarm.InfoHash{{}}, 0},
	} {
		hashes, ignored, err := ParseFile(strings.NewReader(test.text), int64(len(test.text)))
		if err != nil || !slices.Equal(hashes, test.hashes) || ignored != test.ignored {
			t.Errorf("%s: %x, %d ignored, %v", name, hashes, ignored, err)
		}
		if err == nil && hashes == nil {
			t.Errorf("%s: what says nothing is taken for what was not read", name)
		}
	}
}

func TestWrongFiles(t *testing.T) {
	line := Line(hash1) + "\n"
	for name, test := range map[string]struct{ text, want string }{
		"garbage":         {"a\nb\n", "none of its 2 lines"},
		"nothing":         {"", "it is empty"},
		"binary":          {strings.Repeat("\x00", 1<<16), "none of its 1 lines"},
		"too many hashes": {strings.Repeat(line, 11), "more than 10 info hashes"},
		"too many bytes":  {line + strings.Repeat("#\n", 1<<16), "more than 100000 bytes"},
		"one long line":   {line + strings.Repeat("#", 1<<17), "more than 100000 bytes"},
	} {
		if hashes, _, err := parse(strings.NewReader(test.text), 0, 100_000, 10); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %d hashes, %v", name, len(hashes), err)
		}
	}
	exact := strings.Repeat(line, 10) + strings.Repeat("#", 100_000-10*len(line))
	if hashes, _, err := parse(strings.NewReader(exact), int64(len(exact)), 100_000, 10); err != nil || len(hashes) != 1 {
		t.Errorf("a file as large as may be: %d hashes, %v", len(hashes), err)
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(Line(hash1) + "\r\n# why\n\n" + Line(hash2) + ":x"))
	f.Add([]byte(Line(hash1) + "0\n" + Line(hash2)[1:]))
	f.Add(bytes.Repeat([]byte("\n0123456789abcdefABCDEF0123456789ABCDEF012 "), 200))
	f.Fuzz(func(t *testing.T, text []byte) {
		hashes, ignored, err := ParseFile(bytes.NewReader(text), 0)
		// The same, said plainly.
		var want []swarm.InfoHash
		wrong := 0
		for line := range bytes.Lines(text) {
			if len(line) >= 40 && len(bytes.TrimLeft(line[:40], "0123456789abcdefABCDEF")) == 0 &&
				(len(line) == 40 || !strings.Contains("0123456789abcdefABCDEF", string(line[40:41]))) {
				hash, err := ParseHash(string(line[:40]))
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, hash)
			} else if line[0] != '#' && len(bytes.TrimSpace(line[:min(len(line), 4096)])) > 0 {
				wrong++
			}
		}
		if err != nil {
			if len(want) > 0 || wrong == 0 && len(text) > 0 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if len(text) == 0 {
			t.Fatal("nothing is taken for a list")
		}
		slices.SortFunc(want, compare)
		if want = slices.Compact(want); !slices.Equal(hashes, want) || ignored != wrong {
			t.Fatalf("%q: %x, %d ignored, want %x and %d", text, hashes, ignored, want, wrong)
		}
	})
}

func FuzzParseHash(f *testing.F) {
	f.Add(Line(hash1))
	f.Fuzz(func(t *testing.T, text string) {
		if hash, err := ParseHash(text); err == nil && !strings.EqualFold(Line(hash), text) {
			t.Errorf("%q is read as %x", text, hash)
		}
	})
}
