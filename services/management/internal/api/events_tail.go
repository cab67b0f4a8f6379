package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"go.uber.org/zap"

	"gancho/pkg/webhook"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/sse"
	"gancho/services/management/internal/tail"
)

// tailEvents streams the account's events as server-sent events, until the client goes or the process stops.
func (a *API) tailEvents(c *call) (*answer, error) {
	names, after, err := c.eventsWanted(a)
	if err != nil {
		return nil, err
	}
	ctx, stop := a.Gate.While(c.ctx, c.caller)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-a.Stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	var stream *sse.Stream
	sent := 0
	err = a.Tail.Events(ctx, c.caller.Account, tail.EventReader{
		Names: names, After: after, IdleEvery: sse.Heartbeat,
		Began: func() { stream = sse.Open(c.w, ": events follow as they are stored\nretry: 2000") },
		Handle: func(e tail.Event) error {
			body, err := json.Marshal(e)
			if err != nil {
				return err
			}
			stream.Event("event", e.Sequence, string(body))
			sent++
			return stream.Err
		},
		Idle: func() error {
			stream.StillHere()
			return stream.Err
		},
	})
	switch {
	case stream == nil && err != nil:
		return nil, problem.Broker(err)
	case stream == nil:
		return nil, problem.Down("stopping", "the service is stopping; connect again", nil)
	case errors.Is(context.Cause(ctx), auth.ErrEnded):
		stream.Event("end", 0, `{"reason":"token_ended"}`)
	case err != nil && stream.Err == nil:
		stream.Event("end", 0, fmt.Sprintf(`{"reason":%q}`, tail.EndLost))
	}
	stream.Close()
	c.fields = append(c.fields, zap.Int("events_sent", sent))
	return nil, nil
}

// eventsWanted reads which events are asked for, and where a stream goes on that was interrupted.
func (c *call) eventsWanted(a *API) (names webhook.Pattern, after uint64, err error) {
	var problems problem.List
	if names = webhook.Pattern(c.query.Get("event_name")); names == "" {
		names = "*"
	}
	if p := a.Webhooks.CheckEvents(names); p != nil {
		problems.Add("?event_name", "bad_parameter", p.Detail)
	}
	if last := c.r.Header.Get("Last-Event-ID"); last != "" {
		if after, err = strconv.ParseUint(last, 10, 64); err != nil {
			problems.Add("", "bad_last_event_id", "Last-Event-ID must be the id of an event of this stream")
		}
	}
	return names, after, problems.Err()
}
