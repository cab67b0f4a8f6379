package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/tail"
)

const (
	heartbeat = 15 * time.Second
	// writeWithin is how long one write to a tail's reader may take.
	writeWithin = 10 * time.Second
)

// tail streams attempts as server-sent events, until the client goes or the process stops.
func (a *API) tail(c *call) (*answer, error) {
	f := tail.Filter{WebhookID: c.query.Get("webhook_id"), Outcome: c.query.Get("outcome")}
	var problems problem.List
	if f.WebhookID != "" && uuid.Validate(f.WebhookID) != nil {
		problems.Add("?webhook_id", "bad_parameter", "webhook_id must be the id of a webhook")
	}
	if f.Outcome != "" && !slices.Contains(outcomes, f.Outcome) {
		problems.Add("?outcome", "bad_parameter", "outcome must be delivered or failed")
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if f.WebhookID != "" {
		if _, err := a.Webhooks.Get(c.ctx, c.caller.Account, f.WebhookID); err != nil {
			return nil, err
		}
	}
	ctx, stop := a.Gate.While(c.ctx, c.caller)
	defer stop()
	t, err := a.Tail.Open(ctx, c.caller.Account, f)
	if err != nil {
		return nil, err
	}
	select {
	case <-t.Began:
	case <-time.After(writeWithin):
		return nil, problem.Broker(errTailLost)
	case <-a.Stopping:
		return nil, problem.Down("stopping", "the service is stopping; connect again", nil)
	}
	if t.End() == tail.EndLost {
		return nil, problem.Broker(errTailLost)
	}
	stream := &eventStream{w: c.w, control: http.NewResponseController(c.w)}
	c.w.Header().Set("Content-Type", "text/event-stream")
	c.w.Header().Set("X-Accel-Buffering", "no") // a proxy must pass events on as they come
	stream.send(": attempts follow as they happen\nretry: 2000\n\n")
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	sent := 0
	defer func() {
		c.fields = append(c.fields, zap.Int("attempts_sent", sent), zap.String("end", string(t.End())))
	}()
	for stream.err == nil {
		select {
		case <-a.Stopping:
			return nil, nil
		case <-beat.C:
			stream.send(": still here\n\n")
		case attempt, open := <-t.Attempts:
			if !open {
				why := string(t.End())
				if errors.Is(context.Cause(ctx), auth.ErrEnded) {
					why = "token_ended"
				}
				if why != "" {
					stream.send(fmt.Sprintf("event: end\ndata: {\"reason\":%q}\n\n", why))
				}
				return nil, nil
			}
			body, err := json.Marshal(attempt)
			if err != nil {
				return nil, nil //nolint:nilerr // headers are sent; an attempt is always encoded
			}
			stream.send(fmt.Sprintf("event: attempt\nid: %d\ndata: %s\n\n", attempt.Sequence, body))
			sent++
		}
	}
	return nil, nil
}

var (
	outcomes    = []string{notification.OutcomeDelivered, notification.OutcomeFailed}
	errTailLost = errors.New("the journal cannot be followed")
)

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
