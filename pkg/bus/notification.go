package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// encode returns n as a message for subject with the given message id.
func encode(n *notification.Notification, subject, msgID string) *nats.Msg {
	m := &nats.Msg{Subject: subject, Header: n.Header(), Data: n.Body}
	m.Header[nats.MsgIdHdr] = []string{msgID}
	return m
}

// Notify starts storing n for its first attempt. Its message id is <notification>:<send>: the same
// notification again within the duplicate window is stored once.
func (b *Bus) Notify(n *notification.Notification) *Started {
	m := encode(n, topology.SubjectNotification(n.Account, n.ID), n.SendID())
	return b.Start(topology.Notifications, m)
}

// ScheduleRetry stores n on RETRIES to be delivered at that time, at once when it has passed. n.Moves must be one more
// than that of the message it comes from. ErrFull says that the broker has no room.
func (b *Bus) ScheduleRetry(ctx context.Context, n *notification.Notification, at time.Time) error {
	return b.Offer(topology.Retries, scheduled(n, at)).Wait(ctx)
}

// scheduled returns the message of ScheduleRetry.
func scheduled(n *notification.Notification, at time.Time) *nats.Msg {
	m := encode(n, topology.SubjectRetryAt(n.Account, n.ID), n.MoveID())
	if now := time.Now(); at.Before(now) {
		at = now
	}
	m.Header["Nats-Schedule"] = []string{"@at " + at.UTC().Format(time.RFC3339Nano)}
	m.Header["Nats-Schedule-Target"] = []string{topology.SubjectRetryDue(n.Account, n.WebhookID, n.ID)}
	return m
}

// Park starts storing n on PARKED in a lane: the key of its URL, or LaneDisabled. n.Moves as in
// ScheduleRetry. Messages started in order are stored in order. Wait returns ErrFull when PARKED has no room.
func (b *Bus) Park(n *notification.Notification, lane string) *Started {
	return b.Offer(topology.Parked, encode(n, topology.SubjectParked(n.Account, lane, n.WebhookID), n.MoveID()))
}

// Fail stores the payload of a notification that ended permanently failed, with a summary of its attempts
// as JSON. Storing it again within the duplicate window changes nothing.
func (b *Bus) Fail(ctx context.Context, n *notification.Notification, summary string) error {
	m := encode(n, topology.SubjectFailed(n.Account, n.WebhookID, n.ID), n.SendID())
	m.Header[notification.HeaderAttempts] = []string{summary}
	_, err := b.Publish(ctx, topology.Failed, m)
	return err
}
