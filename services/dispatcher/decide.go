package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/webhook"
)

// permit says on what terms a delivery was admitted: as live traffic, with a place of its URL when it was taken out of
// PARKED, or as the probe of a suspended URL.
type permit struct {
	key    urlKey
	placed bool           // a place of key's share is taken
	probe  *mirror.Record // the suspension this attempt probes
}

// arrive takes a delivery in the order in which it came and returns what is left to do, which may run beside
// others. It does not wait: what must be parked is on its way to PARKED when it returns, so the
// notifications of a URL keep their order there.
func (d *Dispatcher) arrive(ctx context.Context, m *bus.Delivery) func() {
	t := permit{key: urlKey{account: m.Account}}
	if w := d.registry.Get(m.Account, m.WebhookID); w != nil && !m.Again {
		t.key.url = w.URLKey
		last, reason := m.Position(), ""
		switch {
		case w.Status == webhook.Disabled:
			reason = notification.Disabled
		case d.suspended(t.key):
			reason = notification.Suspended
		default:
			var refused bool
			if t.placed, refused = d.shares.try(t.key); refused {
				reason = notification.Saturated
			}
		}
		if reason != "" {
			parking := d.startParking(m, &target{w}, last, reason)
			return func() { d.finishParking(ctx, m, parking) }
		}
	}
	return func() { d.handle(ctx, m, t) }
}

// handle decides one notification and settles its delivery. It reports whether a request was made.
//
// The order is what keeps a notification from being lost or told twice by a crash: first the request, then
// its record on top of the record before it, then what comes next (a schedule, PARKED, FAILED), and the ack
// last. Whatever is cut off is repeated from the journal.
func (d *Dispatcher) handle(ctx context.Context, m *bus.Delivery, t permit) (attempted bool) {
	defer d.isolate(ctx, m)
	defer func() {
		if t.placed && !attempted {
			d.shares.leave(t.key, 1)
		}
	}()
	last, ok := d.resume(ctx, m)
	if !ok {
		return false
	}
	w, err := d.webhook(ctx, m)
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return false
	}
	key := urlKey{m.Account, w.urlKey()}
	if t.placed && t.key != key { // its URL was changed meanwhile
		d.shares.leave(t.key, 1)
		t.placed = false
	}
	switch {
	case w == nil:
		d.end(ctx, m, last, notification.KindCancelled, "")
	case w.Status == webhook.Disabled:
		d.park(ctx, m, w, last, notification.Disabled)
	case t.probe == nil && d.suspended(key):
		d.park(ctx, m, w, last, notification.Suspended)
	case t.probe == nil && !t.placed && !d.shares.enter(key):
		d.park(ctx, m, w, last, notification.Saturated)
	default:
		t.key, t.placed = key, t.probe == nil
		if t.placed && d.suspended(key) { // meanwhile, while it waited for its place
			d.park(ctx, m, w, last, notification.Suspended)
			return false
		}
		outcome, err := d.attempt(ctx, m, w, last)
		if err != nil { // nothing was sent and nothing is used up
			d.carryOut(ctx, m, notification.Decision{
				Step: notification.StepReschedule, Next: m.Retry(last), At: time.Now().Add(keysPause),
			})
			return false
		}
		if t.placed {
			d.shares.done(key, outcome.Delivered, outcome.Duration)
		}
		d.conclude(ctx, m, w, last, outcome, t.probe)
		return true
	}
	return false
}

// keysPause is how long a notification waits when its webhook's credentials do not open.
const keysPause = time.Minute

// conclude records the attempt, stores what follows from it, and acks.
func (d *Dispatcher) conclude(ctx context.Context, m *bus.Delivery, w *target, last notification.Position, o delivery.Outcome, probe *mirror.Record) {
	r := d.record(m, w, last, notification.KindAttempt)
	if probe != nil {
		r.Probe, r.Trip = true, probe.Trip
	}
	r.Attempted(describe(o, last.AttemptsDone+1, m.Send), func(retry int) time.Duration {
		return d.schedule.delay(retry, o.RetryAfter)
	})
	var err error
	r.Sequence, err = d.recordAttempt(ctx, r)
	d.observe(m, r, o)
	d.traced(m, w, r, o)
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	d.carryOut(ctx, m, notification.Conclude(&m.Notification, received(m), r, d.crowded.Load()))
}

