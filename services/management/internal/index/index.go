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
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/service"
	"gancho/pkg/sleep"
	"gancho/pkg/suspension"
	"gancho/pkg/topology"
)

const (
	perWebhook = 1000
	// perAccount is how many of an account's permanent failures are kept, those that were sent again since
	// included.
	perAccount = 2000

	batchSize = 2000
	// linger is how long records gather before a batch is taken: fewer, larger batches cost less.
	linger = 250 * time.Millisecond
	// settle is how old a message on NOTIFICATIONS must be before it is listed as pending: by then most have
	// been attempted and are listed anyway.
	settle = time.Second

	lookEvery = time.Second
)

const (
	prefix       = "gancho:log:"
	keyWebhooks  = prefix + "webhooks"
	keyDelivered = prefix + "delivered"
	keyFloor     = prefix + "floor3" // another name than before there were fates: they are read back once
	keyTarget    = prefix + "target"
	keySeen      = prefix + "seen"
	keyLock      = prefix + "rebuilding"
	keyJanitor   = prefix + "sweeping"
)

func keyOrder(webhook string) string { return prefix + webhook }
func keyRows(webhook string) string  { return prefix + webhook + ":rows" }
func keyFates(webhook string) string { return prefix + webhook + ":fates" }

// keysOf are all keys of a webhook, or of a set of failures.
func keysOf(webhook string) []string {
	return []string{keyOrder(webhook), keyRows(webhook), keyFates(webhook)}
}

// fateOpen is added to the scores in a webhook's fates when the notification has not failed: more than
// any time in milliseconds.
const fateOpen = 1 << 43

// failures is the name under which an account's failures are kept, among the webhooks' names: its set is
// swept as theirs are.
func failures(account string) string { return failuresOf + account }

const failuresOf = "failures:"

// ErrAway says that Redis does not answer.
var ErrAway = errors.New("the index is away")

// Config of an Index.
type Config struct {
	// MaxEntries bounds the index over all webhooks, give or take the arrivals between two sweeps.
	MaxEntries int
	// MaxAge is how long the journal keeps records; older entries are dropped.
	MaxAge time.Duration
}

// Index is this process's hand on the index. It is safe for concurrent use.
type Index struct {
	cfg Config
	rdb redis.UniversalClient
	bus *bus.Bus
	log *zap.Logger
	// lasting is for troubles that come and go while Redis or the broker is in trouble.
	lasting *zap.Logger
	name    string // of this process, in locks

	// Exhausted, if not nil, is called for each permanent failure before its record is acknowledged, at least once over
	// all replicas. It is set before Run.
	Exhausted func(ctx context.Context, r *notification.Summary)
	// Owners, if not nil, returns the account of each webhook that exists. It is set before Run.
	Owners func() map[string]string

	trouble atomic.Pointer[trouble]
	recent  recent
	journal *source
	events  *source
	listed  listed
	views   views
}

// New returns an index on rdb, which it does not close.
func New(cfg Config, rdb redis.UniversalClient, b *bus.Bus, log *zap.Logger) *Index {
	x := &Index{cfg: cfg, rdb: rdb, bus: b, log: log.Named("index"), lasting: service.Lasting(log.Named("index")), name: uuid.NewString()}
	x.journal = &source{
		x: x, name: topology.Attempts, floorKey: keyFloor, targetKey: keyTarget, seenKey: keySeen, lockKey: keyLock, most: rebuildRecords, chunk: chunk,
		durable:  topology.Durable{Stream: topology.Attempts, Name: topology.ConsumerIndex},
		position: func(ctx context.Context) (uint64, uint64, error) { return journal.Ends(ctx, b) },
		read:     x.readJournal,
	}
	x.events = &source{
		x: x, name: topology.Events, floorKey: prefix + "e:floor", targetKey: prefix + "e:target", seenKey: prefix + "e:seen", lockKey: prefix + "e:rebuilding", most: rebuildEvents, chunk: chunk,
		durable: topology.Durable{Stream: topology.Events, Name: topology.ConsumerIndexEvents},
		position: func(ctx context.Context) (uint64, uint64, error) {
			state, err := b.StreamState(ctx, topology.Events)
			return state.First, state.Last, err
		},
		read: x.readEvents,
	}
	x.failed("not looked at yet", time.Time{})
	return x
}

