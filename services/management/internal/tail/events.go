package tail

import (
	"context"
	"time"

	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/webhook"
)

// Event is an event as it was stored.
type Event struct {
	ID        string    `json:"id" format:"uuid"`
	EventName string    `json:"event_name"`
	StoredAt  time.Time `json:"stored_at"`
	Changed   []string  `json:"changed" nullable:"false" doc:"the paths of the header Gancho-Changed"`
	Origin    string    `json:"origin" doc:"of the header Gancho-Origin; empty when there was none"`
	Body      []byte    `json:"body" doc:"the event's bytes, in base64"`

	// Sequence is the event's place in CRM_EVENTS.
	Sequence uint64 `json:"-"`
}

// EventReader gets events; see eventstream.Listener for its functions.
type EventReader struct {
	Names     webhook.Pattern
	After     uint64
	Began     func()
	Handle    func(Event) error
	Idle      func() error
	IdleEvery time.Duration
}

// Events hands the account's events to r as they are stored, until ctx ends or r returns an error. They count as a
// tail: it is an error of 429 when the account has too many already, of 503 when all together have. A slow reader
// falls behind and is not cut off.
func (s *Service) Events(ctx context.Context, account string, r EventReader) error {
	if err := s.enter(account); err != nil {
		return err
	}
	defer s.leave(account)
	heard := time.Now()
	return eventstream.Tail(ctx, s.bus, account, eventstream.Listener{
		After: r.After, Began: r.Began, Idle: r.Idle, IdleEvery: r.IdleEvery,
		Handle: func(e *eventstream.Event) error {
			ev, rejected := event.Parse(e.Message)
			if rejected != nil || !r.Names.Matches(ev.Name) {
				if time.Since(heard) < r.IdleEvery {
					return nil
				}
				heard = time.Now()
				return r.Idle()
			}
			heard = time.Now()
			shown := Event{
				ID: ev.ID, EventName: ev.Name, StoredAt: e.StoredAt.UTC(), Changed: ev.Changed, Origin: ev.Origin,
				Body: ev.Body, Sequence: ev.Sequence,
			}
			if shown.Changed == nil {
				shown.Changed = []string{}
			}
			return r.Handle(shown)
		},
	})
}
