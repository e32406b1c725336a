package access

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// fakeStore holds a list as the store does, without telling a file's word from a command's.
type fakeStore struct {
	err        error
	version    string
	generation string
	versions   [256]string
	listed     map[swarm.InfoHash]swarm.Listing
	reads      int
	read       func() // called when a part is to be read; nil for none
}

func (s *fakeStore) AccessVersion(context.Context) (version, generation string, err error) {
	return s.version, s.generation, s.err
}

func (s *fakeStore) RestoreAccess(_ context.Context, _ byte, said []swarm.Listed) error {
	for _, l := range said {
		if s.err == nil && s.listed[l.InfoHash] == swarm.Unlisted {
			s.list(l.InfoHash, l.Listing)
		}
	}
	return s.err
}

func (s *fakeStore) AccessVersions(context.Context) ([256]string, error) { return s.versions, s.err }

func (s *fakeStore) Access(_ context.Context, first byte) (list []swarm.Listed, err error) {
	s.reads++
	if s.read != nil {
		s.read()
	}
	for hash, l := range s.listed {
		if hash[0] == first {
			list = append(list, swarm.Listed{InfoHash: hash, Listing: l})
		}
	}
	return list, s.err
}

func (s *fakeStore) SetAccessFile(_ context.Context, l swarm.Listing, hashes []swarm.InfoHash) error {
	if s.err == nil {
		for hash := range s.listed {
			s.list(hash, swarm.Unlisted)
		}
		for _, hash := range hashes {
			s.list(hash, l)
		}
	}
	return s.err
}

func (s *fakeStore) list(hash swarm.InfoHash, l swarm.Listing) {
	if s.listed == nil {
		s.listed = map[swarm.InfoHash]swarm.Listing{}
	}
	if s.generation == "" {
		s.generation = cryptorand.Text()
	}
	s.listed[hash] = l
	s.version = cryptorand.Text()
	s.versions[hash[0]] = s.version
}

