package swarmstore

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/swarm"
)

// Tally is how many downloads a swarm had elsewhere.
type Tally struct {
	InfoHash  swarm.InfoHash
	Downloads int64
}

// importChunk is how many swarms' downloads are imported at a time.
const importChunk = 1024

// ImportDownloads raises the downloads of swarms to what was counted elsewhere; of those that have
// as many or more none is changed, so that it may be done again. They last for the downloads TTL. What is
// counted meanwhile is added, but only one import may run at a time. It returns how many tallies were
// imported before an error.
func (s *Store) ImportDownloads(ctx context.Context, tallies []Tally) (done int, err error) {
	for done < len(tallies) {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		chunk := tallies[done:min(done+importChunk, len(tallies))]
		if err := s.importDownloads(chunk); err != nil {
			return done, fmt.Errorf("import of downloads: %w", err)
		}
		done += len(chunk)
	}
	return done, nil
}

func (s *Store) importDownloads(chunk []Tally) error {
	want := make(map[swarm.InfoHash]int64, len(chunk)) // a swarm may come twice
	for _, t := range chunk {
		want[t.InfoHash] = max(want[t.InfoHash], t.Downloads)
	}
	have := make(map[swarm.InfoHash]*redis.StringCmd, len(want))
	var cmds []routed
	for hash := range want {
		have[hash] = s.downloads(hash)
		cmds = append(cmds, routed{hash, 0, have[hash]})
	}
	s.sendAll(cmds, false)
	cmds = cmds[:0]
	for hash, cmd := range have {
		n, err := number(cmd)
		if err != nil {
			return err
		}
		if more := want[hash] - int64(n); more > 0 {
			downloads := key(hash, kindDownloads)
			cmds = append(cmds,
				routed{hash, 0, redis.NewIntCmd(s.ctx, "incrby", downloads, more)},
				routed{hash, 0, redis.NewIntCmd(s.ctx, "expire", downloads, keySeconds(s.opt.DownloadsTTL))})
		}
	}
	if s.sendAll(cmds, true) {
		return errReplicas
	}
	for _, r := range cmds {
		if err := r.cmd.Err(); err != nil {
			return err
		}
	}
	return nil
}
