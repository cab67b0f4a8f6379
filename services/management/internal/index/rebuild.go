package index

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/journal"
	"gancho/pkg/topology"
)

const (
	// rebuildRecords is how far back the journal is read after a loss: at 40,000 records/s less than a minute.
	rebuildRecords = 2_000_000
	// chunk is how many records are read at once.
	chunk = 5000

	// seenProcesses is how many processes' marks are kept, those of replicas that are gone included.
	seenProcesses = 100

	// unordered is by how many sequences processes may write out of the journal's order: what the consumer hands out
	// at once.
	unordered = 20_000

	lockFor    = 15 * time.Second
	sweepEvery = time.Minute
)

// watch looks whether the index is whole, and fills it when it is not.
func (x *Index) watch(ctx context.Context) {
	for failing := false; ; {
		err := x.look(ctx)
		if err != nil && !failing && ctx.Err() == nil && !errors.Is(err, ErrAway) {
			x.log.Warn("the index cannot be filled; trying again", zap.Error(err))
		}
		failing = err != nil
		if !pause(ctx, lookEvery) {
			return
		}
	}
}

// look finds out whether something is missing: everything (no floor), or the newest part (Redis came back
// with less than this process had written).
func (x *Index) look(ctx context.Context) error {
	written := x.written.Load() // before the marks: what is written meanwhile is no loss
	floor, target, seen, err := x.marks(ctx)
	if err != nil {
		return err
	}
	first, last, err := journal.Ends(ctx, x.bus)
	if err != nil {
		return err
	}
	behind := false
	if !x.compared && floor > 0 {
		before := written
		if written, seen, err = x.compare(ctx, written, seen); err != nil {
			return err
		}
		x.compared, behind = true, written > before
	}
	lost := x.lost.Load()
	if lost {
		seen = x.lostFrom.Load()
	}
	switch {
	case floor == 0 || floor > last+1: // empty, or of another journal
		target = max(first, 1)
		if last > rebuildRecords {
			target = max(target, last-rebuildRecords)
		}
		if err := x.start(ctx, last+1, target); err != nil {
			return err
		}
		floor = last + 1
		x.lost.Store(false)
	case behind || (lost || seen < written) && floor <= target:
		low := max(seen, first, 1)
		if floor > target { // it was still being filled
			low = min(low, target)
		}
		if err := x.start(ctx, written+1, low); err != nil {
			return err
		}
		floor, target = written+1, low
		x.lost.Store(false)
	}
	switch low := max(target, first); {
	case floor > low:
		if err := x.fill(ctx, floor, low); err != nil {
			return err
		}
	case floor > target: // what was to be read has aged out meanwhile
		if err := x.check(x.rdb.Set(ctx, keyTarget, floor, 0).Err()); err != nil {
			return err
		}
	}
	return x.sweep(ctx)
}

// compare finds out, at the start of a process, whether Redis has lost records that were settled: a process that stopped
// together with Redis cannot know. It returns up to and from which sequence records are missing; written and seen as
// they are when none is.
func (x *Index) compare(ctx context.Context, written, seen uint64) (to, from uint64, err error) {
	state, err := x.bus.ConsumerState(ctx, topology.Durable{Stream: topology.Attempts, Name: topology.ConsumerIndex})
	if errors.Is(err, bus.ErrNotFound) {
		return written, seen, nil
	}
	if err != nil {
		return 0, 0, err
	}
	newest, err := x.rdb.ZRevRangeWithScores(ctx, keySeen, 0, 0).Result()
	if err := x.check(err); err != nil {
		return 0, 0, err
	}
	held := uint64(0)
	if len(newest) > 0 {
		held = uint64(newest[0].Score)
	}
	if held >= state.Settled {
		return written, seen, nil
	}
	x.log.Warn("Redis has lost records of the index; reading them again from the journal",
		zap.Uint64("stream_seq", held), zap.Uint64("settled", state.Settled))
	return max(written, state.Settled), held - min(held, unordered), nil
}

func (x *Index) marks(ctx context.Context) (floor, target, seen uint64, err error) {
	var f, t *redis.StringCmd
	var s *redis.FloatCmd
	_, err = x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		f, t, s = p.Get(ctx, keyFloor), p.Get(ctx, keyTarget), p.ZScore(ctx, keySeen, x.name)
		return nil
	})
	if err := x.check(err); err != nil {
		return 0, 0, 0, err
	}
	floor, _ = strconv.ParseUint(f.Val(), 10, 64)
	target, _ = strconv.ParseUint(t.Val(), 10, 64)
	return floor, target, uint64(s.Val()), nil
}

