// Package dryrun holds conditions of webhooks against events without sending anything.
package dryrun

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/condition"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/language"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

// searched is how many of an account's newest events are looked through for an id before the index is asked, which may
// be away or not have them yet.
const searched = 200

// Service is safe for concurrent use.
type Service struct {
	bus      *bus.Bus
	webhooks *webhooks.Service
	sends    *notifications.Service
	maxBytes int // of an event
}

// New returns a service. maxBytes is the largest event in bytes.
func New(b *bus.Bus, hooks *webhooks.Service, sends *notifications.Service, maxBytes int) *Service {
	return &Service{bus: b, webhooks: hooks, sends: sends, maxBytes: maxBytes}
}

// Input is an event, by its id or as a body with the values of the CRM's headers.
type Input struct {
	EventID webhooks.Field[string]         `json:"event_id"`
	Body    webhooks.Field[jsontext.Value] `json:"body"`
	Changed webhooks.Field[[]string]       `json:"changed"`
	Origin  webhooks.Field[string]         `json:"origin"`
	// Conditions are held against the event instead of the webhook's.
	Conditions webhooks.Field[[]condition.Condition] `json:"conditions"`
}

// Result is how the conditions fared.
type Result struct {
	Held       bool      `json:"held" doc:"all conditions hold: the event would be sent"`
	Conditions []Checked `json:"conditions" nullable:"false"`
}

// Checked is one condition and its result.
type Checked struct {
	Path  string          `json:"path"`
	Op    string          `json:"op"`
	Value json.RawMessage `json:"value"`
	Held  bool            `json:"held"`
	Found json.RawMessage `json:"found,omitempty" doc:"the value at the path; left out when nothing is there; a string with its beginning when it is longer than 1,024 bytes"`
}

// Check holds the conditions of the account's webhook, or those of in, against the event of in.
func (s *Service) Check(ctx context.Context, account, webhookID string, in Input) (Result, error) {
	w, err := s.webhooks.Get(ctx, account, webhookID)
	if err != nil {
		return Result{}, err
	}
	var problems problem.List
	conditions := w.Conditions
	if in.Conditions.Present && !in.Conditions.Null {
		conditions = in.Conditions.Value
	}
	set, wrong := condition.Compile(conditions)
	for _, p := range wrong {
		problems.Add("/data/conditions"+p.Pointer, p.Code, p.Detail)
	}
	byID, byBody := in.EventID.Present && !in.EventID.Null, in.Body.Present && !in.Body.Null
	switch {
	case byID == byBody:
		problems.Add("/data", "event_required", "give an event: either event_id, or body with changed "+
			"and origin where the CRM sends them")
	case byBody && in.Body.Value.Kind() != '{':
		problems.Add("/data/body", "wrong_type", "body must be an object: an event as the CRM writes it")
	case byBody && in.Origin.Value != "" && event.Origin(in.Origin.Value) == "":
		problems.Add("/data/origin", "bad_origin", "origin must be 1 to 128 characters of [A-Za-z0-9_.:-]")
	case byID && (in.Changed.Present || in.Origin.Present):
		problems.Add("/data", "event_required", "changed and origin go with body; the event with that id has its own")
	case byID && uuid.Validate(in.EventID.Value) != nil:
		problems.Add("/data/event_id", "bad_event_id", "event_id must be the id of an event")
	}
	if err := problems.Err(); err != nil {
		return Result{}, err
	}
	if byBody {
		return check(conditions, set, condition.NewEvent(in.Body.Value, in.Changed.Value, in.Origin.Value)), nil
	}
	ev, err := s.find(ctx, account, in.EventID.Value)
	if err != nil {
		return Result{}, err
	}
	return check(conditions, set, ev), nil
}

// Written returns the value as people write it.
func (c Checked) Written() string {
	return condition.Condition{Path: c.Path, Op: condition.Op(c.Op), Value: c.Value}.Written()
}

func check(conditions []condition.Condition, set condition.Set, against *condition.Event) Result {
	r := Result{Held: true, Conditions: []Checked{}}
	for i, c := range conditions {
		held, found := set.Holds(i, against)
		r.Held = r.Held && held
		r.Conditions = append(r.Conditions, Checked{
			Path: c.Path, Op: string(c.Op), Value: c.Value, Held: held, Found: found,
		})
	}
	return r
}

// find returns the account's event with that id: one of the newest, for which the stream is enough, or any that the
// index and the stream still have.
func (s *Service) find(ctx context.Context, account, id string) (*condition.Event, error) {
	var found *condition.Event
	err := s.newest(ctx, account, func(string) bool { return true }, searched, func(e stored) {
		if e.Is(id) {
			found = webhook.ConditionEvent(&e.Event)
		}
	})
	if err != nil || found != nil {
		return found, err
	}
	e, err := s.sends.Event(ctx, account, id, language.English)
	if err != nil {
		if problem.Of(err).Kind == problem.Missing {
			return nil, problem.At(problem.Invalid, "/data/event_id", "no_such_event",
				"this account has no event with this id any more; give its body instead")
		}
		return nil, err
	}
	origin := ""
	if e.Origin != nil {
		origin = *e.Origin
	}
	return condition.NewEvent(e.Body(), e.Changed, origin), nil
}

// Trial is how a past event fared.
type Trial struct {
	Result

	ID, Name string // of the event
	StoredAt time.Time
}

// Recent holds the conditions of the account's webhook against its newest events of a name that matches, newest first
// and at most n.
func (s *Service) Recent(ctx context.Context, account, webhookID string, n int) ([]Trial, error) {
	w, err := s.webhooks.Get(ctx, account, webhookID)
	if err != nil {
		return nil, err
	}
	set, wrong := condition.Compile(w.Conditions)
	if wrong != nil {
		return nil, fmt.Errorf("conditions of webhook %s: %s", w.ID, wrong[0].Detail)
	}
	var recent []stored
	err = s.newest(ctx, account, w.EventName.Matches, n, func(e stored) {
		if recent = append(recent, e); len(recent) > n {
			recent = slices.Delete(recent, 0, 1)
		}
	})
	var trials []Trial
	for _, e := range slices.Backward(recent) {
		trials = append(trials, Trial{
			check(w.Conditions, set, webhook.ConditionEvent(&e.Event)), e.ID, e.Name, e.StoredAt,
		})
	}
	return trials, err
}

// stored is an event with the time when it was stored.
type stored struct {
	event.Event

	StoredAt time.Time
}

// newest hands the account's newest n events, or some more, to handle, oldest first.
func (s *Service) newest(
	ctx context.Context, account string, wanted func(eventName string) bool, n int, handle func(stored),
) error {
	subjects, err := eventstream.Subjects(ctx, s.bus, account, wanted)
	if err != nil {
		return problem.Broker(err)
	}
	err = eventstream.Newest(ctx, s.bus, subjects, uint64(n), func(e *eventstream.Event) error { //nolint:gosec // a count
		e.MaxBytes = s.maxBytes
		if ev, rejected := event.Parse(e.Message); rejected == nil {
			handle(stored{ev, e.StoredAt})
		}
		return nil
	})
	if err != nil {
		return problem.Broker(err)
	}
	return nil
}
