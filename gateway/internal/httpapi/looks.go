package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"swarmgate/swarmstore/swarm"
)

// Swarms lists every swarm there is.
type Swarms interface {
	// Scan hands them on in parts, valid during the call of yield, whose error ends it.
	Scan(ctx context.Context, now func() time.Time, yield func([]swarm.Entry) error) error
}

// Looks are looks at all swarms, which all who want them within a while share: a look is dear, and what it
// finds may be larger than memory. It lies in a file without a name, and is read while it is being written. The
// methods may be called by many goroutines.
type Looks struct {
	swarms Swarms
	ttl    time.Duration
	now    func() time.Time
	log    *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	busy   sync.WaitGroup

	mu     sync.Mutex
	latest *look
	closed bool
}

var errEnded = errors.New("the gateway looks at swarms no more")

// NewLooks returns looks that each answer for ttl from their beginning. There is none yet.
func NewLooks(swarms Swarms, ttl time.Duration, now func() time.Time, log *slog.Logger) *Looks {
	s := &Looks{swarms: swarms, ttl: ttl, now: now, log: log}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends the look that is under way, so that its readers fail.
func (s *Looks) Close() {
	s.mu.Lock()
	s.closed = true
	s.drop()
	s.mu.Unlock()
	s.cancel()
	s.busy.Wait()
}

// drop forgets the latest look.
func (s *Looks) drop() {
	if s.latest != nil {
		s.latest.release()
		s.latest = nil
	}
}

// open reads the latest look, if it is young enough, or else a new one.
func (s *Looks) open() (*lookReader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errEnded
	}
	if r := s.young(); r != nil {
		return r, nil
	}
	s.drop()
	l, err := newLook(s.now())
	if err != nil {
		s.log.Error("no look at all swarms", "error", err)
		return nil, err
	}
	s.latest = l
	l.hold() // until it ends
	s.busy.Go(func() {
		defer l.release()
		err := s.swarms.Scan(s.ctx, s.now, l.add)
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("a look at all swarms failed", "error", err)
		}
		l.end(err)
	})
	l.hold()
	return &lookReader{look: l}, nil
}

// openYoung reads the latest look if it is young enough, and else is nil.
func (s *Looks) openYoung() *lookReader {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.young()
}

func (s *Looks) young() *lookReader {
	l := s.latest
	if l == nil || !l.serves(s.now().Sub(l.began).Abs() < s.ttl) {
		return nil
	}
	l.hold()
	return &lookReader{look: l}
}

// look is one, in a file of records that follow each other.
type look struct {
	id    string
	began time.Time
	file  *os.File
	named bool // the file still has its name

	mu      sync.Mutex
	more    sync.Cond // something below has changed
	users   int
	records int64
	ended   bool
	err     error
}

// A record is an info hash and three numbers: seeders, all other peers, downloads.
const recordSize = len(swarm.InfoHash{}) + 3*4

func newLook(now time.Time) (*look, error) {
	file, err := os.CreateTemp("", "swarmgate-look-")
	if err != nil {
		return nil, fmt.Errorf("all swarms: %w", err)
	}
	l := &look{id: rand.Text(), began: now, file: file, users: 1}
	l.named = os.Remove(file.Name()) != nil // where that has to wait until it is closed
	l.more.L = &l.mu
	return l, nil
}

func (l *look) hold() {
	l.mu.Lock()
	l.users++
	l.mu.Unlock()
}

// release gives the file's space back after the last user.
func (l *look) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users == 0 {
		_ = l.file.Close()
		if l.named {
			_ = os.Remove(l.file.Name())
		}
	}
}

// add writes some swarms.
func (l *look) add(part []swarm.Entry) error {
	b := make([]byte, 0, len(part)*recordSize)
	for i := range part {
		e := &part[i]
		b = append(b, e.InfoHash[:]...)
		for _, n := range [...]int{e.Seeders, e.Incomplete(), e.Downloads} {
			b = binary.BigEndian.AppendUint32(b, uint32(min(n, math.MaxUint32)))
		}
	}
	if _, err := l.file.Write(b); err != nil {
		return fmt.Errorf("all swarms: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records += int64(len(part))
	l.more.Broadcast()
	return nil
}

func (l *look) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended, l.err = true, err
	l.more.Broadcast()
}

// serves tells whether who comes now reads this look: also an old one, while it goes on.
func (l *look) serves(young bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err == nil && (young || !l.ended)
}

// lookReader reads all swarms of one look, in the order of their hashes.
type lookReader struct {
	look *look
	done int64 // records
	once sync.Once
	buf  []byte
}

// read waits for swarms and fills in some; of their leechers and partial seeds the sum, as leechers. After the last
// it returns io.EOF, and another error when the look failed, perhaps after swarms that it had found.
func (r *lookReader) read(to []swarm.Entry) (n int, err error) {
	l := r.look
	l.mu.Lock()
	for l.records == r.done && !l.ended {
		l.more.Wait()
	}
	there, err := l.records-r.done, l.err
	l.mu.Unlock()
	if there == 0 || err != nil {
		if err == nil {
			err = io.EOF
		}
		return 0, err
	}
	n = int(min(there, int64(len(to))))
	if len(r.buf) < n*recordSize {
		r.buf = make([]byte, len(to)*recordSize)
	}
	b := r.buf[:n*recordSize]
	if _, err := l.file.ReadAt(b, r.done*int64(recordSize)); err != nil {
		return 0, fmt.Errorf("all swarms: %w", err)
	}
	for i := range n {
		record := b[i*recordSize:]
		number := func(k int) int { return int(binary.BigEndian.Uint32(record[len(swarm.InfoHash{})+4*k:])) }
		to[i] = swarm.Entry{
			InfoHash: swarm.InfoHash(record),
			Counts:   swarm.Counts{Seeders: number(0), Leechers: number(1), Downloads: number(2)},
		}
	}
	r.done += int64(n)
	return n, nil
}

// close lets go of the look. It may be called again.
func (r *lookReader) close() { r.once.Do(r.look.release) }