// resume returns where the notification stands, from the message's headers while they can be trusted, else from the
// journal. It carries out every other step that the journal demands, and then reports false.
func (d *Dispatcher) resume(ctx context.Context, m *bus.Delivery) (notification.Position, bool) {
	receipt := received(m)
	if receipt.Trusted() {
		return m.Position(), true
	}
	last, err := d.lastRecord(ctx, &m.Notification)
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return notification.Position{}, false
	}
	next := notification.Resume(&m.Notification, receipt, last, time.Now())
	if next.Step == notification.StepSend {
		return next.Position, true
	}
	if next.Burnt {
		d.metrics.repaired.WithLabelValues("burnt_delivery").Inc()
	}
	d.carryOut(ctx, m, next)
	return next.Position, false
}

// received returns how the broker handed out m.
func received(m *bus.Delivery) notification.Receipt {
	return notification.Receipt{Lane: m.Lane, NumDelivered: m.NumDelivered, Again: m.Again}
}

// lastRecord returns the notification's newest record, nil when it has none.
func (d *Dispatcher) lastRecord(ctx context.Context, n *notification.Notification) (*notification.Record, error) {
	last, err := d.bus.LastRecord(ctx, n.Account, n.ID)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &last.Record, nil
}

// carryOut makes the writes of a step other than StepSend, and acks m last.
func (d *Dispatcher) carryOut(ctx context.Context, m *bus.Delivery, next notification.Decision) {
	switch next.Step {
	case notification.StepPostpone:
		m.NakAfter(time.Until(next.At))
		return
	case notification.StepSetAside:
		d.quarantine(ctx, m, "it was delivered many times and nothing came of it")
		return
	case notification.StepSend, notification.StepSettle, notification.StepKeepFailed, notification.StepReschedule,
		notification.StepFinishPark:
	}
	if err := d.store(ctx, &m.Notification, next); err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	m.Ack()
}

// store makes the write of a step that has one. Repeating it changes nothing.
func (d *Dispatcher) store(ctx context.Context, n *notification.Notification, next notification.Decision) error {
	switch next.Step {
	case notification.StepKeepFailed:
		return d.keepFailed(ctx, n)
	case notification.StepReschedule:
		return d.bus.ScheduleRetry(ctx, &next.Next, next.At)
	case notification.StepFinishPark:
		return d.bus.Park(&next.Next, next.Backlog).Wait(ctx)
	case notification.StepSend, notification.StepSettle, notification.StepSetAside, notification.StepPostpone:
	}
	return nil
}

// recordAttempt writes the record of an attempt. What was taken out of PARKED very soon may have missed
// the record of its being parked; that one is no conflict.
func (d *Dispatcher) recordAttempt(ctx context.Context, r *notification.Record) (uint64, error) {
	sequence, err := d.bus.Record(ctx, r)
	if !errors.Is(err, bus.ErrConflict) {
		return sequence, err
	}
	last, lookErr := d.bus.LastRecord(ctx, r.Account, r.NotificationID)
	if lookErr != nil || !r.Overtaken(&last.Record) {
		return 0, err
	}
	r.Follow(&last.Record)
	return d.bus.Record(ctx, r)
}

// parking is a notification on its way to PARKED, and its record.
type parking struct {
	record *bus.StartedRecord
	move   *bus.Started
	lane   laneKey
	reason string
}

// park sets the notification aside with its used attempts; nothing of it is used up.
func (d *Dispatcher) park(ctx context.Context, m *bus.Delivery, w *target, last notification.Position, reason string) {
	d.finishParking(ctx, m, d.startParking(m, w, last, reason))
}

