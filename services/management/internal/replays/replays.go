// Package replays sends a range of past events to a webhook again.
//
// A replay is a job in the bucket REPLAYS, see package jobs. Its runner reads the events in their order, opens a new
// send of each notification that has ended, or its first one when the webhook never had one, and notes its progress
// every second. Notifications that are still on their way are skipped.
//
// A runner that takes a job up recognises the notifications that were sent since its last record by their replay id,
// and does not send them again. A pause or a cancellation takes effect before the next notification is sent.
package replays

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/eventstream"
	"gancho/pkg/notification"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/jobs"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

// Rates in notifications a second.
const (
	defaultRate = 50
	maxRate     = 1000
)

// maxOpen is how many replays an account may have that have not ended.
const maxOpen = 20

// State of a replay.
type State = jobs.State

// The states. A replay begins as a preview and ends done or cancelled.
const (
	Preview   State = "preview"
	Running         = jobs.Running
	Paused    State = "paused"
	Done      State = "done"
	Cancelled State = "cancelled"
)

// Ended reports whether a replay in state s does nothing more.
func Ended(s State) bool { return s == Done || s == Cancelled }

// job is a replay as it is stored.
type job struct {
	jobs.Record
	WebhookID string             `json:"webhook_id"`
	From      time.Time          `json:"from"`
	To        time.Time          `json:"to"`
	Only      notification.State `json:"only,omitempty"`
	Rate      int                `json:"rate"`
	Events    uint64             `json:"events"`
	Bytes     uint64             `json:"bytes"`
	Sent      uint64             `json:"sent"`
	Skipped   uint64             `json:"skipped"`
	Position  uint64             `json:"position"` // the last event that is dealt with
	By        string             `json:"by"`

	ended bool // by the run itself, which no pause or cancellation can undo
}

// Valid reports whether j is a replay.
func (j *job) Valid() bool { return j.Rate >= 1 }

// Adopt takes over a pause or a cancellation by the owner.
func (j *job) Adopt(newest *job) {
	if !j.ended {
		j.State, j.Problem = newest.State, newest.Problem
	}
}

// View is a replay as its owner sees it.
type View struct {
	ID               string    `json:"id" format:"uuid" doc:"also the Gancho-Replay header of its notifications"`
	WebhookID        string    `json:"webhook_id" format:"uuid"`
	State            State     `json:"state" enum:"preview,running,paused,done,cancelled"`
	Problem          *string   `json:"problem" nullable:"true" doc:"why it ended or paused by itself"`
	From             time.Time `json:"from"`
	To               time.Time `json:"to"`
	Only             *string   `json:"notification_state" nullable:"true" doc:"only notifications in this state are sent again"`
	Rate             int       `json:"rate" doc:"notifications a second"`
	Events           uint64    `json:"events" doc:"events in the range that the webhook's event_name matches; with notification_state and no more than 10,000 events, only those whose notification is in it"`
	Bytes            uint64    `json:"bytes" doc:"of their bodies; an estimate above 1,000 events"`
	EstimatedSeconds uint64    `json:"estimated_seconds"`
	Sent             uint64    `json:"sent"`
	Skipped          uint64    `json:"skipped" doc:"still on their way, or not in notification_state"`
	Total            uint64    `json:"total"`
	CreatedAt        time.Time `json:"created_at"`
	UpdatedAt        time.Time `json:"updated_at"`
}

func (j *job) view() View {
	v := View{
		ID: j.ID, WebhookID: j.WebhookID, State: j.State, From: j.From, To: j.To, Rate: j.Rate, Events: j.Events,
		Bytes:            j.Bytes,
		EstimatedSeconds: (j.Events + uint64(j.Rate) - 1) / uint64(j.Rate), //nolint:gosec // a rate is positive
		Sent:             j.Sent, Skipped: j.Skipped, Total: j.Events, CreatedAt: j.CreatedAt, UpdatedAt: j.UpdatedAt,
	}
	if j.Problem != "" {
		v.Problem = &j.Problem
	}
	if j.Only != "" {
		only := string(j.Only)
		v.Only = &only
	}
	return v
}

