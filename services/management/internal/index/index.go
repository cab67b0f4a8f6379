package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
)

const (
	perWebhook = 1000
	// slack is how many more may be in a set until it is trimmed.
	slack = 100

	batchSize = 2000
	// linger is how long a batch waits for more records: fewer, larger batches cost less.
	linger = 100 * time.Millisecond
	// settle is how old a message on NOTIFICATIONS must be before it is listed as pending: by then most have
	// been attempted and are listed anyway.
	settle = time.Second

	lookEvery = time.Second
)

const (
	prefix      = "gancho:log:"
	keyWebhooks = prefix + "webhooks"
	keyFloor    = prefix + "floor"
	keyTarget   = prefix + "target"
	keySeen     = prefix + "seen"
	keyLock     = prefix + "rebuilding"
	keyJanitor  = prefix + "sweeping"
)

func keyOrder(webhook string) string { return prefix + webhook }
func keyLast(webhook string) string  { return prefix + webhook + ":last" }

// ErrAway says that Redis does not answer.
var ErrAway = errors.New("the index is away")

// Config of an Index.
type Config struct {
	// MaxEntries bounds the index over all webhooks, give or take what comes in between two sweeps.
	MaxEntries int
	// MaxAge is how long the journal keeps records; older entries are dropped.
	MaxAge time.Duration
}

// Index is this process's hand on the index. It is safe for concurrent use.
type Index struct {
	cfg  Config
	rdb  redis.UniversalClient
	bus  *bus.Bus
	log  *zap.Logger
	name string // of this process, in locks

	trouble atomic.Pointer[string]
	written atomic.Uint64 // the newest sequence this process has written
	recent  recent
}

// New returns an index on rdb, which it does not close.
func New(cfg Config, rdb redis.UniversalClient, b *bus.Bus, log *zap.Logger) *Index {
	x := &Index{cfg: cfg, rdb: rdb, bus: b, log: log.Named("index"), name: uuid.NewString()}
	x.failed("not looked at yet")
	return x
}

// State says what keeps the index from being read, "" if nothing does.
func (x *Index) State() string {
	if p := x.trouble.Load(); p != nil {
		return *p
	}
	return ""
}

func (x *Index) failed(why string) { x.trouble.Store(&why) }

// check notes whether Redis answers.
func (x *Index) check(err error) error {
	old := x.trouble.Load()
	switch {
	case err == nil || errors.Is(err, redis.Nil):
		if old != nil && x.trouble.CompareAndSwap(old, nil) {
			x.log.Info("the index in Redis is there")
		}
		return nil
	case errors.Is(err, context.Canceled):
		return err
	}
	if old == nil {
		x.log.Warn("Redis cannot be used; lists of notifications are away until it can", zap.Error(err))
	}
	x.failed("Redis does not answer, or refuses")
	return fmt.Errorf("%w: %w", ErrAway, err)
}

// Run feeds the index until ctx ends.
func (x *Index) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return x.live(ctx) })
	group.Go(func() error { return x.arrivals(ctx) })
	group.Go(func() error { x.watch(ctx); return nil })
	return group.Wait()
}

// live writes journal records as they come. A batch is settled only when it is in Redis; while that is away
// the records wait in the stream.
func (x *Index) live(ctx context.Context) error {
	journal, err := x.bus.Summaries(ctx, bus.ConsumerIndex)
	if err != nil {
		return ended(ctx, err)
	}
	for ctx.Err() == nil {
		batch, err := journal.Pull(ctx, batchSize, linger)
		if err != nil && ctx.Err() == nil {
			x.log.Debug("the journal cannot be read; trying again", zap.Error(err))
		}
		if len(batch.Summaries) == 0 {
			continue
		}
		w := newWrites()
		for _, r := range batch.Summaries {
			w.record(&notification.Record{Sequence: r.Sequence, NotificationID: r.NotificationID, WebhookID: r.WebhookID, At: r.At, State: r.State, Send: r.Send})
		}
		x.recent.add(w)
		for x.write(ctx, w) != nil {
			if !pause(ctx, lookEvery) {
				return nil
			}
		}
		batch.Ack()
		x.written.Store(max(x.written.Load(), w.seen))
	}
	return nil
}

