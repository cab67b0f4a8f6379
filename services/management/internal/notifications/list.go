package notifications

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/notification"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/problem"
)

// Filter says which notifications of a webhook are wanted.
type Filter struct {
	State    notification.State // "" for all
	From, To time.Time          // when they were created: From included, To not; zero for no limit
	After    Cursor             // the zero Cursor begins with the newest
	Limit    int                // at least 1
}

// Page is one page of a list.
type Page struct {
	Notifications []*Notification // newest first, each with its newest record only
	// Next is where the next page begins, the zero Cursor on the last one.
	Next Cursor
	// Partial says that the index is being filled, so some may be missing.
	Partial bool
}

// Cursor is a place between two notifications of a list. New ones do not move it.
type Cursor struct {
	created int64
	id      uuid.UUID
}

// IsZero reports whether c is no place.
func (c Cursor) IsZero() bool { return c == Cursor{} }

func (c Cursor) entry() index.Entry {
	return index.Entry{ID: c.id, Created: time.UnixMilli(c.created).UTC()}
}

// String is what ParseCursor reads.
func (c Cursor) String() string {
	b := binary.BigEndian.AppendUint64(nil, uint64(c.created)) //nolint:gosec // it comes back the same way
	return base64.RawURLEncoding.EncodeToString(append(b, c.id[:]...))
}

// ParseCursor reads a cursor that String wrote.
func ParseCursor(s string) (Cursor, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 8+len(uuid.UUID{}) {
		return Cursor{}, false
	}
	c := Cursor{int64(binary.BigEndian.Uint64(b)), uuid.UUID(b[8:])} //nolint:gosec // as it was written
	return c, c.String() == s                                        // the decoder skips line breaks
}

// readers is how many notifications of a page are read at once.
const readers = 16

// List returns recent notifications of the account's webhook, newest first. It needs the index in Redis.
func (s *Service) List(ctx context.Context, account, webhookID string, f Filter) (Page, error) {
	if _, err := s.webhooks.Get(ctx, account, webhookID); err != nil {
		return Page{}, err
	}
	entries, partial, err := s.index.Recent(ctx, webhookID)
	if errors.Is(err, index.ErrAway) {
		return Page{}, problem.Unavailable("index_unavailable", "the list of recent notifications is away, because Redis does not answer; a notification can still be read by its id", err)
	}
	if err != nil {
		return Page{}, err
	}
	var wanted []index.Entry
	for _, e := range entries {
		switch {
		case !f.After.IsZero() && index.Compare(e, f.After.entry()) <= 0,
			!f.From.IsZero() && e.Created.Before(f.From),
			!f.To.IsZero() && !e.Created.Before(f.To),
			f.State != "" && e.State != "" && e.State != f.State:
			continue
		}
		wanted = append(wanted, e)
	}
	page := Page{Partial: partial}
	for len(wanted) > 0 && len(page.Notifications) < f.Limit {
		n := min(f.Limit-len(page.Notifications), len(wanted))
		found, err := s.summaries(ctx, account, wanted[:n])
		if err != nil {
			return Page{}, err
		}
		for _, x := range found {
			// The journal has the last word on the state.
			if x != nil && x.WebhookID == webhookID && (f.State == "" || x.State == f.State) {
				page.Notifications = append(page.Notifications, x)
			}
		}
		last := wanted[n-1]
		page.Next, wanted = Cursor{last.Created.UnixMilli(), last.ID}, wanted[n:]
	}
	if len(wanted) == 0 {
		page.Next = Cursor{}
	}
	return page, nil
}

// summaries reads the newest record of each entry; nil for those that have aged out.
func (s *Service) summaries(ctx context.Context, account string, entries []index.Entry) ([]*Notification, error) {
	out := make([]*Notification, len(entries))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, e := range entries {
		group.Go(func() error {
			n, err := s.look(ctx, account, e.ID.String())
			if err != nil {
				if problem.Of(err).Status == http.StatusNotFound {
					return nil
				}
				return err
			}
			n.CreatedAt = e.Created
			out[i] = n
			return nil
		})
	}
	return out, group.Wait()
}

// Listed is a notification in a list.
type Listed struct {
	ID            string         `json:"id" format:"uuid"`
	WebhookID     string         `json:"webhook_id" format:"uuid"`
	EventID       string         `json:"event_id" format:"uuid"`
	EventName     string         `json:"event_name"`
	State         string         `json:"state" enum:"pending,retrying,parked,delivered,permanently_failed,cancelled"`
	Reason        *string        `json:"reason" nullable:"true"`
	Sends         int            `json:"sends"`
	AttemptsMade  int            `json:"attempts_made"`
	NextAttemptAt *time.Time     `json:"next_attempt_at"`
	ReplayID      *string        `json:"replay_id" nullable:"true"`
	CreatedAt     time.Time      `json:"created_at"`
	UpdatedAt     time.Time      `json:"updated_at"`
	LastAttempt   *ListedAttempt `json:"last_attempt" doc:"null when the newest thing known of it is not an attempt"`
}

// ListedAttempt is an attempt in a list.
type ListedAttempt struct {
	Number     int       `json:"number"`
	Send       int       `json:"send"`
	StartedAt  time.Time `json:"started_at"`
	Outcome    string    `json:"outcome" enum:"delivered,failed"`
	Reason     *string   `json:"reason" nullable:"true"`
	HTTPStatus *int      `json:"http_status" nullable:"true"`
	DurationMS float64   `json:"duration_ms"`
}

// Listed returns n as a list shows it.
func (s *Service) Listed(n *Notification) Listed {
	v := Listed{
		ID: n.ID, WebhookID: n.WebhookID, EventID: n.EventID, EventName: n.EventName, State: string(n.State),
		Reason: optional(n.Reason), Sends: n.Sends, AttemptsMade: n.AttemptsDone, ReplayID: optional(n.Replay),
		CreatedAt: n.CreatedAt, UpdatedAt: n.UpdatedAt,
	}
	if n.State == notification.Retrying && !n.NextAttemptAt.IsZero() {
		v.NextAttemptAt = &n.NextAttemptAt
	}
	if len(n.History) > 0 && n.History[len(n.History)-1].Attempt != nil {
		a := ShowAttempt(n.History[len(n.History)-1].Attempt)
		v.LastAttempt = &ListedAttempt{a.Number, a.Send, a.StartedAt, a.Outcome, a.Reason, a.HTTPStatus, a.DurationMS}
	}
	return v
}
