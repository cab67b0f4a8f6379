package notifications

import (
	"context"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/notification"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/shares"
)

// States returns the state of the notification of each event for the webhook, "" where there is none.
func (s *Service) States(
	ctx context.Context, w *webhook.Webhook, events []*eventstream.Event,
) ([]notification.State, error) {
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
func (s *Service) of(
	ctx context.Context, w *webhook.Webhook, e *eventstream.Event,
) (event.Event, *Notification, error) {
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

// Resumption is how far Replay came.
type Resumption struct {
	Handled       int    // events, from the first on
	Sent, Skipped uint64 // of these; those this replay sent before an interruption count as sent
}

// Replay sends events to the webhook again, in their order and at the limiter's rate: a new send of each notification
// that has ended (in the state only, if that is set), the first one where there was none. It stops before the next
// send once stop is done, which is no error.
func (s *Service) Replay(
	ctx, stop context.Context, w *webhook.Webhook, events []*eventstream.Event, only notification.State, replay string,
	limiter *rate.Limiter,
) (Resumption, error) {
	sends := make([]*notification.Notification, len(events))
	before := make([]bool, len(events))
	group, lookCtx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, e := range events {
		group.Go(func() (err error) {
			sends[i], before[i], err = s.replay(lookCtx, w, e, only, replay)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return Resumption{}, err
	}
	group, ctx = errgroup.WithContext(ctx)
	group.SetLimit(readers)
	var done Resumption
	for i, m := range sends {
		if m != nil && limiter.Wait(stop) != nil {
			break
		}
		done.Handled++
		switch {
		case m != nil:
			done.Sent++
			group.Go(func() error { return s.notify(ctx, stop, m) })
		case before[i]:
			done.Sent++
		default:
			done.Skipped++
		}
	}
	// After an error all the events come again, and those that were sent are recognised.
	if err := group.Wait(); err != nil {
		if stop.Err() != nil {
			err = nil
		}
		return Resumption{}, err
	}
	return done, nil
}

// notify stores m. While the account has its share of the stores it waits for room, until stop is done.
func (s *Service) notify(ctx, stop context.Context, m *notification.Notification) error {
	for {
		err := shares.Notify(ctx, s.meter, s.bus, m)
		if err == nil || problem.Of(err).Kind != problem.Limited {
			return err
		}
		if err := shares.Wait(stop, s.meter, m.Account); err != nil {
			return err
		}
	}
}

// replay returns the message that sends the event again, nil for none; before says that this replay has sent it.
func (s *Service) replay(
	ctx context.Context, w *webhook.Webhook, e *eventstream.Event, only notification.State, replay string,
) (m *notification.Notification, before bool, err error) {
	ev, n, err := s.of(ctx, w, e)
	if err != nil || ev.ID == "" {
		return nil, false, err
	}
	first := notification.First(&ev, e.StoredAt, w.UUID)
	first.Replay = replay
	switch {
	case n == nil && only != "":
		return nil, false, nil
	case n == nil:
	case n.Replay == replay:
		return nil, true, nil
	case !n.State.Terminal(), only != "" && n.State != only:
		return nil, false, nil
	default:
		again := first.Resend(n.newest, replay)
		return &again, false, nil
	}
	return &first, false, nil
}
