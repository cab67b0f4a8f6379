package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/schema"
	"gancho/pkg/suspension"
)

type mirrored struct {
	flag     *suspension.Flag // nil: deleted
	revision uint64
}

// seen keeps the copy of the bucket and passes on probes that a dispatcher began.
func (m *Monitor) seen(ctx context.Context, e bus.Entry, probes chan<- suspension.Flag) {
	key, ok := suspension.ParseKey(e.Key)
	if !ok {
		return
	}
	var flag *suspension.Flag
	if e.Value != nil {
		flag = new(suspension.Flag)
		if err := json.Unmarshal(e.Value, flag); err != nil {
			m.log.Error("an unreadable suspension is ignored", zap.String("key", e.Key), zap.Error(err))
			return
		}
	}
	m.mu.Lock()
	if m.mirror[key].revision < e.Revision {
		m.mirror[key] = mirrored{flag, e.Revision}
	}
	suspended := 0
	for k, x := range m.mirror {
		if x.flag != nil {
			suspended++
		} else if k != key {
			delete(m.mirror, k)
		}
	}
	m.mu.Unlock()
	m.metrics.suspended.Set(float64(suspended))
	if flag != nil && flag.State == suspension.Probing && flag.Probe != nil {
		select {
		case probes <- *flag:
		case <-ctx.Done():
		}
	}
}

// restore puts back the flags that Redis lost.
func (m *Monitor) restore(ctx context.Context) error {
	m.mu.Lock()
	var flags []suspension.Flag
	for _, x := range m.mirror {
		if x.flag != nil {
			flags = append(flags, *x.flag)
		}
	}
	m.mu.Unlock()
	n, err := m.store.Restore(ctx, flags)
	if err == nil {
		m.log.Warn("Redis had forgotten the suspensions; they were put back", zap.Int("flags", n))
	}
	return err
}

// refill writes the flags back that went with a deleted bucket.
func (m *Monitor) refill(ctx context.Context) error {
	m.mu.Lock()
	flags := map[suspension.Key]suspension.Flag{}
	for k, x := range m.mirror {
		if x.flag != nil {
			flags[k] = *x.flag
		}
	}
	m.mu.Unlock()
	for key, flag := range flags {
		body, err := json.Marshal(flag)
		if err != nil {
			return err
		}
		if _, err := m.suspensions.Create(ctx, key.String(), body); err != nil && !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
	return nil
}

// mirrorFlag makes the bucket's entry what Redis holds. It reads the entry first and Redis second, so its
// compare-and-set fails when another monitor wrote in between, and it looks again.
func (m *Monitor) mirrorFlag(ctx context.Context, key suspension.Key) error {
	for {
		entry, err := m.suspensions.Get(ctx, key.String())
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return err
		}
		flag, err := m.store.Get(ctx, key)
		if err != nil {
			return err
		}
		switch {
		case flag == nil && entry.Value == nil:
			return nil
		case flag == nil:
			err = m.suspensions.Delete(ctx, key.String(), entry.Revision)
		default:
			var have suspension.Flag
			if entry.Value != nil && json.Unmarshal(entry.Value, &have) == nil && schema.Check(have.Schema) != nil {
				return nil // a newer version's
			}
			if entry.Value != nil && have.Trip == flag.Trip && have.ByHand == flag.ByHand && (have.State == suspension.Probing || have.State == flag.State) {
				return nil // the same stretch, perhaps with a dispatcher's claim on its probe
			}
			var body []byte
			if body, err = json.Marshal(flag); err != nil {
				return err
			}
			if entry.Value == nil {
				_, err = m.suspensions.Create(ctx, key.String(), body)
			} else {
				_, err = m.suspensions.Update(ctx, key.String(), body, entry.Revision)
			}
		}
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

// compare finds steps that a monitor decided but died before it mirrored or told.
func (m *Monitor) compare(ctx context.Context) error {
	m.mu.Lock() // before Redis is read: what is in the mirror now and not in Redis then was resumed
	stale := make(map[suspension.Key]suspension.Flag, len(m.mirror))
	for k, x := range m.mirror {
		if x.flag != nil {
			stale[k] = *x.flag
		}
	}
	m.mu.Unlock()
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
