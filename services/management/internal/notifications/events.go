package notifications

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/condition"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/explain"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/language"
	"gancho/services/management/internal/problem"
)

// EventFilter says which events of an account are wanted. The zero value of a member does not limit.
type EventFilter struct {
	ID, Name, DocumentID, TransactionUUID string
	From, To                              time.Time // when they were stored: From included, To not
	Before                                uint64    // sequences below it; 0 begins with the newest
	Limit                                 int       // at least 1
}

func (f *EventFilter) query(limit int) index.EventQuery {
	q := index.EventQuery{
		Transaction: f.TransactionUUID, Document: f.DocumentID, Name: f.Name, From: f.From, To: f.To, Before: f.Before, Limit: limit,
	}
	if f.ID != "" {
		q.IDs = []string{f.ID}
	}
	return q
}

func (f *EventFilter) wants(e *storedEvent) bool {
	return (f.ID == "" || e.Is(f.ID)) && (f.Name == "" || e.Name == f.Name) && (f.DocumentID == "" || e.Document == f.DocumentID) &&
		(f.TransactionUUID == "" || e.Transaction == f.TransactionUUID) && !e.StoredAt.Before(f.From) && (f.To.IsZero() || e.StoredAt.Before(f.To))
}

// Event is an event, its notifications, and the webhooks without one.
type Event struct {
	ID              string    `json:"id" format:"uuid"`
	EventName       string    `json:"event_name"`
	StoredAt        time.Time `json:"stored_at"`
	Bytes           int       `json:"bytes"`
	TransactionUUID *string   `json:"transaction_uuid" nullable:"true"`
	DocumentID      *string   `json:"document_id" nullable:"true"`
	Origin          *string   `json:"origin" nullable:"true" doc:"of the header Gancho-Origin"`
	Changed         []string  `json:"changed" nullable:"false" doc:"of the header Gancho-Changed"`
	Notifications   []Listed  `json:"notifications" nullable:"false" doc:"those of deleted webhooks included"`
	// Unmatched are the webhooks without a notification.
	Unmatched []Unmatched  `json:"unmatched" nullable:"false" doc:"webhooks without a notification of it"`
	Explain   *Explanation `json:"explain,omitempty" doc:"while the event waits for its notifications"`
	Partial   bool         `json:"partial,omitempty" doc:"some notifications or webhooks are not shown: an index is being filled, or there are more than 200 of either"`

	body []byte
}

// Unmatched is a webhook that an event led to no notification for.
type Unmatched struct {
	WebhookID string               `json:"webhook_id" format:"uuid"`
	Why       string               `json:"why" enum:"other_name,condition,registered_later,disabled" doc:"as the webhook is now; registered_later: it, or what would match now, came after the event"`
	Condition *condition.Condition `json:"condition,omitempty" doc:"the first one that does not hold"`
	Found     json.RawMessage      `json:"found,omitempty" doc:"the value that the condition found; missing when there is none"`
}

// EventPage is one page of events, newest first.
type EventPage struct {
	Events []*Event
	// Next is where the next page begins, as EventFilter.Before has it; 0 on the last page.
	Next    uint64
	Partial bool // some may be missing, because an index is being filled
}

// Body returns the event's bytes.
func (e *Event) Body() []byte { return e.body }

// FindEvents returns events of the account and their notifications, newest first. Those in the Redis index come
// first, about 0.1 s behind the stream; then older ones still in CRM_EVENTS. A page of those takes about two
// seconds at most, so it can be short, or empty, although more follow.
func (s *Service) FindEvents(ctx context.Context, account string, f EventFilter, l language.Language) (EventPage, error) {
	events, page, err := s.events(ctx, account, f)
	if err != nil {
		return EventPage{}, err
	}
	hits, err := s.hits(ctx, account, events)
	if err != nil {
		return EventPage{}, err
	}
	page.Events, page.Partial = make([]*Event, len(events)), page.Partial || hits.partial
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(eventReaders)
	for i, e := range events {
		group.Go(func() (err error) {
			page.Events[i], err = s.became(ctx, e, hits, l)
			return err
		})
	}
	return page, group.Wait()
}

// eventReaders is how many events of a page are looked at once.
const eventReaders = 4

