package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/sse"
	"gancho/services/management/internal/tail"
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
	if err := t.Await(a.Stopping); err != nil {
		return nil, err
	}
	if t.End() == tail.EndLost {
		return nil, problem.Broker(tail.ErrLost)
	}
	stream := sse.Open(c.w, ": attempts follow as they happen\nretry: 2000")
	defer stream.Close()
	sent := 0
	defer func() {
		c.fields = append(c.fields, zap.Int("attempts_sent", sent), zap.String("end", string(t.End())))
	}()
	for stream.Err == nil {
		select {
		case <-a.Stopping:
			return nil, nil
		case <-stream.Beat:
			stream.StillHere()
		case attempt, open := <-t.Attempts:
			if !open {
				why := string(t.End())
				if errors.Is(context.Cause(ctx), auth.ErrEnded) {
					why = "token_ended"
				}
				if why != "" {
					stream.Event("end", 0, fmt.Sprintf(`{"reason":%q}`, why))
				}
				return nil, nil
			}
			body, err := json.Marshal(attempt)
			if err != nil {
				return nil, nil //nolint:nilerr // headers are sent; an attempt is always encoded
			}
			stream.Event("attempt", attempt.Sequence, string(body))
			sent++
		}
	}
	return nil, nil
}

var outcomes = []string{notification.OutcomeDelivered, notification.OutcomeFailed}
