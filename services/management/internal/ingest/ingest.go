// Package ingest takes events in over HTTP, for a CRM without NATS.
package ingest

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/services/management/internal/problem"
)

// Service publishes events. It is safe for concurrent use.
type Service struct{ bus *bus.Bus }

// New returns a service.
func New(b *bus.Bus) *Service { return &Service{b} }

// Accepted is where an event was stored.
type Accepted struct {
	EventID   string `json:"event_id" format:"uuid"`
	Stream    string `json:"stream"`
	Sequence  uint64 `json:"sequence"`
	Duplicate bool   `json:"duplicate" doc:"the same event was accepted before, within the duplicate window; it is delivered once"`
}

// maxCEIDBytes limits the id that becomes part of a message id.
const maxCEIDBytes = 256

// Event is one to take in. Header returns a request header: ce-id, ce-type and traceparent are used.
type Event struct {
	Account, Name string
	Body          []byte // as the CRM wrote it; it is stored byte for byte
	Header        func(string) string
}

// Accept returns after the broker stored the event.
func (s *Service) Accept(ctx context.Context, e Event) (Accepted, error) {
	if !event.ValidName(e.Name) {
		return Accepted{}, problem.New(http.StatusUnprocessableEntity, "bad_event_name", "the event name in the path must be crm_<entity>_<action> in [a-z0-9_], at most 64 characters")
	}
	if len(e.Header(event.HeaderCEID)) > maxCEIDBytes {
		return Accepted{}, problem.New(http.StatusUnprocessableEntity, "bad_ce_id", "the header ce-id is longer than 256 bytes")
	}
	m := event.Message{Subject: event.Subject(e.Account, e.Name), Body: e.Body, Header: e.Header}
	parsed, rejected := event.Parse(m)
	if rejected != nil {
		return Accepted{}, refused(rejected)
	}
	ce := e.Header(event.HeaderCEID)
	headers := map[string]string{}
	for name, value := range map[string]string{event.HeaderCEID: ce, event.HeaderTraceparent: parsed.Traceparent} {
		if value != "" {
			headers[name] = value
		}
	}
	// The broker compares message ids of all accounts, so the id names account and event too.
	key, msgID := cmp.Or(event.TransactionUUID(e.Body), ce), ""
	if key != "" {
		msgID = e.Account + ":" + e.Name + ":" + key
	}
	at, err := s.bus.PublishEvent(ctx, m.Subject, msgID, headers, e.Body)
	switch {
	case errors.Is(err, bus.ErrTooLarge):
		return Accepted{}, problem.New(http.StatusRequestEntityTooLarge, "too_large", "the event is larger than the broker accepts")
	case err != nil:
		return Accepted{}, problem.Unavailable("broker_unavailable", "the message broker did not acknowledge the event; send it again (with a transaction_uuid it is delivered once)", err)
	}
	id := parsed.ID // what the publisher will call it
	if key == "" {
		id = event.ID(e.Account, e.Name, event.Stream+"/"+strconv.FormatUint(at.Sequence, 10))
	}
	return Accepted{EventID: id, Stream: at.Stream, Sequence: at.Sequence, Duplicate: at.Duplicate}, nil
}

func refused(r *event.Rejected) error {
	switch r.Reason {
	case event.EventNameMismatch:
		return problem.At(http.StatusUnprocessableEntity, "/event_name", string(r.Reason), r.Detail)
	case event.BadTransactionUUID:
		return problem.At(http.StatusUnprocessableEntity, "/transaction_uuid", string(r.Reason), r.Detail)
	case event.BadSubject, event.NotObject, event.BadJSON:
	}
	return problem.New(http.StatusBadRequest, string(r.Reason), r.Detail)
}