// Event returns the account's event with that id, and its notifications.
func (s *Service) Event(ctx context.Context, account, id string, l language.Language) (*Event, error) {
	parsed, err := uuid.Parse(id)
	if err != nil || len(id) != 36 {
		return nil, problem.NotFound("event")
	}
	f := EventFilter{ID: parsed.String(), Limit: 1}
	for deadline := time.Now().Add(findWithin); ; {
		found, page, err := s.events(ctx, account, f)
		switch {
		case err != nil:
			return nil, err
		case len(found) > 0:
			hits, err := s.hits(ctx, account, found)
			if err != nil {
				return nil, err
			}
			if err := s.addOld(ctx, found[0], hits); err != nil {
				return nil, err
			}
			v, err := s.became(ctx, found[0], hits, l)
			if err != nil {
				return nil, err
			}
			v.Partial = v.Partial || hits.partial
			return v, nil
		case page.Next == 0:
			return nil, problem.NotFound("event")
		case time.Now().After(deadline):
			return nil, problem.Down("search_incomplete", "the event was not found among the newest ones, and the older ones could not be read in time; find it by its time", nil)
		}
		f.Before = page.Next
	}
}

// findWithin is how long an event is looked for by its id alone.
const findWithin = 10 * time.Second

// events returns events that are wanted, without their notifications.
func (s *Service) events(ctx context.Context, account string, f EventFilter) (found []*storedEvent, page EventPage, err error) {
	state, err := s.bus.StreamState(ctx, topology.Events)
	if err != nil {
		return nil, EventPage{}, problem.Broker(err)
	}
	known, err := s.index.Events(ctx, account, f.query(f.Limit))
	if err != nil {
		return nil, EventPage{}, away(err)
	}
	page.Partial = known.Partial
	first := max(state.First, 1) // 0 in a stream that never held a message
	low := min(known.Low, state.Last+1)
	if f.Before == 0 || f.Before > low {
		found = make([]*storedEvent, len(known.Sequences))
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(readers)
		for i, sequence := range known.Sequences {
			group.Go(func() (err error) {
				found[i], err = s.eventAt(ctx, account, sequence)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return nil, EventPage{}, err
		}
		switch {
		case known.More:
			page.Next = known.Sequences[len(known.Sequences)-1]
		case low > first:
			page.Next = low
		}
		return slices.DeleteFunc(found, func(e *storedEvent) bool { return e == nil || !f.wants(e) }), page, nil
	}
	over := false
	at, err := s.scanEvents(ctx, account, f.Before, first, func(e *storedEvent) bool {
		if over = e.StoredAt.Before(f.From); over {
			return false
		}
		if f.wants(e) {
			found = append(found, e)
		}
		return len(found) < f.Limit
	})
	if at > first && !over {
		page.Next = at
	}
	return found, page, err
}

// mostShown is how many notifications and webhooks of an event are shown.
const mostShown = 200

// hits are notifications by the first halves of their events' ids.
type hits struct {
	by      map[uint64][]index.Place
	low     uint64 // the sequence of the journal from which on they are complete
	partial bool   // some may be missing
}

// hits returns the notifications of the account's events that the index has.
func (s *Service) hits(ctx context.Context, account string, events []*storedEvent) (*hits, error) {
	halves := []uint64{}
	for _, e := range events {
		for _, id := range e.IDs() {
			halves = append(halves, index.Half(id))
		}
	}
	found, err := s.index.Search(ctx, account, index.Query{Events: halves, Limit: mostShown * max(len(events), 1)})
	if err != nil {
		return nil, away(err)
	}
	h := &hits{map[uint64][]index.Place{}, found.Low, found.Partial || found.More}
	for _, f := range found.Hits {
		h.by[f.Event] = append(h.by[f.Event], index.Place{Webhook: f.Webhook, ID: f.ID})
	}
	return h, nil
}

// addOld adds the event's notifications that are in the journal only, where the index does not reach back to the event.
// Those of webhooks that still exist would be found without it.
func (s *Service) addOld(ctx context.Context, e *storedEvent, h *hits) error {
	first, last, err := journal.Ends(ctx, s.bus)
	if err != nil {
		return problem.Broker(err)
	}
	low := min(h.low, last+1)
	if low <= max(first, 1) {
		return nil
	}
	covered := false
	err = journal.Summaries(ctx, s.bus, low, low, func(r *notification.Summary) { covered = r.At.Before(e.StoredAt) })
	if err != nil {
		return problem.Broker(err)
	}
	if covered {
		return nil
	}
	for _, id := range e.IDs() {
		old, err := s.searchJournal(ctx, e.Account, Filter{EventID: id, From: e.StoredAt.Add(-time.Second), After: below(low), Limit: mostShown}, []uint64{index.Half(id)})
		if err != nil {
			return err
		}
		h.partial = h.partial || !old.Next.IsZero()
		for _, l := range old.Notifications {
			if id, err := uuid.Parse(l.ID); err == nil {
				h.by[index.Half(l.EventID)] = append(h.by[index.Half(l.EventID)], index.Place{Webhook: l.WebhookID, ID: id})
			}
		}
	}
	return nil
}

// became finds the notifications of an event, of which the index has these hits.
func (s *Service) became(ctx context.Context, e *storedEvent, known *hits, l language.Language) (*Event, error) {
	v := &Event{
		ID: e.ID, EventName: e.Name, StoredAt: e.StoredAt.UTC().Truncate(time.Microsecond), Bytes: len(e.Body), TransactionUUID: optional(e.Transaction),
		DocumentID: optional(e.Document), Origin: optional(e.Origin), Changed: e.Changed, Notifications: []Listed{}, Unmatched: []Unmatched{}, body: e.Body,
	}
	if v.Changed == nil {
		v.Changed = []string{}
	}
	var places []index.Place
	has := map[string]bool{}
	for _, id := range e.IDs() {
		for _, at := range known.by[index.Half(id)] {
			places = append(places, at)
			has[at.Webhook] = true
		}
	}
	if len(places) > mostShown {
		places, v.Partial = places[:mostShown], true
	}
	var err error
	if v.Notifications, err = s.listed(ctx, e.Account, places); err != nil {
		return nil, err
	}
	unmatched, open := s.unmatched(e, has)
	if len(open) > mostShown {
		open, v.Partial = open[:mostShown], true
	}
	// The index is behind a little, and does not reach back to the oldest: the missing ones are looked for.
	more, err := s.lookFor(ctx, e, open)
	if err != nil {
		return nil, err
	}
	v.Notifications = append(v.Notifications, more...)
	for _, n := range more {
		has[n.WebhookID] = true
	}
	unmatched = slices.DeleteFunc(unmatched, func(u Unmatched) bool { return has[u.WebhookID] })
	if len(more) < len(open) {
		if d, deferred := s.meter.Deferred(e.Account); deferred && e.Sequence > d.After {
			why := explanation(explain.Deferred(d.Since), l)
			v.Explain = &why
		}
	}
	if v.Unmatched = append(v.Unmatched, unmatched...); len(v.Unmatched) > mostShown {
		v.Unmatched, v.Partial = v.Unmatched[:mostShown], true
	}
	return v, nil
}

// unmatched returns why webhooks of the account have no notification of the event, specific reasons first, and those
// for which the event is although they are not in has.
func (s *Service) unmatched(e *storedEvent, has map[string]bool) (all []Unmatched, open []*webhook.Webhook) {
	against := webhook.ConditionEvent(&e.Event)
	for _, w := range s.webhooks.All(e.Account) {
		if has[w.ID] {
			continue
		}
		u := w.Unmatched(&e.Event, e.StoredAt, against)
		if u == nil {
			open = append(open, w)
			continue
		}
		if !w.CreatedAt.After(e.StoredAt) && w.UpdatedAt.After(e.StoredAt) { // the event may have matched it then
			open = append(open, w)
		}
		all = append(all, Unmatched{w.ID, string(u.Why), u.Condition, u.Found})
	}
	rank := func(why string) int {
		return slices.Index([]string{string(webhook.ByCondition), string(webhook.IsDisabled), string(webhook.RegisteredLater), string(webhook.OtherName)}, why)
	}
	slices.SortStableFunc(all, func(a, b Unmatched) int { return cmp.Compare(rank(a.Why), rank(b.Why)) })
	return all, open
}

// lookFor returns the notifications of the event for these webhooks, where there are any.
func (s *Service) lookFor(ctx context.Context, e *storedEvent, hooks []*webhook.Webhook) ([]Listed, error) {
	rows := make([]Listed, len(hooks))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, w := range hooks {
		group.Go(func() error {
			for _, id := range e.IDs() {
				n, err := s.Get(ctx, e.Account, event.NotificationID(id, w.UUID))
				switch {
				case err == nil:
					rows[i] = listed(n)
					return nil
				case problem.Of(err).Kind != problem.Missing:
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	return slices.DeleteFunc(rows, func(l Listed) bool { return l.ID == "" }), err
}

// ParsePlace reads the place in a list of events that FormatPlace wrote.
func ParsePlace(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 62)
	return n, err == nil && n > 0 && FormatPlace(n) == s
}

// FormatPlace writes a place in a list of events, "" for none.
func FormatPlace(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
