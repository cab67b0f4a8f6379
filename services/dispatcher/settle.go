package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// carryOut makes the writes of a step other than StepSend, and acks m last.
func (d *Dispatcher) carryOut(ctx context.Context, m *lane.Delivery, next notification.Decision) {
	switch next.Step {
	case notification.StepPostpone:
		m.NakAfter(time.Until(next.At))
		return
	case notification.StepSetAside:
		d.quarantine(ctx, m, next.Position, "it was delivered many times and nothing came of it")
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
		return lane.Schedule(ctx, d.bus, &next.Next, next.At)
	case notification.StepFinishPark:
		if there, err := d.onRetries(ctx, &next.Next); there || err != nil {
			return err // PARKED refused it before
		}
		err := lane.Park(d.bus, &next.Next, next.Backlog).Wait(ctx)
		if errors.Is(err, bus.ErrFull) {
			return d.displace(ctx, n, next.Position)
		}
		return err
	case notification.StepSend, notification.StepSettle, notification.StepSetAside, notification.StepPostpone:
	}
	return nil
}

// keepFailed stores the payload on FAILED with a summary of the send's attempts. Doing it again changes nothing.
func (d *Dispatcher) keepFailed(ctx context.Context, n *notification.Notification) error {
	type line struct {
		Number     int             `json:"number"`
		StartedAt  time.Time       `json:"started_at"`
		Reason     delivery.Reason `json:"reason,omitempty"`
		HTTPStatus int             `json:"http_status,omitempty"`
	}
	var lines []line
	last, err := journal.Last(ctx, d.bus, n.Account, n.ID)
	if err == nil || errors.Is(err, wireversion.ErrNewer) {
		for r, readErr := range journal.History(ctx, d.bus, last) {
			if err = readErr; r == nil || r.Send != n.Send {
				break
			}
			if a := r.Attempt; a != nil {
				lines = append([]line{{a.Number, a.StartedAt, a.Reason, a.HTTPStatus}}, lines...)
			}
		}
	}
	if err != nil && !errors.Is(err, bus.ErrNotFound) && !errors.Is(err, wireversion.ErrNewer) {
		return err
	}
	summary, err := json.Marshal(lines)
	if err != nil {
		return fmt.Errorf("encode the summary of attempts: %w", err)
	}
	return lane.Fail(ctx, d.bus, n, string(summary))
}

// recordAttempt writes the record of an attempt. A notification taken out of PARKED very soon may have missed
// the record of its being parked; that one is no conflict. Neither is a journal from which the record before was
// removed: those after it would be there, because the oldest of an account go first.
func (d *Dispatcher) recordAttempt(ctx context.Context, r *notification.Record) (uint64, error) {
	sequence, err := journal.Write(ctx, d.bus, r)
	if !errors.Is(err, bus.ErrConflict) {
		return sequence, err
	}
	last, lookErr := journal.Last(ctx, d.bus, r.Account, r.NotificationID)
	switch {
	case errors.Is(lookErr, bus.ErrNotFound) && r.Previous > 0:
		r.Previous = 0
	case lookErr != nil || !r.Overtaken(last):
		return 0, err
	default:
		r.Follow(last)
	}
	return journal.Write(ctx, d.bus, r)
}

// parking is a notification on its way to PARKED, and its record.
type parking struct {
	n      notification.Notification
	record *journal.Started
	move   *bus.Started
	lane   laneKey
	reason string
}

// startParking puts the notification on its way to PARKED, with its used attempts, for the reason of the admission.
func (d *Dispatcher) startParking(m *lane.Delivery, a admission, position notification.Position) parking {
	r := d.record(m, a.webhook, position, notification.KindParked)
	r.State, r.Reason = notification.Parked, a.reason
	p := parking{n: m.Parked(position), record: journal.Start(d.bus, r), lane: laneKey{m.Account, r.Backlog()}, reason: a.reason}
	p.move = lane.Park(d.bus, &p.n, p.lane.lane)
	return p
}

// finishParking acks once both the move and its record are stored. Cut off before, both are repeated: the
// move is recognised by its message id.
func (d *Dispatcher) finishParking(ctx context.Context, m *lane.Delivery, p parking) {
	defer d.isolate(ctx, m)
	moveErr := p.move.Wait(ctx)
	sequence, err := p.record.Wait(ctx)
	switch full := errors.Is(moveErr, bus.ErrFull); {
	case err == nil && full:
		err = d.displace(ctx, &m.Notification, notification.Position{AttemptsDone: p.n.AttemptsDone, Journal: sequence})
	case !full:
		err = errors.Join(moveErr, err)
	}
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	m.Ack()
	d.metrics.parked.WithLabelValues(p.reason).Inc()
	if p.reason == notification.Saturated {
		d.drains.wake(p.lane)
	}
}

