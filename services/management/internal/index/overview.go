package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"gancho/pkg/notification"
)

// atOnce is how many webhooks are read in one go.
const atOnce = 25

// Bars is into how many equal stretches of time an Activity is divided.
const Bars = 24

// newest is how many of a webhook's last notifications an Activity lists.
const newest = 20

// Activity counts the outcomes of one webhook's last notifications.
type Activity struct {
	// Span is the time that Bars cover, up to now.
	Span time.Duration
	Bars [Bars]Bar // oldest first
	// Newest are the states of the last 20, newest first.
	Newest []notification.State
	// Delivered is when a notification was last delivered, zero when that is not known.
	Delivered time.Time
}

// Bar counts the notifications that came in a stretch of time, by outcome.
type Bar struct {
	Delivered int
	Failed    int // permanently failed
	Open      int // pending, retrying, parked or cancelled
}

// count counts notifications in stretches of time, oldest first. Reading the rows instead costs Redis ten
// times as much: it writes each of 1,000 scores out as text. KEYS: the order and the fates; ARGV: begin and length
// of a stretch (ms), how many, and the offset of the fates of those that have not ended.
var count = redis.NewScript(`
local begin, step, bars, open = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local counted = {}
local function between(key, from, to)
  counted[#counted + 1] = redis.call('ZCOUNT', key, string.format('%.0f', from), to and string.format('(%.0f', to) or '+inf')
end
local fates = redis.call('EXISTS', KEYS[2]) == 1
for i = 0, bars - 1 do
  local from, to = begin + i * step, i < bars - 1 and begin + (i + 1) * step
  between(KEYS[1], from * 8, to and to * 8)
  if fates then
    between(KEYS[2], from, to or open)
    between(KEYS[2], from + open, to and to + open)
  else
    counted[#counted + 1], counted[#counted + 2] = 0, 0
  end
end
return counted
`)

// Activity returns the outcomes of each webhook's last notifications, in the order of webhooks, and whether some
// may be missing because the index is being filled. Each is shown over the longest of spans (longest first) that
// the index covers completely, else over the shortest. ErrAway means that Redis does not answer.
func (x *Index) Activity(
	ctx context.Context, webhooks []string, spans []time.Duration, now time.Time,
) (all []Activity, partial bool, err error) {
	for part := range slices.Chunk(webhooks, atOnce) {
		some, oldest, filling, err := x.edges(ctx, part)
		if err := x.check(err); err != nil {
			return nil, false, err
		}
		for i := range some {
			some[i].Span = spans[0]
			for _, span := range spans {
				if oldest[i].After(now.Add(-some[i].Span)) {
					some[i].Span = span
				}
			}
		}
		err = x.count(ctx, part, some, now)
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			if err = count.Load(ctx, x.rdb).Err(); err == nil {
				err = x.count(ctx, part, some, now)
			}
		}
		if err := x.check(err); err != nil {
			return nil, false, err
		}
		all, partial = append(all, some...), partial || filling
	}
	return all, partial, nil
}

// edges returns the last notifications of each webhook, and since when it knows all of them: zero when always.
func (x *Index) edges(
	ctx context.Context, webhooks []string,
) (all []Activity, since []time.Time, partial bool, err error) {
	size := make([]*redis.IntCmd, len(webhooks))
	first, last := make([]*redis.ZSliceCmd, len(webhooks)), make([]*redis.ZSliceCmd, len(webhooks))
	var delivered *redis.FloatSliceCmd
	var floor, target *redis.StringCmd
	_, err = x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, w := range webhooks {
			size[i] = p.ZCard(ctx, keyOrder(w))
			first[i] = p.ZRangeWithScores(ctx, keyOrder(w), 0, 0)
			last[i] = p.ZRevRangeWithScores(ctx, keyOrder(w), 0, newest-1)
		}
		delivered = p.ZMScore(ctx, keyDelivered, webhooks...)
		floor, target = p.Get(ctx, keyFloor), p.Get(ctx, keyTarget)
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, nil, false, err
	}
	all, since = make([]Activity, len(webhooks)), make([]time.Time, len(webhooks))
	for i := range webhooks {
		if ms := delivered.Val()[i]; ms > 0 {
			all[i].Delivered = time.UnixMilli(int64(ms)).UTC()
		}
		if size[i].Val() >= perWebhook {
			since[i] = entry(uuid.Nil, first[i].Val()[0].Score).Created
		}
		for _, z := range last[i].Val() {
			all[i].Newest = append(all[i].Newest, entry(uuid.Nil, z.Score).State)
		}
	}
	return all, since, filling(floor, target), nil
}