// open a list, with a file that says text if there is some.
func open(t *testing.T, store Store, mode swarm.Listing, text string) (l *List, path string, log *strings.Builder) {
	t.Helper()
	log = &strings.Builder{}
	o := Options{Store: store, Mode: mode, Log: slog.New(slog.NewTextHandler(log, nil))}
	if text != "" {
		o.File = filepath.Join(t.TempDir(), "hashes")
		write(t, o.File, text)
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l, o.File, log
}

func write(t *testing.T, path, text string) {
	t.Helper()
	// Another file each time, which tells a change whatever the clock's steps are.
	if err := errors.Join(os.WriteFile(path+"~", []byte(text), 0o600), os.Rename(path+"~", path)); err != nil {
		t.Fatal(err)
	}
}

var (
	hash1 = swarm.InfoHash{1, 2, 3}
	hash2 = swarm.InfoHash{1, 2, 4}
	hash3 = swarm.InfoHash{255, 255, 19: 255}
)

func wantChecks(t *testing.T, l *List, err1, err2, err3 error) {
	t.Helper()
	for hash, want := range map[swarm.InfoHash]error{hash1: err1, hash2: err2, hash3: err3} {
		if err := l.Check(hash); err != want || l.Permits(hash) != (want == nil) {
			t.Errorf("%x: %v, permitted %v, want %v", hash, err, l.Permits(hash), want)
		}
	}
}

func TestModes(t *testing.T) {
	store := &fakeStore{}
	denying, _, _ := open(t, store, swarm.Denied, "")
	allowing, _, _ := open(t, store, swarm.Allowed, "")
	wantChecks(t, denying, swarm.ErrUnavailable, swarm.ErrUnavailable, swarm.ErrUnavailable)
	wantChecks(t, allowing, swarm.ErrUnavailable, swarm.ErrUnavailable, swarm.ErrUnavailable)
	refresh := func() {
		denying.Refresh(t.Context(), false)
		allowing.Refresh(t.Context(), false)
	}
	refresh()
	wantChecks(t, denying, nil, nil, nil)
	wantChecks(t, allowing, swarm.ErrDenied, swarm.ErrDenied, swarm.ErrDenied)

	store.list(hash1, swarm.Denied)
	store.list(hash3, swarm.Allowed)
	refresh()
	wantChecks(t, denying, swarm.ErrDenied, nil, nil)
	wantChecks(t, allowing, swarm.ErrDenied, swarm.ErrDenied, nil)

	store.list(hash1, swarm.Unlisted)
	store.list(hash3, swarm.Denied)
	refresh()
	wantChecks(t, denying, nil, nil, swarm.ErrDenied)
	wantChecks(t, allowing, swarm.ErrDenied, swarm.ErrDenied, swarm.ErrDenied)
}

func TestVersions(t *testing.T) {
	store := &fakeStore{}
	l, _, _ := open(t, store, swarm.Denied, "")
	seen := map[string]bool{l.Version(): true}
	for _, listing := range []swarm.Listing{swarm.Denied, swarm.Unlisted, swarm.Denied} {
		store.list(hash1, listing)
		l.Refresh(t.Context(), false)
		version := l.Version()
		l.Refresh(t.Context(), false)
		if seen[version] || l.Version() != version {
			t.Errorf("after a change the version is %q, then %q", version, l.Version())
		}
		seen[version] = true
	}
}

func TestOnlyWhatChangedIsRead(t *testing.T) {
	store := &fakeStore{}
	for first := range 256 {
		store.list(swarm.InfoHash{byte(first)}, swarm.Denied)
	}
	l, _, _ := open(t, store, swarm.Denied, "")
	l.Refresh(t.Context(), false)
	before := store.reads
	l.Refresh(t.Context(), false)
	store.list(hash1, swarm.Denied)
	l.Refresh(t.Context(), false)
	if before != 256 || store.reads != before+1 {
		t.Errorf("%d reads, and %d for a change", before, store.reads-before)
	}
}

func TestTheLastListStaysInForce(t *testing.T) {
	store := &fakeStore{err: errors.New("away")}
	l, _, log := open(t, store, swarm.Denied, "")
	for range 3 {
		l.Refresh(t.Context(), false)
	}
	wantChecks(t, l, swarm.ErrUnavailable, swarm.ErrUnavailable, swarm.ErrUnavailable)
	if n := strings.Count(log.String(), "nothing is served"); l.Known() || n != 1 {
		t.Errorf("known: %v; told %d times: %s", l.Known(), n, log)
	}
	store.err = nil
	store.list(hash1, swarm.Denied)
	l.Refresh(t.Context(), false)
	wantChecks(t, l, swarm.ErrDenied, nil, nil)

	store.err = errors.New("away")
	store.list(hash2, swarm.Denied)
	l.Refresh(t.Context(), false)
	wantChecks(t, l, swarm.ErrDenied, nil, nil)
	store.err = nil
	l.Refresh(t.Context(), false)
	wantChecks(t, l, swarm.ErrDenied, swarm.ErrDenied, nil)

	*store = fakeStore{err: errors.New("away")} // which a Redis that starts anew may be
	l.Refresh(t.Context(), false)
	store.err = nil
	l.Refresh(t.Context(), false)
	wantChecks(t, l, swarm.ErrDenied, swarm.ErrDenied, nil)
	if !strings.Contains(log.String(), "gone from Redis") {
		t.Errorf("the log is %s", log)
	}
	if len(store.listed) != 2 {
		t.Errorf("the store holds %v", store.listed)
	}

	// It may have lost the list, and got a word of a new one, between two looks.
	*store = fakeStore{}
	store.list(hash1, swarm.Allowed)
	store.list(hash3, swarm.Denied)
	l.Refresh(t.Context(), false)
	wantChecks(t, l, nil, swarm.ErrDenied, swarm.ErrDenied)

	// And between two reads of one look.
	store.list(hash1, swarm.Denied)
	store.list(hash2, swarm.Denied)
	store.read = func() { *store = fakeStore{} }
	l.Refresh(t.Context(), false)
	l.Refresh(t.Context(), false)
	wantChecks(t, l, nil, swarm.ErrDenied, swarm.ErrDenied)

	// What an operator takes from the list does not come back.
	store.list(hash2, swarm.Unlisted)
	store.list(hash3, swarm.Unlisted)
	for range 2 {
		l.Refresh(t.Context(), false)
	}
	wantChecks(t, l, nil, nil, nil)
	*store = fakeStore{} // of which nothing is to be restored
	for range 2 {
		l.Refresh(t.Context(), false)
	}
	wantChecks(t, l, nil, nil, nil)
	if n := strings.Count(log.String(), "gone from Redis; what this gateway"); n != 4 {
		t.Errorf("told %d times: %s", n, log)
	}
}

func TestTheFile(t *testing.T) {
	line := func(hash swarm.InfoHash) string { return Line(hash) + "\n" }
	store := &fakeStore{err: errors.New("away")}
	l, path, log := open(t, store, swarm.Denied, line(hash1)+"garbage\n")
	if !strings.Contains(log.String(), "1 lines of the access file are no info hashes") {
		t.Errorf("the log is %s", log)
	}
	refresh := func() {
		l.Refresh(t.Context(), false) // sees that it changed
		l.Refresh(t.Context(), false) // and rests
	}
	refresh()
	wantChecks(t, l, swarm.ErrUnavailable, swarm.ErrUnavailable, swarm.ErrUnavailable)
	store.err = nil
	refresh()
	wantChecks(t, l, swarm.ErrDenied, nil, nil)

	write(t, path, line(hash2)+line(hash3))
	l.Refresh(t.Context(), false)
	wantChecks(t, l, swarm.ErrDenied, nil, nil) // it may be half written
	l.Refresh(t.Context(), false)
	wantChecks(t, l, nil, swarm.ErrDenied, swarm.ErrDenied)

	log.Reset()
	write(t, path, "<html>not found</html>\n\n# and no more")
	refresh()
	refresh()
	wantChecks(t, l, nil, swarm.ErrDenied, swarm.ErrDenied)
	if strings.Count(log.String(), "none of its 1 lines") != 1 {
		t.Errorf("the log is %s", log)
	}

	log.Reset()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	refresh()
	wantChecks(t, l, nil, swarm.ErrDenied, swarm.ErrDenied)
	if strings.Count(log.String(), "level=ERROR") != 1 || !strings.Contains(log.String(), "stays in force") {
		t.Errorf("the log is %s", log)
	}

	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	refresh()
	wantChecks(t, l, nil, swarm.ErrDenied, swarm.ErrDenied)
	if !strings.Contains(log.String(), "no regular file") {
		t.Errorf("the log is %s", log)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	write(t, path, line(hash1))
	l.Refresh(t.Context(), true) // at once
	wantChecks(t, l, swarm.ErrDenied, nil, nil)

	// A Redis that lost all is told again.
	*store = fakeStore{}
	refresh()
	if store.listed[hash1] != swarm.Denied {
		t.Errorf("the store holds %v", store.listed)
	}

	write(t, path, "# none\n")
	l.Refresh(t.Context(), true)
	wantChecks(t, l, nil, nil, nil)
}

// A file that is being written anew is empty at first, then short, and so its list would be for all.
func TestAFileThatIsBeingWritten(t *testing.T) {
	store := &fakeStore{}
	one, two, three := Line(hash1)+"\n", Line(hash2)+"\n", Line(hash3)+"\n"
	l, path, log := open(t, store, swarm.Denied, one+two+three)
	looks := func(n int) {
		for range n {
			l.Refresh(t.Context(), false)
		}
	}
	looks(1)
	denied := swarm.ErrDenied
	wantChecks(t, l, denied, denied, denied)

	write(t, path, "")
	looks(2 * restLess)
	l.Refresh(t.Context(), true)
	wantChecks(t, l, denied, denied, denied)
	if strings.Count(log.String(), "it is empty") != 2 { // once more when asked for
		t.Errorf("the log is %s", log)
	}

	write(t, path, one)
	looks(restLess)
	wantChecks(t, l, denied, denied, denied)
	write(t, path, one+"\n") // rests anew
	looks(restLess)
	wantChecks(t, l, denied, denied, denied)
	if strings.Count(log.String(), "more than half") != 2 {
		t.Errorf("the log is %s", log)
	}
	looks(1)
	wantChecks(t, l, denied, nil, nil)

	write(t, path, one+two+three)
	looks(rest + 1)
	wantChecks(t, l, denied, denied, denied)
	write(t, path, one+two) // less, and not much
	looks(rest + 1)
	wantChecks(t, l, denied, denied, nil)

	write(t, path, "# none\n")
	looks(rest + 1)
	wantChecks(t, l, denied, denied, nil)
	l.Refresh(t.Context(), true) // now
	wantChecks(t, l, nil, nil, nil)
}

func TestNoListWithoutItsFile(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "garbage"), "garbage")
	write(t, filepath.Join(dir, "empty"), "")
	for _, file := range []string{"none", "garbage", "empty", "."} {
		_, err := New(Options{Store: &fakeStore{}, Mode: swarm.Denied, File: filepath.Join(dir, file), Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			t.Errorf("%s is taken", file)
		}
	}
}

// Announces go on while the list changes: none sees half of a change.
func TestChecksWhileTheListChanges(t *testing.T) {
	store := &fakeStore{}
	store.list(hash1, swarm.Denied)
	l, _, _ := open(t, store, swarm.Denied, "")
	l.Refresh(t.Context(), false)
	var end atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for !end.Load() {
				if l.Check(hash1) != swarm.ErrDenied || l.Check(hash3) != nil {
					t.Error("the list forgot")
					return
				}
			}
		})
	}
	for n := range 200 {
		store.list(swarm.InfoHash{1, byte(n), 9}, swarm.Denied)
		l.Refresh(t.Context(), false)
	}
	end.Store(true)
	readers.Wait()
}

