package swarmstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// completedKey is a stream of the downloads that all gateways counted: hash, in 40 hexadecimal
// digits, and time, in Unix seconds.
const completedKey = "swarmgate:completed"

// completedLength is about how many entries the stream has at most.
const completedLength = 100_000

// Download is a completed download that was counted. Who downloaded it is not told.
type Download struct {
	InfoHash swarm.InfoHash
	At       time.Time
	Counts   swarm.Counts // of the swarm after it; zeros where this gateway has not read them yet
}

// tellDownloads tells of those that the groups of an exchange counted.
func (s *Store) tellDownloads(groups []*group) {
	if s.opt.Downloaded == nil {
		return
	}
	for _, g := range groups {
		for i := range g.ops {
			if o := &g.ops[i]; o.downloaded() {
				s.tellDownload(o, g.now)
			}
		}
	}
}

func (s *Store) tellDownload(o *op, now time.Time) {
	if s.opt.Downloaded == nil {
		return
	}
	d := Download{InfoHash: o.hash, At: now}
	if o.view != nil {
		d.Counts = o.view.Counts()
	}
	s.opt.Downloaded(d)
}

// PublishDownloads appends downloads to the stream swarmgate:completed, which loses its oldest
// entries beyond 100,000 or a few more (XADD with MAXLEN ~).
func (s *Store) PublishDownloads(ctx context.Context, downloads []Download) error {
	b := s.backend.Load()
	if b == nil {
		return swarm.ErrUnavailable
	}
	_, err := b.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i := range downloads {
			d := &downloads[i]
			pipe.XAdd(ctx, &redis.XAddArgs{
				Stream: completedKey, MaxLen: completedLength, Approx: true,
				Values: []any{"hash", hex.EncodeToString(d.InfoHash[:]), "time", d.At.Unix()},
			})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", completedKey, err)
	}
	return nil
}
