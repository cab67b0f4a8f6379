package bus

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

// encode writes n as a message for subject with the given message id.
func encode(n *notification.Notification, subject, msgID string) *nats.Msg {
	h := nats.Header{
		topology.HeaderSchema:       {strconv.Itoa(schema.Newest)},
		topology.HeaderAccount:      {n.Account},
		topology.HeaderEventName:    {n.EventName},
		topology.HeaderEventID:      {n.EventID},
		topology.HeaderEventSeq:     {strconv.FormatUint(n.EventSequence, 10)},
		topology.HeaderEventTime:    {strconv.FormatInt(n.EventTime.UnixMilli(), 10)},
		topology.HeaderWebhookID:    {n.WebhookID},
		topology.HeaderNotification: {n.ID},
		topology.HeaderSend:         {strconv.Itoa(n.Send)},
		nats.MsgIdHdr:               {msgID},
	}
	if n.AttemptsDone > 0 {
		h[topology.HeaderAttemptsDone] = []string{strconv.Itoa(n.AttemptsDone)}
	}
	if n.Hop > 0 {
		h[topology.HeaderHop] = []string{strconv.Itoa(n.Hop)}
	}
	if n.Journal > 0 {
		h[topology.HeaderJournal] = []string{strconv.FormatUint(n.Journal, 10)}
	}
	if n.Replay != "" {
		h[topology.HeaderReplay] = []string{n.Replay}
	}
	if n.Traceparent != "" {
		h[topology.HeaderTraceparent] = []string{n.Traceparent}
	}
	extend(h, n.ID)
	return &nats.Msg{Subject: subject, Header: h, Data: n.Body}
}

// decode reads a message that encode wrote. Nothing in it is trusted beyond its form: the registry rules
// over the destination. What a newer version wrote comes with schema.ErrNewer, read as far as this version
// knows it.
func decode(h nats.Header, body []byte) (notification.Notification, error) {
	get := func(key string) string {
		if v := h[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	var bad error
	number := func(key string, low, high int64) int64 {
		s := get(key)
		if s == "" && low <= 0 {
			return 0
		}
		v, err := strconv.ParseInt(s, 10, 64)
		if (err != nil || v < low || v > high) && bad == nil {
			bad = fmt.Errorf("header %s is not a number from %d to %d", key, low, high)
		}
		return v
	}
	version, err := strconv.Atoi(get(topology.HeaderSchema))
	if err != nil || version < 1 {
		return notification.Notification{}, fmt.Errorf("header %s is missing or not a version", topology.HeaderSchema)
	}
	n := notification.Notification{
		Account: get(topology.HeaderAccount), ID: get(topology.HeaderNotification), WebhookID: get(topology.HeaderWebhookID),
		EventID: get(topology.HeaderEventID), EventName: get(topology.HeaderEventName),
		EventSequence: uint64(number(topology.HeaderEventSeq, 0, 1<<62)), //nolint:gosec // not negative, number sees to it
		EventTime:     time.UnixMilli(number(topology.HeaderEventTime, 0, 1<<52)),
		Send:          int(number(topology.HeaderSend, 1, 1<<30)),
		AttemptsDone:  int(number(topology.HeaderAttemptsDone, 0, notification.MaxAttempts-1)),
		Hop:           int(number(topology.HeaderHop, 0, 1<<30)),
		Journal:       uint64(number(topology.HeaderJournal, 0, 1<<62)), //nolint:gosec // as above
		Replay:        get(topology.HeaderReplay),
		Traceparent:   event.Traceparent(get(topology.HeaderTraceparent)),
		Body:          body,
	}
	if err := schema.Check(version); err != nil {
		return n, err
	}
	if bad != nil {
		return n, bad
	}
	webhookID, err := uuid.Parse(n.WebhookID)
	switch {
	case err != nil:
		return n, fmt.Errorf("header %s is not a UUID", topology.HeaderWebhookID)
	case !event.ValidAccount(n.Account):
		return n, fmt.Errorf("header %s is not an account id", topology.HeaderAccount)
	case !event.ValidName(n.EventName):
		return n, fmt.Errorf("header %s is not an event name", topology.HeaderEventName)
	case n.Replay != "" && uuid.Validate(n.Replay) != nil:
		return n, fmt.Errorf("header %s is not a UUID", topology.HeaderReplay) // it becomes a header of the request
	case n.ID != event.NotificationID(n.EventID, webhookID):
		return n, fmt.Errorf("header %s is not the id of this event for this webhook", topology.HeaderNotification)
	}
	return n, extended(h, version)
}

// Started is a publish that has not been waited for.
type Started struct{ p *pending }

// Wait returns once the broker stored the message; see the package's guarantees.
func (s Started) Wait(ctx context.Context) error {
	_, err := s.p.wait(ctx)
	return err
}

// Notify starts storing n for its first attempt. Its message id is <notification>:<send>: the same
// notification again within the duplicate window is stored once.
func (b *Bus) Notify(n *notification.Notification) Started {
	m := encode(n, topology.SubjectNotification(n.Account, n.ID), n.ID+":"+strconv.Itoa(n.Send))
	return Started{b.start(topology.Notifications, m)}
}

// hopID is the message id of a move: one for each step of a notification's way, so a move repeated after
// a crash is recognised and a later one is not.
func hopID(n *notification.Notification) string {
	return n.ID + ":" + strconv.Itoa(n.Send) + ":" + strconv.Itoa(n.Hop)
}

// ScheduleRetry stores n on RETRIES to be delivered at that time, at once when it has passed. n.Hop must be one more than that of the
// message it comes from.
func (b *Bus) ScheduleRetry(ctx context.Context, n *notification.Notification, at time.Time) error {
	_, err := b.publish(ctx, topology.Retries, scheduled(n, at))
	return err
}

// scheduled returns the message of ScheduleRetry.
func scheduled(n *notification.Notification, at time.Time) *nats.Msg {
	m := encode(n, topology.SubjectRetryAt(n.Account, n.ID), hopID(n))
	if now := time.Now(); at.Before(now) {
		at = now
	}
	m.Header["Nats-Schedule"] = []string{"@at " + at.UTC().Format(time.RFC3339Nano)}
	m.Header["Nats-Schedule-Target"] = []string{topology.SubjectRetryDue(n.Account, n.WebhookID, n.ID)}
	return m
}

// Park starts storing n on PARKED in a lane: the key of its URL, or LaneDisabled. n.Hop as in
// ScheduleRetry. What is started in order is stored in order.
func (b *Bus) Park(n *notification.Notification, lane string) Started {
	return Started{b.start(topology.Parked, encode(n, topology.SubjectParked(n.Account, lane, n.WebhookID), hopID(n)))}
}

// Fail stores the payload of a notification that ended permanently failed, with a summary of its attempts
// as JSON. Storing it again within the duplicate window changes nothing.
func (b *Bus) Fail(ctx context.Context, n *notification.Notification, summary string) error {
	m := encode(n, topology.SubjectFailed(n.Account, n.WebhookID, n.ID), n.ID+":"+strconv.Itoa(n.Send))
	m.Header["Gancho-Attempts"] = []string{summary}
	_, err := b.publish(ctx, topology.Failed, m)
	return err
}
