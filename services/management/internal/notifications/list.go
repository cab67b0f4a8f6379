package notifications

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/notification"
	"gancho/services/management/internal/explain"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/problem"
)

// Page is one page of a list.
type Page struct {
	Notifications []Listed // newest first
	// Next is where the next page begins, the zero Cursor on the last one.
	Next Cursor
	// Partial says that some may be missing, because an index is being filled.
	Partial bool
}

// Cursor is a place between two notifications of a list. New ones do not move it.
type Cursor struct {
	created int64 // unix ms; negative: the rest has its newest record below that sequence of the journal
	id      uuid.UUID
}

// below returns the place of a notification whose newest record is below a sequence of the journal.
func below(sequence uint64) Cursor { return Cursor{created: -int64(sequence)} } //nolint:gosec // sequences stay far below 2^63

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

// listed shows the notifications at these places. Those that the index does not know completely are read from the
// journal: also the last attempt of those that were parked, cancelled or given up after it. Those that are no longer
// there are left out.
func (s *Service) listed(ctx context.Context, account string, places []index.Place) ([]Listed, error) {
	found, err := s.index.Find(ctx, places)
	if err != nil {
		return nil, away(err)
	}
	rows := make([]Listed, len(found))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, f := range found {
		if f.Known && (f.Attempt != nil || f.AttemptsMade == 0) {
			rows[i] = listedRow(f, places[i].Webhook)
			continue
		}
		group.Go(func() error {
			n, err := s.Get(ctx, account, f.ID.String())
			switch {
			case err == nil:
				rows[i] = listed(n)
			case problem.Of(err).Kind != problem.Missing:
				return err
			}
			return nil
		})
	}
	err = group.Wait()
	return slices.DeleteFunc(rows, func(l Listed) bool { return l.ID == "" }), err
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
	LastAttempt   *ListedAttempt `json:"last_attempt" doc:"of the current send; null before the first one"`
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

// listed returns n, with its history, as a list shows it.
func listed(n *Notification) Listed {
	v := Listed{
		ID: n.ID, WebhookID: n.WebhookID, EventID: n.EventID, EventName: n.EventName, State: string(n.State),
		Reason: optional(n.Reason), Sends: n.Sends, AttemptsMade: n.AttemptsDone, ReplayID: optional(n.Replay),
		CreatedAt: n.CreatedAt, UpdatedAt: n.UpdatedAt, NextAttemptAt: n.next(),
	}
	if last := explain.LastAttempt(n.History, n.Sends); last != nil {
		a := ShowAttempt(last)
		v.LastAttempt = &ListedAttempt{a.Number, a.Send, a.StartedAt, a.Outcome, a.Reason, a.HTTPStatus, a.DurationMS}
	}
	return v
}

// listedRow is listed for rows of the index.
func listedRow(f index.Found, webhookID string) Listed {
	r := f.Row
	v := Listed{
		ID: f.ID.String(), WebhookID: webhookID, EventID: r.EventID, EventName: r.EventName, State: string(r.State),
		Reason: optional(r.Reason), Sends: r.Sends, AttemptsMade: r.AttemptsMade, ReplayID: optional(r.Replay),
		CreatedAt: f.Created, UpdatedAt: r.UpdatedAt,
	}
	if r.State == notification.Retrying && !r.NextAttemptAt.IsZero() {
		v.NextAttemptAt = &r.NextAttemptAt
	}
	if a := r.Attempt; a != nil {
		v.LastAttempt = &ListedAttempt{r.AttemptsMade, r.Sends, a.StartedAt, a.Outcome, optional(a.Reason), nil, a.DurationMS}
		if a.HTTPStatus > 0 {
			v.LastAttempt.HTTPStatus = &a.HTTPStatus
		}
	}
	return v
}
