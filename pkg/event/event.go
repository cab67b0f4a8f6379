// Package event parses the events of the CRM, gives each its id and rejects messages that cannot be events.
//
// An event is immutable: its body is kept as the bytes the CRM wrote and never encoded again, so number
// formats, key order, white space and unknown fields reach the receiver unchanged. Of the body only
// event_name, transaction_uuid and document.id are read, with exact, case-sensitive names. A body that has one
// of the first two twice is refused, because receivers read one of them and Gancho might read the other; where
// any other name stands twice, the first counts.
//
// A CloudEvents message in structured mode wraps the event: the event is the bytes of its member data.
package event

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/tidwall/gjson"
)

// Stream is the name of the stream that holds the events, part of an event's identity when the CRM gave
// it no other.
const Stream = "CRM_EVENTS"

// SubjectPrefix begins the subject of every event: crm.events.<account_id>.<event_name>.
const SubjectPrefix = "crm.events."

// Headers that a publisher of events may set.
const (
	HeaderMsgID       = "Nats-Msg-Id"
	HeaderCEID        = "ce-id"
	HeaderCEType      = "ce-type"
	HeaderContentType = "Content-Type" // only application/cloudevents+json changes how the body is read
	HeaderTraceparent = "traceparent"
	// HeaderChanged lists the paths below document that the change touched, separated by commas.
	HeaderChanged = "Gancho-Changed"
	// HeaderOrigin names who caused the change, such as an integration: [A-Za-z0-9_.:-]{1,128}.
	HeaderOrigin = "Gancho-Origin"
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
	ID       string // UUIDv5, see ID
	Account  string // account_id of the subject
	Name     string // event_name of the subject
	Body     []byte // the payload, byte for byte
	Sequence uint64 // in CRM_EVENTS
	// Transaction is the body's transaction_uuid and Document its document.id as text, empty when it has none.
	Transaction, Document string
	// Changed are the paths of the header Gancho-Changed, and Origin is that of Gancho-Origin; both are empty
	// when the CRM did not send them. Receivers do not get them.
	Changed []string
	Origin  string
	// Traceparent is the W3C trace context that came along, empty when there is none or it is malformed.
	Traceparent string

	ceID string
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
	// MaxBytes is how many bytes an event may have, EVENT_MAX_BYTES, its wrapper not counted; 0: no limit.
	MaxBytes int
}

