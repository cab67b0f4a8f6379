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
	// Delivered is the journal sequence of the newest delivery, 0 when none is known.
	Delivered uint64
}

// Activity returns what is known of each webhook since a time, in the order of webhooks, and whether some of
// it may be missing because the index is being filled.
func (x *Index) Activity(ctx context.Context, webhooks []string, since time.Time) (all []Activity, partial bool, err error) {
	from := strconv.FormatInt(since.UnixMilli(), 10)
	for part := range slices.Chunk(webhooks, atOnce) {
		order, last := make([]*redis.ZSliceCmd, len(part)), make([]*redis.ZSliceCmd, len(part))
		size := make([]*redis.IntCmd, len(part))
		var floor, target *redis.StringCmd
		_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, w := range part {
				order[i] = p.ZRevRangeByScoreWithScores(ctx, keyOrder(w), &redis.ZRangeBy{Min: from, Max: "+inf", Count: perWebhook})
				last[i] = p.ZRangeWithScores(ctx, keyLast(w), 0, -1)
				size[i] = p.ZCard(ctx, keyOrder(w))
			}
			floor, target = p.Get(ctx, keyFloor), p.Get(ctx, keyTarget)
			return nil
		})
		if err := x.check(err); err != nil {
			return nil, false, err
		}
		partial = partial || filling(floor, target)
		for i := range part {
			a := Activity{Full: size[i].Val() >= perWebhook}
			codes := make(map[string]int, len(last[i].Val()))
			for _, z := range last[i].Val() {
				member, ok := z.Member.(string)
				if !ok {
					continue
				}
				c := int(int64(z.Score) % 8)
				codes[member] = c
				if state(c) == notification.Delivered {
					a.Delivered = max(a.Delivered, uint64(z.Score)/8)
				}
			}
			for _, z := range order[i].Val() {
				if member, ok := z.Member.(string); ok && len(member) == len(uuid.UUID{}) {
					a.Entries = append(a.Entries, Entry{ID: uuid.UUID([]byte(member)), Created: time.UnixMilli(int64(z.Score)).UTC(), State: state(codes[member])})
				}
			}
			all = append(all, a)
		}
	}
	return all, partial, nil
}

// Place is a notification with the webhook and the journal sequence of its newest record.
type Place struct {
	Webhook  string
	ID       uuid.UUID
	Sequence uint64
}

// In returns the notifications of all these webhooks that are in a state, those that came into it last
// first, at most limit, and whether some may be missing because the index is being filled.
func (x *Index) In(ctx context.Context, webhooks []string, want notification.State, limit int) (places []Place, partial bool, err error) {
	for part := range slices.Chunk(webhooks, atOnce) {
		last := make([]*redis.ZSliceCmd, len(part))
		var floor, target *redis.StringCmd
		_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, w := range part {
				last[i] = p.ZRangeWithScores(ctx, keyLast(w), 0, -1)
			}
			floor, target = p.Get(ctx, keyFloor), p.Get(ctx, keyTarget)
			return nil
		})
		if err := x.check(err); err != nil {
			return nil, false, err
		}
		partial = partial || filling(floor, target)
		for i, w := range part {
			for _, z := range last[i].Val() {
				member, ok := z.Member.(string)
				if ok && len(member) == len(uuid.UUID{}) && state(int(int64(z.Score)%8)) == want {
					places = append(places, Place{w, uuid.UUID([]byte(member)), uint64(z.Score) / 8})
				}
			}
		}
		slices.SortFunc(places, func(a, b Place) int { return cmp.Compare(b.Sequence, a.Sequence) })
		places = places[:min(limit, len(places))]
	}
	return places, partial, nil
}

// filling reports whether the journal is still being read back into the index.
func filling(floor, target *redis.StringCmd) bool {
	low, _ := strconv.ParseUint(target.Val(), 10, 64)
	at, err := strconv.ParseUint(floor.Val(), 10, 64)
	return err != nil || at > low
}
