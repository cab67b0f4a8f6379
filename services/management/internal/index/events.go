package index

import (
	"context"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/sleep"
)

// eventsRoom is how many bytes of events are read at once.
const eventsRoom = 8 << 20

// liveEvents writes events as they come, as live does the journal's records.
func (x *Index) liveEvents(ctx context.Context) error {
	stream, err := eventstream.Follow(ctx, x.bus, x.events.durable.Name)
	if err != nil {
		return ended(ctx, err)
	}
	for ctx.Err() == nil {
		batch, err := stream.Pull(ctx, eventsRoom, linger)
		if err != nil && ctx.Err() == nil {
			x.log.Debug("CRM_EVENTS cannot be read; trying again", zap.Error(err))
		}
		if len(batch.Events) == 0 {
			continue
		}
		p, seen := postings{}, uint64(0)
		for _, e := range batch.Events {
			seen = max(seen, e.Sequence)
			if ev, rejected := event.Parse(e.Message); rejected == nil {
				p.event(&ev, e.StoredAt)
			}
		}
		for x.writeEvents(ctx, p, seen) != nil {
			if !sleep.For(ctx, lookEvery) {
				return nil
			}
		}
		batch.Ack()
		x.events.wrote(seen)
	}
	return nil
}

// writeEvents puts postings of events into Redis. Doing it again changes nothing.
func (x *Index) writeEvents(ctx context.Context, p postings, seen uint64) error {
	known, appended := func() {}, func() {}
	_, err := x.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		appended = x.queue(ctx, pipe, ofEvents, p)
		known = x.events.mark(ctx, pipe, seen)
		return nil
	})
	if err := x.check(err); err != nil {
		return err
	}
	appended()
	known()
	return nil
}
