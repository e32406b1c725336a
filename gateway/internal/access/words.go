package access

import (
	"encoding/hex"
	"fmt"

	"swarmgate/swarmstore/swarm"
)

const hashDigits = 2 * len(swarm.InfoHash{})

// Words of the list, as commands and answers use them.
const (
	wordDeny   = "deny"
	wordAllow  = "allow"
	wordRemove = "remove"
)

// Word is what makes the list say l.
func Word(l swarm.Listing) string {
	return [...]string{swarm.Unlisted: wordRemove, swarm.Denied: wordDeny, swarm.Allowed: wordAllow}[l]
}

// ParseWord is the reverse of Word.
func ParseWord(word string) (l swarm.Listing, ok bool) {
	for _, l := range []swarm.Listing{swarm.Unlisted, swarm.Denied, swarm.Allowed} {
		if Word(l) == word {
			return l, true
		}
	}
	return 0, false
}

// ParseHash reads the 40 hexadecimal digits of an info hash.
func ParseHash(text string) (hash swarm.InfoHash, err error) {
	if len(text) == hashDigits {
		if _, err := hex.Decode(hash[:], []byte(text)); err == nil {
			return hash, nil
		}
	}
	return swarm.InfoHash{}, fmt.Errorf("%.80q is no info hash of 40 hexadecimal digits", text)
}
