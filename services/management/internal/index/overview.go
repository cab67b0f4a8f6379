package index

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"gancho/pkg/notification"
)

// atOnce is how many webhooks are read in one go: their sets may hold a few thousand entries each.
const atOnce = 25

// Activity is what the index knows of one webhook's last notifications.
type Activity struct {
	// Entries are those since the time asked for, newest first.
	Entries []Entry
	// Full says that the webhook had more notifications than the index keeps, so Entries may begin later.
	Full bool
	// Delivered is when a notification was last delivered, zero when that is not known.
	Delivered time.Time
}

// Activity returns what is known of each webhook since a time, in the order of webhooks, and whether some of
// it may be missing because the index is being filled. ErrAway means that Redis does not answer.
func (x *Index) Activity(ctx context.Context, webhooks []string, since time.Time) (all []Activity, partial bool, err error) {
	from := "-inf"
	if !since.IsZero() {
		from = strconv.FormatInt(since.UnixMilli()*8, 10)
	}
	for part := range slices.Chunk(webhooks, atOnce) {
		order, size := make([]*redis.ZSliceCmd, len(part)), make([]*redis.IntCmd, len(part))
		var delivered *redis.FloatSliceCmd
		var floor, target *redis.StringCmd
		_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, w := range part {
				order[i] = p.ZRevRangeByScoreWithScores(ctx, keyOrder(w), &redis.ZRangeBy{Min: from, Max: "+inf", Count: perWebhook})
				size[i] = p.ZCard(ctx, keyOrder(w))
			}
			delivered = p.ZMScore(ctx, keyDelivered, part...)
			floor, target = p.Get(ctx, keyFloor), p.Get(ctx, keyTarget)
			return nil
		})
		if err := x.check(err); err != nil {
			return nil, false, err
		}
		partial = partial || filling(floor, target)
		for i := range part {
			a := Activity{Full: size[i].Val() >= perWebhook}
			if ms := delivered.Val()[i]; ms > 0 {
				a.Delivered = time.UnixMilli(int64(ms)).UTC()
			}
			for _, z := range order[i].Val() {
				if member, ok := z.Member.(string); ok && len(member) == len(uuid.UUID{}) {
					a.Entries = append(a.Entries, entry(uuid.UUID([]byte(member)), z.Score))
				}
			}
			slices.SortFunc(a.Entries, Compare)
			all = append(all, a)
		}
	}
	return all, partial, nil
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
		if member, ok := z.Member.(string); ok && len(member) == 2*size && state(int(int64(z.Score)%8)) == notification.PermanentlyFailed {
			places = append(places, Place{uuid.UUID([]byte(member[size:])).String(), uuid.UUID([]byte(member[:size])), uint64(z.Score) / 8})
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

// Find returns what is known of each place, whose sequences are not looked at.
func (x *Index) Find(ctx context.Context, places []Place) ([]Found, error) {
	scores, rows := make([]*redis.FloatCmd, len(places)), make([]*redis.StringCmd, len(places))
	_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, at := range places {
			scores[i] = p.ZScore(ctx, keyOrder(at.Webhook), string(at.ID[:]))
			rows[i] = p.HGet(ctx, keyRows(at.Webhook), string(at.ID[:]))
		}
		return nil
	})
	if err := x.check(err); err != nil { // what is not there is no error
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
