package notifications

import (
	"context"
	"errors"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/problem"
)

// Health is how a webhook's notifications have fared lately.
type Health struct {
	// Recent are those since the time asked for, newest first, with the state that was last indexed.
	Recent []index.Entry
	// Full says that only the newest are listed: there were more since then than the index keeps.
	Full bool
	// LastDelivered is when a notification was last accepted, zero when that is not known.
	LastDelivered time.Time
}

// Health returns the health of each of the account's webhooks since a time, in their order, and whether the
// index is being filled. It needs the index in Redis.
func (s *Service) Health(ctx context.Context, account string, webhookIDs []string, since time.Time) (all []Health, partial bool, err error) {
	known, partial, err := s.index.Activity(ctx, webhookIDs, since)
	if err != nil {
		return nil, false, away(err)
	}
	all = make([]Health, len(known))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, a := range known {
		all[i] = Health{Recent: a.Entries, Full: a.Full}
		if a.Delivered == 0 {
			continue
		}
		group.Go(func() error {
			r, err := s.bus.RecordAt(ctx, a.Delivered)
			switch {
			case errors.Is(err, bus.ErrNotFound):
				return nil
			case err != nil && !errors.Is(err, schema.ErrNewer):
				return problem.Broker(err)
			case r.Account == account && r.State == notification.Delivered: // else the index is of another journal
				all[i].LastDelivered = r.At
			}
			return nil
		})
	}
	return all, partial, group.Wait()
}

// MaxFailures is how many permanent failures are listed at most.
const MaxFailures = 1000

// Failures are permanent failures of several webhooks, those that failed last first.
type Failures struct {
	Notifications []*Notification // each with its newest record only
	// Total is how many there are on all pages, at most MaxFailures.
	Total int
	// Next is where the next page begins, 0 on the last one.
	Next uint64
	// Partial says that the index is being filled, so some may be missing.
	Partial bool
}

// Failures returns the account's permanent failures of these webhooks that failed before the place after (0:
// all), at most limit. It needs the index in Redis.
func (s *Service) Failures(ctx context.Context, account string, webhookIDs []string, after uint64, limit int) (Failures, error) {
	places, partial, err := s.index.In(ctx, webhookIDs, notification.PermanentlyFailed, MaxFailures)
	if err != nil {
		return Failures{}, away(err)
	}
	page := Failures{Total: len(places), Partial: partial}
	for len(places) > 0 && after > 0 && places[0].Sequence >= after {
		places = places[1:]
	}
	for len(places) > 0 && len(page.Notifications) < limit {
		n := min(limit-len(page.Notifications), len(places))
		found, err := s.summariesOf(ctx, account, places[:n])
		if err != nil {
			return Failures{}, err
		}
		for i, x := range found {
			if x != nil && x.WebhookID == places[i].Webhook && x.State == notification.PermanentlyFailed { // the journal has the last word
				page.Notifications = append(page.Notifications, x)
			}
		}
		page.Next, places = places[n-1].Sequence, places[n:]
	}
	if len(places) == 0 {
		page.Next = 0
	}
	return page, nil
}

func (s *Service) summariesOf(ctx context.Context, account string, places []index.Place) ([]*Notification, error) {
	out := make([]*Notification, len(places))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, p := range places {
		group.Go(func() error {
			n, err := s.look(ctx, account, p.ID.String())
			if err != nil && problem.Of(err).Status != http.StatusNotFound {
				return err
			}
			out[i] = n
			return nil
		})
	}
	return out, group.Wait()
}

// ResendMany sends notifications again as Resend does and returns, in the order of ids, why one was not: nil
// for those that were. It ends early only when the broker is away.
func (s *Service) ResendMany(ctx context.Context, account string, ids []string) ([]*problem.Error, error) {
	out := make([]*problem.Error, len(ids))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, id := range ids {
		group.Go(func() error {
			n, err := s.look(ctx, account, id)
			if err == nil {
				err = s.again(ctx, n)
			}
			if err == nil {
				return nil
			}
			if out[i] = problem.Of(err); out[i].Status >= http.StatusInternalServerError {
				return err
			}
			return nil
		})
	}
	return out, group.Wait()
}

func (s *Service) again(ctx context.Context, n *Notification) error {
	switch {
	case n.Webhook == nil:
		return problem.New(http.StatusConflict, "webhook_deleted", "its webhook was deleted, so there is nowhere to send it")
	case !n.State.Terminal():
		return problem.New(http.StatusConflict, "still_on_its_way", "the notification is still on its way ("+string(n.State)+"); it can be sent again once it ended")
	}
	return s.SendAgain(ctx, n, "")
}

// away turns an index that does not answer into a 503.
func away(err error) error {
	if errors.Is(err, index.ErrAway) {
		return problem.Unavailable("index_unavailable", "the list of recent notifications is away, because Redis does not answer; a notification can still be read by its id", err)
	}
	return err
}
