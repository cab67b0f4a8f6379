package notifications

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/problem"
)

// Filter says which notifications of an account are wanted. The zero value of a member does not limit.
type Filter struct {
	State                         notification.State
	WebhookID, EventName, EventID string
	DocumentID, TransactionUUID   string
	From, To                      time.Time // when they were created: From included, To not
	After                         Cursor    // the zero Cursor begins with the newest
	Limit                         int       // at least 1
}

// Bounds of how much one request reads of the streams.
const (
	scanWithin = 2 * time.Second
	firstChunk = 1000
	lastChunk  = 50_000
)

// List returns notifications of the account's webhook, newest first; see Search.
func (s *Service) List(ctx context.Context, account, webhookID string, f Filter) (Page, error) {
	if _, err := s.webhooks.Get(ctx, account, webhookID); err != nil {
		return Page{}, err
	}
	f.WebhookID = webhookID
	return s.Search(ctx, account, f)
}

// Search returns notifications of the account, newest first. Those in the Redis index come first, about 0.1 s
// behind the journal; then older ones still in the journal, in the order of their last change. A page of those
// takes about two seconds at most, so it can be short, or empty, although more follow.
func (s *Service) Search(ctx context.Context, account string, f Filter) (Page, error) {
	f.From = s.kept(account, f.From)
	var halves []uint64
	partial := false
	if f.EventID != "" || f.DocumentID != "" || f.TransactionUUID != "" {
		var err error
		if halves, partial, err = s.halves(ctx, account, f); err != nil {
			return Page{}, err
		}
	}
	if f.After.created < 0 {
		page, err := s.searchJournal(ctx, account, f, halves)
		page.Partial = page.Partial || partial
		return page, err
	}
	q := index.Query{State: f.State, Webhook: f.WebhookID, Name: f.EventName, Events: halves, From: f.From, To: f.To, Limit: f.Limit}
	if !f.After.IsZero() {
		q.After = f.After.entry()
	}
	found, err := s.index.Search(ctx, account, q)
	if err != nil {
		return Page{}, away(err)
	}
	page := Page{Partial: partial || found.Partial}
	switch {
	case found.More:
		last := found.Hits[len(found.Hits)-1]
		page.Next = Cursor{last.Created.UnixMilli(), last.ID}
	default:
		first, last, err := journal.Ends(ctx, s.bus)
		if err != nil {
			return Page{}, problem.Broker(err)
		}
		if low := min(found.Low, last+1); first > 0 && low > first {
			page.Next = below(low)
		}
	}
	places := make([]index.Place, len(found.Hits))
	for i, h := range found.Hits {
		places[i] = index.Place{Webhook: h.Webhook, ID: h.ID}
	}
	if page.Notifications, err = s.listed(ctx, account, places); err != nil {
		return Page{}, err
	}
	page.Notifications = slices.DeleteFunc(page.Notifications, func(l Listed) bool { return !f.wants(&l) })
	return page, nil
}

// kept returns from, or a later time from which on the records of the account are kept.
func (s *Service) kept(account string, from time.Time) time.Time {
	age := s.meter.Settings(account).LogMaxAge
	if age == 0 {
		return from
	}
	if since := time.Now().Add(-time.Duration(age) * time.Second); since.After(from) {
		return since
	}
	return from
}

// wants reports whether the current state of a notification still matches the search. One whose event was erased is not
// found by its event.
func (f *Filter) wants(l *Listed) bool {
	if l.Reason != nil && *l.Reason == notification.ReasonErased && (f.EventID != "" || f.DocumentID != "" || f.TransactionUUID != "") {
		return false
	}
	return (f.State == "" || l.State == string(f.State)) && (f.EventID == "" || l.EventID == f.EventID)
}

// halves returns the first halves of the ids of the events that the filter is about, and whether some may be missing.
func (s *Service) halves(ctx context.Context, account string, f Filter) (halves []uint64, partial bool, err error) {
	if f.DocumentID == "" && f.TransactionUUID == "" {
		return []uint64{index.Half(f.EventID)}, false, nil
	}
	q := EventFilter{ID: f.EventID, Name: f.EventName, DocumentID: f.DocumentID, TransactionUUID: f.TransactionUUID, To: f.To}
	const most = 100_000
	found, err := s.index.Events(ctx, account, q.query(most))
	if err != nil {
		return nil, false, away(err)
	}
	halves = append([]uint64{}, found.Halves...)
	state, err := s.bus.StreamState(ctx, topology.Events)
	if err != nil {
		return nil, false, problem.Broker(err)
	}
	at, err := s.scanEvents(ctx, account, min(found.Low, state.Last+1), state.First, func(e *storedEvent) bool {
		if q.wants(e) {
			halves = append(halves, index.Half(e.ID))
		}
		return len(halves) < most
	})
	return halves, found.Partial || found.More || at > state.First, err
}