// count fills in the bars of each webhook over its span.
func (x *Index) count(ctx context.Context, webhooks []string, all []Activity, now time.Time) error {
	answers := make([]*redis.Cmd, len(webhooks))
	_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, w := range webhooks {
			answers[i] = p.EvalSha(ctx, count.Hash(), []string{keyOrder(w), keyFates(w)},
				now.Add(-all[i].Span).UnixMilli(), (all[i].Span / Bars).Milliseconds(), Bars, fateOpen)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, a := range answers {
		n, err := a.Int64Slice()
		if err != nil || len(n) != 3*Bars {
			return fmt.Errorf("count of %d bars is %d long: %w", Bars, len(n), err)
		}
		for j := range all[i].Bars {
			total, failed, open := int(n[3*j]), int(n[3*j+1]), int(n[3*j+2])
			// less only while a version that knows no fates writes too
			all[i].Bars[j] = Bar{max(total-failed-open, 0), failed, open}
		}
	}
	return nil
}

// entry reads a score of a webhook's order: 8 x the time first seen (ms) + state.
func entry(id uuid.UUID, score float64) Entry {
	n := int64(score)
	return Entry{id, time.UnixMilli(n / 8).UTC(), state(int(n % 8))}
}

// Place is a permanent failure: a notification with its webhook and the journal sequence of its newest record.
type Place struct {
	Webhook  string
	ID       uuid.UUID
	Sequence uint64
}

// Failed returns the account's permanent failures, those that failed last first, and whether some may be
// missing because the index is being filled. It may hold some that were sent again since: their rows say so.
func (x *Index) Failed(ctx context.Context, account string) (places []Place, partial bool, err error) {
	var (
		failed        *redis.ZSliceCmd
		floor, target *redis.StringCmd
	)
	_, err = x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		failed = p.ZRevRangeWithScores(ctx, keyOrder(failures(account)), 0, perAccount-1)
		floor, target = p.Get(ctx, keyFloor), p.Get(ctx, keyTarget)
		return nil
	})
	if err := x.check(err); err != nil {
		return nil, false, err
	}
	const size = len(uuid.UUID{})
	for _, z := range failed.Val() {
		if member, ok := z.Member.(string); ok && len(member) == 2*size &&
			state(int(int64(z.Score)%8)) == notification.PermanentlyFailed {
			places = append(places, Place{
				uuid.UUID([]byte(member[size:])).String(), uuid.UUID([]byte(member[:size])), uint64(z.Score) / 8,
			})
		}
	}
	return places, filling(floor, target), nil
}

// Found is an entry with its row.
type Found struct {
	Entry
	Row
	// Sequence is that of the newest record that is known.
	Sequence uint64
	// Known is false when the index does not know all of it: the journal does.
	Known bool
}

// FailedOf is Failed for one webhook, of its recent notifications.
func (x *Index) FailedOf(ctx context.Context, webhook string) (places []Place, partial bool, err error) {
	entries, partial, err := x.Recent(ctx, webhook)
	if err != nil {
		return nil, false, err
	}
	for _, e := range entries {
		if e.State == notification.PermanentlyFailed {
			places = append(places, Place{Webhook: webhook, ID: e.ID})
		}
	}
	found, err := x.Find(ctx, places)
	for i, f := range found {
		places[i].Sequence = f.Sequence
	}
	slices.SortFunc(places, func(a, b Place) int { return cmp.Compare(b.Sequence, a.Sequence) })
	return places, partial, err
}

// Find returns the known state of each place, whose sequences are not looked at.
func (x *Index) Find(ctx context.Context, places []Place) ([]Found, error) {
	scores, rows := make([]*redis.FloatCmd, len(places)), make([]*redis.StringCmd, len(places))
	_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, at := range places {
			scores[i] = p.ZScore(ctx, keyOrder(at.Webhook), string(at.ID[:]))
			rows[i] = p.HGet(ctx, keyRows(at.Webhook), string(at.ID[:]))
		}
		return nil
	})
	if err := x.check(err); err != nil { // a missing one is no error
		return nil, err
	}
	found := make([]Found, len(places))
	for i, at := range places {
		found[i].Entry = entry(at.ID, scores[i].Val())
		found[i].Row, found[i].Known = decodeRow(rows[i].Val())
		found[i].Sequence = uint64(rankOf(rows[i].Val())) / 8 //nolint:gosec // a rank is not negative
	}
	return found, nil
}

// filling reports whether the journal is still being read back into the index.
func filling(floor, target *redis.StringCmd) bool {
	low, _ := strconv.ParseUint(target.Val(), 10, 64)
	at, err := strconv.ParseUint(floor.Val(), 10, 64)
	return err != nil || at > low
}