// displace moves a notification that PARKED refused to RETRIES, which brings it back later. It uses up no attempt, and
// the delivery gives its place to others. position follows the record of the parking.
func (d *Dispatcher) displace(ctx context.Context, n *notification.Notification, position notification.Position) error {
	d.fullness.refused(topology.Parked)
	next, at := n.Displaced(position, time.Now())
	err := lane.Schedule(ctx, d.bus, &next, at)
	if err == nil {
		d.metrics.displaced.Inc()
	}
	return err
}

// onRetries reports whether RETRIES holds n or a message that follows from it.
func (d *Dispatcher) onRetries(ctx context.Context, n *notification.Notification) (bool, error) {
	for _, subject := range []string{topology.SubjectRetryAt(n.Account, n.ID), topology.SubjectRetryDue(n.Account, n.WebhookID, n.ID)} {
		raw, err := d.bus.Last(ctx, topology.Retries, subject)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		if x, err := notification.Decode(raw.Header, raw.Data); err == nil && x.Send == n.Send && x.Moves >= n.Moves {
			return true, nil
		}
	}
	return false, nil
}

// end writes r, the record of a terminal state that no attempt led to, and settles the delivery.
func (d *Dispatcher) end(ctx context.Context, m *lane.Delivery, r *notification.Record, reason string) {
	r.Ended(reason)
	sequence, err := journal.Write(ctx, d.bus, r)
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	d.metrics.ended.WithLabelValues(string(r.State)).Inc()
	d.log.Info("ended without an attempt", append(fields(m), zap.String("state", string(r.State)), zap.String("reason", r.Reason))...)
	r.Sequence = sequence
	d.carryOut(ctx, m, notification.Conclude(&m.Notification, d.received(m), r, false))
}

// retryDelivery leaves a delivery that could not be settled unacknowledged, so that it comes again. Its place is free
// at once. A conflict means that another dispatcher, or an earlier delivery of this message, was faster; the next
// delivery finds its record.
func (d *Dispatcher) retryDelivery(ctx context.Context, m *lane.Delivery, err error) {
	switch {
	case errors.Is(err, wireversion.ErrNewer): // of its webhook or its journal
		m.Wait(ctx)
	case errors.Is(err, bus.ErrConflict):
		d.metrics.conflicts.Inc()
		m.NakAfter(conflictPause)
	case errors.Is(err, bus.ErrFull): // RETRIES has no room either
		d.fullness.refused(topology.Retries)
		m.NakAfter(min(fullPause*time.Duration(m.NumDelivered), longestFullPause))
	default:
		m.Abandon()
		d.lasting.Warn("notification not settled; it comes again", append(fields(m), zap.Error(err))...)
	}
}

// fullPause is how long a delivery that no stream has room for waits in the broker, after its first time. It grows with
// each up to longestFullPause.
const fullPause, longestFullPause = 10 * time.Second, 10 * time.Minute

// conflictPause is how soon a notification that met a conflict is looked at again.
const conflictPause = 100 * time.Millisecond

// isolate sets a notification aside whose handling panics, so that it takes nothing else down: at once
// quarantined (its bytes in QUARANTINE), permanently failed with internal_error, and kept for a resend.
func (d *Dispatcher) isolate(ctx context.Context, m *lane.Delivery) {
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
	d.giveUp(ctx, m, fmt.Sprint("panic: ", cause))
}

// giveUp ends a notification that cannot be handled, unless the journal says that it has ended.
func (d *Dispatcher) giveUp(ctx context.Context, m *lane.Delivery, why string) {
	last, err := d.lastRecord(ctx, &m.Notification)
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	next := notification.Resume(&m.Notification, d.received(m), last, time.Now())
	if next.Step == notification.StepSettle || next.Step == notification.StepKeepFailed { // another dispatcher was faster
		d.carryOut(ctx, m, next)
		return
	}
	d.quarantine(ctx, m, next.Position, why)
}

// panicsBeforeQuarantine: the first panics may have been bad luck.
const panicsBeforeQuarantine = 3

// quarantine ends a notification that cannot be handled, on top of its position.
func (d *Dispatcher) quarantine(ctx context.Context, m *lane.Delivery, position notification.Position, why string) {
	if err := m.SetAside(ctx, string(delivery.InternalError), why); err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	d.metrics.quarantined.Inc()
	d.end(ctx, m, d.record(m, nil, position, notification.KindFailed), string(delivery.InternalError))
}
