package index

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

const (
	// rebuildRecords is how far back the journal is read after a loss: at 40,000 records/s less than a minute.
	rebuildRecords = 2_000_000
	// rebuildEvents is how far back CRM_EVENTS is, whose bodies must be read.
	rebuildEvents = 500_000
	// chunk is how many records are read at once.
	chunk = 5000

	// seenProcesses is how many processes' marks are kept, those of replicas that are gone included.
	seenProcesses = 100

	// unordered is how far processes may write out of the journal's order, in sequences: as many as the consumer hands
	// out at once.
	unordered = 20_000

	lockFor    = 15 * time.Second
	sweepEvery = time.Minute
)

// source is a stream that is read into Redis: how much of it is there, and which parts are missing.
type source struct {
	x                                     *Index
	name                                  string // for the log
	floorKey, targetKey, seenKey, lockKey string
	durable                               topology.Durable
	most                                  uint64 // how many records are read back after a loss at most
	chunk                                 uint64 // how many are read at once
	position                              func(context.Context) (first, last uint64, err error)
	// read writes the stream's records from one sequence to another, both included.
	read func(ctx context.Context, from, to uint64) error

	newest  atomic.Uint64 // of the stream, as it was looked at last
	written atomic.Uint64 // the newest sequence this process has written
	// lost says that Redis had lost this process's writes after lostFrom when it wrote again.
	lost     atomic.Bool
	lostFrom atomic.Uint64
	compared bool // Redis was compared with the stream's consumer; look's own
}

// mark notes in p that everything up to seen is written. known finds out, once the pipeline ran, whether Redis had
// lost this process's earlier writes.
func (s *source) mark(ctx context.Context, p redis.Pipeliner, seen uint64) (known func()) {
	if seen == 0 {
		return func() {}
	}
	had, floor := p.ZScore(ctx, s.seenKey, s.x.name), p.Get(ctx, s.floorKey)
	p.ZAddArgs(ctx, s.seenKey, redis.ZAddArgs{GT: true, Members: []redis.Z{{Score: float64(seen), Member: s.x.name}}})
	return func() {
		// Redis came back with less than this process had written, and this write would hide it. One that came back
		// empty is seen by look.
		if floor.Val() != "" && uint64(had.Val()) < s.written.Load() {
			s.lost.Store(true)
			s.lostFrom.Store(uint64(had.Val()))
		}
	}
}

// wrote notes that everything up to seen is in Redis.
func (s *source) wrote(seen uint64) { s.written.Store(max(s.written.Load(), seen)) }

// watch looks whether the index is whole, and fills it when it is not.
func (s *source) watch(ctx context.Context) {
	for failing := false; ; {
		err := s.look(ctx)
		if err != nil && !failing && ctx.Err() == nil && !errors.Is(err, ErrAway) {
			s.x.lasting.Warn("the index cannot be filled; trying again", zap.Error(err))
		}
		failing = err != nil
		if !sleep.For(ctx, lookEvery) {
			return
		}
	}
}

// look finds out whether something is missing: everything (no floor), or the newest part (Redis came back
// with less than this process had written).
func (s *source) look(ctx context.Context) error {
	written := s.written.Load() // before the marks: records written during the read are no loss
	floor, target, seen, err := s.marks(ctx)
	if err != nil {
		return err
	}
	first, last, err := s.position(ctx)
	if err != nil {
		return err
	}
	s.newest.Store(last)
	behind := false
	if !s.compared && floor > 0 {
		before := written
		if written, seen, err = s.compare(ctx, written, seen); err != nil {
			return err
		}
		s.compared, behind = true, written > before
	}
	lost := s.lost.Load()
	if lost {
		seen = s.lostFrom.Load()
	}
	switch {
	case floor == 0 || floor > last+1: // empty, or of another journal
		target = max(first, 1)
		if last > s.most {
			target = max(target, last-s.most)
		}
		if err := s.start(ctx, last+1, target); err != nil {
			return err
		}
		floor = last + 1
		s.lost.Store(false)
	case behind || (lost || seen < written) && floor <= target:
		low := max(seen, first, 1)
		if floor > target { // it was still being filled
			low = min(low, target)
		}
		if err := s.start(ctx, written+1, low); err != nil {
			return err
		}
		floor, target = written+1, low
		s.lost.Store(false)
	}
	switch low := max(target, first); {
	case floor > low:
		if err := s.fill(ctx, floor, low); err != nil {
			return err
		}
	case floor > target: // the missing records have aged out since
		if err := s.x.check(s.x.rdb.Set(ctx, s.targetKey, floor, 0).Err()); err != nil {
			return err
		}
	}
	return nil
}