// trouble is why Redis cannot be used, and when it showed last.
type trouble struct {
	why string
	at  time.Time
}

// calmFor is how long nothing may fail before Redis counts as usable again: one that refuses writes answers reads in
// between.
const calmFor = 3 * time.Second

// State says what keeps the index from being read, "" if nothing does.
func (x *Index) State() string {
	if t := x.trouble.Load(); t != nil {
		return t.why
	}
	return ""
}

func (x *Index) failed(why string, at time.Time) { x.trouble.Store(&trouble{why, at}) }

// check notes whether Redis answers.
func (x *Index) check(err error) error {
	old := x.trouble.Load()
	switch {
	case err == nil || errors.Is(err, redis.Nil):
		if old != nil && time.Since(old.at) > calmFor && x.trouble.CompareAndSwap(old, nil) {
			x.lasting.Info("the index in Redis is there")
		}
		return nil
	case errors.Is(err, context.Canceled):
		return err
	}
	why := suspension.Cause(err)
	x.lasting.Warn("Redis cannot be used; lists of notifications are away until it can", zap.Error(errors.New(why)))
	x.failed(why, time.Now())
	return fmt.Errorf("%w: %w", ErrAway, err)
}

// Run feeds the index until ctx ends.
func (x *Index) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return x.live(ctx) })
	group.Go(func() error { return x.arrivals(ctx) })
	group.Go(func() error { return x.liveEvents(ctx) })
	group.Go(func() error { x.journal.watch(ctx); return nil })
	group.Go(func() error { x.events.watch(ctx); return nil })
	group.Go(func() error { x.sweeps(ctx); return nil })
	return group.Wait()
}

// live writes journal records as they come. A batch is settled only when it is in Redis; while that is down
// the records wait in the stream.
func (x *Index) live(ctx context.Context) error {
	summaries, err := journal.Consume(ctx, x.bus, topology.ConsumerIndex)
	if err != nil {
		return ended(ctx, err)
	}
	for ctx.Err() == nil {
		batch, err := summaries.Pull(ctx, batchSize, linger)
		if err != nil && ctx.Err() == nil {
			x.log.Debug("the journal cannot be read; trying again", zap.Error(err))
		}
		if len(batch.Summaries) == 0 {
			continue
		}
		w := newWrites()
		for i := range batch.Summaries {
			w.summary(&batch.Summaries[i])
		}
		x.recent.add(w)
		for x.write(ctx, w) != nil {
			if !sleep.For(ctx, lookEvery) {
				return nil
			}
		}
		if x.Exhausted != nil {
			for i := range batch.Summaries {
				if r := &batch.Summaries[i]; r.State == notification.PermanentlyFailed {
					x.Exhausted(ctx, r)
				}
			}
		}
		batch.Ack()
		x.journal.wrote(w.seen)
	}
	return nil
}

// arrivals writes the notifications on NOTIFICATIONS that are not attempted yet.
func (x *Index) arrivals(ctx context.Context) error {
	arrivals, err := lane.Arrivals(ctx, x.bus, topology.ConsumerIndexPending)
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
		if wait := settle - time.Since(newest); wait > 0 && !sleep.For(ctx, min(wait, settle)) {
			return nil
		}
		w := x.arriving()
		for _, a := range batch.Arrivals {
			if id, err := uuid.Parse(a.ID); err == nil && !x.recent.has(id, a.Send) {
				w.arrival(id, &a.Notification, a.StoredAt)
			}
		}
		for x.write(ctx, w) != nil {
			if !sleep.For(ctx, lookEvery) {
				return nil
			}
		}
		batch.Ack()
	}
	return nil
}

// arriving returns writes for notifications on NOTIFICATIONS. Their postings go into the block of the newest record.
func (x *Index) arriving() *writes {
	w := newWrites()
	w.block = max(x.journal.written.Load(), x.journal.newest.Load()) >> blockBits
	return w
}