func (x *Index) start(ctx context.Context, floor, target uint64) error {
	x.log.Info("filling the index from the journal", zap.Uint64("from", floor-1), zap.Uint64("down_to", target))
	_, err := x.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, keyFloor, floor, 0)
		p.Set(ctx, keyTarget, target, 0)
		// What is missing is known now; the newest part comes by itself.
		p.ZAddArgs(ctx, keySeen, redis.ZAddArgs{GT: true, Members: []redis.Z{{Score: float64(x.written.Load()), Member: x.name}}})
		p.ZRemRangeByRank(ctx, keySeen, 0, -seenProcesses-1)
		return nil
	})
	return x.check(err)
}

// fill reads the journal from floor down to target, chunk by chunk, while it holds the lock.
func (x *Index) fill(ctx context.Context, floor, target uint64) error {
	for floor > target {
		held, err := x.lock(ctx, keyLock, lockFor)
		if err != nil || !held {
			return err
		}
		from := target
		if floor-target > chunk {
			from = floor - chunk
		}
		w := newWrites()
		if err := journal.Summaries(ctx, x.bus, from, floor-1, w.summary); err != nil {
			return err
		}
		w.seen = 0 // that is what comes live
		if err := x.write(ctx, w); err != nil {
			return err
		}
		// Another process may have begun anew meanwhile, after a second loss: then the mark is not ours to move.
		if now, _, _, err := x.marks(ctx); err != nil || now != floor {
			return err
		}
		floor = from
		if err := x.check(x.rdb.Set(ctx, keyFloor, floor, 0).Err()); err != nil {
			return err
		}
	}
	x.log.Info("the index is whole")
	return x.check(x.rdb.Del(ctx, keyLock).Err())
}

// lock takes or keeps a lock of this process.
func (x *Index) lock(ctx context.Context, key string, d time.Duration) (bool, error) {
	ok, err := x.rdb.SetNX(ctx, key, x.name, d).Result()
	if err := x.check(err); err != nil || ok {
		return ok, err
	}
	owner, err := x.rdb.Get(ctx, key).Result()
	if err := x.check(err); err != nil || owner != x.name {
		return false, err
	}
	return true, x.check(x.rdb.Expire(ctx, key, d).Err())
}

// sweep keeps the index within its bounds: webhooks without an entry younger than MaxAge are dropped, and
// while there are more than MaxEntries entries, those that were quiet longest.
func (x *Index) sweep(ctx context.Context) error {
	if held, err := x.rdb.SetNX(ctx, keyJanitor, x.name, sweepEvery).Result(); x.check(err) != nil || !held {
		return x.check(err)
	}
	webhooks, err := x.rdb.ZRangeWithScores(ctx, keyWebhooks, 0, -1).Result() // quiet longest first
	if err := x.check(err); err != nil {
		return err
	}
	const step = 1000
	sizes := make([]int64, len(webhooks))
	total := int64(0)
	for begin := 0; begin < len(webhooks); begin += step {
		part := webhooks[begin:min(begin+step, len(webhooks))]
		cards := make([]*redis.IntCmd, len(part))
		_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, z := range part {
				cards[i] = p.ZCard(ctx, keyOrder(name(z)))
			}
			return nil
		})
		if err := x.check(err); err != nil {
			return err
		}
		for i, c := range cards {
			sizes[begin+i] = c.Val()
			total += c.Val()
		}
	}
	oldest := float64(time.Now().Add(-x.cfg.MaxAge).UnixMilli())
	dropped := 0
	for i, z := range webhooks {
		if z.Score >= oldest && total <= int64(x.cfg.MaxEntries) {
			break
		}
		_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Del(ctx, keysOf(name(z))...)
			p.ZRem(ctx, keyWebhooks, name(z))
			p.ZRem(ctx, keyDelivered, name(z))
			return nil
		})
		if err := x.check(err); err != nil {
			return err
		}
		total -= sizes[i]
		dropped++
	}
	if dropped > 0 {
		x.log.Info("quiet webhooks dropped from the index", zap.Int("webhooks", dropped), zap.Int64("entries_left", total))
	}
	return nil
}

func name(z redis.Z) string {
	s, _ := z.Member.(string)
	return s
}