// compare finds out, at the start of a process, whether Redis has lost records that were settled: a process that
// stopped together with Redis cannot know. It returns up to and from which sequence records are missing; written and
// seen as they are when none is.
func (s *source) compare(ctx context.Context, written, seen uint64) (to, from uint64, err error) {
	state, err := s.x.bus.ConsumerState(ctx, s.durable)
	if errors.Is(err, bus.ErrNotFound) {
		return written, seen, nil
	}
	if err != nil {
		return 0, 0, err
	}
	newest, err := s.x.rdb.ZRevRangeWithScores(ctx, s.seenKey, 0, 0).Result()
	if err := s.x.check(err); err != nil {
		return 0, 0, err
	}
	held := uint64(0)
	if len(newest) > 0 {
		held = uint64(newest[0].Score)
	}
	if held >= state.Settled {
		return written, seen, nil
	}
	s.x.log.Warn("Redis has lost records of the index; reading them again", zap.String("from", s.name),
		zap.Uint64("stream_seq", held), zap.Uint64("settled", state.Settled))
	return max(written, state.Settled), held - min(held, unordered), nil
}

func (s *source) marks(ctx context.Context) (floor, target, seen uint64, err error) {
	var f, t *redis.StringCmd
	var z *redis.FloatCmd
	_, err = s.x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		f, t, z = p.Get(ctx, s.floorKey), p.Get(ctx, s.targetKey), p.ZScore(ctx, s.seenKey, s.x.name)
		return nil
	})
	if err := s.x.check(err); err != nil {
		return 0, 0, 0, err
	}
	floor, _ = strconv.ParseUint(f.Val(), 10, 64)
	target, _ = strconv.ParseUint(t.Val(), 10, 64)
	return floor, target, uint64(z.Val()), nil
}

func (s *source) start(ctx context.Context, floor, target uint64) error {
	s.x.log.Info("filling the index", zap.String("from", s.name), zap.Uint64("from_seq", floor-1), zap.Uint64("down_to_seq", target))
	s.x.listed.forget()
	_, err := s.x.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, s.floorKey, floor, 0)
		p.Set(ctx, s.targetKey, target, 0)
		p.Set(ctx, keyGeneration, uuid.NewString(), 0)
		// The missing part is known now; the newest part comes by itself.
		p.ZAddArgs(ctx, s.seenKey, redis.ZAddArgs{GT: true, Members: []redis.Z{{Score: float64(s.written.Load()), Member: s.x.name}}})
		p.ZRemRangeByRank(ctx, s.seenKey, 0, -seenProcesses-1)
		return nil
	})
	return s.x.check(err)
}