// states in the order of their codes, which are part of the stored format: add at the end, at most seven.
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

// writes gathers the commands for Redis of one pipeline.
type writes struct {
	webhooks map[string]map[uuid.UUID]spot
	failed   map[string]*failedWrites // by account
	postings postings
	seen     uint64
	block    uint64 // of postings that are about no record
}

// failedWrites are newest records of notifications that failed, and of some that may have failed before.
type failedWrites struct {
	failed, again []redis.Z
	newest        time.Time
}

// spot is one notification's place and its fields in a list.
type spot struct {
	created int64 // first seen at, unix ms
	later   bool  // this is not the first thing known of it
	rank    int64 // 8 x sequence of the newest record + state
	send    int
	row     Row
}

func newWrites() *writes {
	return &writes{webhooks: map[string]map[uuid.UUID]spot{}, failed: map[string]*failedWrites{}, postings: postings{}}
}

// fate notes the facts for the account's set of failures: a permanent failure, or that a notification
// was sent again.
func (w *writes) fate(account, webhook string, id uuid.UUID, at time.Time, last int64, failed bool, send int) {
	if !failed && send < 2 || account == "" {
		return
	}
	f := w.failed[account]
	if f == nil {
		f = &failedWrites{}
		w.failed[account] = f
	}
	hook := uuid.MustParse(webhook)
	z := redis.Z{Score: float64(last), Member: string(id[:]) + string(hook[:])}
	if failed {
		f.failed = append(f.failed, z)
		if at.After(f.newest) {
			f.newest = at
		}
	} else {
		f.again = append(f.again, z)
	}
}

func (w *writes) add(webhook string, id uuid.UUID, s spot) {
	m := w.webhooks[webhook]
	if m == nil {
		m = map[uuid.UUID]spot{}
		w.webhooks[webhook] = m
	}
	if old, ok := m[id]; ok {
		newer, older := s, old
		if old.rank > s.rank {
			newer, older = old, s
		}
		s = newer
		s.created, s.later, s.send = min(s.created, older.created), s.later && older.later, max(s.send, older.send)
	}
	m[id] = s
}

// summary notes a journal record.
func (w *writes) summary(r *notification.Summary) {
	w.seen = max(w.seen, r.Sequence)
	id, err := uuid.Parse(r.NotificationID)
	if err != nil || uuid.Validate(r.WebhookID) != nil {
		return
	}
	at := r.At
	if !r.StartedAt.IsZero() && r.StartedAt.Before(at) {
		at = r.StartedAt
	}
	row := Row{
		State: r.State, Reason: r.Reason, EventID: r.EventID, EventName: r.EventName, Sends: r.Send, AttemptsMade: r.AttemptsDone,
		NextAttemptAt: r.NextAttemptAt, Replay: r.Replay, UpdatedAt: r.At,
	}
	if r.Outcome != "" {
		row.Attempt = &RowAttempt{StartedAt: r.StartedAt, Outcome: r.Outcome, Reason: string(r.FailureReason), HTTPStatus: r.HTTPStatus, DurationMS: r.DurationMS}
	}
	rank := int64(r.Sequence)*8 + int64(code(r.State)) //nolint:gosec // sequences stay far below 2^50
	w.add(r.WebhookID, id, spot{at.UnixMilli(), r.AttemptsDone > 1 || r.Send > 1, rank, r.Send, row})
	w.fate(r.Account, r.WebhookID, id, r.At, rank, r.State == notification.PermanentlyFailed, r.Send)
	w.postings.note(r.Account, r.Sequence>>blockBits, note{rank, at.UnixMilli(), id, uuid.MustParse(r.WebhookID), hashID(r.EventID), hashName(r.EventName)})
}