// searchJournal reads the journal backwards. It leaves out notifications in the index, which were shown before.
func (s *Service) searchJournal(ctx context.Context, account string, f Filter, halves []uint64) (Page, error) {
	var events map[uint64]bool
	if halves != nil {
		events = map[uint64]bool{}
		for _, h := range halves {
			events[h] = true
		}
	}
	first, last, err := journal.Ends(ctx, s.bus)
	if err != nil {
		return Page{}, problem.Broker(err)
	}
	deadline := time.Now().Add(scanWithin)
	page, at := Page{}, min(uint64(-f.After.created), last+1) //nolint:gosec // it is negative
	for chunk := uint64(firstChunk); at > max(first, 1) && len(page.Notifications) < f.Limit && time.Now().Before(deadline); chunk = min(2*chunk, lastChunk) {
		from := max(first, 1)
		if at-from > chunk {
			from = at - chunk
		}
		var found []notification.Summary
		var newest time.Time
		err := journal.SummariesOf(ctx, s.bus, account, from, at-1, func(r *notification.Summary) {
			newest = r.At
			if (f.State == "" || r.State == f.State) && (f.WebhookID == "" || r.WebhookID == f.WebhookID) && (f.EventName == "" || r.EventName == f.EventName) &&
				(events == nil || events[index.Half(r.EventID)]) && !r.At.Before(f.From) {
				found = append(found, *r)
			}
		})
		if err != nil {
			return Page{}, problem.Broker(err)
		}
		slices.Reverse(found)
		for len(found) > 0 && len(page.Notifications) < f.Limit {
			n := min(f.Limit-len(page.Notifications), len(found))
			rows, err := s.newest(ctx, account, found[:n])
			if err != nil {
				return Page{}, err
			}
			for _, l := range rows {
				if f.wants(&l) && !l.CreatedAt.Before(f.From) && (f.To.IsZero() || l.CreatedAt.Before(f.To)) {
					page.Notifications = append(page.Notifications, l)
				}
			}
			at, found = found[n-1].Sequence, found[n:]
		}
		if len(found) == 0 {
			at = from
		}
		if !newest.IsZero() && newest.Before(f.From) { // the remaining ones are older still
			return page, nil
		}
	}
	if at > max(first, 1) {
		page.Next = below(at)
	}
	return page, nil
}

// newest shows the notifications whose newest records these are. It leaves out those that have newer ones, and those
// that the index knows.
func (s *Service) newest(ctx context.Context, account string, records []notification.Summary) ([]Listed, error) {
	ids := make([]uuid.UUID, len(records))
	for i, r := range records {
		ids[i], _ = uuid.Parse(r.NotificationID)
	}
	covered, err := s.index.Covers(ctx, account, ids)
	if err != nil {
		return nil, away(err)
	}
	rows := make([]Listed, len(records))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, r := range records {
		if covered[i] {
			continue
		}
		group.Go(func() error {
			n, err := s.Get(ctx, account, r.NotificationID)
			switch {
			case err == nil && n.newest != nil && n.newest.Sequence == r.Sequence:
				rows[i] = listed(n)
			case err != nil && problem.Of(err).Kind != problem.Missing:
				return err
			}
			return nil
		})
	}
	err = group.Wait()
	return slices.DeleteFunc(rows, func(l Listed) bool { return l.ID == "" }), err
}

// storedEvent is an event with the time at which the broker stored it.
type storedEvent struct {
	event.Event

	StoredAt time.Time
}

// scanEvents reads the account's events below a sequence backwards, down to first, and hands them to handle, newest
// first, until it returns false or two seconds have passed. at is where it stopped: nothing below was read.
func (s *Service) scanEvents(ctx context.Context, account string, below, first uint64, handle func(*storedEvent) bool) (at uint64, err error) {
	deadline := time.Now().Add(scanWithin)
	first = max(first, 1)
	at = below
	for chunk := uint64(firstChunk); at > first && time.Now().Before(deadline); chunk = min(2*chunk, lastChunk) {
		from := first
		if at-from > chunk {
			from = at - chunk
		}
		var found []*storedEvent
		bytes := 0
		err := eventstream.Between(ctx, s.bus, event.SubjectPrefix+account+".*", from, at-1, func(e *eventstream.Event) bool {
			if ev, rejected := event.Parse(e.Message); rejected == nil {
				found = append(found, &storedEvent{ev, e.StoredAt})
				bytes += len(ev.Body)
			}
			return bytes < scanBytes
		})
		if err != nil {
			return at, problem.Broker(err)
		}
		if bytes >= scanBytes && chunk > 1 { // read fewer: those that come first are the oldest
			chunk /= 8
			continue
		}
		for _, e := range slices.Backward(found) {
			if !handle(e) {
				return e.Sequence, nil
			}
		}
		at = from
	}
	return at, nil
}

// scanBytes is how many bytes of events are held at once.
const scanBytes = 64 << 20

// eventAt returns the account's event with that sequence, nil when it has aged out or is another account's.
func (s *Service) eventAt(ctx context.Context, account string, sequence uint64) (*storedEvent, error) {
	e, err := eventstream.At(ctx, s.bus, sequence)
	switch {
	case errors.Is(err, bus.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, problem.Broker(err)
	}
	ev, rejected := event.Parse(e.Message)
	if rejected != nil || ev.Account != account {
		return nil, nil
	}
	return &storedEvent{ev, e.StoredAt}, nil
}