// fill reads the journal from floor down to target, chunk by chunk, while it holds the lock.
func (s *source) fill(ctx context.Context, floor, target uint64) error {
	for floor > target {
		held, err := s.x.lock(ctx, s.lockKey, lockFor)
		if err != nil || !held {
			return err
		}
		from := target
		if floor-target > s.chunk {
			from = floor - s.chunk
		}
		if err := s.read(ctx, from, floor-1); err != nil {
			return err
		}
		// Another process may have started over after a second loss: then the mark is not ours to move.
		if now, _, _, err := s.marks(ctx); err != nil || now != floor {
			return err
		}
		floor = from
		if err := s.x.check(s.x.rdb.Set(ctx, s.floorKey, floor, 0).Err()); err != nil {
			return err
		}
	}
	s.x.log.Info("the index is whole", zap.String("from", s.name))
	return s.x.check(s.x.rdb.Del(ctx, s.lockKey).Err())
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

// readJournal writes the journal's records from one sequence to another.
func (x *Index) readJournal(ctx context.Context, from, to uint64) error {
	w := newWrites()
	if err := journal.Summaries(ctx, x.bus, from, to, w.summary); err != nil {
		return err
	}
	w.seen = 0 // live reads maintain it
	return x.write(ctx, w)
}

// readEvents writes what CRM_EVENTS has from one sequence to another.
func (x *Index) readEvents(ctx context.Context, from, to uint64) error {
	p := postings{}
	err := eventstream.Between(ctx, x.bus, topology.SubjectsEvents, from, to, func(e *eventstream.Event) bool {
		if ev, rejected := event.Parse(e.Message); rejected == nil {
			p.event(&ev, e.StoredAt)
		}
		return true
	})
	if err != nil {
		return err
	}
	return x.writeEvents(ctx, p, 0)
}

// sweeps keeps the index within its bounds until ctx ends.
func (x *Index) sweeps(ctx context.Context) {
	for sleep.For(ctx, lookEvery) {
		if err := x.sweep(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrAway) {
			x.log.Debug("the index cannot be swept; trying again", zap.Error(err))
		}
	}
}

// trimAll drops the oldest postings. Notifications have several records, so there is room for three of each entry.
func (x *Index) trimAll(ctx context.Context) error {
	if x.bus == nil {
		return nil
	}
	first, _, err := x.journal.position(ctx)
	if err != nil {
		return err
	}
	if err := x.trim(ctx, ofNotifications, first, 3*int64(x.cfg.MaxEntries)); err != nil {
		return err
	}
	// Events are still asked for after they aged out, as long as the journal knows their notifications.
	return x.trim(ctx, ofEvents, 0, int64(x.cfg.MaxEntries))
}

// sweep keeps the index within its bounds: webhooks without an entry younger than MaxAge are dropped, and
// while there are more than MaxEntries entries, those that were quiet longest, of accounts above their share first.
func (x *Index) sweep(ctx context.Context) error {
	if held, err := x.rdb.SetNX(ctx, keyJanitor, x.name, sweepEvery).Result(); x.check(err) != nil || !held {
		return x.check(err)
	}
	if err := x.trimAll(ctx); err != nil {
		return err
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
	for _, i := range x.victims(webhooks, sizes, oldest, total) {
		z := webhooks[i]
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

// victims returns which of the webhooks, quiet longest first, are to be dropped: those without an entry since oldest,
// and while more than MaxEntries remain, the quietest of the account that has the most if that is more than its share,
// else the quietest of all. total is the sum of sizes.
func (x *Index) victims(webhooks []redis.Z, sizes []int64, oldest float64, total int64) []int {
	var gone []int
	next := 0
	for ; next < len(webhooks) && webhooks[next].Score < oldest; next++ {
		gone = append(gone, next)
		total -= sizes[next]
	}
	most := int64(x.cfg.MaxEntries)
	if total <= most {
		return gone
	}
	var owners map[string]string
	if x.Owners != nil {
		owners = x.Owners()
	}
	type account struct {
		webhooks []int
		entries  int64
	}
	accounts := map[string]*account{}
	for i := next; i < len(webhooks); i++ {
		n := name(webhooks[i])
		owner, isFailures := strings.CutPrefix(n, failuresOf)
		if !isFailures {
			owner = owners[n] // "": deleted since
		}
		a := accounts[owner]
		if a == nil {
			a = &account{}
			accounts[owner] = a
		}
		a.webhooks, a.entries = append(a.webhooks, i), a.entries+sizes[i]
	}
	all := slices.Collect(maps.Values(accounts))
	quietest := func(a *account) int {
		if len(a.webhooks) == 0 {
			return len(webhooks)
		}
		return a.webhooks[0]
	}
	for total > most {
		victim := slices.MaxFunc(all, func(a, b *account) int { return cmp.Compare(a.entries, b.entries) })
		if float64(victim.entries) <= indexShare*float64(most) {
			victim = slices.MinFunc(all, func(a, b *account) int { return cmp.Compare(quietest(a), quietest(b)) })
		}
		if len(victim.webhooks) == 0 {
			break
		}
		i := victim.webhooks[0]
		gone = append(gone, i)
		victim.webhooks, victim.entries = victim.webhooks[1:], victim.entries-sizes[i]
		total -= sizes[i]
	}
	return gone
}

func name(z redis.Z) string {
	s, _ := z.Member.(string)
	return s
}
