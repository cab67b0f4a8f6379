package dispatcher

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/webhook"
)

// arrive takes a delivery in the order in which it came and returns the rest of the work, which may run at the same
// time as other deliveries. It does not wait: a notification that must be parked is on its way to PARKED when arrive
// returns, so the notifications of a URL keep their order there.
func (d *Dispatcher) arrive(ctx context.Context, m *lane.Delivery) func() {
	w := d.registry.Get(m.Account, m.WebhookID)
	if w == nil || !d.received(m).Trusted() {
		return func() { d.handle(ctx, m, permit{}) }
	}
	a := d.admit(m, w, permit{})
	if a.reason != "" && !d.waitedTooLong(m) {
		parking := d.startParking(m, a, m.Position())
		return func() { d.finishParking(ctx, m, parking) }
	}
	return func() { d.carryOn(ctx, m, m.Position(), a) }
}

// handle decides one notification that comes with a permit, or that arrive could not decide without waiting, and
// settles its delivery. It reports whether it made a request with the permit.
func (d *Dispatcher) handle(ctx context.Context, m *lane.Delivery, p permit) (attempted bool) {
	defer d.isolate(ctx, m)
	defer p.release()
	position, ok := d.resume(ctx, m)
	if !ok {
		return false
	}
	w, err := d.webhook(ctx, m)
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return false
	}
	return d.carryOn(ctx, m, position, d.admit(m, w, p))
}

// carryOn carries out the gate's decision on a notification, and settles its delivery. It reports whether it made a
// request with the permit that the gate was given.
//
// The order of the writes keeps a crash from losing a notification or ending it twice: first the request, then its
// record on top of the record before it, then the next message (a schedule, PARKED, FAILED), and the ack last. The next
// delivery repeats from the journal every write that was cut off.
func (d *Dispatcher) carryOn(ctx context.Context, m *lane.Delivery, position notification.Position, a admission) bool {
	defer d.isolate(ctx, m)
	defer func() { a.release() }()
	for a.slot.waiting() {
		if !a.slot.wait() {
			a.slot, a.reason = nil, notification.Saturated
			break
		}
		w, err := d.webhook(ctx, m) // it may have changed during the wait, and so may the suspension
		if err != nil {
			d.retryDelivery(ctx, m, err)
			return false
		}
		a = d.admit(m, w, a.permit)
	}
	switch {
	case a.webhook == nil:
		d.end(ctx, m, d.record(m, nil, position, notification.KindCancelled), "")
		return false
	case a.reason == notification.Suspended && d.waitedTooLong(m):
		d.end(ctx, m, d.record(m, nil, position, notification.KindExpired), string(delivery.ExpiredWhileSuspended))
		return false
	case a.reason != "":
		d.finishParking(ctx, m, d.startParking(m, a, position))
		return false
	}
	if !d.filled(ctx, m, position) {
		return false
	}
	request := d.unrecorded.begin(a.slot != nil && a.slot.near && a.turn == nil)
	defer request.recorded()
	for inTime := false; !inTime; inTime = a.turn.use() {
		if err := a.turn.wait(ctx); err != nil {
			d.missed(ctx, m, err)
			return false
		}
		newer, err := d.newer(ctx, m, a.webhook)
		if err != nil {
			d.wait(ctx, m, position, stalePause)
			return false
		}
		if newer != "" {
			r := d.record(m, nil, position, notification.KindCancelled)
			r.Newer = newer
			d.end(ctx, m, r, notification.Superseded)
			return false
		}
	}
	if !m.Ours() { // this process was frozen, or cut off: another one may have it
		return false
	}
	outcome, err := d.attempt(ctx, m, a.webhook, position)
	if err != nil {
		d.wait(ctx, m, position, keysPause)
		return false
	}
	request.answered()
	a.slot.finish(outcome.Delivered, outcome.Duration)
	d.conclude(ctx, m, position, a, outcome)
	return true
}

// wait has a notification come back after the pause. Nothing was sent and nothing is used up.
func (d *Dispatcher) wait(ctx context.Context, m *lane.Delivery, position notification.Position, pause time.Duration) {
	d.carryOut(ctx, m, notification.Decision{Step: notification.StepReschedule, Next: m.Retry(position), At: time.Now().Add(pause)})
}

// filled fetches the body of a notification that only refers to it. Without it the notification waits. One whose body
// is gone for good ends.
func (d *Dispatcher) filled(ctx context.Context, m *lane.Delivery, position notification.Position) bool {
	switch err := d.bodies.Fill(ctx, &m.Notification); {
	case err == nil:
		return true
	case errors.Is(err, bodies.ErrGone):
		d.giveUp(ctx, m, err.Error())
	default:
		d.lasting.Warn("a large event's body cannot be fetched: its notifications wait", append(fields(m), zap.Error(err))...)
		d.wait(ctx, m, position, bodyPause)
	}
	return false
}

// Pauses of a notification that cannot be sent now: its body cannot be fetched, it may be stale, its webhook's
// credentials do not open.
const (
	bodyPause  = 10 * time.Second
	stalePause = 5 * time.Second
	keysPause  = time.Minute
)