// Service manages replays and runs them. It is safe for concurrent use.
type Service struct {
	bus           *bus.Bus
	jobs          *jobs.Store[job, *job]
	webhooks      *webhooks.Service
	notifications *notifications.Service
}

// New returns a service on the bucket REPLAYS.
func New(b *bus.Bus, bucket *bus.Bucket, w *webhooks.Service, n *notifications.Service, log *zap.Logger) *Service {
	return &Service{bus: b, jobs: jobs.NewStore[job](bucket, rules, log.Named("replays")), webhooks: w, notifications: n}
}

// Input is an owner's request for a new replay.
type Input struct {
	From  webhooks.Field[string] `json:"from"`
	To    webhooks.Field[string] `json:"to"`
	State webhooks.Field[string] `json:"state"`
	Rate  webhooks.Field[int]    `json:"rate"`
}

// parse checks in.
func (in Input) parse(now time.Time) (from, to time.Time, only notification.State, rate int, err error) {
	var problems problem.List
	at := func(name string, f webhooks.Field[string], fallback time.Time) time.Time {
		if !f.Present || f.Null {
			return fallback
		}
		t, err := time.Parse(time.RFC3339, f.Value)
		if err != nil {
			problems.Add("/data/"+name, "bad_time", name+" must be a time such as 2026-11-20T15:04:05Z")
			return fallback
		}
		return t.UTC()
	}
	if !in.From.Present || in.From.Null {
		problems.Add("/data/from", "required", "from is missing")
	}
	from, to, rate = at("from", in.From, time.Time{}), at("to", in.To, now), defaultRate
	if to.After(now) {
		to = now // later events are sent anyway
	}
	if !from.IsZero() && !from.Before(to) {
		problems.Add("/data/from", "bad_range", "from must be in the past and before to")
	}
	if in.State.Present && !in.State.Null {
		if only = notification.State(in.State.Value); !only.Terminal() || only == notification.Cancelled {
			problems.Add("/data/state", "bad_state",
				"state must be delivered or permanently_failed; others are still on their way, or have no webhook")
		}
	}
	if in.Rate.Present && !in.Rate.Null {
		if rate = in.Rate.Value; rate < 1 || rate > maxRate {
			problems.Add("/data/rate", "bad_rate", fmt.Sprintf("rate must be a whole number from 1 to %d", maxRate))
			rate = defaultRate
		}
	}
	return from, to, only, rate, problems.Err()
}

// Create makes a replay in state preview: nothing is sent before Start.
func (s *Service) Create(ctx context.Context, account, webhookID string, in Input, by string) (View, error) {
	now := time.Now().UTC()
	from, to, only, rate, err := in.parse(now) // events stored a moment ago are part of it
	if err != nil {
		return View{}, err
	}
	w, err := s.webhooks.Get(ctx, account, webhookID)
	if err != nil {
		return View{}, err
	}
	if err := s.notifications.Room(account); err != nil {
		return View{}, err
	}
	if len(s.jobs.List(account, func(j *job) bool { return !Ended(j.State) })) >= maxOpen {
		return View{}, problem.New(problem.Conflict, "too_many_replays",
			fmt.Sprintf("this account has %d replays that have not ended; cancel one first", maxOpen))
	}
	j := &job{
		Record: jobs.New(account, Preview), WebhookID: w.ID, From: from, To: to, Only: only, Rate: rate, By: by,
	}
	if err := s.measure(ctx, j, w); err != nil {
		return View{}, problem.Broker(err)
	}
	if err := s.jobs.Create(ctx, j); err != nil {
		return View{}, err
	}
	return j.view(), nil
}

// Bounds of how much a preview counts itself; above that it estimates.
const (
	measureBytes  = 1000
	measureStates = 10_000
)

