package swarmstore

import "testing"

func FuzzSecrets(f *testing.F) {
	const one, other = "000102030405060708090a0b0c0d0e0f", "f00102030405060708090a0b0c0d0e0f"
	for _, text := range []string{one, one + " " + other, one + " " + one, one + " ", one + "00", one[:30] + "gg", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSecrets(text)
		if err != nil {
			if s != (Secrets{}) {
				t.Errorf("%q is refused and read as %x", text, s)
			}
			return
		}
		if again, err := parseSecrets(s.text()); err != nil || again != s {
			t.Errorf("%q is read as %x, and when written again as %x, %v", text, s, again, err)
		}
	})
}