// missed leaves a notification to a later turn of its URL: it came too late for its own, and the next is far away or
// cannot be reserved.
func (d *Dispatcher) missed(ctx context.Context, m *lane.Delivery, err error) {
	if errors.Is(err, errFar) {
		m.NakAfter(longestTurn)
		return
	}
	d.retryDelivery(ctx, m, err)
}

// newer returns the id of the event that made a notification stale while it waited, "" when none did or its webhook
// does not care. On an error the notification may be stale, and must not be sent.
func (d *Dispatcher) newer(ctx context.Context, m *lane.Delivery, w *webhook.Webhook) (string, error) {
	if w.Stale != webhook.Skip || !m.Waited() {
		return "", nil
	}
	newest, err := d.latest.Newest(ctx, &m.Notification)
	if err != nil {
		d.lasting.Warn("the latest event of a document cannot be read: notifications that may be stale wait", append(fields(m), zap.Error(err))...)
		return "", err
	}
	if newest.Later(m.Place()) {
		return newest.EventID, nil
	}
	return "", nil
}

// waitedTooLong reports whether a notification that PARKED has refused ever since waits for its suspended URL longer
// than it may.
func (d *Dispatcher) waitedTooLong(m *lane.Delivery) bool {
	return m.NumDelivered == 1 && !m.RefusedAt.IsZero() && time.Since(m.RefusedAt) > d.cfg.ParkedMaxAge
}

// attempt makes the request. An error means that none was made: the webhook's credentials do not open,
// which is our fault and not the receiver's.
func (d *Dispatcher) attempt(ctx context.Context, m *lane.Delivery, w *webhook.Webhook, position notification.Position) (delivery.Outcome, error) {
	credentials, err := d.credentials.of(w, d.keys)
	if err != nil {
		d.lasting.Error("credentials do not open: their notifications wait", append(fields(m), zap.Error(err))...)
		return delivery.Outcome{}, err
	}
	d.metrics.inFlight.Inc()
	defer d.metrics.inFlight.Dec()
	outcome := d.sender.Send(ctx, delivery.Request{
		Method: w.Method, URL: w.URL, Body: m.Body, EventName: m.EventName, NotificationID: m.ID,
		Attempt: position.AttemptsDone + 1, Replay: m.Replay, EventTime: m.EventTime,
		AuthHeader: credentials.AuthHeader, AuthKey: credentials.AuthKey, Secrets: credentials.Secrets, Ed25519: credentials.Ed25519,
		OAuth2: credentials.oauth2, Identity: credentials.identity,
	})
	if credentials.identity != nil {
		d.clients.saw(m, w.Key(), webhook.URLHost(w.URL), credentials.identity.Certificate())
	}
	return outcome, nil
}

// conclude records the attempt, stores the next message, and acks.
func (d *Dispatcher) conclude(ctx context.Context, m *lane.Delivery, position notification.Position, a admission, o delivery.Outcome) {
	r := d.record(m, a.webhook, position, notification.KindAttempt)
	if a.probe != nil {
		r.Probe, r.Trip = true, a.probe.Trip
	}
	r.Attempted(describe(o, position.AttemptsDone+1, m.Send), func(retry int) time.Duration {
		return d.schedule.delay(retry, o.RetryAfter)
	})
	if o.Delivered && a.webhook.Stale == webhook.Skip { // before the record, which then means that older ones are stale
		if err := d.latest.Delivered(ctx, &m.Notification); err != nil {
			d.lasting.Warn("the latest event of a document is not written down: a stale notification may be sent", append(fields(m), zap.Error(err))...)
		}
	}
	var err error
	r.Sequence, err = d.recordAttempt(ctx, r)
	d.observe(m, r, o)
	d.traced(m, a.webhook, r, o)
	if err != nil {
		d.retryDelivery(ctx, m, err)
		return
	}
	d.carryOut(ctx, m, notification.Conclude(&m.Notification, d.received(m), r, d.crowded.Load()))
}

// resume returns where the notification stands, from the message's headers while they can be trusted, else from the
// journal. It carries out every other step that the journal demands, and then reports false.
func (d *Dispatcher) resume(ctx context.Context, m *lane.Delivery) (notification.Position, bool) {
	receipt := d.received(m)
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

// received returns how the broker handed out m. While streams are full, many deliveries of one message are no sign of
// crashes.
func (d *Dispatcher) received(m *lane.Delivery) notification.Receipt {
	r := notification.Receipt{Lane: m.Lane, NumDelivered: m.NumDelivered, Again: m.Again}
	if m.Lane != notification.LaneRetry && d.fullness.lately() {
		r.NumDelivered = 1
	}
	return r
}

// lastRecord returns the notification's newest record, nil when it has none.
func (d *Dispatcher) lastRecord(ctx context.Context, n *notification.Notification) (*notification.Record, error) {
	last, err := journal.Last(ctx, d.bus, n.Account, n.ID)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return last, nil
}
