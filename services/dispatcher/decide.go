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
	"gancho/pkg/webhook"
)

// errSettled says that the delivery needs nothing more: the journal has the notification elsewhere.
var errSettled = errors.New("settled")

// ticket is what a delivery comes with: nothing for live traffic, a place of its URL's share when it was
// taken out of PARKED, or the leave to probe a suspended URL.
type ticket struct {
	key    urlKey
	placed bool     // a place of key's share is taken
	probe  *flagged // the suspension this attempt probes
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
		d.giveBack(m, err)
		return false
	}
	w, err := d.webhook(ctx, m)
	if err != nil {
		d.giveBack(m, err)
		return false
	}
	key := urlKey{m.Account, w.urlKey()}
	if t.placed && t.key != key { // its URL was changed while it was parked
		d.shares.leave(t.key, 1)
		t = ticket{}
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
func (d *Dispatcher) conclude(ctx context.Context, m *bus.Delivery, w *target, last position, o delivery.Outcome, probe *flagged) {
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
	sequence, err := d.bus.Record(ctx, r)
	d.observe(m, w, r, o)
	switch {
	case err != nil:
		d.giveBack(m, err)
	case r.State == notification.Delivered:
		m.Ack()
	case r.State == notification.PermanentlyFailed:
		d.fail(ctx, m)
	case m.Lane == bus.LaneRetry && !d.crowded.Load():
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
}

// position trusts the message when the broker delivers it for the first time. Otherwise it asks the
// journal, finishes what a crash cut off, and returns errSettled when nothing is left
// to do. A delivery that a crash burnt is put right here: the notification is published anew with the
// recorded count, so the broker's limit of deliveries never ends one that has attempts left.
func (d *Dispatcher) position(ctx context.Context, m *bus.Delivery) (position, error) {
	if m.NumDelivered == 1 {
		return position{m.AttemptsDone, m.Journal}, nil
	}
	if m.NumDelivered > maxCrashes && m.Lane != bus.LaneRetry {
		d.quarantine(ctx, m, "it was delivered many times and nothing came of it")
		return position{}, errSettled
	}
	last, err := d.bus.LastRecord(ctx, m.Account, m.ID)
	if errors.Is(err, bus.ErrNotFound) {
		return position{m.AttemptsDone, 0}, nil
	}
	if err != nil {
		return position{}, err
	}
	p := position{last.AttemptsDone, last.Sequence}
	expected := m.AttemptsDone
	if m.Lane == bus.LaneRetry {
		expected += m.NumDelivered - 1
	}
	switch {
	case last.Send < m.Send: // nothing is recorded of this send yet
		return position{m.AttemptsDone, last.Sequence}, nil
	case last.Send > m.Send, last.Hop > m.Hop:
		m.Ack() // the notification lives on in a later message
	case last.State == notification.PermanentlyFailed:
		d.fail(ctx, m)
	case last.State.Terminal():
		m.Ack()
	case last.State == notification.Parked && last.Hop < m.Hop: // and this is the message that was parked
		return p, nil
	case last.State == notification.Parked:
		d.setAside(ctx, m, &last.Record, last.Sequence)
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
		d.giveBack(m, err)
		return
	}
	m.Ack()
}

// park records that the notification is set aside, moves it to PARKED with its used attempts, then acks.
// Nothing of it is used up. The record comes first: it has the lane, so a move that a crash cut off is
// repeated from it, and whoever takes the message out again finds it recorded.
func (d *Dispatcher) park(ctx context.Context, m *bus.Delivery, w *target, last position, reason string) {
	r := d.record(m, w, last, notification.KindParked)
	r.State, r.Reason = notification.Parked, reason
	sequence, err := d.bus.Record(ctx, r)
	if err != nil {
		d.giveBack(m, err)
		return
	}
	d.metrics.parked.WithLabelValues(reason).Inc()
	d.setAside(ctx, m, r, sequence)
}

// setAside moves the notification to the lane of PARKED that its record names, then acks.
func (d *Dispatcher) setAside(ctx context.Context, m *bus.Delivery, r *notification.Record, sequence uint64) {
	n := m.Notification
	n.Hop, n.AttemptsDone, n.Journal = m.Hop+1, r.AttemptsDone, sequence
	lane := r.URLKey
	if r.Reason == notification.Disabled {
		lane = bus.LaneDisabled
	}
	if err := d.bus.Park(ctx, &n, lane); err != nil {
		d.giveBack(m, err)
		return
	}
	m.Ack()
	if r.Reason == notification.Saturated {
		d.drains.wake(laneKey{m.Account, lane})
	}
}

// end records a terminal state that no attempt led to, and settles the delivery.
func (d *Dispatcher) end(ctx context.Context, m *bus.Delivery, last position, kind notification.Kind, reason delivery.Reason) {
	r := d.record(m, nil, last, kind)
	r.State, r.Reason = notification.PermanentlyFailed, string(reason)
	if kind == notification.KindCancelled {
		r.State = notification.Cancelled
	}
	if _, err := d.bus.Record(ctx, r); err != nil {
		d.giveBack(m, err)
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
		d.giveBack(m, err)
		return
	}
	m.Ack()
}

// giveBack leaves a delivery that could not be settled to be delivered again. A conflict means that
// another dispatcher, or an earlier life of this message, was faster; the journal tells on the next delivery.
func (d *Dispatcher) giveBack(m *bus.Delivery, err error) {
	switch {
	case errors.Is(err, errSettled):
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
		d.giveBack(m, err)
		return
	}
	last := position{m.AttemptsDone, m.Journal}
	if r, err := d.bus.LastRecord(ctx, m.Account, m.ID); err == nil {
		last.journal = r.Sequence
		if r.Send == m.Send {
			last.done = r.AttemptsDone
		}
	}
	d.metrics.quarantined.Inc()
	d.end(ctx, m, last, notification.KindFailed, delivery.InternalError)
}
