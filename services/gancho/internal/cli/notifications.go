package cli

import (
	"encoding/json"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"gancho/pkg/client"
)

type notificationsCmd struct {
	List    notificationsList    `cmd:"" help:"List notifications of a webhook or of the account, newest first."`
	Get     notificationsGet     `cmd:"" help:"Show a notification with its attempts."`
	Explain notificationsExplain `cmd:"" help:"Say in words why a notification is in its state, and what happens when."`
	Resend  notificationsResend  `cmd:"" help:"Send one again that was delivered or permanently failed."`
}

// when is a point in time on the command line.
type when struct{ text string }

// UnmarshalText takes the text; it is read when the time of the command is known.
func (w *when) UnmarshalText(text []byte) error {
	w.text = string(text)
	_, err := w.at(time.Time{})
	return err
}

// at reads a time (2026-01-21T20:58:22Z), a day (2026-01-21, its beginning in UTC), or how long ago (90s, 2h,
// 3d). Nothing is the zero time.
func (w when) at(now time.Time) (time.Time, error) {
	if w.text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, w.text); err == nil {
			return t, nil
		}
	}
	text := w.text
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 {
			return now.Add(-time.Duration(n * 24 * float64(time.Hour))), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, fmt.Errorf("%q is neither a time (2026-01-21T20:58:22Z), a day (2026-01-21), "+
		"nor how long ago (90s, 2h, 3d)", text)
}

// rangeFlags select notifications.
type rangeFlags struct {
	State string `placeholder:"STATE" help:"Only those in a state: pending, retrying, parked, delivered, permanently_failed or cancelled."`
	From  when   `placeholder:"TIME" help:"Only those created from this time on: a time, a day, or how long ago (2h, 3d)."`
	To    when   `placeholder:"TIME" help:"Only those created before this time."`
}

func (f rangeFlags) selected(now time.Time) (r client.Range, err error) {
	r.State = f.State
	if r.From, err = f.From.at(now); err != nil {
		return r, usage("--from: %v", err)
	}
	if r.To, err = f.To.at(now); err != nil {
		return r, usage("--to: %v", err)
	}
	return r, nil
}

// eventFlags select events.
type eventFlags struct {
	Event       string `placeholder:"NAME" help:"Only of events with this name."`
	Document    string `placeholder:"ID" help:"Only of events about this document."`
	Transaction string `placeholder:"UUID" help:"Only of events of this transaction."`
}

type notificationsList struct {
	Webhook string `arg:"" optional:"" help:"Id of the webhook; all of the account, deleted ones included, if not given."`
	rangeFlags
	eventFlags
	EventID string `placeholder:"ID" help:"Only those of this event."`
	Limit   int    `default:"50" help:"At most so many; 0 for all."`
	apiFlags
}

func (notificationsList) Help() string {
	return `Examples:

	gancho notifications list WEBHOOK --from 2h
	gancho notifications list --document 9f3c --state permanently_failed
	gancho notifications list WEBHOOK --state permanently_failed --limit 0 -o json | jq -r '.[].id'`
}

func (c notificationsList) Run(a *app) error {
	selected, err := c.selected(a.now)
	if err != nil {
		return err
	}
	rows := [][]string{{"ID", "STATE", "REASON", "ATTEMPTS", "STATUS", "EVENT", "CREATED", "NEXT ATTEMPT"}}
	var all []json.RawMessage
	partial := false
	for r, err := range c.find(a, selected, func() { partial = true }) {
		if err != nil {
			return err
		}
		n := r.Value
		answered := "-"
		if n.LastAttempt != nil {
			answered = status(n.LastAttempt.HTTPStatus)
		}
		all = append(all, r.Raw)
		rows = append(rows, []string{
			n.ID, n.State, dash(n.Reason), strconv.Itoa(n.AttemptsMade), answered, n.EventName, stamp(n.CreatedAt),
			dash(stampOf(n.NextAttemptAt)),
		})
		if len(all) == c.Limit {
			break
		}
	}
	if partial {
		a.warnPartial()
	}
	if a.output == "json" {
		return a.allAsJSON(all)
	}
	return a.rows(rows)
}

// find lists the notifications asked for: by webhook alone, or over the account.
func (c notificationsList) find(
	a *app, r client.Range, partial func(),
) iter.Seq2[client.Result[client.Notification], error] {
	f := client.Find{
		Range: r, WebhookID: c.Webhook, EventID: c.EventID, EventName: c.Event, DocumentID: c.Document,
		TransactionUUID: c.Transaction,
	}
	if f == (client.Find{Range: r, WebhookID: c.Webhook}) && c.Webhook != "" {
		return a.client.Notifications(a.ctx, c.Webhook, r, c.Limit, partial)
	}
	return a.client.FindNotifications(a.ctx, f, c.Limit, partial)
}

