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

// errSettled says that the delivery needs nothing more: the journal has the notification elsewhere.
var errSettled = errors.New("settled")

// ticket is what a delivery comes with: nothing for live traffic, a place of its URL's share when it was
// taken out of PARKED, or the leave to probe a suspended URL.
type ticket struct {
	key    urlKey
	placed bool           // a place of key's share is taken
	probe  *mirror.Record // the suspension this attempt probes
}

// arrive takes a delivery in the order in which it came and returns what is left to do, which may run beside
// others. It does not wait: what must be parked is on its way to PARKED when it returns, so the
// notifications of a URL keep their order there.
func (d *Dispatcher) arrive(ctx context.Context, m *bus.Delivery) func() {
	t := ticket{key: urlKey{account: m.Account}}
	if w := d.registry.Get(m.Account, m.WebhookID); w != nil && !m.Again {
		t.key.url = w.URLKey
		last, reason := told(m), ""
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
func (d *Dispatcher) handle(ctx context.Context, m *bus.Delivery, t ticket) (attempted bool) {
	defer d.isolate(ctx, m)
	defer func() {
		if t.placed && !attempted {
			d.shares.leave(t.key, 1)
		}
	}()
	last, err := d.position(ctx, m) // what the journal says, where the broker's count may be wrong
	if err != nil {
		d.giveBack(ctx, m, err)
		return false
	}
	w, err := d.webhook(ctx, m)
	if err != nil {
		d.giveBack(ctx, m, err)
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
			d.reschedule(ctx, m, last.done, last.journal, time.Now().Add(keysPause))
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
func (d *Dispatcher) conclude(ctx context.Context, m *bus.Delivery, w *target, last position, o delivery.Outcome, probe *mirror.Record) {
	r := d.record(m, w, last, notification.KindAttempt)
	r.Attempt = describe(o, last.done+1, m.Send)
	r.AttemptsDone = last.done + 1
	if probe != nil {
		r.Probe, r.Trip = true, probe.Trip
	}
	switch {
	case o.Delivered:
		r.State = notification.Delivered
	case r.AttemptsDone >= notification.MaxAttempts:
		r.State, r.Reason = notification.PermanentlyFailed, string(o.Reason)
	default:
		r.State, r.Reason = notification.Retrying, string(o.Reason)
		r.NextAttemptAt = r.At.Add(d.schedule.delay(r.AttemptsDone, o.RetryAfter))
	}
	sequence, err := d.recordAttempt(ctx, r)
	d.observe(m, r, o)
	d.traced(m, w, r, o)
	switch {
	case err != nil:
		d.giveBack(ctx, m, err)
	case r.State == notification.Delivered:
		m.Ack()
	case r.State == notification.PermanentlyFailed:
		d.fail(ctx, m)
	case m.Lane == bus.LaneRetry && m.NumDelivered < notification.MaxAttempts-1 && !d.crowded.Load():
		m.NakAfter(time.Until(r.NextAttemptAt)) // the same message again: the broker counts the retries
	default:
		d.reschedule(ctx, m, r.AttemptsDone, sequence, r.NextAttemptAt)
	}
}

// position is where a notification stands: how many attempts of its send are used up, and the sequence of
// its last journal record.
type position struct {
	done    int
	journal uint64
	record  *notification.Record // that record, nil when it was not read
}

// told is the position that a message tells.
func told(m *bus.Delivery) position { return position{m.AttemptsDone, m.Journal, nil} }

// position trusts the message when no dispatcher can have had it before. Otherwise, and for what was
// parked, it asks the journal, finishes what a crash cut off, and returns errSettled when nothing is left
// to do. A delivery that a crash burnt is put right here: the notification is published anew with the
// recorded count, so the broker's limit of deliveries never ends one that has attempts left.
func (d *Dispatcher) position(ctx context.Context, m *bus.Delivery) (position, error) {
	if !m.Again && m.Lane != bus.LaneParked {
		return told(m), nil
	}
	if m.NumDelivered > maxCrashes && m.Lane != bus.LaneRetry {
		d.quarantine(ctx, m, "it was delivered many times and nothing came of it")
		return position{}, errSettled
	}
	last, err := d.bus.LastRecord(ctx, m.Account, m.ID)
	if errors.Is(err, bus.ErrNotFound) {
		return position{m.AttemptsDone, 0, nil}, nil
	}
	if err != nil {
		return position{}, err
	}
	p := position{last.AttemptsDone, last.Sequence, &last.Record}
	expected := m.AttemptsDone
	if m.Lane == bus.LaneRetry {
		expected += m.NumDelivered - 1
	}
	switch {
	case last.Send < m.Send: // nothing is recorded of this send yet
		return position{m.AttemptsDone, last.Sequence, &last.Record}, nil
	case last.Send > m.Send, last.Hop > m.Hop:
		m.Ack() // the notification lives on in a later message
	case last.State == notification.PermanentlyFailed:
		d.fail(ctx, m)
	case last.State.Terminal():
		m.Ack()
	case last.State == notification.Parked && last.Hop < m.Hop: // and this is the message that was parked
		return p, nil
	case last.State == notification.Parked: // from this very message, and perhaps not moved
		d.moveAgain(ctx, m, last)
	case m.Lane != bus.LaneRetry && last.Hop == m.Hop:
		d.reschedule(ctx, m, last.AttemptsDone, last.Sequence, last.NextAttemptAt)
	case last.AttemptsDone < expected, time.Until(last.NextAttemptAt) > earlyBy:
		d.metrics.repaired.WithLabelValues("burnt_delivery").Inc()
		d.reschedule(ctx, m, last.AttemptsDone, last.Sequence, last.NextAttemptAt)
	default:
		return p, nil
	}
	return position{}, errSettled
}

// earlyBy is how much earlier than scheduled a retry may start; the broker's clock and ours differ a little.
const earlyBy = 50 * time.Millisecond

// reschedule publishes the notification for its next attempt and acks.
func (d *Dispatcher) reschedule(ctx context.Context, m *bus.Delivery, done int, journal uint64, at time.Time) {
	n := m.Notification
	n.Hop, n.AttemptsDone, n.Journal = m.Hop+1, done, journal
	if err := d.bus.ScheduleRetry(ctx, &n, at); err != nil {
		d.giveBack(ctx, m, err)
		return
	}
	m.Ack()
}

// recordAttempt writes the record of an attempt. What was taken out of PARKED very soon may have missed
// the record of its being parked; that one is no conflict.
func (d *Dispatcher) recordAttempt(ctx context.Context, r *notification.Record) (uint64, error) {
	sequence, err := d.bus.Record(ctx, r)
	if !errors.Is(err, bus.ErrConflict) {
		return sequence, err
	}
	last, lookErr := d.bus.LastRecord(ctx, r.Account, r.NotificationID)
	if lookErr != nil || last.Kind != notification.KindParked || last.Send != r.Send || last.Hop >= r.Hop || last.AttemptsDone != r.AttemptsDone-1 {
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
func (d *Dispatcher) park(ctx context.Context, m *bus.Delivery, w *target, last position, reason string) {
	d.finishParking(ctx, m, d.startParking(m, w, last, reason))
}

func (d *Dispatcher) startParking(m *bus.Delivery, w *target, last position, reason string) parking {
	r := d.record(m, w, last, notification.KindParked)
	r.State, r.Reason = notification.Parked, reason
	n := m.Notification
	n.Hop, n.AttemptsDone, n.Journal = m.Hop+1, last.done, 0 // whoever takes it out asks the journal
	p := parking{record: d.bus.StartRecord(r), lane: laneKey{m.Account, w.URLKey}, reason: reason}
	if reason == notification.Disabled {
		p.lane.lane = bus.LaneDisabled
	}
	p.move = d.bus.Park(&n, p.lane.lane)
	return p
}

// finishParking acks once both the move and its record are stored. Cut off before, both are repeated: the
// move is recognised by its message id.
func (d *Dispatcher) finishParking(ctx context.Context, m *bus.Delivery, p parking) {
	err := p.move.Wait(ctx)
	_, recordErr := p.record.Wait(ctx)
	if err = errors.Join(err, recordErr); err != nil {
		d.giveBack(ctx, m, err)
		return
	}
	m.Ack()
	d.metrics.parked.WithLabelValues(p.reason).Inc()
	if p.reason == notification.Saturated {
		d.drains.wake(p.lane)
	}
}

// moveAgain completes a move to PARKED of which only the record is certain, then acks.
func (d *Dispatcher) moveAgain(ctx context.Context, m *bus.Delivery, last *bus.Recorded) {
	n := m.Notification
	n.Hop, n.AttemptsDone, n.Journal = m.Hop+1, last.AttemptsDone, 0
	lane := last.URLKey
	if last.Reason == notification.Disabled {
		lane = bus.LaneDisabled
	}
	if err := d.bus.Park(&n, lane).Wait(ctx); err != nil {
		d.giveBack(ctx, m, err)
		return
	}
	m.Ack()
}

// end records a terminal state that no attempt led to, and settles the delivery.
func (d *Dispatcher) end(ctx context.Context, m *bus.Delivery, last position, kind notification.Kind, reason delivery.Reason) {
	r := d.record(m, nil, last, kind)
	r.State, r.Reason = notification.PermanentlyFailed, string(reason)
	if kind == notification.KindCancelled {
		r.State = notification.Cancelled
	}
	if _, err := d.bus.Record(ctx, r); err != nil {
		d.giveBack(ctx, m, err)
		return
	}
	d.metrics.ended.WithLabelValues(string(r.State)).Inc()
	d.log.Info("ended without an attempt", append(fields(m), zap.String("state", string(r.State)), zap.String("reason", r.Reason))...)
	if r.State == notification.PermanentlyFailed {
		d.fail(ctx, m)
		return
	}
	m.Ack()
}

// fail keeps the payload of a permanently failed notification, then acks.
func (d *Dispatcher) fail(ctx context.Context, m *bus.Delivery) {
	if err := d.keepFailed(ctx, &m.Notification); err != nil {
		d.giveBack(ctx, m, err)
		return
	}
	m.Ack()
}

// giveBack leaves a delivery that could not be settled to be delivered again. A conflict means that
// another dispatcher, or an earlier life of this message, was faster; the journal tells on the next delivery.
func (d *Dispatcher) giveBack(ctx context.Context, m *bus.Delivery, err error) {
	switch {
	case errors.Is(err, errSettled):
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

// maxCrashes is how often a notification may be delivered without leaving a trace before it is set aside:
// something about it stops the process that handles it.
const maxCrashes = 10

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
		d.giveBack(ctx, m, err)
		return
	}
	last := told(m)
	if r, err := d.bus.LastRecord(ctx, m.Account, m.ID); err == nil {
		last.journal, last.record = r.Sequence, &r.Record
		if r.Send == m.Send {
			last.done = r.AttemptsDone
		}
	}
	d.metrics.quarantined.Inc()
	d.end(ctx, m, last, notification.KindFailed, delivery.InternalError)
}
