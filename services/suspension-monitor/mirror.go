package monitor

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/schema"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/mirror"
)

// changed shows how many URLs are suspended, and passes on probes that a dispatcher began.
func (m *Monitor) changed(ctx context.Context, c mirror.Change, probes chan<- suspension.Flag) {
	m.metrics.suspended.Set(float64(len(m.suspensions.All())))
	if c.Record != nil && c.Record.State == suspension.Probing && c.Record.Probe != nil {
		select {
		case probes <- c.Record.Flag:
		case <-ctx.Done():
		}
	}
}

// restore puts back the flags that Redis lost.
func (m *Monitor) restore(ctx context.Context) error {
	records := m.suspensions.All()
	flags := make([]suspension.Flag, 0, len(records))
	for _, r := range records {
		flags = append(flags, r.Flag)
	}
	n, err := m.store.Restore(ctx, flags)
	if err == nil && n > 0 {
		m.log.Warn("Redis had forgotten the suspensions; they were put back", zap.Int("flags", n))
	}
	return err
}

// mirrorFlag makes the bucket's entry what Redis holds. It reads the entry first and Redis second, so its
// compare-and-set fails when another monitor wrote in between, and it looks again.
func (m *Monitor) mirrorFlag(ctx context.Context, key suspension.Key) error {
	for {
		have, revision, err := m.suspensions.Read(ctx, key)
		if err != nil {
			return err
		}
		flag, err := m.store.Get(ctx, key)
		if err != nil {
			return err
		}
		switch {
		case flag == nil && have == nil:
			return nil
		case have != nil && schema.Check(have.Schema) != nil:
			return nil // a newer version's
		case flag == nil:
			err = m.suspensions.Remove(ctx, key, revision)
		case have != nil && have.Trip == flag.Trip && have.ByHand == flag.ByHand &&
			(have.State == suspension.Probing || have.State == flag.State):
			return nil // the same stretch, perhaps with a dispatcher's claim on its probe
		default:
			_, err = m.suspensions.Write(ctx, *flag, revision)
		}
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

// compare finds steps that a monitor decided but died before it mirrored or told.
func (m *Monitor) compare(ctx context.Context) error {
	// Before Redis is read: what is in the mirror now and not in Redis then was resumed.
	stale := map[suspension.Key]suspension.Flag{}
	for _, r := range m.suspensions.All() {
		stale[r.Key()] = r.Flag
	}
	flags, err := m.store.All(ctx)
	if err != nil {
		return err
	}
	for _, f := range flags {
		if have, ok := stale[f.Key()]; !ok || have.Trip != f.Trip {
			if err := m.late(ctx, suspension.Transition{Event: suspension.EventSuspended, At: time.Now(), Flag: f}); err != nil {
				return err
			}
		}
		delete(stale, f.Key())
	}
	if lost, err := m.store.Lost(ctx); err != nil || lost {
		return err // the mirror is right, then
	}
	for _, f := range stale {
		if err := m.late(ctx, suspension.Transition{Event: suspension.EventResumed, At: time.Now(), Flag: f}); err != nil {
			return err
		}
	}
	return nil
}

// late mirrors and tells a step that was decided earlier, unless it was told.
func (m *Monitor) late(ctx context.Context, t suspension.Transition) error {
	if err := m.mirrorFlag(ctx, t.Flag.Key()); err != nil {
		return err
	}
	for _, w := range m.webhooks(t.Flag.Key()) {
		s := status(t, w)
		if told, err := m.bus.Told(ctx, s, stepName(t)); err != nil {
			return err
		} else if told {
			continue
		}
		if err := m.bus.Tell(ctx, s, stepName(t)); err != nil {
			return err
		}
	}
	return nil
}
