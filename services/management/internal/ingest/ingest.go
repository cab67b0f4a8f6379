// Package ingest takes events in over HTTP, for a CRM without NATS.
package ingest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/share"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/shares"
)

// Service publishes events. It is safe for concurrent use.
type Service struct {
	bus           *bus.Bus
	meter         *share.Meter
	eventMaxBytes int
	rates         rates
}

// New returns a service that takes events of at most eventMaxBytes, without the wrapper of a CloudEvent.
func New(b *bus.Bus, m *share.Meter, eventMaxBytes int) *Service {
	return &Service{bus: b, meter: m, eventMaxBytes: eventMaxBytes}
}

// Accepted is where an event was stored.
type Accepted struct {
	EventID   string `json:"event_id" format:"uuid"`
	Stream    string `json:"stream"`
	Sequence  uint64 `json:"sequence"`
	Duplicate bool   `json:"duplicate" doc:"the same event was accepted before, within the duplicate window; it is delivered once"`
}

// Limits of headers that are stored with the event.
const (
	maxCEIDBytes    = 256
	maxChangedBytes = 2048
)

// Event is one to take in. Header returns a request header: those that [event.Parse] reads are used.
type Event struct {
	Account, Name string
	Body          []byte // as the CRM wrote it; it is stored byte for byte
	Header        func(string) string
	// Key is the client's Idempotency-Key, "" if it sent none. It identifies an event that nothing else does.
	Key string
}

// Accept returns after the broker stored the event.
func (s *Service) Accept(ctx context.Context, e Event) (Accepted, error) {
	if !event.ValidName(e.Name) {
		return Accepted{}, problem.New(problem.Invalid, "bad_event_name", "the event name in the path must be crm_<entity>_<action> in [a-z0-9_], at most 64 characters")
	}
	if len(e.Header(event.HeaderCEID)) > maxCEIDBytes {
		return Accepted{}, problem.New(problem.Invalid, "bad_ce_id", "the header ce-id is longer than 256 bytes")
	}
	if o := e.Header(event.HeaderOrigin); o != "" && event.Origin(o) == "" {
		return Accepted{}, problem.New(problem.Invalid, "bad_origin", "the header Gancho-Origin must be 1 to 128 characters of [A-Za-z0-9_.:-]")
	}
	if len(e.Header(event.HeaderChanged)) > maxChangedBytes {
		return Accepted{}, problem.New(problem.Invalid, "bad_changed", "the header Gancho-Changed is longer than 2,048 bytes")
	}
	m := event.Message{Subject: event.Subject(e.Account, e.Name), Body: e.Body, Header: e.Header, MaxBytes: s.eventMaxBytes}
	parsed, rejected := event.Parse(m)
	if rejected != nil {
		return Accepted{}, refused(rejected)
	}
	headers := map[string]string{}
	for name, value := range map[string]string{
		event.HeaderCEID: e.Header(event.HeaderCEID), event.HeaderTraceparent: event.Traceparent(e.Header(event.HeaderTraceparent)),
		event.HeaderChanged: strings.Join(parsed.Changed, ","), event.HeaderOrigin: parsed.Origin,
	} {
		if value != "" {
			headers[name] = value
		}
	}
	if t := e.Header(event.HeaderContentType); event.Structured(t) {
		headers[event.HeaderContentType] = t
	}
	msgID, key := parsed.MsgID(), ""
	if msgID == "" && e.Key != "" {
		sum := sha256.Sum256([]byte(e.Key))
		key = e.Account + ":" + e.Name + ":idempotency-" + hex.EncodeToString(sum[:16])
	}
	if err := shares.Check(s.meter, e.Account); err != nil {
		return Accepted{}, err
	}
	if err := s.rates.take(e.Account, s.meter.Settings(e.Account).IngestRate, time.Now()); err != nil {
		return Accepted{}, err
	}
	hold, over := s.meter.AdmitEvent(e.Account, int64(len(e.Body))+share.Overhead)
	if hold == nil {
		return Accepted{}, shares.Refusal(over)
	}
	at, err := eventstream.Publish(ctx, s.bus, m.Subject, cmp.Or(msgID, key), headers, e.Body)
	if err != nil {
		hold.Release()
	} else {
		hold.Stored(at.Sequence)
	}
	switch {
	case errors.Is(err, bus.ErrTooLarge):
		return Accepted{}, problem.New(problem.TooLarge, "too_large", "the event is larger than the broker accepts")
	case err != nil:
		return Accepted{}, problem.Down("broker_unavailable", "the message broker did not acknowledge the event; send it again (with a transaction_uuid it is delivered once)", err)
	}
	id := parsed.ID // the publisher will give it the same id
	switch {
	case msgID != "":
	case key != "":
		id = event.ID(e.Account, e.Name, key)
	default:
		id = event.ID(e.Account, e.Name, event.Stream+"/"+strconv.FormatUint(at.Sequence, 10))
	}
	return Accepted{EventID: id, Stream: at.Stream, Sequence: at.Sequence, Duplicate: at.Duplicate}, nil
}

func refused(r *event.Rejected) error {
	switch r.Reason {
	case event.EventNameMismatch:
		return problem.At(problem.Invalid, "/event_name", string(r.Reason), r.Detail)
	case event.BadTransactionUUID:
		return problem.At(problem.Invalid, "/transaction_uuid", string(r.Reason), r.Detail)
	case event.BadSubject, event.NotObject, event.BadJSON:
	}
	return problem.New(problem.Malformed, string(r.Reason), r.Detail)
}
