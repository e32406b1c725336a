// Package access decides which swarms the tracker serves and shows: all but the denied, or none but
// the allowed. The list is the store's, the same for all gateways. Each holds in memory what counts
// in its mode, and looks every moment what has changed.
//
//	list, err := access.New(access.Options{Store: store, Mode: swarm.Denied, File: "denied.txt", Log: log})
//	list.Refresh(ctx, false) // again and again
//	err := list.Check(hash)   // of an announce or a scrape
//	if list.Permits(hash) ... // what was found before
package access

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/bits"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"swarmgate/swarmstore/swarm"
)

// Every is how often Refresh wants to be called. What a file says is in force on all gateways
// after three times that: to see that it changed, to see that it rests, and for the other
// gateways. A file that lost more than half of its info hashes rests for longer.
const Every = 400 * time.Millisecond

// Store is where the list is kept.
type Store interface {
	// AccessVersion is another text after each change, and generation another one when the list was
	// lost and begun anew; both are empty while there is none. AccessVersions are other texts after each
	// change for the info hashes that begin with each byte.
	AccessVersion(ctx context.Context) (version, generation string, err error)
	AccessVersions(ctx context.Context) ([256]string, error)
	// Access is what is listed under a first byte.
	Access(ctx context.Context, first byte) ([]swarm.Listed, error)
	// RestoreAccess lists what was said of info hashes with a first byte, where nothing is said.
	RestoreAccess(ctx context.Context, first byte, said []swarm.Listed) error
	// SetAccessFile replaces what the file said before. hashes is sorted.
	SetAccessFile(ctx context.Context, listing swarm.Listing, hashes []swarm.InfoHash) error
}

// Options of a List.
type Options struct {
	Store Store
	Mode  swarm.Listing // Denied: all but these are served; Allowed: none but these
	File  string        // says what is listed, too; empty for none
	Log   *slog.Logger
}

// List may be used by many goroutines, but one alone may call Refresh.
type List struct {
	opt       Options
	table     atomic.Pointer[table] // nil until the store's list was read
	published atomic.Uint64         // tables

	// Refresh's own.
	file       *file // nil for none
	version    string
	generation string
	versions   [256]string
	next       table // what the store holds, as far as it was read
	failing    bool
}

// table is the listed info hashes by their first byte. What was published is not changed
// any more.
type table [256]*page

// page is the info hashes that begin with one byte, sorted. An index by what follows leaves
// one of them to compare with, on average.
type page struct {
	hashes []swarm.InfoHash
	filed  []uint64 // a bit for each hash that the file says, no command; nil for none
	shift  uint     // of the next 32 bits, which leaves the place in starts
	starts []uint32 // where those of each place begin, and the last ones end
	filter []uint64 // a bit for each hash, in 8 to 16 times as many: most of those that are not listed end here, in one look
}

// New returns a list that has to be refreshed before it permits anything. It fails when the
// file cannot be read.
func New(o Options) (*List, error) {
	l := &List{opt: o}
	if o.File == "" {
		return l, nil
	}
	l.file = &file{path: o.File}
	return l, l.file.load(true, o.Log)
}

// Check is nil when the swarm is served, swarm.ErrDenied when not, and
// swarm.ErrUnavailable while the list is not known.
func (l *List) Check(hash swarm.InfoHash) error {
	t := l.table.Load()
	if t == nil {
		return swarm.ErrUnavailable
	}
	if t[hash[0]].has(hash) != (l.opt.Mode == swarm.Allowed) {
		return swarm.ErrDenied
	}
	return nil
}

// Permits tells whether the swarm is served, and so may be shown.
func (l *List) Permits(hash swarm.InfoHash) bool { return l.Check(hash) == nil }

// Version is another text after each change of what this list permits; other lists have versions of
// their own. What Permits says afterwards is as new, or newer.
func (l *List) Version() string { return strconv.FormatUint(l.published.Load(), 36) }

// Known tells whether the list was read.
func (l *List) Known() bool { return l.table.Load() != nil }

func (p *page) has(hash swarm.InfoHash) bool {
	if p == nil {
		return false
	}
	if word, bit := p.bit(&hash); p.filter[word]&bit == 0 {
		return false
	}
	i := p.place(&hash)
	_, found := slices.BinarySearchFunc(p.hashes[p.starts[i]:p.starts[i+1]], hash, compare)
	return found
}

func (p *page) place(hash *swarm.InfoHash) int {
	return int(binary.BigEndian.Uint32(hash[1:]) >> p.shift)
}

func (p *page) bit(hash *swarm.InfoHash) (word int, bit uint64) {
	n := binary.BigEndian.Uint64(hash[5:])
	return int(n>>6) & (len(p.filter) - 1), 1 << (n & 63)
}

func (p *page) len() int {
	if p == nil {
		return 0
	}
	return len(p.hashes)
}

func compare(a, b swarm.InfoHash) int { return bytes.Compare(a[:], b[:]) }

