// Package notifications shows the fate of notifications, and sends one again: a resend of one that ended,
// or a test.
//
// The journal decides (see gancho/pkg/notification): the newest record of a notification holds its state, the
// ones before it are its history. A notification with a message on NOTIFICATIONS that is newer than its
// journal is pending.
package notifications

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/share"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
	"gancho/pkg/wireversion"
	"gancho/services/management/internal/catalogue"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/shares"
	"gancho/services/management/internal/webhooks"
)

// maxRecords bounds how far back the history of one notification is read.
const maxRecords = 200

// readWithin is how long a read of the journal may take: the bus repeats it while the broker is down.
const readWithin = 5 * time.Second

// Service is safe for concurrent use.
type Service struct {
	bus       *bus.Bus
	webhooks  *webhooks.Service
	index     *index.Index
	catalogue *catalogue.Catalogue
	meter     *share.Meter

	eventMaxBytes int
	retriesLimit  int64
}

// New returns a service. Events larger than eventMaxBytes are not replayed. Above
// retriesLimit bytes on RETRIES (0: no limit) dispatchers make no first attempts. Tests send samples of the catalogue.
func New(
	b *bus.Bus, w *webhooks.Service, x *index.Index, c *catalogue.Catalogue, m *share.Meter, eventMaxBytes int,
	retriesLimit int64,
) *Service {
	return &Service{
		bus: b, webhooks: w, index: x, catalogue: c, meter: m, eventMaxBytes: eventMaxBytes,
		retriesLimit: retriesLimit,
	}
}

// Notification is the known state of one.
type Notification struct {
	Account, ID, WebhookID string
	EventID, EventName     string
	EventSequence          uint64 // in CRM_EVENTS; 0 for a test
	State                  notification.State
	Reason                 string // of a failure or of being parked
	Sends                  int
	AttemptsDone           int // of the current send
	NextAttemptAt          time.Time
	CreatedAt, UpdatedAt   time.Time // the first and the last thing known of it
	Replay                 string
	// History is the journal's account of it, oldest first.
	History []*notification.Record
	// Truncated says that older records are not shown: they have aged out, or there are very many.
	Truncated bool
	// Webhook is nil when it was deleted.
	Webhook *webhook.Webhook

	newest  *notification.Record // nil when nothing is recorded
	pending *notification.Notification
	paused  bool // no first attempts are made for now

	perMinute int // the limit of its URL that it waits for; 0: it does not
	waiting   int // notifications that wait for that URL; 0: not known
}

// Get returns the account's notification with its history.
func (s *Service) Get(ctx context.Context, account, id string) (*Notification, error) {
	n, err := s.look(ctx, account, id)
	if err != nil {
		return nil, err
	}
	return n, s.readHistory(ctx, n)
}

// Summary returns the account's notification with its newest record only.
func (s *Service) Summary(ctx context.Context, account, id string) (*Notification, error) {
	return s.look(ctx, account, id)
}