// arrivals writes what is on NOTIFICATIONS and not attempted yet.
func (x *Index) arrivals(ctx context.Context) error {
	arrivals, err := x.bus.Arrivals(ctx, bus.ConsumerIndexPending)
	if err != nil {
		return ended(ctx, err)
	}
	for ctx.Err() == nil {
		batch, err := arrivals.Pull(ctx, batchSize, linger)
		if err != nil && ctx.Err() == nil {
			x.log.Debug("NOTIFICATIONS cannot be read; trying again", zap.Error(err))
		}
		if len(batch.Arrivals) == 0 {
			continue
		}
		newest := batch.Arrivals[len(batch.Arrivals)-1].StoredAt
		if wait := settle - time.Since(newest); wait > 0 && !pause(ctx, min(wait, settle)) {
			return nil
		}
		w := newWrites()
		for _, a := range batch.Arrivals {
			if id, err := uuid.Parse(a.ID); err == nil && !x.recent.has(id, a.Send) {
				w.arrival(id, &a)
			}
		}
		for x.write(ctx, w) != nil {
			if !pause(ctx, lookEvery) {
				return nil
			}
		}
		batch.Ack()
	}
	return nil
}

// states in the order of their codes, which are part of what is stored: add at the end, at most seven.
// pendingCode is the highest, so that a send that was just opened outranks the record it follows.
var states = []notification.State{
	notification.Retrying, notification.Parked, notification.Delivered, notification.PermanentlyFailed, notification.Cancelled,
}

const pendingCode = 7

func code(s notification.State) int { return slices.Index(states, s) + 1 }

func state(code int) notification.State {
	switch {
	case code == pendingCode:
		return notification.Pending
	case code >= 1 && code <= len(states):
		return states[code-1]
	}
	return ""
}

// writes gathers what goes into Redis in one pipeline.
type writes struct {
	webhooks map[string]map[uuid.UUID]spot
	seen     uint64
}

// spot is one notification's place: first seen at, and newest record.
type spot struct {
	created int64 // unix ms
	last    int64 // 8 x sequence + state
	send    int
}

func newWrites() *writes { return &writes{webhooks: map[string]map[uuid.UUID]spot{}} }

func (w *writes) add(webhook string, id uuid.UUID, s spot) {
	m := w.webhooks[webhook]
	if m == nil {
		m = map[uuid.UUID]spot{}
		w.webhooks[webhook] = m
	}
	if old, ok := m[id]; ok {
		s.created, s.last, s.send = min(s.created, old.created), max(s.last, old.last), max(s.send, old.send)
	}
	m[id] = s
}

func (w *writes) record(r *notification.Record) {
	w.seen = max(w.seen, r.Sequence)
	id, err := uuid.Parse(r.NotificationID)
	if err != nil || uuid.Validate(r.WebhookID) != nil {
		return
	}
	at := r.At
	if r.Attempt != nil && r.Attempt.StartedAt.Before(at) {
		at = r.Attempt.StartedAt
	}
	w.add(r.WebhookID, id, spot{at.UnixMilli(), int64(r.Sequence)*8 + int64(code(r.State)), r.Send}) //nolint:gosec // sequences stay far below 2^50
}

func (w *writes) arrival(id uuid.UUID, a *bus.Arrival) {
	w.add(a.WebhookID, id, spot{a.StoredAt.UnixMilli(), int64(a.Journal)*8 + pendingCode, a.Send}) //nolint:gosec // as above
}

