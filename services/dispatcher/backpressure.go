package dispatcher

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/topology"
)

// backpressure stops first attempts while RETRIES holds more than it may. The stream itself can have no limit: one
// that refuses messages cannot hold schedules, and one that drops old ones would lose notifications. What is
// not attempted waits on NOTIFICATIONS, whose limit in turn makes events wait in CRM_EVENTS.
//
// It is safe for concurrent use.
type backpressure struct {
	limit int64 // bytes; 0: none
	on    atomic.Bool
}

// backpressurePause is how often the lane of first attempts looks whether it may go on.
const backpressurePause = 200 * time.Millisecond

// look sets backpressure on above the limit and off a tenth below.
func (b *backpressure) look(ctx context.Context, d *Dispatcher) error {
	if b.limit == 0 {
		return nil
	}
	s, err := d.bus.StreamState(ctx, topology.Retries)
	if err != nil {
		return err
	}
	on := b.on.Load()
	switch {
	case !on && s.Bytes > uint64(b.limit): //nolint:gosec // positive
		b.on.Store(true)
		d.metrics.paused.Set(1)
		d.log.Error("RETRIES holds more than it may: no first attempts until it shrank", zap.Uint64("bytes", s.Bytes), zap.Int64("limit", b.limit))
	case on && s.Bytes <= uint64(b.limit)/10*9: //nolint:gosec // positive
		b.on.Store(false)
		d.metrics.paused.Set(0)
		d.log.Info("RETRIES has room again: first attempts go on", zap.Uint64("bytes", s.Bytes))
	}
	return nil
}

// wait returns when first attempts may be made, or ctx ended.
func (b *backpressure) wait(ctx context.Context) {
	for b.on.Load() && ctx.Err() == nil {
		_ = sleep(ctx, backpressurePause)
	}
}
