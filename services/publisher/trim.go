package publisher

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// trimEvery is how often NOTIFICATIONS is trimmed.
const trimEvery = 30 * time.Second

// trim purges from NOTIFICATIONS the messages acknowledged longer than keep ago, until ctx ends. keep is the
// duplicate window: the message ids in it must survive a restart of the broker.
func trim(ctx context.Context, log *zap.Logger, b *bus.Bus, keep time.Duration) {
	type mark struct {
		at      time.Time
		settled uint64
	}
	var marks []mark // oldest first
	ticker := time.NewTicker(min(trimEvery, max(keep/4, time.Second)))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		upTo, err := settled(ctx, b)
		if err != nil {
			log.Debug("trim of NOTIFICATIONS put off", zap.Error(err))
			continue
		}
		now := time.Now()
		marks = append(marks, mark{now, upTo})
		upTo = 0
		for len(marks) > 0 && now.Sub(marks[0].at) > keep {
			upTo, marks = marks[0].settled, marks[1:]
		}
		if upTo == 0 {
			continue
		}
		if err := b.Purge(ctx, topology.Notifications, upTo); err != nil {
			log.Warn("trim of NOTIFICATIONS failed; it is tried again", zap.Error(err))
		}
	}
}

// settled returns the sequence of NOTIFICATIONS up to which the dispatchers have settled everything, 0 when they never
// ran.
func settled(ctx context.Context, b *bus.Bus) (uint64, error) {
	first, err := b.ConsumerState(ctx, topology.Durable{Stream: topology.Notifications, Name: topology.ConsumerFirst})
	if errors.Is(err, bus.ErrNotFound) {
		return 0, nil
	}
	return first.Settled, err
}
