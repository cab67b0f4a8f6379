package console

import (
	"bytes"
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/sse"
	"gancho/services/management/internal/tail"
)

// hooksOffered is how many webhooks a page offers in a choice.
const hooksOffered = 200

// tailData is the page of the live tail.
type tailData struct {
	Hooks    []*webhook.Webhook // to choose from
	Many     bool               // there are more: their ids can be typed
	Webhook  string
	Outcome  string
	Outcomes []string
	Stream   string // address
}

func outcomes() []string {
	return []string{notification.OutcomeDelivered, notification.OutcomeFailed}
}

// tailFilter reads the filter; unknown values are left out.
func (c *Console) tailFilter(v *visit) tail.Filter {
	query := v.r.URL.Query()
	f := tail.Filter{WebhookID: query.Get("webhook_id"), Outcome: query.Get("outcome")}
	if !slices.Contains(outcomes(), f.Outcome) {
		f.Outcome = ""
	}
	if c.Webhooks.Known(v.caller.Account, f.WebhookID) == nil {
		f.WebhookID = ""
	}
	f.WebhookID = cmp.Or(v.session.only(), f.WebhookID)
	return f
}

func (c *Console) tailPage(v *visit) error {
	f := c.tailFilter(v)
	hooks, all := c.hooks(v)
	return c.show(v, http.StatusOK, "tail", page{Title: "tail.title", Tab: "tail", Data: tailData{
		Hooks: hooks, Many: !all, Webhook: f.WebhookID, Outcome: f.Outcome, Outcomes: outcomes(),
		Stream: "/tail/stream?webhook_id=" + f.WebhookID + "&outcome=" + f.Outcome,
	}})
}

// tailRow is one attempt of the tail.
type tailRow struct {
	tail.Attempt

	WebhookName string
}

// tailStream sends the rows of attempts as they happen, as server-sent events. It ends with the session.
func (c *Console) tailStream(v *visit) error {
	ctx, stop := c.Gate.While(v.ctx, v.caller)
	defer stop()
	ctx, leave := c.sessions.ended.While(ctx, v.session.ID)
	defer leave()
	t, err := c.Tail.Open(ctx, v.caller.Account, c.tailFilter(v))
	if err != nil {
		return err
	}
	if err := t.Await(c.Stopping); err != nil {
		return err
	}
	if v.r.Method == http.MethodHead {
		sse.Header(v.w.Header())
		return nil
	}
	stream := sse.Open(v.w, "retry: 2000\nevent: open\ndata:")
	defer stream.Close()
	ends := time.NewTimer(time.Until(v.session.Ends))
	defer ends.Stop()
	sent := 0
	defer func() {
		v.fields = append(v.fields, zap.Int("attempts_sent", sent), zap.String("end", string(t.End())))
	}()
	row := c.pages[v.lang]["tail"]
	for stream.Err == nil {
		select {
		case <-c.Stopping:
			return nil
		case <-ends.C:
			stream.Event("signed_out", 0, "")
			return nil
		case <-stream.Beat:
			stream.StillHere()
		case attempt, open := <-t.Attempts:
			if !open {
				if ctx.Err() != nil && v.ctx.Err() == nil {
					stream.Event("signed_out", 0, "")
				}
				return nil // the browser connects again
			}
			data := tailRow{Attempt: attempt}
			if w, err := c.Webhooks.Get(v.ctx, v.caller.Account, attempt.WebhookID); err == nil {
				data.WebhookName = w.Name
			}
			var b bytes.Buffer
			if err := row.ExecuteTemplate(&b, "tail_row", data); err != nil {
				c.Log.Error("a row of the tail cannot be made", zap.Error(err))
				return nil
			}
			stream.Event("attempt", attempt.Sequence, strings.TrimSpace(b.String()))
			sent++
		}
	}
	return nil
}