var (
	account     = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	name        = regexp.MustCompile(`^crm_[a-z0-9_]{1,60}$`)
	transaction = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)
	origin      = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,128}$`)
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

// Parse turns a message of the event stream into an Event. The subject rules: a body without event_name is
// accepted; one with another name is not, nor is another ce-type. It never changes m.Body.
func Parse(m Message) (Event, *Rejected) {
	acct, evName, ok := splitSubject(m.Subject)
	if !ok {
		return Event{}, &Rejected{BadSubject, "the subject is not crm.events.<account_id>.<event_name>"}
	}
	// A wrapper may exceed the limit of the event in it, by no more than the broker reserves for headers.
	if m.MaxBytes > 0 && len(m.Body) > m.MaxBytes+Headroom {
		return Event{}, tooLarge(len(m.Body), m.MaxBytes)
	}
	outer, rejected := parseObject(m.Body)
	if rejected != nil {
		return Event{}, rejected
	}
	e := envelope{
		body: m.Body, members: outer, ceID: m.Header(HeaderCEID), ceType: m.Header(HeaderCEType),
		traceparent: m.Header(HeaderTraceparent),
	}
	if wrapped(m.Header, outer) {
		if e, rejected = unwrap(e); rejected != nil {
			return Event{}, rejected
		}
	}
	if m.MaxBytes > 0 && len(e.body) > m.MaxBytes {
		return Event{}, tooLarge(len(e.body), m.MaxBytes)
	}
	if n := e.eventName; n.Exists() && (n.Type != gjson.String || n.Str != evName) {
		return Event{}, &Rejected{
			EventNameMismatch, fmt.Sprintf("event_name of the body is not %q as in the subject", evName),
		}
	}
	for _, t := range []string{e.ceType, m.Header(HeaderCEType)} {
		if t != "" && t != evName {
			return Event{}, &Rejected{
				EventNameMismatch, "the CloudEvents type is another event's name than the subject's",
			}
		}
	}
	if t := e.transaction; t.Exists() && (t.Type != gjson.String || !transaction.MatchString(t.Str)) {
		return Event{}, &Rejected{
			BadTransactionUUID, "transaction_uuid must be a string of 1 to 128 characters of [A-Za-z0-9_-]",
		}
	}
	ev := Event{
		Account: acct, Name: evName, Body: e.body, Sequence: m.Sequence,
		Transaction: strings.Clone(e.transaction.Str), Document: documentID(e.document),
		Changed: Changed(m.Header(HeaderChanged)), Origin: Origin(m.Header(HeaderOrigin)),
		Traceparent: Traceparent(e.traceparent), ceID: e.ceID,
	}
	key := cmp.Or(ev.key(), e.ceID, m.Header(HeaderMsgID))
	if key == "" {
		key = Stream + "/" + strconv.FormatUint(m.Sequence, 10)
	}
	ev.ID = ID(acct, evName, key)
	return ev, nil
}

func tooLarge(bytes, most int) *Rejected {
	return &Rejected{NotObject, fmt.Sprintf("the body has %d bytes, more than EVENT_MAX_BYTES (%d)", bytes, most)}
}

// Headroom is how many bytes a stored event may exceed EVENT_MAX_BYTES by, for its headers and for the wrapper
// of CloudEvents: the broker counts all of it together. It fits the longest Nats-Msg-Id that is recommended
// and the optional headers at their usual lengths.
const Headroom = 4 << 10

// key returns the part of the event's identity that its body gives, "" without a transaction_uuid: one bulk
// change touches many documents under one transaction, so document.id is part of it.
func (e *Event) key() string {
	if e.Transaction == "" || e.Document == "" {
		return e.Transaction
	}
	return e.Transaction + "/" + e.Document
}

// IDs returns the ids that records may know the event by: its own, and for an event with a document the one
// without it, which records of versions before 1.0 have.
func (e *Event) IDs() []string {
	if e.Transaction == "" || e.Document == "" {
		return []string{e.ID}
	}
	return []string{e.ID, ID(e.Account, e.Name, e.Transaction)}
}

// Is reports whether id is one of [Event.IDs].
func (e *Event) Is(id string) bool { return slices.Contains(e.IDs(), id) }

// MsgID returns the message id under which the broker recognises the event when it is published again:
// <account_id>:<event_name>:<transaction_uuid>:<document_id>, with the CloudEvents id instead of the last two
// where there is no transaction_uuid, and "" where there is neither. An id that a header cannot carry as it
// stands, or that could be taken for another event's, is replaced by the event's id.
func (e *Event) MsgID() string {
	prefix := e.Account + ":" + e.Name + ":"
	switch {
	case e.Transaction != "" && e.Document == "":
		return prefix + e.Transaction
	case e.Transaction != "" && plain.MatchString(e.Document):
		return prefix + e.Transaction + ":" + e.Document
	case e.Transaction == "" && e.ceID == "":
		return ""
	case e.Transaction == "" && plain.MatchString(e.ceID) && !strings.Contains(e.ceID, ":"):
		return prefix + e.ceID
	}
	return prefix + e.ID
}

var plain = regexp.MustCompile(`^[!-~]{1,128}$`)

// Origin returns s when it can be the value of the header Gancho-Origin, else "".
func Origin(s string) string {
	if !origin.MatchString(s) {
		return ""
	}
	return s
}

// Changed returns the paths in the value of the header Gancho-Changed, without the empty ones.
func Changed(s string) []string {
	if s == "" {
		return nil
	}
	var paths []string
	for p := range strings.SplitSeq(s, ",") {
		if p = strings.TrimSpace(p); p != "" {
			paths = append(paths, p)
		}
	}
	return paths
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

// idSpace is the namespace of event ids.
var idSpace = uuid.MustParse("6f1c1c5e-5d0e-5a0b-9f0a-0b6f6c1d7a11")

// ID returns the event id: UUIDv5 of <account_id>/<event_name>/<key>, where key is the body's transaction_uuid
// followed by /<document.id> when the body has one, else ce-id, else Nats-Msg-Id, else <stream>/<sequence>.
// Account and name are part of it because one change in the CRM can raise two events with one
// transaction_uuid, and two accounts may use the same one.
func ID(accountID, eventName, key string) string {
	return uuid.NewSHA1(idSpace, []byte(accountID+"/"+eventName+"/"+key)).String()
}

// NotificationID returns the id of an event's notification for a webhook: UUIDv5 of the event id in the
// namespace of the webhook id. It is deterministic, so no crash can create a second one.
// Both must be UUIDs; it panics on anything else, which only a bug of ours can pass.
func NotificationID(eventID string, webhookID uuid.UUID) string {
	return uuid.NewSHA1(webhookID, []byte(eventID)).String()
}
