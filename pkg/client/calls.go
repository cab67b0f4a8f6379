package client

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// pageSize is the most that the API puts on a page.
const pageSize = 200

// post makes a call with {"data": data}.
func post[T any](ctx context.Context, c *Client, method, path string, data any) (Result[T], error) {
	body, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return Result[T]{}, fmt.Errorf("encode the request: %w", err)
	}
	return do[T](ctx, c, call{method: method, path: path, body: body})
}

func get[T any](ctx context.Context, c *Client, path string) (Result[T], error) {
	return do[T](ctx, c, call{method: http.MethodGet, path: path})
}

// act makes an action call.
func act[T any](ctx context.Context, c *Client, path string) (Result[T], error) {
	return do[T](ctx, c, call{method: http.MethodPost, path: path})
}

func webhookPath(id string) string      { return "/webhooks/" + url.PathEscape(id) }
func notificationPath(id string) string { return "/notifications/" + url.PathEscape(id) }
func replayPath(id string) string       { return "/replays/" + url.PathEscape(id) }

// list reads a list page by page, following links.next. Of that link only the query is used. partial, if not
// nil, is called when a page says that some may be missing.
func list[T any](ctx context.Context, c *Client, path string, query url.Values, partial func()) iter.Seq2[Result[T], error] {
	return func(yield func(Result[T], error) bool) {
		for {
			first := call{method: http.MethodGet, path: path, query: query}
			e, err := c.send(ctx, first)
			if err != nil {
				yield(Result[T]{}, err)
				return
			}
			if e.Partial && partial != nil {
				partial()
			}
			var page []json.RawMessage
			if err := json.Unmarshal(e.Data, &page); err != nil {
				yield(Result[T]{}, &Unexpected{Call: c.name(first), What: "an answer that is not a list"})
				return
			}
			for _, raw := range page {
				r := Result[T]{Raw: raw}
				if err := json.Unmarshal(raw, &r.Value); err != nil {
					yield(r, &Unexpected{Call: c.name(first), What: "an answer of another form: " + err.Error()})
					return
				}
				if !yield(r, nil) {
					return
				}
			}
			if !e.HasMore || e.Links.Next == "" {
				return
			}
			next, err := url.Parse(e.Links.Next)
			if err != nil || next.RawQuery == query.Encode() {
				yield(Result[T]{}, &Unexpected{Call: c.name(first), What: "a list whose next page is the same again"})
				return
			}
			query = next.Query()
		}
	}
}

// Webhooks lists the account's webhooks, oldest first.
func (c *Client) Webhooks(ctx context.Context) iter.Seq2[Result[Webhook], error] {
	return c.FindWebhooks(ctx, WebhookFilter{})
}

// WebhookFilter says which webhooks are wanted, and in which order; "" does not limit. In URL and Name a * stands for
// any characters.
type WebhookFilter struct {
	Status, EventName, URL, Name string
	Sort                         string // created_at, updated_at, name, event_name or url; - in front for the other direction
}

// FindWebhooks lists webhooks of the account.
func (c *Client) FindWebhooks(ctx context.Context, f WebhookFilter) iter.Seq2[Result[Webhook], error] {
	query := url.Values{"page[size]": {strconv.Itoa(pageSize)}}
	for name, value := range map[string]string{"status": f.Status, "event_name": f.EventName, "url": f.URL, "name": f.Name, "sort": f.Sort} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return list[Webhook](ctx, c, "/webhooks", query, nil)
}

// Webhook returns one.
func (c *Client) Webhook(ctx context.Context, id string) (Result[Webhook], error) {
	return get[Webhook](ctx, c, webhookPath(id))
}

// CreateWebhook registers one; the result carries its signing secret.
func (c *Client) CreateWebhook(ctx context.Context, change Change) (Result[Webhook], error) {
	return post[Webhook](ctx, c, http.MethodPost, "/webhooks", change.data())
}

// UpdateWebhook changes one.
func (c *Client) UpdateWebhook(ctx context.Context, id string, change Change) (Result[Webhook], error) {
	return post[Webhook](ctx, c, http.MethodPut, webhookPath(id), change.data())
}

// CreateWebhookFrom registers a webhook with the API's members as they are.
func (c *Client) CreateWebhookFrom(ctx context.Context, members map[string]json.RawMessage) (Result[Webhook], error) {
	return post[Webhook](ctx, c, http.MethodPost, "/webhooks", members)
}

// UpdateWebhookFrom changes those of the API's members that are given.
func (c *Client) UpdateWebhookFrom(ctx context.Context, id string, members map[string]json.RawMessage) (Result[Webhook], error) {
	return post[Webhook](ctx, c, http.MethodPut, webhookPath(id), members)
}