// arrival notes a message on NOTIFICATIONS.
func (w *writes) arrival(id uuid.UUID, n *notification.Notification, storedAt time.Time) {
	if uuid.Validate(n.WebhookID) != nil {
		return
	}
	row := Row{
		State: notification.Pending, EventID: n.EventID, EventName: n.EventName, Sends: n.Send, AttemptsMade: n.AttemptsDone,
		Replay: n.Replay, UpdatedAt: storedAt,
	}
	rank := int64(n.Journal)*8 + pendingCode //nolint:gosec // as above
	w.add(n.WebhookID, id, spot{storedAt.UnixMilli(), n.Send > 1, rank, n.Send, row})
	w.fate(n.Account, n.WebhookID, id, storedAt, rank, false, n.Send)
	w.postings.note(n.Account, w.block, note{rank, storedAt.UnixMilli(), id, uuid.MustParse(n.WebhookID), hashID(n.EventID), hashName(n.EventName)})
}

// put writes at most atOncePut notifications of one webhook: the time only falls, an older record never replaces a
// newer one, and those not among the newest go. KEYS: the order, the rows and the fates; ARGV: how many to keep, then
// for each its id, when it was first seen, its state's code, its row, and whether it is known not to be new. A command
// for all notifications costs Redis much less than one for each.
var put = redis.NewScript(`
local order, rows, fates = KEYS[1], KEYS[2], KEYS[3]
local most, digits = tonumber(ARGV[1]), ` + strconv.Itoa(rankDigits) + `
local failed = {[` + strconv.Itoa(code(notification.PermanentlyFailed)) + `] = true}
local full = redis.call('ZCARD', order) >= most
local ids = {}
for i = 2, #ARGV, 5 do
  ids[#ids + 1] = ARGV[i]
end
local olds, scores = redis.call('HMGET', rows, unpack(ids)), redis.call('ZMSCORE', order, unpack(ids))
local places, fields, open, ended = {}, {}, {}, {}
for n, id in ipairs(ids) do
  local i = n * 5 - 3
  local created, code, row = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3]
  local old, score = olds[n], scores[n]
  if old or not full or ARGV[i + 4] == '' then
    if old and score then
      created = math.min(created, math.floor(tonumber(score) / 8))
      if string.sub(old, 1, digits) >= string.sub(row, 1, digits) then
        code, row = tonumber(score) % 8, old
      end
    end
    if row ~= old then
      fields[#fields + 1], fields[#fields + 2] = id, row
    end
    places[#places + 1], places[#places + 2] = string.format('%.0f', created * 8 + code), id
    if code ~= ` + strconv.Itoa(code(notification.Delivered)) + ` then
      open[#open + 1], open[#open + 2] = string.format('%.0f', failed[code] and created or created + ` + strconv.Itoa(fateOpen) + `), id
    elseif old then
      ended[#ended + 1] = id
    end
  end
end
local function call(command, key, values)
  if #values > 0 then
    redis.call(command, key, unpack(values))
  end
end
call('HSET', rows, fields)
call('ZADD', order, places)
call('ZADD', fates, open)
call('ZREM', fates, ended)
local over = redis.call('ZCARD', order) - most
if over > 0 then
  local gone = redis.call('ZRANGE', order, 0, over - 1)
  redis.call('ZREMRANGEBYRANK', order, 0, over - 1)
  for i = 1, #gone, ` + strconv.Itoa(atOncePut) + ` do
    local some = {unpack(gone, i, math.min(i + ` + strconv.Itoa(atOncePut-1) + `, #gone))}
    call('HDEL', rows, some)
    call('ZREM', fates, some)
  end
end
return 0
`)

// atOncePut is how many notifications one script writes. Lua passes on fewer than 8,000 values at once.
const atOncePut = 1000

// write puts w into Redis. Doing it again changes nothing.
func (x *Index) write(ctx context.Context, w *writes) error {
	err := x.pipeline(ctx, w)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		if err = put.Load(ctx, x.rdb).Err(); err == nil {
			err = x.pipeline(ctx, w)
		}
	}
	return x.check(err)
}