func (a *app) warnPartial() {
	fmt.Fprintln(a.Stderr, "gancho: the index is being rebuilt: some notifications may be missing; ask again in a while")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// notificationArg names the notification of a command.
type notificationArg struct {
	ID string `arg:"" help:"Id of the notification: the webhook-id that its receiver saw."`
}

type notificationsGet struct {
	notificationArg
	apiFlags
}

func (c notificationsGet) Run(a *app) error {
	return a.showNotification(a.client.Notification(a.ctx, c.ID))
}

func (a *app) showNotification(r client.Result[client.Notification], err error) error {
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.asJSON(r.Raw)
	}
	n := r.Value
	state := n.State
	if n.Reason != "" {
		state += " (" + n.Reason + ")"
	}
	sends := ""
	if n.Sends > 1 {
		sends = strconv.Itoa(n.Sends)
	}
	err = a.pairs(
		pair{"id", n.ID},
		pair{"webhook", n.WebhookID},
		pair{"event", n.EventName + " " + n.EventID},
		pair{"state", state},
		pair{"sends", sends},
		pair{"replay", n.ReplayID},
		pair{"next attempt", stampOf(n.NextAttemptAt)},
		pair{"created", stamp(n.CreatedAt)},
		pair{"updated", stamp(n.UpdatedAt)},
		pair{"why", n.Explain.Text},
		pair{"next", n.Explain.Next},
	)
	if err != nil || len(n.Attempts) == 0 {
		return err
	}
	rows := [][]string{
		{
			"ATTEMPT", "STARTED", "OUTCOME", "STATUS", "REASON", "MS", "DNS", "CONNECT", "TLS", "FIRST BYTE",
			"ANSWER", "DETAIL",
		},
	}
	for _, t := range n.Attempts {
		number := strconv.Itoa(t.Number)
		if n.Sends > 1 {
			number = fmt.Sprintf("%d of send %d", t.Number, t.Send)
		}
		rows = append(rows, []string{
			number, stamp(t.StartedAt), t.Outcome, status(t.HTTPStatus), dash(t.Reason), ms(t.DurationMS),
			ms(t.Phases.DNS), ms(t.Phases.Connect), ms(t.Phases.TLS), ms(t.Phases.FirstByte),
			dash(excerpt(t.ResponseBody)), dash(detail(t.Detail)),
		})
	}
	if _, err := fmt.Fprintln(a.Stdout); err != nil {
		return err
	}
	if err := a.rows(rows); err != nil || !n.Partial {
		return err
	}
	_, err = fmt.Fprintln(a.Stdout, "Older attempts are not shown.")
	return err
}

func status(code int) string {
	if code == 0 {
		return "-"
	}
	return strconv.Itoa(code)
}

// ms is a duration in milliseconds as tables show it; one that did not happen is a dash.
func ms(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// excerptRunes is how much of an answer a table shows.
const excerptRunes = 60

func excerpt(body string) string {
	runes := []rune(strings.Join(strings.Fields(body), " "))
	if len(runes) > excerptRunes {
		return string(runes[:excerptRunes-3]) + "..."
	}
	return string(runes)
}

type notificationsExplain struct {
	notificationArg
	apiFlags
}

func (c notificationsExplain) Run(a *app) error {
	r, err := a.client.Notification(a.ctx, c.ID)
	if err != nil {
		return err
	}
	if a.output == "json" {
		var n struct {
			Explain json.RawMessage `json:"explain"`
		}
		if err := json.Unmarshal(r.Raw, &n); err != nil {
			return fmt.Errorf("print as JSON: %w", err)
		}
		return a.asJSON(n.Explain)
	}
	e := r.Value.Explain
	for _, line := range []string{e.Text, e.Next} {
		if line == "" {
			continue
		}
		if _, err := fmt.Fprintln(a.Stdout, clean(line)); err != nil {
			return err
		}
	}
	return nil
}

type notificationsResend struct {
	notificationArg
	apiFlags
}

func (c notificationsResend) Run(a *app) error {
	return a.showNotification(a.client.Resend(a.ctx, c.ID))
}

// detail is the sentence with an attempt's cause, or "".
func detail(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}
