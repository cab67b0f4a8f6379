package monitor

import (
	"context"
	"errors"
	"maps"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/suspension/status"
	"gancho/pkg/wireversion"
)

// changed shows how many URLs are suspended, passes on probes that a dispatcher began, and has broken entries written
// again.
func (m *Monitor) changed(ctx context.Context, c mirror.Change, probes chan<- suspension.Flag) {
	m.metrics.suspended.Set(float64(len(m.suspensions.All())))
	if c.Broken {
		m.broken.Store(c.Key, struct{}{})
		m.compareSoon()
		return
	}
	if c.Record != nil && c.Record.State == suspension.Probing && c.Record.Probe != nil {
		select {
		case probes <- c.Record.Flag:
		case <-ctx.Done():
		}
	}
}

// compareSoon has Redis and the bucket compared at the next beat.
func (m *Monitor) compareSoon() { m.compareDue.Store(true) }

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

// agree makes Redis and the bucket hold the same of a URL: the newer of the two records. It reads the bucket first and
// Redis second, so its compare-and-set fails when another monitor wrote in between, and it looks again. It returns the
// suspension that stands, nil for none, and whether the bucket held another.
func (m *Monitor) agree(ctx context.Context, key suspension.Key) (flag *suspension.Flag, followed bool, err error) {
	for {
		record, revision, err := m.suspensions.Read(ctx, key)
		broken := errors.Is(err, mirror.ErrBroken)
		if err != nil && !broken {
			return nil, false, err
		}
		var copied *suspension.Flag
		if record != nil {
			copied = &record.Flag
		}
		if copied != nil && wireversion.Check(copied.Schema) != nil {
			return copied, false, nil // a newer version's
		}
		if broken {
			// The entry says nothing; the last good one does.
			if last, known := m.suspensions.Get(key); known {
				copied = &last.Flag
			}
		}
		flag, err := m.store.Reconcile(ctx, key, copied, revision)
		if err != nil {
			return nil, false, err
		}
		switch {
		case flag == nil && copied == nil && !broken:
			return nil, false, nil
		case flag == nil:
			err = m.suspensions.Remove(ctx, key, revision)
		case !broken && copied != nil && copied.Trip == flag.Trip && copied.ByHand == flag.ByHand &&
			(copied.State == suspension.Probing || copied.State == flag.State):
			return flag, false, nil // the same stretch, perhaps with a dispatcher's claim on its probe
		default:
			_, err = m.suspensions.Write(ctx, *flag, revision)
		}
		if !errors.Is(err, bus.ErrConflict) {
			return flag, err == nil, err
		}
	}
}

// compare makes Redis and the bucket agree on every URL that one of them holds a suspension of. It finds steps that a
// monitor decided but died before it mirrored or published them, and steps that Redis has lost.
func (m *Monitor) compare(ctx context.Context) error {
	// The bucket's before those of Redis: one that is resumed in between is found and left as it is.
	copies := map[suspension.Key]suspension.Flag{}
	for _, r := range m.suspensions.All() {
		copies[r.Key()] = r.Flag
	}
	flags, err := m.store.All(ctx)
	if err != nil {
		return err
	}
	if lost, err := m.store.Lost(ctx); err != nil || lost {
		return err // the bucket is right, then
	}
	differ := map[suspension.Key]suspension.Flag{}
	for _, f := range flags {
		if have, ok := copies[f.Key()]; !ok || have.Trip != f.Trip || have.ByHand != f.ByHand {
			differ[f.Key()] = f
		}
		delete(copies, f.Key())
	}
	maps.Copy(differ, copies)
	m.broken.Range(func(name, _ any) bool {
		if key, ok := name.(suspension.Key); ok {
			m.broken.Delete(key)
			record, _ := m.suspensions.Get(key)
			differ[key] = record.Flag
		}
		return true
	})
	for key, known := range differ {
		flag, followed, err := m.agree(ctx, key)
		if err != nil {
			return err
		}
		if !followed || known.Trip == "" { // the bucket's was the newer one, and its step was published then
			continue
		}
		t := suspension.Transition{Event: suspension.EventResumed, At: time.Now(), Flag: known}
		if flag != nil {
			t.Event, t.Flag = suspension.EventSuspended, *flag
		}
		if err := m.late(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// late publishes a step that was decided earlier, unless it was published then.
func (m *Monitor) late(ctx context.Context, t suspension.Transition) error {
	for _, w := range m.webhooks(t.Flag.Key()) {
		s := change(t, w)
		if done, err := status.Published(ctx, m.bus, s, stepName(t)); err != nil {
			return err
		} else if done {
			continue
		}
		if err := status.Publish(ctx, m.bus, s, stepName(t)); err != nil {
			return err
		}
	}
	return nil
}