// write puts w into Redis. Doing it again changes nothing.
func (x *Index) write(ctx context.Context, w *writes) error {
	_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		touched := make([]redis.Z, 0, len(w.webhooks))
		for webhook, spots := range w.webhooks {
			order, last := make([]redis.Z, 0, len(spots)), make([]redis.Z, 0, len(spots))
			newest := int64(0)
			for id, s := range spots {
				member := string(id[:])
				order = append(order, redis.Z{Score: float64(s.created), Member: member})
				last = append(last, redis.Z{Score: float64(s.last), Member: member})
				newest = max(newest, s.created)
			}
			p.ZAddArgs(ctx, keyOrder(webhook), redis.ZAddArgs{LT: true, Members: order})
			p.ZAddArgs(ctx, keyLast(webhook), redis.ZAddArgs{GT: true, Members: last})
			if len(spots) > slack || x.recent.trimDue(webhook, len(spots)) {
				p.ZRemRangeByRank(ctx, keyOrder(webhook), 0, -perWebhook-1)
				p.ZRemRangeByRank(ctx, keyLast(webhook), 0, -2*perWebhook-1)
			}
			touched = append(touched, redis.Z{Score: float64(newest), Member: webhook})
		}
		if len(touched) > 0 {
			p.ZAddArgs(ctx, keyWebhooks, redis.ZAddArgs{GT: true, Members: touched})
		}
		if w.seen > 0 {
			// Replicas write it in any order; it is only compared with what this process has written.
			p.ZAddArgs(ctx, keySeen, redis.ZAddArgs{GT: true, Members: []redis.Z{{Score: float64(w.seen), Member: "seen"}}})
		}
		return nil
	})
	return x.check(err)
}

// Entry is a notification of a webhook.
type Entry struct {
	ID      uuid.UUID
	Created time.Time
	// State is the one that was last indexed, "" when it is not known.
	State notification.State
}

// Recent returns the webhook's recent notifications, newest first, and whether some may be missing because
// the index is being filled. ErrAway means that Redis does not answer.
func (x *Index) Recent(ctx context.Context, webhook string) (entries []Entry, partial bool, err error) {
	var (
		order, last   *redis.ZSliceCmd
		floor, target *redis.StringCmd
	)
	_, err = x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		order = p.ZRevRangeWithScores(ctx, keyOrder(webhook), 0, perWebhook-1)
		last = p.ZRangeWithScores(ctx, keyLast(webhook), 0, -1)
		floor, target = p.Get(ctx, keyFloor), p.Get(ctx, keyTarget)
		return nil
	})
	if err := x.check(err); err != nil {
		return nil, false, err
	}
	codes := make(map[string]int, len(last.Val()))
	for _, z := range last.Val() {
		if member, ok := z.Member.(string); ok {
			codes[member] = int(int64(z.Score) % 8)
		}
	}
	for _, z := range order.Val() {
		member, ok := z.Member.(string)
		if !ok || len(member) != len(uuid.UUID{}) {
			continue
		}
		entries = append(entries, Entry{ID: uuid.UUID([]byte(member)), Created: time.UnixMilli(int64(z.Score)).UTC(), State: state(codes[member])})
	}
	slices.SortFunc(entries, Compare)
	low, _ := strconv.ParseUint(target.Val(), 10, 64)
	at, err := strconv.ParseUint(floor.Val(), 10, 64)
	return entries, err != nil || at > low, nil
}

// Compare orders entries newest first; of two from the same millisecond the ids decide.
func Compare(a, b Entry) int {
	if c := b.Created.Compare(a.Created); c != 0 {
		return c
	}
	return cmp.Compare(string(b.ID[:]), string(a.ID[:]))
}

// Forget drops a deleted webhook's entries.
func (x *Index) Forget(ctx context.Context, webhook string) error {
	return x.check(x.rdb.Del(ctx, keyOrder(webhook), keyLast(webhook)).Err())
}

// recent remembers which sends were recorded lately, and how much was added to each webhook's sets since
// they were trimmed. It is safe for concurrent use; its memory is bounded.
type recent struct {
	mu       sync.Mutex
	new, old map[uuid.UUID]int
	added    map[string]int
}

const recentSends = 50_000

func (r *recent) add(w *writes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.new == nil || len(r.new) > recentSends {
		r.old, r.new = r.new, map[uuid.UUID]int{}
	}
	for _, spots := range w.webhooks {
		for id, s := range spots {
			r.new[id] = max(r.new[id], s.send)
		}
	}
}

func (r *recent) has(id uuid.UUID, send int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.new[id] >= send || r.old[id] >= send
}

func (r *recent) trimDue(webhook string, n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.added == nil || len(r.added) > recentSends {
		r.added = map[string]int{}
	}
	r.added[webhook] += n
	if r.added[webhook] < slack {
		return false
	}
	delete(r.added, webhook)
	return true
}

// pause waits; false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
