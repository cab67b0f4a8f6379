// Package lane moves notifications between the streams that carry them: NOTIFICATIONS for first attempts, RETRIES for
// scheduled ones, PARKED for those whose URL or webhook is suspended, and FAILED for the payloads of permanent
// failures.
//
// A message is stored on its next stream before it is acknowledged on the one before; its message id makes a repeated
// move harmless.
package lane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// message returns n as a message for the subject with that message id.
func message(n *notification.Notification, subject, msgID string) *nats.Msg {
	m := &nats.Msg{Subject: subject, Header: n.Header(), Data: n.Data()}
	m.Header[nats.MsgIdHdr] = []string{msgID}
	return m
}

// Notify starts storing n for its first attempt. The same send again within the duplicate window is stored once.
func Notify(b *bus.Bus, n *notification.Notification) *bus.Started {
	return b.Start(topology.Notifications, message(n, topology.SubjectNotification(n.Account, n.ID), n.SendID()))
}

// Schedule stores n on RETRIES for that time, at once when it has passed. n.Moves must be one more than that of the
// message it comes from. bus.ErrFull reports that the broker has no room.
func Schedule(ctx context.Context, b *bus.Bus, n *notification.Notification, at time.Time) error {
	return b.Offer(topology.Retries, scheduled(n, at)).Wait(ctx)
}

// Reschedule is Schedule for a repair: it reports whether the broker stored the message. If it did not, the same move
// had been stored before.
func Reschedule(ctx context.Context, b *bus.Bus, n *notification.Notification, at time.Time) (stored bool, err error) {
	ack, err := b.Publish(ctx, topology.Retries, scheduled(n, at))
	return err == nil && !ack.Duplicate, err
}

func scheduled(n *notification.Notification, at time.Time) *nats.Msg {
	m := message(n, topology.SubjectRetryAt(n.Account, n.ID), n.MoveID())
	if now := time.Now(); at.Before(now) {
		at = now
	}
	deliverAt(m, at, topology.SubjectRetryDue(n.Account, n.WebhookID, n.ID))
	return m
}

// deliverAt has the broker move m to the target subject at that time.
func deliverAt(m *nats.Msg, at time.Time, target string) {
	m.Header["Nats-Schedule"] = []string{"@at " + at.UTC().Format(time.RFC3339Nano)}
	m.Header["Nats-Schedule-Target"] = []string{target}
}

// Park starts storing n on PARKED in a lane: the key of its URL, or notification.LaneDisabled. n.Moves counts as in
// Schedule. Messages started in order are stored in order, but those that were attempted before are taken out first.
// Wait returns bus.ErrFull when PARKED has no room.
func Park(b *bus.Bus, n *notification.Notification, lane string) *bus.Started {
	return b.Offer(topology.Parked, message(n, subjectOf(n, lane), n.MoveID()))
}

// Fail stores the payload of a permanently failed notification, with a summary of its attempts as JSON. The same send
// again within the duplicate window is stored once.
func Fail(ctx context.Context, b *bus.Bus, n *notification.Notification, summary string) error {
	m := message(n, topology.SubjectFailed(n.Account, n.WebhookID, n.ID), n.SendID())
	m.Header[notification.HeaderAttempts] = []string{summary}
	_, err := b.Publish(ctx, topology.Failed, m)
	return err
}

// Pending returns the newest message of the notification on NOTIFICATIONS, bus.ErrNotFound when there is none. A
// message of a newer version comes with wireversion.ErrNewer and the fields this version knows.
func Pending(ctx context.Context, b *bus.Bus, account, id string) (*notification.Notification, error) {
	return read(ctx, b, topology.Notifications, topology.SubjectNotification(account, id))
}

// Failed returns the kept payload of a permanently failed notification, with errors as Pending.
func Failed(ctx context.Context, b *bus.Bus, account, webhook, id string) (*notification.Notification, error) {
	return read(ctx, b, topology.Failed, topology.SubjectFailed(account, webhook, id))
}

func read(ctx context.Context, b *bus.Bus, stream, subject string) (*notification.Notification, error) {
	raw, err := b.Last(ctx, stream, subject)
	if err != nil {
		return nil, err
	}
	n, err := notification.Decode(raw.Header, raw.Data)
	if err != nil {
		return &n, fmt.Errorf("read from %s: %w", stream, err)
	}
	return &n, nil
}

// Settled returns the sequence of NOTIFICATIONS up to which the dispatchers have settled everything, 0 when they never
// ran.
func Settled(ctx context.Context, b *bus.Bus) (uint64, error) {
	first, err := b.ConsumerState(ctx, topology.Durable{Stream: topology.Notifications, Name: topology.ConsumerFirst})
	if errors.Is(err, bus.ErrNotFound) {
		return 0, nil
	}
	return first.Settled, err
}
