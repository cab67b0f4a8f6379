package publisher

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/share"
	"gancho/pkg/sleep"
	"gancho/pkg/suspension/status"
	"gancho/pkg/tracing"
	"gancho/pkg/webhook"
)

const (
	// maxCatchUps is how many accounts catch up at once; others follow.
	maxCatchUps = 64
	// catchUpEvery is how often deferred accounts are looked for, and how soon room is asked for again.
	catchUpEvery = 100 * time.Millisecond
	// ahead is how many sequences of CRM_EVENTS a record covers as tried before they are.
	ahead = 4096
	// batchEvents and batchBytes bound the events of an account that are stored at once.
	batchEvents = 128
	batchBytes  = 8 << 20
	// noteEvery is how often the progress is noted while nothing else makes it be.
	noteEvery = time.Second
	// spread is how long after an account was deferred other publishers may not have known it yet.
	spread = 10 * time.Second
)

// catchUp fans out the waiting events of one account, oldest first, as its share leaves room.
type catchUp struct {
	d       *deferrals
	account string
	log     *zap.Logger

	record   *share.Deferral
	revision uint64
	after    uint64 // handled up to here
	unsure   uint64 // events up to here may have been handled before this run
	rewound  bool   // older events joined the record during this batch: after is behind them again
	noted    time.Time
	oldest   time.Time // when the event behind after was stored
}

// run returns when the account has caught up, with an error when it could not go on.
func (c *catchUp) run(ctx context.Context) error {
	if err := c.read(ctx); err != nil {
		if errors.Is(err, bus.ErrNotFound) {
			c.d.p.meter.Defer(c.account, nil)
			return nil
		}
		return err
	}
	c.after, c.unsure, c.oldest = c.record.After, c.record.Tried, c.record.OldestAt
	used, limit := c.d.p.meter.Used(c.account, c.record.Store)
	c.publish(ctx, "deferred", map[string]any{"store": c.record.Store, "used_bytes": used, "share_bytes": limit})
	for ctx.Err() == nil {
		n, err := c.batch(ctx)
		if err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		done, err := c.end(ctx)
		if err != nil || done {
			return err
		}
	}
	return c.note(context.WithoutCancel(ctx), 0)
}

// read takes over the record as it is.
func (c *catchUp) read(ctx context.Context) error {
	e, err := c.d.shares.Get(ctx, share.DeferralKey(c.account))
	if err != nil {
		return err
	}
	c.revision = e.Revision
	if c.record, err = share.DecodeDeferral(e.Value); err != nil {
		return err
	}
	return nil
}

// batch handles the next events and returns how many there were.
func (c *catchUp) batch(ctx context.Context) (int, error) {
	p := c.d.p
	var started []*job
	var held []*bus.Started
	n, size, next := 0, 0, c.after
	c.rewound = false
	// Notifications that were started are awaited in any case.
	settle := func() error {
		var first error
		for _, j := range started {
			if err := j.wait(context.WithoutCancel(ctx)); err != nil && first == nil {
				first = err
			}
			p.metrics.matched.Add(float64(len(j.started)))
		}
		first = awaitAll(context.WithoutCancel(ctx), held, first)
		started, held = nil, nil
		if first == nil && !c.rewound {
			c.after = next
		}
		return first
	}
	for n < batchEvents && size < batchBytes && !c.rewound && ctx.Err() == nil {
		e, err := eventstream.Next(ctx, p.bus, c.account, next+1)
		if errors.Is(err, bus.ErrNotFound) {
			break
		}
		if err != nil {
			return n, errors.Join(err, settle())
		}
		if e.Sequence > c.record.Tried {
			if err := settle(); err != nil {
				return n, err
			}
			c.oldest = e.StoredAt
			if err := c.note(ctx, e.Sequence+ahead); err != nil {
				return n, err
			}
		}
		n, size = n+1, size+e.Size
		j, err := c.job(ctx, e)
		if err != nil {
			return n, errors.Join(err, settle())
		}
		if j == nil {
			next = e.Sequence
			continue
		}
		notes, err := p.startHeld(ctx, j, e.StoredAt)
		held = append(held, notes...)
		if err != nil {
			return n, errors.Join(err, settle())
		}
		if len(j.webhooks) == 0 {
			p.metrics.held.Add(float64(len(j.held)))
			next = e.Sequence
			continue
		}
		m := &eventstream.Delivery{Message: e.Message, StoredAt: e.StoredAt}
		for first := true; len(j.webhooks) > 0; first = false {
			_, full := p.nextPage(ctx, m, j)
			switch {
			case full: // the notifications under way must end before there is room
				if err := settle(); err != nil {
					return n, err
				}
				c.oldest = e.StoredAt
				if err := c.noteNow(ctx); err != nil {
					return n, err
				}
				if !sleep.For(ctx, catchUpEvery) {
					return n, nil
				}
			case first && len(j.webhooks) == 0: // one page: the next event can start at the same time
				started = append(started, j)
			default:
				if err := j.wait(context.WithoutCancel(ctx)); err != nil {
					return n, errors.Join(err, settle())
				}
				p.metrics.matched.Add(float64(len(j.started)))
			}
		}
		next = e.Sequence
		p.count(j, resultMatched)
		j.span.End(len(j.started), nil)
	}
	if err := settle(); err != nil {
		return n, err
	}
	if n > 0 && time.Since(c.noted) > noteEvery {
		return n, c.note(ctx, 0)
	}
	return n, nil
}