// DeleteWebhook deletes a webhook; its waiting notifications are cancelled.
func (c *Client) DeleteWebhook(ctx context.Context, id string) error {
	_, err := c.send(ctx, call{method: http.MethodDelete, path: webhookPath(id)})
	return err
}

// TestWebhook sends it a sample of its event through the real path.
func (c *Client) TestWebhook(ctx context.Context, id string) (Result[Notification], error) {
	return act[Notification](ctx, c, webhookPath(id)+"/test")
}

// TestConditions holds its conditions against an event. Nothing is sent.
func (c *Client) TestConditions(ctx context.Context, id string, t Trial) (Result[Verdict], error) {
	return post[Verdict](ctx, c, http.MethodPost, webhookPath(id)+"/conditions/test", t)
}

// SuspendWebhook suspends its URL by hand.
func (c *Client) SuspendWebhook(ctx context.Context, id string) (Result[Webhook], error) {
	return act[Webhook](ctx, c, webhookPath(id)+"/suspend")
}

// ResumeWebhook lifts the suspension of its URL.
func (c *Client) ResumeWebhook(ctx context.Context, id string) (Result[Webhook], error) {
	return act[Webhook](ctx, c, webhookPath(id)+"/resume")
}

// RotateSecret makes a new signing secret, which the result carries.
func (c *Client) RotateSecret(ctx context.Context, id string) (Result[Webhook], error) {
	return act[Webhook](ctx, c, webhookPath(id)+"/rotate_secret")
}

// Range selects notifications or events. Zero values select everything.
type Range struct {
	State    string
	From, To time.Time
}

// Find selects notifications or events of the account. Zero values select everything.
type Find struct {
	Range // events have no State

	WebhookID, EventID          string // of notifications
	EventName                   string
	DocumentID, TransactionUUID string // of the event
}

