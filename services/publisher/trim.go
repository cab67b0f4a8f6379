package publisher

import (
	"context"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/lane"
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
		upTo, err := lane.Settled(ctx, b)
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
