package console

import (
	"bytes"
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/tail"
)

const (
	heartbeat = 15 * time.Second
	// writeWithin is how long one write to a tail's reader may take.
	writeWithin = 10 * time.Second
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

// tailFilter reads the filter; what is none of ours is left out.
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
	select {
	case <-t.Began:
	case <-time.After(writeWithin):
		return problem.Broker(errTailLost)
	case <-c.Stopping:
		return problem.Down("stopping", "the service is stopping; connect again", nil)
	}
	h := v.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // a proxy must pass events on as they come
	if v.r.Method == http.MethodHead {
		return nil
	}
	stream := &eventStream{w: v.w, control: http.NewResponseController(v.w)}
	stream.send("retry: 2000\nevent: open\ndata:\n\n")
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	ends := time.NewTimer(time.Until(v.session.Ends))
	defer ends.Stop()
	sent := 0
	defer func() {
		v.fields = append(v.fields, zap.Int("attempts_sent", sent), zap.String("end", string(t.End())))
	}()
	row := c.pages[v.lang]["tail"]
	for stream.err == nil {
		select {
		case <-c.Stopping:
			return nil
		case <-ends.C:
			stream.send("event: signed_out\ndata:\n\n")
			return nil
		case <-beat.C:
			stream.send(": still here\n\n")
		case attempt, open := <-t.Attempts:
			if !open {
				if ctx.Err() != nil && v.ctx.Err() == nil {
					stream.send("event: signed_out\ndata:\n\n")
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
			stream.send("event: attempt\nid: " + strconv.FormatUint(attempt.Sequence, 10) + "\ndata: " +
				strings.ReplaceAll(strings.TrimSpace(b.String()), "\n", "\ndata: ") + "\n\n")
			sent++
		}
	}
	return nil
}

var errTailLost = errors.New("the journal cannot be followed")

// eventStream writes server-sent events, each at once. The first error ends it.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	err     error
}

func (s *eventStream) send(text string) {
	if s.err = s.control.SetWriteDeadline(time.Now().Add(writeWithin)); s.err != nil {
		return
	}
	if _, s.err = s.w.Write([]byte(text)); s.err == nil {
		s.err = s.control.Flush()
	}
}