// large is a store with a list of n.
type large struct {
	fakeStore
	n int
}

func (s *large) AccessVersion(context.Context) (version, generation string, err error) {
	return "1", "1", nil
}

func (s *large) AccessVersions(context.Context) (v [256]string, err error) {
	for i := range v {
		v[i] = "1"
	}
	return v, nil
}

func (s *large) Access(_ context.Context, first byte) ([]swarm.Listed, error) {
	r := rand.New(rand.NewPCG(uint64(first), 1))
	list := make([]swarm.Listed, s.n/256)
	for i := range list {
		hash := &list[i].InfoHash
		binary.LittleEndian.PutUint64(hash[1:], r.Uint64())
		binary.LittleEndian.PutUint64(hash[9:], r.Uint64())
		hash[0] = first
		list[i].Listing = swarm.Denied
	}
	return list, nil
}

func TestAMillionHashesAreSmall(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	store := &large{n: 1 << 20}
	l, _, _ := open(t, store, swarm.Denied, "")
	l.Refresh(t.Context(), false)
	used := heap() - before
	some, _ := store.Access(t.Context(), 7)
	for _, listed := range some {
		if l.Permits(listed.InfoHash) {
			t.Fatalf("%x is served", listed.InfoHash)
		}
	}
	if used > 32<<20 {
		t.Errorf("%d hashes take %d bytes", store.n, used)
	}
}

func TestACheckAllocatesNothing(t *testing.T) {
	store := &fakeStore{}
	store.list(hash1, swarm.Denied)
	l, _, _ := open(t, store, swarm.Denied, "")
	l.Refresh(t.Context(), false)
	storetest.Allocs(t, 0, func() {
		_ = l.Check(hash1)
		_ = l.Check(hash2)
	})
}

func BenchmarkCheck(b *testing.B) {
	for name, n := range map[string]int{"empty": 0, "million": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			l, err := New(Options{Store: &large{n: n}, Mode: swarm.Denied, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			l.Refresh(b.Context(), false)
			hashes := make([]swarm.InfoHash, 1<<16)
			for i := range hashes {
				binary.LittleEndian.PutUint64(hashes[i][:], rand.Uint64())
				binary.LittleEndian.PutUint64(hashes[i][8:], rand.Uint64())
			}
			for i := 0; b.Loop(); i++ {
				if l.Check(hashes[i&(1<<16-1)]) != nil {
					b.Fatal("denied")
				}
			}
		})
	}
}