// look reads the newest record and the newest message.
func (s *Service) look(ctx context.Context, account, id string) (*Notification, error) {
	if uuid.Validate(id) != nil || len(id) != 36 || !event.ValidAccount(account) {
		return nil, problem.NotFound("notification")
	}
	var (
		last    *notification.Record
		pending *notification.Notification
	)
	limited, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	group, readCtx := errgroup.WithContext(limited)
	group.Go(func() (err error) {
		if last, err = journal.Last(readCtx, s.bus, account, id); errors.Is(err, bus.ErrNotFound) ||
			errors.Is(err, wireversion.ErrNewer) {
			err = nil // of a newer version: the parts known to this one are shown
		}
		return err
	})
	group.Go(func() (err error) {
		if pending, err = lane.Pending(readCtx, s.bus, account, id); errors.Is(err, bus.ErrNotFound) ||
			errors.Is(err, wireversion.ErrNewer) {
			err = nil
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, problem.Broker(err)
	}
	n := &Notification{Account: account, ID: id, pending: pending}
	switch {
	case last == nil && pending == nil:
		return nil, problem.NotFound("notification")
	case last == nil:
		n.follow(pending)
	default:
		r := *last
		n.WebhookID, n.EventID, n.EventName, n.EventSequence = r.WebhookID, r.EventID, r.EventName, r.EventSequence
		n.State, n.Reason, n.Sends, n.AttemptsDone = r.State, r.Reason, r.Send, r.AttemptsDone
		n.NextAttemptAt, n.Replay, n.newest = r.NextAttemptAt, r.Replay, last
		n.CreatedAt, n.UpdatedAt, n.Truncated = began(&r), r.At.Truncate(time.Millisecond), r.Previous > 0
		n.History = []*notification.Record{&r}
		if pending != nil && pending.Send > r.Send {
			n.follow(pending)
		}
	}
	w, err := s.webhooks.Get(ctx, account, n.WebhookID)
	switch {
	case err == nil:
		n.Webhook = w
	case problem.Of(err).Kind != problem.Missing:
		return nil, err
	case !n.State.Terminal():
		n.State, n.Reason, n.NextAttemptAt = notification.Cancelled, "", time.Time{}
	}
	switch {
	case n.State == notification.Pending:
		n.paused = s.paused(ctx)
	case n.State == notification.Parked && n.Reason == notification.Saturated && w != nil:
		if n.perMinute = s.webhooks.PerMinute(w); n.perMinute > 0 {
			n.waiting = s.waiting(ctx, w)
		}
	}
	return n, nil
}

// waiting returns how many notifications wait for the webhook's URL, 0 when that is not known.
func (s *Service) waiting(ctx context.Context, w *webhook.Webhook) int {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	backlogs, err := lane.Backlogs(ctx, s.bus, w.Account)
	if err != nil {
		return 0
	}
	n := 0
	for _, b := range backlogs {
		if b.Lane == w.URLKey {
			n += int(b.Messages) //nolint:gosec // a count
		}
	}
	return n
}

// paused reports whether dispatchers make no first attempts for any account because RETRIES holds twice its limit.
// Above the limit itself only those of the accounts that hold the most of it wait, on PARKED.
func (s *Service) paused(ctx context.Context) bool {
	if s.retriesLimit == 0 {
		return false
	}
	state, err := s.bus.StreamState(ctx, topology.Retries)
	return err == nil && state.Bytes > 2*uint64(s.retriesLimit) //nolint:gosec // positive
}

// follow takes over a message whose send has not been recorded yet.
func (n *Notification) follow(m *notification.Notification) {
	n.WebhookID, n.EventID, n.EventName, n.EventSequence = m.WebhookID, m.EventID, m.EventName, m.EventSequence
	n.State, n.Reason, n.Sends, n.AttemptsDone = notification.Pending, "", m.Send, m.AttemptsDone
	n.NextAttemptAt, n.Replay = time.Time{}, m.Replay
	if n.CreatedAt.IsZero() {
		n.CreatedAt, n.UpdatedAt = m.EventTime.UTC().Truncate(time.Millisecond),
			m.EventTime.UTC().Truncate(time.Millisecond)
	}
}

// began is when the first thing in a record happened.
func began(r *notification.Record) time.Time {
	at := r.At
	if r.Attempt != nil && r.Attempt.StartedAt.Before(at) {
		at = r.Attempt.StartedAt
	}
	return at.Truncate(time.Millisecond)
}

// next is when the next attempt is due, nil when none is.
func (n *Notification) next() *time.Time {
	if n.State != notification.Retrying || n.NextAttemptAt.IsZero() {
		return nil
	}
	at := n.NextAttemptAt.Truncate(time.Millisecond)
	return &at
}

// readHistory completes n.History.
func (s *Service) readHistory(ctx context.Context, n *Notification) error {
	if n.newest == nil {
		return nil
	}
	n.History, n.Truncated = nil, false
	for r, err := range journal.History(ctx, s.bus, n.newest) {
		switch {
		case errors.Is(err, bus.ErrNotFound), len(n.History) == maxRecords:
			n.Truncated = true
		case err != nil && !errors.Is(err, wireversion.ErrNewer):
			return problem.Broker(err)
		default:
			n.History = append(n.History, r)
			n.CreatedAt = began(r)
		}
		if n.Truncated {
			break
		}
	}
	slices.Reverse(n.History)
	return nil
}

// Payload returns the event's bytes; an error of 409 event_expired when they are not kept any more.
func (s *Service) Payload(ctx context.Context, n *Notification) ([]byte, error) {
	m, err := s.message(ctx, n)
	if err != nil {
		return nil, err
	}
	return m.Body, nil
}

var errExpired = problem.New(problem.Conflict, "event_expired",
	"the event is not kept any more (EVENTS_MAX_AGE; permanent failures: LOG_MAX_AGE), so it cannot be sent again")

// message finds the event of a notification again: on NOTIFICATIONS while it is there, on FAILED after a
// permanent failure, else in CRM_EVENTS.
func (s *Service) message(ctx context.Context, n *Notification) (*notification.Notification, error) {
	if m := n.pending; m != nil {
		if err := bodies.Inline(ctx, s.bus, m); !errors.Is(err, bodies.ErrGone) {
			return m, problem.Broker(err)
		}
	}
	m, err := lane.Failed(ctx, s.bus, n.Account, n.WebhookID, n.ID)
	if err == nil { // it refers to its body for as long as FAILED has it
		err = bodies.Fill(ctx, s.bus, m)
	}
	if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bodies.ErrGone) {
		m, err = eventstream.Notification(ctx, s.bus, n.EventSequence, n.EventID, n.WebhookID)
	}
	if errors.Is(err, bus.ErrNotFound) {
		return nil, errExpired
	}
	if err != nil {
		return nil, problem.Broker(err)
	}
	return m, nil
}

// Room returns an error of 429 account_share when the account may send nothing more for now.
func (s *Service) Room(account string) error { return shares.Check(s.meter, account) }

// Resend opens a new send of a notification that was delivered or has permanently failed. Two resends at
// once are one.
func (s *Service) Resend(ctx context.Context, account, id string) (*Notification, error) {
	n, err := s.look(ctx, account, id)
	if err != nil {
		return nil, err
	}
	if err := s.again(ctx, n); err != nil {
		return nil, err
	}
	return s.Get(ctx, account, id)
}

// Test sends a sample of the webhook's event through the real path, to this webhook only, and returns the
// notification. A pattern gets a sample of the first known name it matches.
func (s *Service) Test(ctx context.Context, account, webhookID string) (*Notification, error) {
	w, err := s.webhooks.Get(ctx, account, webhookID)
	if err != nil {
		return nil, err
	}
	return s.test(ctx, w, sampleName(w.EventName, s.webhooks.Names()))
}

// TestOf is Test with a sample of that event, which must be one that the webhook is for.
func (s *Service) TestOf(ctx context.Context, account, webhookID, name string) (*Notification, error) {
	w, err := s.webhooks.Get(ctx, account, webhookID)
	if err != nil {
		return nil, err
	}
	if !w.EventName.Matches(name) {
		return nil, problem.New(problem.Invalid, "other_name", "the webhook is for events of other names")
	}
	return s.test(ctx, w, name)
}

func (s *Service) test(ctx context.Context, w *webhook.Webhook, name string) (*Notification, error) {
	account := w.Account
	now, transaction := time.Now().UTC(), uuid.NewString()
	eventID := event.ID(account, name, transaction)
	id, err := uuid.Parse(w.ID)
	if err != nil {
		return nil, err
	}
	m := notification.First(&event.Event{
		ID: eventID, Account: account, Name: name, Body: s.catalogue.Event(name, transaction, now),
	}, now, id)
	if err := s.Room(account); err != nil {
		return nil, err
	}
	if err := shares.Notify(ctx, s.meter, s.bus, &m); err != nil {
		return nil, err
	}
	s.index.Sent(ctx, &m)
	n := &Notification{Account: account, ID: m.ID, Webhook: w}
	n.follow(&m)
	return n, nil
}

func sampleName(p webhook.Pattern, known []string) string {
	if p.Exact() {
		return string(p)
	}
	if p.Matches("crm_deal_created") {
		return "crm_deal_created"
	}
	for _, name := range known {
		if p.Matches(name) {
			return name
		}
	}
	// No known name matches, as with crm_visit_*: make one up that does.
	before, after, _ := strings.Cut(string(p), "*")
	for _, middle := range []string{"created", "sample_created", "x"} {
		if name := before + middle + after; event.ValidName(name) && p.Matches(name) {
			return name
		}
	}
	return "crm_deal_created"
}
