package access

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"swarmgate/swarmstore/swarm"
)

// Bounds of an access file.
const (
	maxFile   = 1 << 30 // bytes
	maxHashes = 10_000_000
)

// errEmpty says what to do for a list that is meant to be empty: a file of no bytes is one that somebody
// begins to write.
var errEmpty = errors.New("it is empty, as one that is not whole yet; a file that lists nothing has a line that begins with #")

// A file counts when so many looks have found it unchanged, as it may be half written before; one that
// lost more than half of its info hashes has to rest for 5 s.
const (
	rest     = 1
	restLess = int(5*time.Second/Every) + 1
)

// ParseFile reads a file in opentracker's format: a line that begins with 40 hexadecimal
// digits, and no further one, is an info hash; any other is ignored, and counted unless it is empty or
// begins with #. The hashes come sorted, each once. It fails on what is empty, has lines and no info hash, or
// is out of bounds. For a file of size bytes room is made once.
func ParseFile(r io.Reader, size int64) (hashes []swarm.InfoHash, ignored int, err error) {
	return parse(r, size, maxFile, maxHashes)
}

func parse(r io.Reader, size, maxFile int64, maxHashes int) (hashes []swarm.InfoHash, ignored int, err error) {
	limited := &io.LimitedReader{R: r, N: maxFile + 1}
	lines := bufio.NewReader(limited)
	hashes = make([]swarm.InfoHash, 0, min(int(size)/(hashDigits+len("\n")), maxHashes)+1)
	for err == nil {
		var line []byte
		line, err = lines.ReadSlice('\n')
		var hash swarm.InfoHash
		switch {
		case isHash(line):
			_, _ = hex.Decode(hash[:], line[:hashDigits])
			hashes = append(hashes, hash)
		case len(bytes.TrimSpace(line)) > 0 && line[0] != '#':
			ignored++
		}
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a long line
			_, err = lines.ReadSlice('\n')
		}
		if len(hashes) > maxHashes {
			return nil, 0, fmt.Errorf("it has more than %d info hashes", maxHashes)
		}
	}
	switch {
	case !errors.Is(err, io.EOF):
		return nil, 0, err
	case limited.N == maxFile+1:
		return nil, 0, errEmpty
	case limited.N == 0:
		return nil, 0, fmt.Errorf("it has more than %d bytes", maxFile)
	case len(hashes) == 0 && ignored > 0:
		return nil, ignored, fmt.Errorf("none of its %d lines is an info hash of 40 hexadecimal digits", ignored)
	}
	slices.SortFunc(hashes, compare)
	return slices.Compact(hashes), ignored, nil
}

func isHash(line []byte) bool {
	if len(line) < hashDigits {
		return false
	}
	for i, c := range line {
		digit := '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
		if i == hashDigits {
			return !digit
		}
		if !digit {
			return false
		}
	}
	return true
}

// file is an access file, which is read again when it has changed.
type file struct {
	path   string
	read   os.FileInfo      // as it was when it was read last
	seen   os.FileInfo      // as it was a moment ago
	rested int              // looks for which it was so
	needs  int              // of those before it is read
	hashes int              // that it had last
	says   []swarm.InfoHash // that the store was not told yet; nil for nothing new

	trouble string // that was told last
}

// look reads the file if it has changed, but not before it rests. reread reads it in any case. When it
// cannot be read that is logged once, and what it said before stands.
func (f *file) look(reread bool, log *slog.Logger) {
	if reread {
		f.trouble = ""
	}
	info, err := os.Stat(f.path)
	if err == nil {
		if unchanged(info, f.seen) {
			f.rested++
		} else {
			f.seen, f.rested, f.needs = info, 0, rest
		}
		if !reread && unchanged(info, f.read) {
			f.trouble = ""
			return
		}
		if !reread && f.rested < f.needs {
			return
		}
		err = f.load(reread, log)
	}
	if err != nil && err.Error() != f.trouble {
		f.trouble = err.Error()
		log.Error("the access file cannot be read; what it said last stays in force", "error", err)
	}
}

func unchanged(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// load reads the file. anyway means that it counts however little is left of it.
func (f *file) load(anyway bool, log *slog.Logger) error {
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // which to open might take for ever
		return fmt.Errorf("%s is no regular file", f.path)
	}
	r, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer r.Close()
	hashes, ignored, err := ParseFile(r, info.Size())
	if !anyway && err == nil && 2*len(hashes) < f.hashes && f.rested < restLess {
		log.Warn("the access file has lost more than half of its info hashes; it counts when it rests for 5 s, or on SIGHUP",
			"file", f.path, "hashes", len(hashes), "before", f.hashes)
		f.needs = restLess
		return nil
	}
	f.read = info
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.hashes = len(hashes)
	if ignored > 0 {
		log.Warn(fmt.Sprintf("%d lines of the access file are no info hashes", ignored), "file", f.path)
	}
	log.Info("the access file was read", "file", f.path, "hashes", len(hashes))
	f.says = hashes
	return nil
}
