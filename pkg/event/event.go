// Package event defines what one event of the CRM is, names it and refuses what cannot be one.
//
// An event is immutable: its body is kept as the bytes the CRM wrote and never encoded again, so number
// formats, key order, white space and unknown fields reach the receiver unchanged. Only two fields of the
// body are read, event_name and transaction_uuid, with exact, case-sensitive names; where a key stands
// twice the first one counts.
package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/tidwall/gjson"
)

// Stream is the name of the stream that holds the events, part of an event's identity when the CRM gave
// it no other.
const Stream = "CRM_EVENTS"

// SubjectPrefix is what every event subject starts with: crm.events.<account_id>.<event_name>.
const SubjectPrefix = "crm.events."

// Headers that a publisher of events may set.
const (
	HeaderMsgID       = "Nats-Msg-Id"
	HeaderCEID        = "ce-id"
	HeaderCEType      = "ce-type"
	HeaderTraceparent = "traceparent"
)

// Reason says why a message cannot be an event. The list is closed; the words are those of the header
// Gancho-Reason on the REJECTED_EVENTS stream.
type Reason string

// The reasons, in the order in which they are looked for.
const (
	BadSubject         Reason = "bad_subject"
	NotObject          Reason = "not_object"
	BadJSON            Reason = "bad_json"
	EventNameMismatch  Reason = "event_name_mismatch"
	BadTransactionUUID Reason = "bad_transaction_uuid"
)

// Reasons returns the closed list, for metrics that start at zero.
func Reasons() []Reason {
	return []Reason{BadSubject, NotObject, BadJSON, EventNameMismatch, BadTransactionUUID}
}

// Event is one thing that happened in the CRM.
type Event struct {
	ID       string // UUIDv5, see identify
	Account  string // account_id of the subject
	Name     string // event_name of the subject
	Body     []byte // the payload, byte for byte
	Sequence uint64 // in CRM_EVENTS
	// Traceparent is the W3C trace context the CRM sent along, empty when there is none or it is malformed.
	Traceparent string
}

// Rejected says that a message is not an event, and why. Detail is for people and holds no payload.
type Rejected struct {
	Reason Reason
	Detail string
}

func (r *Rejected) Error() string { return string(r.Reason) + ": " + r.Detail }

// Message is an event as it stands in a stream.
type Message struct {
	Subject  string
	Header   func(key string) string // the first value of a header, "" when missing
	Body     []byte
	Sequence uint64
	// MaxBytes is how large the body of an event may be, EVENT_MAX_BYTES; 0: it was looked at before.
	MaxBytes int
}

var (
	account     = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	name        = regexp.MustCompile(`^crm_[a-z0-9_]{1,60}$`)
	transaction = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)
)

// ValidAccount reports whether s is a well-formed account_id: [A-Za-z0-9_-]{1,64}.
func ValidAccount(s string) bool { return account.MatchString(s) }

// ValidName reports whether s is a well-formed event_name: crm_<entity>_<action> in [a-z0-9_], at most
// 64 characters. It need not be a known one.
func ValidName(s string) bool {
	if !name.MatchString(s) {
		return false
	}
	entity, action, ok := strings.Cut(s[len("crm_"):], "_")
	return ok && entity != "" && action != ""
}

// Subject returns the subject on which the account's event of that name is published.
func Subject(accountID, eventName string) string {
	return SubjectPrefix + accountID + "." + eventName
}