// measure counts the events and notifications of a replay.
func (s *Service) measure(ctx context.Context, j *job, w *webhook.Webhook) error {
	span, err := s.events(ctx, j, w)
	if err != nil || len(span.Subjects) == 0 {
		return err
	}
	if j.Events, err = eventstream.Count(ctx, s.bus, span); err != nil || j.Events == 0 {
		return err
	}
	seen, bytes := uint64(0), uint64(0)
	err = eventstream.Read(ctx, s.bus, span, true, func(e *eventstream.Event) (bool, error) {
		seen++
		bytes += uint64(e.Size) //nolint:gosec // a size
		return seen < measureBytes, nil
	})
	if err != nil {
		return err
	}
	if seen > 0 {
		j.Bytes = bytes * max(j.Events, seen) / seen
	}
	if j.Only == "" || j.Events > measureStates {
		return nil
	}
	matching, bytes := uint64(0), uint64(0)
	err = s.batches(ctx, span, func(batch []*eventstream.Event) (bool, error) {
		found, err := s.notifications.States(ctx, w, batch)
		for i, state := range found {
			if state == j.Only {
				matching++
				bytes += uint64(batch[i].Size) //nolint:gosec // a size
			}
		}
		return true, err
	})
	j.Events, j.Bytes = matching, bytes
	return err
}

// events is the range of a replay, from where it stands.
func (s *Service) events(ctx context.Context, j *job, w *webhook.Webhook) (eventstream.Range, error) {
	subjects, err := eventstream.Subjects(ctx, s.bus, j.Account, w.EventName.Matches)
	return eventstream.Range{Subjects: subjects, From: j.From, To: j.To, After: j.Position}, err
}

// batchSize is how many events are in hand at once.
const batchSize = 32

// batches hands the events of a range to handle, several at a time.
func (s *Service) batches(
	ctx context.Context, span eventstream.Range, handle func([]*eventstream.Event) (bool, error),
) error {
	var batch []*eventstream.Event
	stopped := false
	err := eventstream.Read(ctx, s.bus, span, false, func(e *eventstream.Event) (bool, error) {
		batch = append(batch, e)
		if len(batch) < batchSize {
			return true, nil
		}
		more, err := handle(batch)
		batch, stopped = nil, !more
		return more, err
	})
	if err != nil || stopped || len(batch) == 0 {
		return err
	}
	_, err = handle(batch)
	return err
}

// Get returns the account's replay.
func (s *Service) Get(ctx context.Context, account, id string) (View, error) {
	j, err := s.jobs.Get(ctx, account, id)
	if err != nil {
		return View{}, err
	}
	return j.view(), nil
}

// List returns the replays of a webhook, newest first.
func (s *Service) List(ctx context.Context, account, webhookID string) ([]View, error) {
	if _, err := s.webhooks.Get(ctx, account, webhookID); err != nil {
		return nil, err
	}
	views := []View{}
	for _, j := range s.jobs.List(account, func(j *job) bool { return j.WebhookID == webhookID }) {
		views = append(views, j.view())
	}
	return views, nil
}

// Start begins to send.
func (s *Service) Start(ctx context.Context, account, id string) (View, error) {
	if err := s.notifications.Room(account); err != nil {
		return View{}, err
	}
	return s.move(ctx, account, id, Running, Preview)
}

// Pause stops for a while, at once.
func (s *Service) Pause(ctx context.Context, account, id string) (View, error) {
	return s.move(ctx, account, id, Paused, Running)
}

// Resume goes on where Pause stopped.
func (s *Service) Resume(ctx context.Context, account, id string) (View, error) {
	if err := s.notifications.Room(account); err != nil {
		return View{}, err
	}
	return s.move(ctx, account, id, Running, Paused)
}

// Cancel ends a replay. It recalls nothing that was sent.
func (s *Service) Cancel(ctx context.Context, account, id string) (View, error) {
	return s.move(ctx, account, id, Cancelled, Preview, Running, Paused)
}

// move changes the state to one, from those given; a replay that is there already is left alone.
func (s *Service) move(ctx context.Context, account, id string, to State, from ...State) (View, error) {
	for {
		j, err := s.jobs.Get(ctx, account, id)
		if err != nil {
			return View{}, err
		}
		if j.State == to {
			return j.view(), nil
		}
		if !slices.Contains(from, j.State) {
			return View{}, problem.New(problem.Conflict, "wrong_state",
				"the replay is "+string(j.State)+"; that cannot be done to it now")
		}
		j.State, j.Problem = to, ""
		err = s.jobs.Put(ctx, j)
		if err == nil {
			return j.view(), nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return View{}, problem.Broker(err)
		}
	}
}