func (x *Index) pipeline(ctx context.Context, w *writes) error {
	known, appended := func() {}, func() {}
	_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		touched, delivered := make([]redis.Z, 0, len(w.webhooks)), make([]redis.Z, 0, len(w.webhooks))
		for webhook, spots := range w.webhooks {
			keys, args := keysOf(webhook), make([]any, 1, 1+5*min(len(spots), atOncePut))
			args[0] = perWebhook
			newest, success := int64(0), time.Time{}
			for id, s := range spots {
				if len(args) == 1+5*atOncePut {
					p.EvalSha(ctx, put.Hash(), keys, args...)
					args = append(make([]any, 0, len(args)), perWebhook)
				}
				later := ""
				if s.later {
					later = "1"
				}
				args = append(args, string(id[:]), s.created, s.rank%8, s.row.encode(s.rank), later)
				newest = max(newest, s.created)
				if s.row.State == notification.Delivered && s.row.UpdatedAt.After(success) {
					success = s.row.UpdatedAt
				}
			}
			if !success.IsZero() {
				delivered = append(delivered, redis.Z{Score: float64(success.UnixMilli()), Member: webhook})
			}
			p.EvalSha(ctx, put.Hash(), keys, args...)
			touched = append(touched, redis.Z{Score: float64(newest), Member: webhook})
		}
		for account, f := range w.failed {
			name := failures(account)
			if len(f.failed) > 0 {
				p.ZAddArgs(ctx, keyOrder(name), redis.ZAddArgs{GT: true, Members: f.failed})
				p.ZRemRangeByRank(ctx, keyOrder(name), 0, -perAccount-1)
				touched = append(touched, redis.Z{Score: float64(f.newest.UnixMilli()), Member: name})
			}
			if len(f.again) > 0 {
				p.ZAddArgs(ctx, keyOrder(name), redis.ZAddArgs{XX: true, GT: true, Members: f.again})
			}
		}
		if len(delivered) > 0 {
			p.ZAddArgs(ctx, keyDelivered, redis.ZAddArgs{GT: true, Members: delivered})
		}
		if len(touched) > 0 {
			p.ZAddArgs(ctx, keyWebhooks, redis.ZAddArgs{GT: true, Members: touched})
		}
		appended = x.queue(ctx, p, ofNotifications, w.postings)
		known = x.journal.mark(ctx, p, w.seen)
		return nil
	})
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	if err == nil {
		appended()
		known()
	}
	return err
}

// Sent notes a notification that was just put on NOTIFICATIONS, so that lists show it at once and not only
// when it is read from there. A failure here is made up for then.
func (x *Index) Sent(ctx context.Context, n *notification.Notification) {
	if id, err := uuid.Parse(n.ID); err == nil {
		w := x.arriving()
		w.arrival(id, n, time.Now().UTC())
		_ = x.write(ctx, w) // see above
	}
}

// Entry is a notification of a webhook, with the state that was last indexed.
type Entry struct {
	ID      uuid.UUID
	Created time.Time
	State   notification.State
}

// Recent returns the webhook's recent notifications, newest first, and whether some may be missing because
// the index is being filled. ErrAway means that Redis does not answer.
func (x *Index) Recent(ctx context.Context, webhook string) (entries []Entry, partial bool, err error) {
	var order *redis.ZSliceCmd
	var floor, target *redis.StringCmd
	_, err = x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		order = p.ZRevRangeWithScores(ctx, keyOrder(webhook), 0, perWebhook-1)
		floor, target = p.Get(ctx, keyFloor), p.Get(ctx, keyTarget)
		return nil
	})
	if err := x.check(err); err != nil {
		return nil, false, err
	}
	for _, z := range order.Val() {
		if member, ok := z.Member.(string); ok && len(member) == len(uuid.UUID{}) {
			entries = append(entries, entry(uuid.UUID([]byte(member)), z.Score))
		}
	}
	slices.SortFunc(entries, Compare)
	return entries, filling(floor, target), nil
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
	_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Del(ctx, keysOf(webhook)...)
		p.ZRem(ctx, keyDelivered, webhook)
		return nil
	})
	return x.check(err)
}

// recent remembers which sends were recorded lately. It is safe for concurrent use; its memory is bounded.
type recent struct {
	mu       sync.Mutex
	new, old map[uuid.UUID]int
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

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
