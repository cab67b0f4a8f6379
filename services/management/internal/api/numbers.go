package api

import (
	"strconv"
	"time"

	"gancho/pkg/event"
	"gancho/pkg/numbers"
	"gancho/services/management/internal/problem"
)

// Stats are the numbers of a webhook in one step.
type Stats struct {
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Attempts struct {
		Delivered uint64 `json:"delivered"`
		Failed    uint64 `json:"failed"`
	} `json:"attempts"`
	Reasons      map[string]uint64 `json:"reasons" nullable:"false" doc:"failed attempts by reason"`
	SuccessShare *float64          `json:"success_share" nullable:"true" doc:"delivered attempts of all; null without any"`
	Duration     struct {
		P50 *float64 `json:"p50" nullable:"true"`
		P95 *float64 `json:"p95" nullable:"true"`
		P99 *float64 `json:"p99" nullable:"true"`
	} `json:"duration_ms" doc:"of attempts, within a tenth; null without any"`
	Notifications map[string]uint64 `json:"notifications" nullable:"false" doc:"how many came into each state; retrying and parked again and again"`
	HeldBack      uint64            `json:"held_back" doc:"events that its conditions held back"`
}

// Usage is an account's usage in one step.
type Usage struct {
	AccountID     string    `json:"account_id"`
	From          time.Time `json:"from"`
	To            time.Time `json:"to"`
	Events        uint64    `json:"events" doc:"stored on CRM_EVENTS"`
	EventBytes    uint64    `json:"event_bytes"`
	Notifications uint64    `json:"notifications" doc:"sends that were opened: first ones, resends and replays"`
	Attempts      uint64    `json:"attempts"`
	Delivered     uint64    `json:"delivered" doc:"attempts"`
	Failed        uint64    `json:"failed" doc:"attempts"`
}

// mostSteps is how many steps an answer has at most: a day of minutes, or two months of hours.
const mostSteps = 1500

// steps reads from, to and step. The times are multiples of the step.
func (c *call) steps() (from, to time.Time, step time.Duration, err error) {
	var problems problem.List
	from, to = timeParameter(c.query, "from", &problems), timeParameter(c.query, "to", &problems)
	name := "1h"
	if c.query.Has("step") {
		name = c.query.Get("step")
	}
	step, ok := numbers.Step(name)
	if !ok {
		problems.Add("?step", "bad_parameter", "step must be 1m, 1h or 1d")
		return from, to, step, problems.Err()
	}
	if to.IsZero() {
		to = time.Now()
	}
	if from.IsZero() {
		from = to.Add(-24 * time.Hour)
	}
	ordered := from.Before(to)
	from = from.UTC().Truncate(step)
	if rounded := to.UTC().Truncate(step); rounded.Before(to) {
		to = rounded.Add(step)
	} else {
		to = rounded
	}
	switch {
	case !ordered:
		problems.Add("?to", "bad_parameter", "to must be later than from")
	case to.Sub(from)/step > mostSteps:
		problems.Add("?from", "bad_parameter", "there must be at most "+strconv.Itoa(mostSteps)+
			" steps; ask for less time, or for longer steps")
	case step < time.Hour && time.Since(from) > numbers.Kept:
		problems.Add("?from", "bad_parameter", "minutes are kept for 48 hours; ask for steps of 1h")
	}
	return from, to, step, problems.Err()
}

func (a *API) getStats(c *call) (*answer, error) {
	from, to, step, err := c.steps()
	if err != nil {
		return nil, err
	}
	if _, err := a.Webhooks.Get(c.ctx, c.caller.Account, c.id()); err != nil {
		return nil, err
	}
	all, err := a.Numbers.Webhook(c.ctx, c.caller.Account, c.id(), from, to, step)
	if err != nil {
		return nil, problem.Broker(err)
	}
	rows := make([]Stats, len(all))
	for i := range all {
		rows[i] = showStats(&all[i])
	}
	return cursorPage(c, rows, "", false), nil
}

func showStats(t *numbers.Total) Stats {
	s := Stats{From: t.From, To: t.To, Reasons: t.Reasons, Notifications: map[string]uint64{}, HeldBack: t.Held}
	s.Attempts.Delivered, s.Attempts.Failed = t.Delivered, t.Failed
	if s.Reasons == nil {
		s.Reasons = map[string]uint64{}
	}
	for state, n := range t.States {
		s.Notifications[string(state)] = n
	}
	if n := t.Attempts(); n > 0 {
		share := float64(t.Delivered) / float64(n)
		p50, p95, p99 := t.Quantile(0.5), t.Quantile(0.95), t.Quantile(0.99)
		s.SuccessShare, s.Duration.P50, s.Duration.P95, s.Duration.P99 = &share, &p50, &p95, &p99
	}
	return s
}

func (a *API) getUsage(c *call) (*answer, error) {
	from, to, step, err := c.steps()
	if err != nil {
		return nil, err
	}
	account := c.caller.Account
	if c.query.Has("account_id") {
		switch id := c.query.Get("account_id"); {
		case !event.ValidAccount(id):
			return nil, problem.At(problem.Invalid, "?account_id", "bad_parameter",
				"account_id must have 1 to 64 characters of A-Z a-z 0-9 _ -")
		case account != "" && account != id:
			return nil, problem.At(problem.Invalid, "?account_id", "bad_parameter",
				"account_id is another account than X-Account-Id; leave one of them out")
		default:
			account = id
		}
	}
	all, err := a.Numbers.Accounts(c.ctx, account, from, to, step)
	if err != nil {
		return nil, problem.Broker(err)
	}
	rows := make([]Usage, len(all))
	for i := range all {
		t := &all[i]
		rows[i] = Usage{
			t.Account, t.From, t.To, t.Events, t.EventBytes, t.States["pending"], t.Attempts(), t.Delivered, t.Failed,
		}
	}
	return cursorPage(c, rows, "", false), nil
}
