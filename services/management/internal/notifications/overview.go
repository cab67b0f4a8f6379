package notifications

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"gancho/pkg/notification"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/shares"
)

// Health returns how each of the account's webhooks fared lately, in their order (see index.Activity), and
// whether the index is being filled. It needs the index in Redis.
func (s *Service) Health(ctx context.Context, webhookIDs []string, spans []time.Duration, now time.Time) (all []index.Activity, partial bool, err error) {
	all, partial, err = s.index.Activity(ctx, webhookIDs, spans, now)
	return all, partial, away(err)
}

// MaxFailures is how many permanent failures are listed at most.
const MaxFailures = 1000

// Failures are permanent failures, those that failed last first.
type Failures struct {
	Notifications []Listed
	// Total is how many there are on all pages, at most MaxFailures.
	Total int
	// Webhooks are those of the account that have permanent failures, as far as they are listed.
	Webhooks []*webhook.Webhook
	// Next is where the next page begins, 0 on the last one.
	Next uint64
	// Partial says that the index is being filled, so some may be missing.
	Partial bool
}

// FailureFilter says which permanent failures are wanted. The zero value of a member does not limit.
type FailureFilter struct {
	WebhookID, EventName string
	From, To             time.Time // when they failed for good: From included, To not
}

func (f *FailureFilter) wants(eventName string, at time.Time) bool {
	return (f.EventName == "" || eventName == f.EventName) && !at.Before(f.From) && (f.To.IsZero() || at.Before(f.To))
}

// Failures returns the permanent failures of the account's webhooks that failed before the place after (0: all), at
// most limit. It needs the index in Redis.
func (s *Service) Failures(ctx context.Context, account string, f FailureFilter, after uint64, limit int) (Failures, error) {
	f.From = s.kept(account, f.From)
	places, partial, err := s.index.Failed(ctx, account)
	if err != nil {
		return Failures{}, away(err)
	}
	page := Failures{Partial: partial}
	hooks := map[string]*webhook.Webhook{}
	for _, p := range places {
		if _, known := hooks[p.Webhook]; known {
			continue
		}
		w := s.webhooks.Known(account, p.Webhook)
		if hooks[p.Webhook] = w; w != nil {
			page.Webhooks = append(page.Webhooks, w)
		}
	}
	if f.WebhookID != "" {
		w := s.webhooks.Known(account, f.WebhookID)
		if w == nil {
			return page, nil
		}
		if _, listed := hooks[f.WebhookID]; !listed {
			page.Webhooks = append(page.Webhooks, w)
		}
		if places, partial, err = s.index.FailedOf(ctx, f.WebhookID); err != nil {
			return Failures{}, away(err)
		}
		page.Partial = page.Partial || partial
	} else { // a deleted webhook's cannot be sent again
		places = slices.DeleteFunc(places, func(p index.Place) bool { return hooks[p.Webhook] == nil })
	}
	if f.EventName != "" || !f.From.IsZero() || !f.To.IsZero() {
		found, err := s.index.Find(ctx, places)
		if err != nil {
			return Failures{}, away(err)
		}
		wanted := places[:0]
		for i, row := range found {
			if !row.Known || f.wants(row.EventName, row.UpdatedAt) {
				wanted = append(wanted, places[i])
			}
		}
		places = wanted
	}
	places = places[:min(len(places), MaxFailures)]
	page.Total = len(places)
	for len(places) > 0 && after > 0 && places[0].Sequence >= after {
		places = places[1:]
	}
	for len(places) > 0 && len(page.Notifications) < limit {
		n := min(limit-len(page.Notifications), len(places))
		found, err := s.listed(ctx, account, places[:n])
		if err != nil {
			return Failures{}, err
		}
		for _, l := range found {
			if l.State == string(notification.PermanentlyFailed) && f.wants(l.EventName, l.UpdatedAt) { // else it was sent again since
				page.Notifications = append(page.Notifications, l)
			}
		}
		page.Next, places = places[n-1].Sequence, places[n:]
	}
	if len(places) == 0 {
		page.Next = 0
	}
	return page, nil
}

// ResendMany sends notifications again as Resend does and returns, in the order of ids, why one was not: nil
// for those that were. It ends early only when the broker is down.
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
			if out[i] = problem.Of(err); out[i].Kind.Ours() {
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
		return problem.New(problem.Conflict, "webhook_deleted", "its webhook was deleted, so there is nowhere to send it")
	case !n.State.Terminal():
		return problem.New(problem.Conflict, "still_on_its_way", "the notification is still on its way ("+string(n.State)+"); it can be sent again once it ended")
	case n.State == notification.Cancelled:
		return problem.New(problem.Conflict, "cancelled", "the notification was cancelled, and a cancelled one is not sent again; explain says why")
	}
	m, err := s.message(ctx, n)
	if err != nil {
		return err
	}
	again := m.Resend(n.newest, "")
	if err := s.Room(n.Account); err != nil {
		return err
	}
	if err := shares.Notify(ctx, s.meter, s.bus, &again); err != nil {
		return err
	}
	s.index.Sent(ctx, &again)
	return nil
}

// away turns an index that does not answer into a 503.
func away(err error) error {
	if errors.Is(err, index.ErrAway) {
		return problem.Down("index_unavailable", "the list of recent notifications is away, because Redis does not answer; a notification can still be read by its id", err)
	}
	return err
}
