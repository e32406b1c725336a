package swarmstore

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

const (
	// A swarm is looked at again after shortestHold to longestHold, drawn anew each time, or when it has grown
	// by heldGrowth.
	shortestHold = time.Hour
	longestHold  = 2 * time.Hour
	heldGrowth   = 4

	// heldYouth is how long a swarm that nobody knew is young. Meanwhile what is held follows the live counts at
	// once, when they have grown by an eighth: it has had no decoys that newcomers could be told from.
	heldYouth = 10 * time.Minute

	// heldAfter is how long a held count lasts that nobody renews.
	heldAfter = time.Hour
)

// getHeld is the command that reads a swarm's held counts.
func (s *Store) getHeld(hash swarm.InfoHash) *redis.StringCmd {
	return redis.NewStringCmd(s.ctx, "get", key(hash, kindHeld))
}

// setHeld is the command that writes them. Of two gateways that do so at once the last has its way: both
// begin with what was held before.
func (s *Store) setHeld(hash swarm.InfoHash, h swarm.Held, now time.Time) redis.Cmder {
	return redis.NewStatusCmd(s.ctx, "set", key(hash, kindHeld), formatHeld(h), "ex", h.Until-now.Unix()+int64(heldAfter/time.Second))
}

// held are the counts that a swarm is held to, from the reply to getHeld; none is no error, and what makes no sense is none.
func held(get *redis.StringCmd) (swarm.Held, error) {
	text, err := get.Result()
	if errors.Is(err, redis.Nil) {
		return swarm.Held{}, nil
	}
	return parseHeld(text), err
}

// lookAgain makes the held counts follow the live ones, if it is time; false if it is not. Of who is alone nothing is
// held.
func lookAgain(h *swarm.Held, now time.Time, live swarm.Counts, live6 [swarm.Classes]int) bool {
	total, before := live.Seeders+live.Incomplete(), 0
	for _, n := range h.To {
		before += int(n)
	}
	isNew, waits := *h == (swarm.Held{}), now.Unix() < h.Until
	isYoung := waits && h.Until-h.Since <= int64(heldYouth/time.Second)
	switch {
	case total < 2,
		isYoung && total <= before+before/8,
		!isNew && !isYoung && waits && total < heldGrowth*before:
		return false
	}
	next := swarm.Held{Since: now.Unix(), Until: now.Add(shortestHold + rand.N(longestHold-shortestHold)).Unix()}
	if isNew {
		next.Until = now.Add(heldYouth).Unix()
	} else if isYoung {
		next.Since, next.Until = h.Since, h.Until
	}
	for class := range swarm.Class(swarm.Classes) {
		next.To[class], next.To6[class] = int32(*live.Of(class)), int32(live6[class])
		peers, peers6 := h.At(class, now)
		next.From[class], next.From6[class] = int32(peers+0.5), int32(peers6+0.5)
	}
	if isNew || isYoung {
		next.From, next.From6 = next.To, next.To6
	}
	*h = next
	return true
}

// formatHeld writes the times in Unix seconds, and for each class the peers before and after, and
// how many of them are IPv6.
func formatHeld(h swarm.Held) string {
	b := strconv.AppendInt(nil, h.Since, 10)
	b = strconv.AppendInt(append(b, ' '), h.Until, 10)
	for class := range swarm.Classes {
		for _, n := range []int32{h.From[class], h.To[class], h.From6[class], h.To6[class]} {
			b = strconv.AppendInt(append(b, ' '), int64(n), 10)
		}
	}
	return string(b)
}

func parseHeld(text string) (h swarm.Held) {
	words := strings.Fields(text)
	if len(words) != 2+4*swarm.Classes {
		return swarm.Held{}
	}
	var numbers [2 + 4*swarm.Classes]int64
	for i, word := range words {
		bits := 31 // of a count
		if i < 2 {
			bits = 63
		}
		n, err := strconv.ParseUint(word, 10, bits)
		if err != nil {
			return swarm.Held{}
		}
		numbers[i] = int64(n)
	}
	h.Since, h.Until = numbers[0], numbers[1]
	for class := range swarm.Classes {
		n := numbers[2+4*class:]
		h.From[class], h.To[class], h.From6[class], h.To6[class] = int32(n[0]), int32(n[1]), int32(n[2]), int32(n[3])
	}
	return h
}