// Parse turns a message of the event stream into an Event. The subject rules: a body without event_name
// is accepted, one with another name is not, nor a differing ce-type. It never changes m.Body.
func Parse(m Message) (Event, *Rejected) {
	acct, evName, ok := splitSubject(m.Subject)
	if !ok {
		return Event{}, &Rejected{BadSubject, "the subject is not crm.events.<account_id>.<event_name>"}
	}
	if m.MaxBytes > 0 && len(m.Body) > m.MaxBytes {
		return Event{}, &Rejected{NotObject, fmt.Sprintf("the body has %d bytes, more than EVENT_MAX_BYTES (%d)", len(m.Body), m.MaxBytes)}
	}
	if rejected := checkBody(m.Body, evName); rejected != nil {
		return Event{}, rejected
	}
	if t := m.Header(HeaderCEType); t != "" && t != evName {
		return Event{}, &Rejected{EventNameMismatch, "the ce-type header names another event than the subject"}
	}
	tx := gjson.GetBytes(m.Body, "transaction_uuid")
	if tx.Exists() && (tx.Type != gjson.String || !transaction.MatchString(tx.Str)) {
		return Event{}, &Rejected{BadTransactionUUID, "transaction_uuid must be a string of 1 to 128 characters of [A-Za-z0-9_-]"}
	}
	key := tx.Str
	if key == "" {
		key = m.Header(HeaderCEID)
	}
	if key == "" {
		key = m.Header(HeaderMsgID)
	}
	if key == "" {
		key = Stream + "/" + strconv.FormatUint(m.Sequence, 10)
	}
	return Event{
		ID: ID(acct, evName, key), Account: acct, Name: evName, Body: m.Body, Sequence: m.Sequence,
		Traceparent: Traceparent(m.Header(HeaderTraceparent)),
	}, nil
}

var traceparent = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// Traceparent returns s when it is a trace context (W3C Trace Context, version 00), else "": a malformed one
// is dropped and the trace begins with us. Other headers of a trace (tracestate, baggage) are not passed on.
func Traceparent(s string) string {
	if !traceparent.MatchString(s) || s[3:35] == "00000000000000000000000000000000" || s[36:52] == "0000000000000000" {
		return ""
	}
	return s
}

func splitSubject(subject string) (acct, evName string, ok bool) {
	rest, ok := strings.CutPrefix(subject, SubjectPrefix)
	if !ok {
		return "", "", false
	}
	acct, evName, ok = strings.Cut(rest, ".")
	return acct, evName, ok && ValidAccount(acct) && ValidName(evName)
}

// checkBody accepts one JSON object (white space around it allowed) whose event_name, if present, is
// eventName. encoding/json refuses nesting deeper than 10,000.
func checkBody(body []byte, eventName string) *Rejected {
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	switch {
	case len(trimmed) == 0:
		return &Rejected{NotObject, "the body is empty"}
	case !json.Valid(body):
		return &Rejected{BadJSON, "the body is not one well-formed JSON value"}
	case trimmed[0] != '{':
		return &Rejected{NotObject, "the body is JSON but not an object"}
	}
	if n := gjson.GetBytes(body, "event_name"); n.Exists() && (n.Type != gjson.String || n.Str != eventName) {
		return &Rejected{EventNameMismatch, fmt.Sprintf("event_name of the body is not %q as in the subject", eventName)}
	}
	return nil
}

// idSpace is the namespace of event ids.
var idSpace = uuid.MustParse("6f1c1c5e-5d0e-5a0b-9f0a-0b6f6c1d7a11")

// ID returns the event id: UUIDv5 of <account_id>/<event_name>/<key>, where key is the body's
// transaction_uuid, else ce-id, else Nats-Msg-Id, else <stream>/<sequence>. Account and name are part
// of it because one change in the CRM can raise two events with one transaction_uuid, and two accounts
// may use the same one.
func ID(accountID, eventName, key string) string {
	return uuid.NewSHA1(idSpace, []byte(accountID+"/"+eventName+"/"+key)).String()
}

// NotificationID returns the id of the notification that tells a webhook about an event: UUIDv5 of the
// event id in the namespace of the webhook id. It is deterministic, so no crash can create a second one.
// Both must be UUIDs; it panics on anything else, which only a bug of ours can pass.
func NotificationID(eventID string, webhookID uuid.UUID) string {
	return uuid.NewSHA1(webhookID, []byte(eventID)).String()
}