// job returns the work of the event, nil when there is none: it is no event, which the shared consumer rejected, or no
// webhook matches it or holds it back.
func (c *catchUp) job(ctx context.Context, e *eventstream.Event) (*job, error) {
	p := c.d.p
	e.MaxBytes = p.maxBodyBytes
	ev, rejected := event.Parse(e.Message)
	if rejected != nil {
		return nil, nil
	}
	for p.registry.Newer(c.account) {
		if !sleep.For(ctx, time.Second) {
			return nil, ctx.Err()
		}
	}
	j := &job{event: ev}
	p.match(j)
	j.webhooks = slices.DeleteFunc(j.webhooks, func(w *webhook.Webhook) bool {
		return w.CreatedAt.After(e.StoredAt.Add(clockGap))
	})
	if j.unsure = e.Sequence <= c.unsure || e.StoredAt.Before(c.record.Since.Add(spread)); j.unsure {
		var err error
		if j.webhooks, err = p.unnotified(ctx, j, e.StoredAt); err != nil {
			return nil, err
		}
	}
	if len(j.webhooks) == 0 {
		if len(j.held) == 0 {
			return nil, nil
		}
		return j, nil
	}
	j.span, ev.Traceparent = p.trace.Process(ev.Traceparent, tracing.Event{
		ID: ev.ID, Name: ev.Name, Account: ev.Account, Sequence: ev.Sequence, Deliveries: 1,
	})
	j.event = ev
	return j, nil
}

// noteNow notes the progress when the last note is old.
func (c *catchUp) noteNow(ctx context.Context) error {
	if time.Since(c.noted) < noteEvery {
		return nil
	}
	return c.note(ctx, 0)
}

// note stores the progress, and that events up to tried may be handled in part from here on.
func (c *catchUp) note(ctx context.Context, tried uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		r := *c.record
		r.After, r.Tried, r.OldestAt = max(r.After, c.after), max(r.Tried, tried), c.oldest.UTC()
		revision, err := c.d.store(ctx, c.account, &r, c.revision)
		if err == nil {
			c.record, c.revision, c.noted = &r, revision, time.Now()
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
		if err := c.reread(ctx); err != nil {
			return err
		}
	}
}

// reread takes over what another publisher wrote: more events wait, or older ones came again.
func (c *catchUp) reread(ctx context.Context) error {
	from := c.record.From
	if err := c.read(ctx); err != nil {
		return err
	}
	if c.record.From < from {
		c.unsure = max(c.unsure, c.record.Tried, c.after)
		c.after, c.oldest, c.rewound = c.record.After, c.record.OldestAt, true
	}
	return nil
}

// end deletes the record when no event is left that it covers, and reports whether it did.
func (c *catchUp) end(ctx context.Context) (bool, error) {
	for {
		if err := c.reread(ctx); err != nil {
			return false, err
		}
		switch _, err := eventstream.Next(ctx, c.d.p.bus, c.account, c.after+1); {
		case err == nil:
			return false, nil
		case !errors.Is(err, bus.ErrNotFound):
			return false, err
		}
		err := c.d.shares.Delete(ctx, share.DeferralKey(c.account), c.revision)
		if errors.Is(err, bus.ErrConflict) {
			continue
		}
		if err != nil {
			return false, err
		}
		c.d.p.meter.Defer(c.account, nil)
		c.log.Info("account caught up", zap.Duration("after", time.Since(c.record.Since)))
		c.publish(ctx, "caught_up", nil)
		return true, nil
	}
}

// publish publishes a status event of the account. Without one the account catches up all the same.
func (c *catchUp) publish(ctx context.Context, what string, evidence any) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s := status.Change{
		Event: what, Account: c.account, At: time.Now().UTC(), Reason: "account_share", Evidence: evidence,
	}
	if err := status.Publish(ctx, c.d.p.bus, s, c.record.Since.Format(time.RFC3339Nano)); err != nil {
		c.log.Warn("a status event of a deferred account is not stored", zap.String("event", what), zap.Error(err))
	}
}
