package notification

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/event"
	"gancho/pkg/wireversion"
)

// Headers of a notification's message. The broker keeps the case in which they stand here.
const (
	HeaderSchema    = "Gancho-Schema"
	HeaderAccount   = "Gancho-Account"
	HeaderWebhookID = "Gancho-Webhook-Id"
	HeaderID        = "Gancho-Notification-Id"
	HeaderWaited    = "Gancho-Waited"   // how often the message waited for a newer version
	HeaderAttempts  = "Gancho-Attempts" // on FAILED: a summary of the send's attempts, as JSON
	HeaderBody      = "Gancho-Body"     // the length and the SHA-256 of a body that is stored on BODIES

	headerEventName = "Gancho-Event-Name"
	headerEventID   = "Gancho-Event-Id"
	headerEventSeq  = "Gancho-Event-Sequence"
	headerEventTime = "Gancho-Event-Time" // milliseconds since 1970
	// the nanoseconds below the millisecond; versions that miss them round down
	headerEventNanos   = "Gancho-Event-Nanos"
	headerSend         = "Gancho-Send"
	headerAttemptsDone = "Gancho-Attempts-Done"
	headerHop          = "Gancho-Hop"
	headerJournal      = "Gancho-Journal"
	headerRefusedAt    = "Gancho-Refused-At" // milliseconds since 1970
	headerReplay       = "Gancho-Replay"
	headerTraceparent  = "traceparent"
)

// SendID is the message id of a send on NOTIFICATIONS and FAILED. A resend has an id of its own, so the broker
// does not take it for a duplicate.
func (n *Notification) SendID() string { return n.ID + ":" + strconv.Itoa(n.Send) }

// MoveID is the message id of a move to RETRIES or PARKED. A move repeated after a crash has the same id, the next
// move another one.
func (n *Notification) MoveID() string { return n.SendID() + ":" + strconv.Itoa(n.Moves) }

// Header returns the header that carries n between the lanes; the body of the message is n.Data().
func (n *Notification) Header() map[string][]string {
	h := map[string][]string{
		HeaderSchema:    {strconv.Itoa(wireversion.Newest)},
		HeaderAccount:   {n.Account},
		HeaderWebhookID: {n.WebhookID},
		HeaderID:        {n.ID},
		headerEventName: {n.EventName},
		headerEventID:   {n.EventID},
		headerEventSeq:  {strconv.FormatUint(n.EventSequence, 10)},
		headerEventTime: {strconv.FormatInt(n.EventTime.UnixMilli(), 10)},
		headerSend:      {strconv.Itoa(n.Send)},
	}
	if below := n.EventTime.Nanosecond() % int(time.Millisecond); below > 0 {
		h[headerEventNanos] = []string{strconv.Itoa(below)}
	}
	if n.AttemptsDone > 0 {
		h[headerAttemptsDone] = []string{strconv.Itoa(n.AttemptsDone)}
	}
	if n.Moves > 0 {
		h[headerHop] = []string{strconv.Itoa(n.Moves)}
	}
	if n.Journal > 0 {
		h[headerJournal] = []string{strconv.FormatUint(n.Journal, 10)}
	}
	if !n.RefusedAt.IsZero() {
		h[headerRefusedAt] = []string{strconv.FormatInt(n.RefusedAt.UnixMilli(), 10)}
	}
	if n.Replay != "" {
		h[headerReplay] = []string{n.Replay}
	}
	if n.Traceparent != "" {
		h[headerTraceparent] = []string{n.Traceparent}
	}
	if n.Ref != nil {
		h[HeaderSchema], h[HeaderBody] = []string{strconv.Itoa(newestSchema)}, []string{n.Ref.String()}
	}
	extend(h, n.ID)
	return h
}

// Decode reads a message whose header Header wrote. It checks the form only: the registry decides where the
// notification goes. A message of a newer version comes with wireversion.ErrNewer and the fields this version knows.
func Decode(header map[string][]string, body []byte) (Notification, error) {
	h := fields{header: header}
	version, err := strconv.Atoi(h.text(HeaderSchema))
	if err != nil || version < 1 {
		return Notification{}, fmt.Errorf("header %s is missing or not a version", HeaderSchema)
	}
	eventTime := time.UnixMilli(h.number(headerEventTime, 0, 1<<52))
	n := Notification{
		Account: h.text(HeaderAccount), ID: h.text(HeaderID), WebhookID: h.text(HeaderWebhookID),
		EventID: h.text(headerEventID), EventName: h.text(headerEventName),
		EventSequence: uint64(h.number(headerEventSeq, 0, 1<<62)), //nolint:gosec // not negative, number sees to it
		EventTime:     eventTime.Add(time.Duration(h.number(headerEventNanos, 0, int64(time.Millisecond)-1))),
		Send:          int(h.number(headerSend, 1, 1<<30)),
		AttemptsDone:  int(h.number(headerAttemptsDone, 0, MaxAttempts-1)),
		Moves:         int(h.number(headerHop, 0, 1<<30)),
		Journal:       uint64(h.number(headerJournal, 0, 1<<62)), //nolint:gosec // as above
		Replay:        h.text(headerReplay),
		Traceparent:   event.Traceparent(h.text(headerTraceparent)),
		Body:          body,
	}
	if refused := h.number(headerRefusedAt, 0, 1<<52); refused > 0 {
		n.RefusedAt = time.UnixMilli(refused)
	}
	if s := h.text(HeaderBody); s != "" {
		if n.Ref, err = parseReference(s); err == nil && len(body) > 0 {
			err = errBoth
		}
	}
	if version > newestSchema {
		return n, wireversion.ErrNewer
	}
	if err != nil {
		return n, err
	}
	if h.bad != nil {
		return n, h.bad
	}
	webhookID, err := uuid.Parse(n.WebhookID)
	switch {
	case err != nil:
		return n, fmt.Errorf("header %s is not a UUID", HeaderWebhookID)
	case !event.ValidAccount(n.Account):
		return n, fmt.Errorf("header %s is not an account id", HeaderAccount)
	case !event.ValidName(n.EventName):
		return n, fmt.Errorf("header %s is not an event name", headerEventName)
	case n.Replay != "" && uuid.Validate(n.Replay) != nil:
		return n, fmt.Errorf("header %s is not a UUID", headerReplay) // it becomes a header of the request
	case n.ID != event.NotificationID(n.EventID, webhookID):
		return n, fmt.Errorf("header %s is not the id of this event for this webhook", HeaderID)
	}
	return n, extended(header, version)
}

var errBoth = errors.New("header " + HeaderBody + " refers to a body, and the message has one")

// fields reads the values of a header and keeps the first error.
type fields struct {
	header map[string][]string
	bad    error
}

// text returns a header's first value, "" when it has none.
func (f *fields) text(key string) string {
	if v := f.header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// number returns a header's value, which must lie between low and high. A header that is missing is 0 where low
// allows it.
func (f *fields) number(key string, low, high int64) int64 {
	s := f.text(key)
	if s == "" && low <= 0 {
		return 0
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if (err != nil || v < low || v > high) && f.bad == nil {
		f.bad = fmt.Errorf("header %s is not a number from %d to %d", key, low, high)
	}
	return v
}
