// Package notification is the duty to notify one webhook of one event: its message between the services,
// its states and its journal.
//
// The journal (stream ATTEMPTS, one subject per notification) is what decides. Each record holds the state
// after it and how many attempts of this send are used up, and is written only on top of the record before
// it (compare-and-set by the subject's last sequence). So two dispatchers that hold the same notification
// after a stall cannot both record, a notification ends once per send, and a count that a crash or the
// broker got wrong is put right from the last record.
package notification

import (
	"time"

	"gancho/pkg/delivery"
)

// MaxAttempts of one send: the first and 5 retries (RD Station CRM, "Webhooks").
const MaxAttempts = 6

// State of a notification.
type State string

// The states. Each send ends in exactly one terminal state.
const (
	Pending           State = "pending"
	Retrying          State = "retrying"
	Parked            State = "parked"
	Delivered         State = "delivered"
	PermanentlyFailed State = "permanently_failed"
	Cancelled         State = "cancelled"
)

// States returns the closed list.
func States() []State {
	return []State{Pending, Retrying, Parked, Delivered, PermanentlyFailed, Cancelled}
}

// Terminal reports whether a send ends with s.
func (s State) Terminal() bool {
	return s == Delivered || s == PermanentlyFailed || s == Cancelled
}

// Reasons a notification is parked for. Only notifications parked as suspended expire.
const (
	Suspended = "suspended"
	Disabled  = "disabled"
	Saturated = "saturated"
)

// Superseded is the reason of a cancelled notification that a later event of its document has made stale.
const Superseded = "superseded"

// Notification is what travels between the lanes. Body is the event's bytes; with Ref they are stored elsewhere, and
// Body is empty until someone fetches them.
type Notification struct {
	Account, ID, WebhookID string
	EventID, EventName     string
	EventSequence          uint64    // in CRM_EVENTS
	EventTime              time.Time // when the broker stored the event
	Send                   int       // from 1; a resend or replay opens the next
	AttemptsDone           int       // of this send, before this message was published
	Moves                  int       // how often it moved between streams
	Journal                uint64    // sequence of its last journal record; 0 when it has none
	RefusedAt              time.Time // when PARKED refused it, on RETRIES while it waits there for room; zero: it did not
	Replay                 string    // id of the replay that sent it, else ""
	Traceparent            string
	Body                   []byte
	Ref                    *Reference // nil: the message carries the body
}

// Kind is the kind of a journal record.
type Kind string

// The kinds of records.
const (
	KindAttempt   Kind = "attempt"   // one HTTP request and its consequence
	KindParked    Kind = "parked"    // set aside
	KindCancelled Kind = "cancelled" // its webhook was deleted, or it was superseded
	KindFailed    Kind = "failed"    // ended without an attempt: internal_error
	KindExpired   Kind = "expired"   // ended without an attempt: expired_while_suspended
	KindErased    Kind = "erased"    // had ended; its answers were erased, its state is unchanged
)

// ReasonErased is the reason of the last record of a notification whose event and answers were erased.
const ReasonErased = "erased"

// Record is one entry of the journal.
type Record struct {
	Schema         int       `json:"schema"` // see gancho/pkg/wireversion
	Kind           Kind      `json:"kind"`
	At             time.Time `json:"at"`
	Account        string    `json:"account_id"`
	WebhookID      string    `json:"webhook_id"`
	NotificationID string    `json:"notification_id"`
	EventID        string    `json:"event_id"`
	EventName      string    `json:"event_name"`
	EventSequence  uint64    `json:"event_sequence"`
	URLKey         string    `json:"url_key,omitempty"`
	URLHost        string    `json:"url_host,omitempty"`
	Send           int       `json:"send"`
	AttemptsDone   int       `json:"attempts_done"` // of this send, this record's attempt included
	State          State     `json:"state"`         // after this record
	Reason         string    `json:"reason,omitempty"`
	NextAttemptAt  time.Time `json:"next_attempt_at,omitzero"`
	Previous       uint64    `json:"previous,omitempty"` // sequence of the record before it
	Earlier        []byte    `json:"earlier,omitempty"`  // records before it, see Follow
	Moves          int       `json:"hop,omitempty"`      // of the message the record is about
	Replay         string    `json:"replay,omitempty"`
	Probe          bool      `json:"probe,omitempty"` // the attempt was the probe of a suspended URL
	Trip           string    `json:"trip,omitempty"`  // of the suspension it probed
	Attempt        *Attempt  `json:"attempt,omitempty"`
	// Newer is the id of the event that made the notification stale, of a record with the reason Superseded.
	Newer string `json:"newer,omitempty"`

	// Sequence is where the record stands in the journal; it is known when it was read.
	Sequence uint64 `json:"-"`
}

// Attempt is one HTTP request as the journal, the API and the tail show it. Secrets are masked.
type Attempt struct {
	Number          int               `json:"number"` // 1..6
	Send            int               `json:"send"`
	StartedAt       time.Time         `json:"started_at"`
	Outcome         string            `json:"outcome"` // delivered or failed
	Reason          delivery.Reason   `json:"reason,omitempty"`
	HTTPStatus      int               `json:"http_status,omitempty"`
	Detail          string            `json:"detail,omitempty"` // one sentence with the cause
	DurationMS      float64           `json:"duration_ms"`
	Phases          PhasesMS          `json:"phases_ms"`
	RetryAfterMS    float64           `json:"retry_after_ms,omitempty"` // as the receiver asked
	RequestHeaders  map[string]string `json:"request_headers,omitempty"`
	ResponseHeaders map[string]string `json:"response_headers,omitempty"`
	ResponseBody    string            `json:"response_body,omitempty"` // first 4 KiB, as text
	// ResponseBase64 replaces ResponseBody when the body is not UTF-8.
	ResponseBase64 []byte `json:"response_body_base64,omitempty"`
}

// PhasesMS is where an attempt's time went, in milliseconds; a phase that did not happen (a kept
// connection) is 0.
type PhasesMS struct {
	DNS       float64 `json:"dns"`
	Connect   float64 `json:"connect"`
	TLS       float64 `json:"tls"`
	FirstByte float64 `json:"first_byte"`
}

// Outcomes of an attempt.
const (
	OutcomeDelivered = "delivered"
	OutcomeFailed    = "failed"
)
