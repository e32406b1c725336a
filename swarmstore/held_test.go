package swarmstore

import (
	"testing"

	"swarmgate/swarmstore/swarm"
)

func FuzzParseHeld(f *testing.F) {
	f.Add("1800000000 1800005000 1 2 3 4 5 6 7 8 9 10 11 12")
	f.Add("1800000000 1800005000 1 2 3 4 5 6 7 8 9 10 11 2147483648")
	f.Add("-1 1 1 2 3 4 5 6 7 8 9 10 11 12")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		h := parseHeld(text)
		if again := parseHeld(formatHeld(h)); again != h {
			t.Fatalf("%+v comes back as %+v", h, again)
		}
		for class := range h.To {
			if min(h.Since, h.Until, int64(h.From[class]), int64(h.To[class]), int64(h.From6[class]), int64(h.To6[class])) < 0 {
				t.Fatalf("%+v is below zero", h)
			}
		}
	})
}

func TestParseHeld(t *testing.T) {
	want := swarm.Held{Since: 1, Until: 2, From: [3]int32{3, 7, 11}, To: [3]int32{4, 8, 12}, From6: [3]int32{5, 9, 13}, To6: [3]int32{6, 10, 14}}
	if got := parseHeld("1 2 3 4 5 6 7 8 9 10 11 12 13 14"); got != want || parseHeld(formatHeld(want)) != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, text := range []string{"", "1", "1 2 3 4 5 6 7 8 9 10 11 12 13 x", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", "1 2 3 4 5 6 7 8 9 10 11 12 13 -14"} {
		if got := parseHeld(text); got != (swarm.Held{}) {
			t.Errorf("%q is %+v", text, got)
		}
	}
}
