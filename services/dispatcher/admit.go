package dispatcher

import (
	"context"
	"errors"

	"gancho/pkg/bus"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/webhook"
)

// permit is the right to make an attempt: a slot of its URL, or the claim of the probe of a suspended URL. Where the
// URL has a limit per minute, a turn belongs to it.
type permit struct {
	slot  *slot
	probe *mirror.Record // the suspension that the attempt probes
	turn  *turn
}

// release returns the unused slot and turn.
func (p permit) release() {
	p.slot.release()
	p.turn.release()
}

// admission is the gate's answer. Without a webhook the notification is cancelled, with a reason it is parked, else it
// is attempted once its slot is granted.
type admission struct {
	permit
	webhook *webhook.Webhook
	reason  string
}

// admit is the one gate before an attempt. It decides from the webhook, nil when it was deleted, from the URL's
// suspension, from the limits of URL and account, and from the backpressure of RETRIES. p is the permit that the
// notification comes with; parts of it that are of no use are released. It never waits.
func (d *Dispatcher) admit(m *lane.Delivery, w *webhook.Webhook, p permit) admission {
	a := admission{permit: p, webhook: w}
	if w == nil {
		return a
	}
	key := urlKey{m.Account, w.URLKey}
	if a.slot != nil && a.slot.key != key { // the webhook has another URL now
		a.slot.release()
		a.slot = nil
	}
	if a.probe != nil && a.probe.URLKey != w.URLKey {
		a.probe = nil
	}
	if a.turn != nil && a.turn.timetable.key != key.name() {
		a.turn.release()
		a.turn = nil
	}
	outOfTurn := a.turn == nil && (w.MaxPerMinute > 0 || d.registry.MaxPerMinute(key.account, key.url) > 0)
	if outOfTurn {
		a.slot.release() // it may come from the time before the limit
		a.slot = nil
	}
	switch {
	case w.Status == webhook.Disabled:
		a.reason = notification.Disabled
	case a.probe != nil:
	case d.suspended(key):
		a.reason = notification.Suspended
	case outOfTurn:
		a.reason = notification.Saturated
	case a.slot != nil:
	case m.Lane != notification.LaneRetry && d.backpressure.holds(m.Account):
		a.reason = notification.Saturated
	default:
		if a.slot = d.limiter.acquire(key, m.Size()); a.slot == nil {
			a.reason = notification.Saturated
		}
	}
	return a
}

// webhook returns the notification's webhook as the registry has it now, nil when it was deleted. The registry in
// memory may lag a few milliseconds behind the publisher's, so absence is believed only of the bucket itself.
func (d *Dispatcher) webhook(ctx context.Context, m *lane.Delivery) (*webhook.Webhook, error) {
	if w := d.registry.Get(m.Account, m.WebhookID); w != nil {
		return w, nil
	}
	w, err := d.registry.Fetch(ctx, m.Account, m.WebhookID)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	return w, err
}

func (d *Dispatcher) suspended(k urlKey) bool {
	_, yes := d.suspensions.Get(k.suspension())
	return yes
}
