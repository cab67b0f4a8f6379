package bodies

import (
	"context"
	"errors"
	"fmt"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// Above is the size in bytes above which an event's body is stored once, if the event is for more than one webhook.
// Below it a message of its own costs the broker more than the copies do.
const Above = 16 << 10

// ErrGone says that the bytes of an event are not kept any more.
var ErrGone = errors.New("the event's bytes are not kept any more: neither BODIES nor CRM_EVENTS has them as they were")

// Fetch returns the body of a notification, from where it is stored.
func Fetch(ctx context.Context, b *bus.Bus, n *notification.Notification) ([]byte, error) {
	if n.Ref == nil {
		return n.Body, nil
	}
	body, err := stored(ctx, b, n)
	if !errors.Is(err, bus.ErrNotFound) {
		return body, err
	}
	if n.EventSequence == 0 {
		return nil, ErrGone
	}
	e, err := eventstream.At(ctx, b, n.EventSequence)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("fetch a body: %w", err)
	}
	if ev, rejected := event.Parse(e.Message); rejected == nil && ev.Account == n.Account && n.Ref.Matches(ev.Body) {
		return ev.Body, nil
	}
	return nil, ErrGone
}

// stored returns a notification's body from BODIES, bus.ErrNotFound when no message there matches. Whoever may publish
// can have the broker answer onto the body's subject, see deploy/docs/threats.md: all messages there are looked at.
func stored(ctx context.Context, b *bus.Bus, n *notification.Notification) ([]byte, error) {
	subject := n.Ref.Subject(n.Account, n.EventID)
	raw, err := b.Last(ctx, topology.Bodies, subject)
	for next := uint64(1); err == nil && !n.Ref.Matches(raw.Data); next = raw.Sequence + 1 {
		if raw, err = b.Get(ctx, topology.Bodies, subject, next); err != nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("fetch a body: %w", err)
	}
	return raw.Data, nil
}

// Fill fetches the body of a notification that only refers to it. The notification still refers to it.
func Fill(ctx context.Context, b *bus.Bus, n *notification.Notification) error {
	if n.Ref == nil || len(n.Body) > 0 {
		return nil
	}
	body, err := Fetch(ctx, b, n)
	if err == nil {
		n.Body = body
	}
	return err
}

// Inline is Fill for a notification whose reference keeps nothing: its next message carries the body itself.
func Inline(ctx context.Context, b *bus.Bus, n *notification.Notification) error {
	if err := Fill(ctx, b, n); err != nil {
		return err
	}
	n.Ref = nil
	return nil
}