// newPage keeps what is listed as mode, or is nil for none.
func newPage(mode swarm.Listing, listed []swarm.Listed) *page {
	listed = slices.DeleteFunc(listed, func(l swarm.Listed) bool { return l.Listing != mode })
	if len(listed) == 0 {
		return nil
	}
	slices.SortFunc(listed, func(a, b swarm.Listed) int { return compare(a.InfoHash, b.InfoHash) })
	hashes, filed := make([]swarm.InfoHash, len(listed)), []uint64(nil)
	for i, l := range listed {
		hashes[i] = l.InfoHash
		if l.Filed {
			if filed == nil {
				filed = make([]uint64, (len(listed)+63)/64)
			}
			filed[i/64] |= 1 << (i % 64)
		}
	}
	places := bits.Len(uint(len(hashes) - 1))
	p := &page{hashes: hashes, filed: filed, shift: uint(32 - places), starts: make([]uint32, 1<<places+1), filter: make([]uint64, max(1, 8<<places/64))}
	for i := range hashes {
		p.starts[p.place(&hashes[i])+1]++
		word, bit := p.bit(&hashes[i])
		p.filter[word] |= bit
	}
	for i := range 1 << places {
		p.starts[i+1] += p.starts[i]
	}
	return p
}

// listed is the reverse of newPage.
func (p *page) listed(mode swarm.Listing) []swarm.Listed {
	listed := make([]swarm.Listed, len(p.hashes))
	for i, hash := range p.hashes {
		listed[i] = swarm.Listed{InfoHash: hash, Listing: mode, Filed: p.filed != nil && p.filed[i/64]>>(i%64)&1 == 1}
	}
	return listed
}

// errLost says that a Redis which had a list has none.
var errLost = errors.New("the access list is gone from Redis")

// Refresh brings to the store what the file says, if that is new, and to memory what the
// store holds. reread reads the file even if it looks unchanged. What fails is logged, and tried
// again by the next call; what the list said last stays in force.
func (l *List) Refresh(ctx context.Context, reread bool) {
	err := l.bring(ctx, reread)
	if err == nil || l.Known() { // not before the file's own first word
		err = errors.Join(err, l.fetch(ctx))
	}
	switch {
	case ctx.Err() != nil || (err != nil) == l.failing:
		return
	case err == nil:
		l.opt.Log.Info("the access list can be looked up again")
	case l.Known():
		l.opt.Log.Error("the access list cannot be looked up; what it said last stays in force", "error", err)
	default:
		l.opt.Log.Error("the access list cannot be looked up; nothing is served until it can", "error", err)
	}
	l.failing = err != nil
}

// bring the file's hashes to the store.
func (l *List) bring(ctx context.Context, reread bool) error {
	if l.file == nil {
		return nil
	}
	l.file.look(reread, l.opt.Log)
	if l.file.says == nil {
		return nil
	}
	err := l.opt.Store.SetAccessFile(ctx, l.opt.Mode, l.file.says)
	if err == nil {
		l.file.says = nil
	}
	return err
}

// restore to the store what was lost there of this list. All gateways do that, and may have read
// different parts of it.
func (l *List) restore(ctx context.Context) error {
	for first, p := range l.next {
		if p == nil {
			continue
		}
		if err := l.opt.Store.RestoreAccess(ctx, byte(first), p.listed(l.opt.Mode)); err != nil {
			return errors.Join(errLost, err)
		}
	}
	if l.file != nil {
		l.file.read = nil // to bring it anew, as it may have changed meanwhile
	}
	l.opt.Log.Warn("the access list was gone from Redis; what this gateway held of it is there again")
	return nil
}

// fetch what changed in the store.
func (l *List) fetch(ctx context.Context) error {
	version, generation, err := l.opt.Store.AccessVersion(ctx)
	if err != nil {
		return err
	}
	if l.generation != "" && generation != l.generation || l.version != "" && version == "" {
		if err := l.restore(ctx); err != nil {
			return err
		}
		if version, generation, err = l.opt.Store.AccessVersion(ctx); err != nil {
			return err
		}
	}
	l.generation = generation
	if version == l.version && l.Known() {
		return nil
	}
	versions, err := l.opt.Store.AccessVersions(ctx)
	if err != nil {
		return err
	}
	for first, v := range versions {
		if v == l.versions[first] {
			continue
		}
		listed, err := l.opt.Store.Access(ctx, byte(first))
		if err != nil {
			return err
		}
		if _, now, err := l.opt.Store.AccessVersion(ctx); err != nil || now != generation {
			return err // it may have been lost before this was read, which the next call mends
		}
		l.next[first] = newPage(l.opt.Mode, listed)
		l.versions[first] = v
		if l.Known() {
			l.publish() // at once, so that the page before needs no room any more
		}
	}
	l.version = version
	l.publish()
	n := 0
	for _, p := range l.next {
		n += p.len()
	}
	l.opt.Log.Info("the access list is in force", "mode", Word(l.opt.Mode), "listed", n)
	return nil
}

func (l *List) publish() {
	t := l.next
	l.table.Store(&t)
	l.published.Add(1) // afterwards: who has this version finds this table
}