func (f Find) query(atOnce int) url.Values {
	if atOnce <= 0 || atOnce > pageSize {
		atOnce = pageSize
	}
	query := url.Values{"page[size]": {strconv.Itoa(atOnce)}}
	for name, value := range map[string]string{
		"state": f.State, "webhook_id": f.WebhookID, "event_id": f.EventID, "event_name": f.EventName,
		"document_id": f.DocumentID, "transaction_uuid": f.TransactionUUID,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for name, at := range map[string]time.Time{"from": f.From, "to": f.To} {
		if !at.IsZero() {
			query.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	return query
}

// Notifications lists those of a webhook, newest first. atOnce is how many to ask for at a time, 0 for as
// many as the API gives. partial, if not nil, is called when some may be missing, because the index is being
// rebuilt.
func (c *Client) Notifications(ctx context.Context, webhookID string, r Range, atOnce int, partial func()) iter.Seq2[Result[Notification], error] {
	return list[Notification](ctx, c, webhookPath(webhookID)+"/notifications", Find{Range: r}.query(atOnce), partial)
}

// FindNotifications lists notifications of the account, newest first. atOnce and partial are those of Notifications.
func (c *Client) FindNotifications(ctx context.Context, f Find, atOnce int, partial func()) iter.Seq2[Result[Notification], error] {
	return list[Notification](ctx, c, "/notifications", f.query(atOnce), partial)
}

// FindEvents lists events of the account and their notifications, newest first. atOnce and partial are those of
// Notifications.
func (c *Client) FindEvents(ctx context.Context, f Find, atOnce int, partial func()) iter.Seq2[Result[Event], error] {
	return list[Event](ctx, c, "/events", f.query(atOnce), partial)
}

// Event returns an event and its notifications.
func (c *Client) Event(ctx context.Context, id string) (Result[Event], error) {
	return get[Event](ctx, c, "/events/"+url.PathEscape(id))
}

// Period is a time in steps of 1m, 1h or 1d. Zero values leave the choice to the API: the last 24 hours, by hours.
type Period struct {
	From, To time.Time
	Step     string
}

func (p Period) query() url.Values {
	query := url.Values{}
	if p.Step != "" {
		query.Set("step", p.Step)
	}
	for name, at := range map[string]time.Time{"from": p.From, "to": p.To} {
		if !at.IsZero() {
			query.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	return query
}

// Stats lists the numbers of a webhook, oldest step first.
func (c *Client) Stats(ctx context.Context, webhookID string, p Period) iter.Seq2[Result[Stats], error] {
	return list[Stats](ctx, c, webhookPath(webhookID)+"/stats", p.query(), nil)
}

// Usage lists the usage of an account, or of each with "", oldest step first. It is for operators.
func (c *Client) Usage(ctx context.Context, account string, p Period) iter.Seq2[Result[Usage], error] {
	query := p.query()
	if account != "" {
		query.Set("account_id", account)
	}
	return list[Usage](ctx, c, "/usage", query, nil)
}

// Notification returns one with its attempts.
func (c *Client) Notification(ctx context.Context, id string) (Result[Notification], error) {
	return get[Notification](ctx, c, notificationPath(id))
}

// Resend opens a new send of a notification that ended.
func (c *Client) Resend(ctx context.Context, id string) (Result[Notification], error) {
	return act[Notification](ctx, c, notificationPath(id)+"/resend")
}

// CreateReplay makes a replay of the webhook's events; nothing is sent before StartReplay. rate is per
// second, 0 for the server's default.
func (c *Client) CreateReplay(ctx context.Context, webhookID string, r Range, rate int) (Result[Replay], error) {
	data := map[string]any{"from": r.From.UTC(), "to": r.To.UTC()}
	if r.State != "" {
		data["state"] = r.State
	}
	if rate > 0 {
		data["rate"] = rate
	}
	return post[Replay](ctx, c, http.MethodPost, webhookPath(webhookID)+"/replays", data)
}

// ChangeFilter selects changes. Empty members select all.
type ChangeFilter struct {
	From, To              time.Time // To is not included
	Action, Actor, Object string    // Actor is a name, Object an id
}

// Changes lists changes, newest first: of the account, of an operator without one of all. atOnce is that of
// Notifications.
func (c *Client) Changes(ctx context.Context, f ChangeFilter, atOnce int) iter.Seq2[Result[AuditRecord], error] {
	query := Find{Range: Range{From: f.From, To: f.To}}.query(atOnce)
	for name, value := range map[string]string{"action": f.Action, "actor": f.Actor, "object": f.Object} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return list[AuditRecord](ctx, c, "/audit", query, nil)
}

// Replays lists those of a webhook, newest first.
func (c *Client) Replays(ctx context.Context, webhookID string) iter.Seq2[Result[Replay], error] {
	return list[Replay](ctx, c, webhookPath(webhookID)+"/replays", nil, nil)
}

// Replay returns one.
func (c *Client) Replay(ctx context.Context, id string) (Result[Replay], error) {
	return get[Replay](ctx, c, replayPath(id))
}

// StartReplay starts one that is a preview.
func (c *Client) StartReplay(ctx context.Context, id string) (Result[Replay], error) {
	return act[Replay](ctx, c, replayPath(id)+"/start")
}

// PauseReplay pauses one that runs.
func (c *Client) PauseReplay(ctx context.Context, id string) (Result[Replay], error) {
	return act[Replay](ctx, c, replayPath(id)+"/pause")
}

// ResumeReplay goes on with one that is paused.
func (c *Client) ResumeReplay(ctx context.Context, id string) (Result[Replay], error) {
	return act[Replay](ctx, c, replayPath(id)+"/resume")
}

// CancelReplay ends a replay. Notifications that it sent stay sent.
func (c *Client) CancelReplay(ctx context.Context, id string) error {
	_, err := c.send(ctx, call{method: http.MethodDelete, path: replayPath(id)})
	return err
}

// Erase begins an erasure, and Erasure shows its progress. Both are for operators.
func (c *Client) Erase(ctx context.Context, in EraseInput) (Result[Erasure], error) {
	return post[Erasure](ctx, c, http.MethodPost, "/erasures", in)
}

// Erasure returns one.
func (c *Client) Erasure(ctx context.Context, id string) (Result[Erasure], error) {
	return get[Erasure](ctx, c, "/erasures/"+url.PathEscape(id))
}

// Erasures lists those of the account, newest first.
func (c *Client) Erasures(ctx context.Context) iter.Seq2[Result[Erasure], error] {
	return list[Erasure](ctx, c, "/erasures", nil, nil)
}

// CreatePortalLink makes a link into the console for a person without a token.
func (c *Client) CreatePortalLink(ctx context.Context, l PortalLink) (Result[CreatedLink], error) {
	return post[CreatedLink](ctx, c, http.MethodPost, "/portal_links", l)
}

// SendEvent publishes an event and returns after the broker stored it. body goes out byte for byte.
func (c *Client) SendEvent(ctx context.Context, eventName string, body []byte) (Result[Accepted], error) {
	return do[Accepted](ctx, c, call{method: http.MethodPost, path: "/events/" + url.PathEscape(eventName), body: body})
}
