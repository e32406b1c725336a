package udpproxy

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/dchest/siphash"
)

// ConnectionIDs makes and checks the ids that prove that a client receives what is
// sent to its address (BEP 15). They hold all that is needed to check them: 16 bits
// of coarse time and 48 bits of a SipHash over that and the address, without the
// port, which address translators change. So an id is good on every gateway with the
// same secret. Its methods may be called by many goroutines.
type ConnectionIDs struct {
	life    int16 // in ticks
	secrets atomic.Pointer[[2][16]byte]
}

const (
	// tick is the resolution of an id's time. 16 bits of them are 24 days.
	tick = 32 * time.Second

	// ahead is by how many ticks the clock of another gateway may be ahead of ours.
	ahead = 2

	macBits = 48
)

// MaxConnectionTTL is the longest lifetime that an id can tell.
const MaxConnectionTTL = 7 * 24 * time.Hour

// NewConnectionIDs returns ids that are good for ttl, in steps of 32 s and up to
// MaxConnectionTTL.
func NewConnectionIDs(ttl time.Duration, secret [16]byte) *ConnectionIDs {
	ids := &ConnectionIDs{life: int16((min(ttl, MaxConnectionTTL) + tick - 1) / tick)}
	ids.SetSecrets(secret, secret)
	return ids
}

// SetSecrets sets the secret that new ids are made with, and another one that
// ids may have been made with.
func (c *ConnectionIDs) SetSecrets(current, other [16]byte) {
	c.secrets.Store(&[2][16]byte{current, other})
}

// New makes the id of a client.
func (c *ConnectionIDs) New(now time.Time, client netip.Addr) uint64 {
	t := ticks(now)
	return uint64(t)<<macBits | mac(&c.secrets.Load()[0], t, client)
}

// Valid says whether an id was made for this client and has not expired.
func (c *ConnectionIDs) Valid(now time.Time, client netip.Addr, id uint64) bool {
	t := uint16(id >> macBits)
	if age := int16(ticks(now) - t); age < -ahead || age > c.life {
		return false
	}
	got := id & (1<<macBits - 1)
	secrets := c.secrets.Load()
	return got == mac(&secrets[0], t, client) || secrets[1] != secrets[0] && got == mac(&secrets[1], t, client)
}

func ticks(now time.Time) uint16 { return uint16(now.Unix() / int64(tick/time.Second)) }

func mac(secret *[16]byte, ticks uint16, client netip.Addr) uint64 {
	var text [2 + 16]byte
	binary.BigEndian.PutUint16(text[:], ticks)
	addr := client.As16()
	copy(text[2:], addr[:])
	k0, k1 := binary.LittleEndian.Uint64(secret[:]), binary.LittleEndian.Uint64(secret[8:])
	return siphash.Hash(k0, k1, text[:]) & (1<<macBits - 1)
}