func (d *Dispatcher) startParking(m *bus.Delivery, w *target, last notification.Position, reason string) parking {
	r := d.record(m, w, last, notification.KindParked)
	r.State, r.Reason = notification.Parked, reason
	n := m.Parked(last)
	p := parking{record: d.bus.StartRecord(r), lane: laneKey{m.Account, r.Backlog()}, reason: reason}
	p.move = d.bus.Park(&n, p.lane.lane)
	return p
}

// finishParking acks once both the move and its record are stored. Cut off before, both are repeated: the
// move is recognised by its message id.
func (d *Dispatcher) finishParking(ctx context.Context, m *bus.Delivery, p parking) {
	err := p.move.Wait(ctx)
	_, recordErr := p.record.Wait(ctx)
	if err = errors.Join(err, recordErr); err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	m.Ack()
	d.metrics.parked.WithLabelValues(p.reason).Inc()
	if p.reason == notification.Saturated {
		d.drains.wake(p.lane)
	}
}

// end records a terminal state that no attempt led to, and settles the delivery.
func (d *Dispatcher) end(ctx context.Context, m *bus.Delivery, last notification.Position, kind notification.Kind, reason delivery.Reason) {
	r := d.record(m, nil, last, kind)
	r.Ended(string(reason))
	sequence, err := d.bus.Record(ctx, r)
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	d.metrics.ended.WithLabelValues(string(r.State)).Inc()
	d.log.Info("ended without an attempt", append(fields(m), zap.String("state", string(r.State)), zap.String("reason", r.Reason))...)
	r.Sequence = sequence
	d.carryOut(ctx, m, notification.Conclude(&m.Notification, received(m), r, false))
}

// retryDelivery leaves a delivery that could not be settled unacknowledged, so that it comes again. A conflict means
// that another dispatcher, or an earlier delivery of this message, was faster; the next delivery finds its record.
func (d *Dispatcher) retryDelivery(ctx context.Context, m *bus.Delivery, err error) {
	switch {
	case errors.Is(err, schema.ErrNewer): // of its webhook or its journal
		m.Wait(ctx)
	case errors.Is(err, bus.ErrConflict):
		d.metrics.conflicts.Inc()
		m.NakAfter(conflictPause)
	default:
		d.log.Warn("notification not settled; it comes again", append(fields(m), zap.Error(err))...)
	}
}

// conflictPause is how soon a notification that met a conflict is looked at again.
const conflictPause = 100 * time.Millisecond

// isolate sets a notification aside whose handling panics, so that it takes nothing else down: at once
// quarantined (its bytes in QUARANTINE), permanently failed with internal_error, and kept for a resend.
func (d *Dispatcher) isolate(ctx context.Context, m *bus.Delivery) {
	cause := recover()
	if cause == nil {
		return
	}
	d.metrics.panics.Inc()
	d.log.Error("handling a notification panicked", append(fields(m), zap.Any("panic", cause), zap.ByteString("stack", debug.Stack()))...)
	if m.NumDelivered < panicsBeforeQuarantine {
		m.NakAfter(time.Second)
		return
	}
	d.quarantine(ctx, m, fmt.Sprint("panic: ", cause))
}

// panicsBeforeQuarantine: the first panics may have been bad luck.
const panicsBeforeQuarantine = 3

// quarantine ends a notification that cannot be handled.
func (d *Dispatcher) quarantine(ctx context.Context, m *bus.Delivery, why string) {
	if err := m.SetAside(ctx, string(delivery.InternalError), why); err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	last := m.Position()
	if r, err := d.bus.LastRecord(ctx, m.Account, m.ID); err == nil {
		last.Journal, last.Last = r.Sequence, &r.Record
		if r.Send == m.Send {
			last.AttemptsDone = r.AttemptsDone
		}
	}
	d.metrics.quarantined.Inc()
	d.end(ctx, m, last, notification.KindFailed, delivery.InternalError)
}
