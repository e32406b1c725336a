package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"

	"swarmgate/swarmstore"
)

const (
	importBatch    = 10_000
	importProgress = 100_000 // swarms between two lines about it

	// maxNamed bounds the lines that are named one by one.
	maxNamed = 10
)

// importStatedump takes over the downloads that opentracker counted, from a file as it writes it
// (/stats?mode=statedump), or from stdin for "-". Lines that make no sense are left out, and named; what
// is good is imported, but that some were not is an error.
func importStatedump(ctx context.Context, c *Config, stdin io.Reader, stderr io.Writer) error {
	if len(c.Redis) == 0 {
		return &misuseError{errors.New("import: --redis names no store; the one in this process would end with the import")}
	}
	in := stdin
	if c.ImportFile != "-" {
		file, err := os.Open(c.ImportFile)
		if err != nil {
			return fmt.Errorf("import: %w", err)
		}
		defer file.Close()
		in = file
	}
	g := &gateway{Config: c, log: slog.New(c.Log), metrics: newMetrics(false)}
	defer g.close()
	if err := g.openStore(ctx); err != nil {
		return err
	}

	imported, lines, bad := 0, 0, 0
	var batch []swarmstore.Tally
	flush := func() error {
		n, err := g.store.ImportDownloads(ctx, batch)
		batch = batch[:0]
		if before := imported; before/importProgress < (before+n)/importProgress {
			fmt.Fprintf(stderr, "%d swarms are imported\n", before+n)
		}
		imported += n
		if err != nil {
			return fmt.Errorf("%w; %d swarms are imported, and the import may be done again", err, imported)
		}
		return nil
	}
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		lines++
		tally, err := parseStatedump(scanner.Bytes())
		if err != nil {
			if bad++; bad <= maxNamed {
				fmt.Fprintf(stderr, "line %d is left out: %v\n", lines, err)
			}
			continue
		}
		if batch = append(batch, tally); len(batch) == importBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%d swarms are imported, of %d lines\n", imported, lines)
	switch err := scanner.Err(); {
	case err != nil:
		return fmt.Errorf("import: line %d: %w", lines+1, err)
	case bad > 0:
		return fmt.Errorf("import: %d of %d lines make no sense and are left out", bad, lines)
	case lines == 0:
		return errors.New("import: there is nothing in it")
	}
	return nil
}

var errStatedump = errors.New("not INFO_HASH:MINUTE:DOWNLOADS, of 40 hexadecimal digits and two numbers")

// parseStatedump reads a line of opentracker's statedump: the info hash in hexadecimal digits, the
// minute (since 1970) in which the swarm was last announced to, and the downloads.
func parseStatedump(line []byte) (t swarmstore.Tally, err error) {
	fields := bytes.Split(bytes.TrimSuffix(line, []byte{'\r'}), []byte{':'})
	if len(fields) != 3 || len(fields[0]) != hex.EncodedLen(len(t.InfoHash)) {
		return t, errStatedump
	}
	_, err1 := hex.Decode(t.InfoHash[:], fields[0])
	_, err2 := strconv.ParseUint(string(fields[1]), 10, 63)
	downloads, err3 := strconv.ParseUint(string(fields[2]), 10, 63)
	if errors.Join(err1, err2, err3) != nil {
		return swarmstore.Tally{}, errStatedump
	}
	t.Downloads = int64(downloads)
	return t, nil
}
