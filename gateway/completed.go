package main

import (
	"context"
	"encoding/hex"
	"log/slog"
	"time"

	"swarmgate/swarmstore"
	"swarmgate/swarmstore/swarm"
)

// The values of --completed-events.
const (
	completedOff    = "off"
	completedLog    = "log"
	completedStream = "stream"
)

// completedEvents passes on downloads that the store counted, beside the announces. What
// comes faster than it can be passed on is lost, and counted.
type completedEvents struct {
	queue   chan swarmstore.Download
	publish func(context.Context, []swarmstore.Download) error
	lost    func(n int)
	log     *slog.Logger
}

const (
	completedQueue = 1 << 14
	completedBatch = 1 << 10 // of one pipeline
	completedEvery = time.Second
	completedTime  = time.Second // that passing on may take
)

func newCompletedEvents(publish func(context.Context, []swarmstore.Download) error, lost func(n int), log *slog.Logger) *completedEvents {
	return &completedEvents{queue: make(chan swarmstore.Download, completedQueue), publish: publish, lost: lost, log: log}
}

// add never waits.
func (e *completedEvents) add(d swarmstore.Download) {
	select {
	case e.queue <- d:
	default:
		e.lost(1)
	}
}

// run passes on what comes until ctx ends, and then the rest.
func (e *completedEvents) run(ctx context.Context) {
	repeat(ctx, completedEvery, e.flush)
	e.flush()
}

// flush passes on what the queue holds. What Redis does not take in time is lost, as it
// must not wait where more comes; the numbers of downloads that swarms have are right all the same.
func (e *completedEvents) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), completedTime)
	defer cancel()
	n := 0
	var failed error
	for left := len(e.queue); left > 0; {
		batch := make([]swarmstore.Download, min(left, completedBatch))
		for i := range batch {
			batch[i] = <-e.queue
		}
		left -= len(batch)
		if err := e.publish(ctx, batch); err != nil {
			n, failed = n+len(batch), err
		}
	}
	if n > 0 {
		e.lost(n)
		e.log.Warn("completed events are lost", "events", n, "error", failed)
	}
}

// logDownloads is the publish of --completed-events log.
func logDownloads(log *slog.Logger) func(context.Context, []swarmstore.Download) error {
	return func(_ context.Context, downloads []swarmstore.Download) error {
		for i := range downloads {
			d := &downloads[i]
			args := []any{"info_hash", hex.EncodeToString(d.InfoHash[:]), "at", d.At.UTC().Truncate(time.Second)}
			if d.Counts != (swarm.Counts{}) {
				args = append(args, "seeders", d.Counts.Seeders, "leechers", d.Counts.Leechers, "partial_seeds", d.Counts.PartialSeeds)
			}
			log.Info("completed", args...)
		}
		return nil
	}
}
