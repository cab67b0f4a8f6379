package notifications

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/shares"
)

// States returns the state of the notification of each event for the webhook, "" where there is none.
func (s *Service) States(ctx context.Context, w *webhook.Webhook, events []*bus.StoredEvent) ([]notification.State, error) {
	states := make([]notification.State, len(events))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, e := range events {
		group.Go(func() error {
			_, n, err := s.of(ctx, w, e)
			if n != nil {
				states[i] = n.State
			}
			return err
		})
	}
	return states, group.Wait()
}

// of returns the event and its notification for the webhook; nil where there is none, and a zero event where
// the message is none.
func (s *Service) of(ctx context.Context, w *webhook.Webhook, e *bus.StoredEvent) (event.Event, *Notification, error) {
	m := e.Message
	m.MaxBytes = s.eventMaxBytes
	ev, rejected := event.Parse(m)
	if rejected != nil || !w.EventName.Matches(ev.Name) {
		return event.Event{}, nil, nil
	}
	for _, id := range ev.IDs() {
		n, err := s.look(ctx, w.Account, event.NotificationID(id, w.UUID))
		switch {
		case err == nil:
			ev.ID = id
			return ev, n, nil
		case problem.Of(err).Kind != problem.Missing:
			return ev, nil, err
		}
	}
	return ev, nil, nil
}

// Replay sends events to the webhook again, at the limiter's rate: a new send of each notification that has
// ended (in the state only, if that is set), the first one where there was none. It returns how many this
// replay has sent, now or before an interruption, and how many it skipped.
func (s *Service) Replay(ctx context.Context, w *webhook.Webhook, events []*bus.StoredEvent, only notification.State, replay string, limiter *rate.Limiter) (sent, skipped uint64, err error) {
	var count [2]atomic.Uint64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for _, e := range events {
		group.Go(func() error {
			again, err := s.replay(ctx, w, e, only, replay, limiter)
			switch {
			case err != nil:
				return err
			case again:
				count[0].Add(1)
			default:
				count[1].Add(1)
			}
			return nil
		})
	}
	err = group.Wait()
	return count[0].Load(), count[1].Load(), err
}

func (s *Service) replay(ctx context.Context, w *webhook.Webhook, e *bus.StoredEvent, only notification.State, replay string, limiter *rate.Limiter) (bool, error) {
	ev, n, err := s.of(ctx, w, e)
	if err != nil || ev.ID == "" {
		return false, err
	}
	m := notification.Notification{
		Account: w.Account, ID: event.NotificationID(ev.ID, w.UUID), WebhookID: w.ID, EventID: ev.ID, EventName: ev.Name,
		EventSequence: ev.Sequence, EventTime: e.StoredAt, Send: 1, Replay: replay, Traceparent: ev.Traceparent, Body: ev.Body,
	}
	switch {
	case n == nil && only != "":
		return false, nil
	case n == nil:
	case n.Replay == replay:
		return true, nil
	case !n.State.Terminal(), only != "" && n.State != only:
		return false, nil
	default:
		m.Send, m.Journal = n.Sends+1, n.journal()
	}
	if err := limiter.Wait(ctx); err != nil {
		return false, err
	}
	for {
		err := shares.Notify(ctx, s.meter, s.bus, &m)
		if err == nil || problem.Of(err).Kind != problem.Limited {
			return err == nil, err
		}
		if err := shares.Wait(ctx, s.meter, m.Account); err != nil {
			return false, err
		}
	}
}
