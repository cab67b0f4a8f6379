package console

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/audit"
	"gancho/services/management/internal/httpstatus"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/webhooks"
)

// replayForm is the form that prepares a replay.
type replayForm struct {
	From, To, State, Rate string // as they were sent
	Problems              map[string]fieldProblem
	General               []fieldProblem
}

// instant reads a time of the form: the script sends it in UTC along with the field's text; without the
// script the field's own value counts, as UTC.
func instant(v *visit, name string) string {
	if s := v.r.PostFormValue(name + "_utc"); s != "" {
		return s
	}
	s := v.r.PostFormValue(name)
	for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.Format(time.RFC3339)
		}
	}
	return s
}

func (c *Console) postReplay(v *visit) error {
	in := replays.Input{
		From: given(instant(v, "from")), To: given(instant(v, "to")), State: given(v.r.PostFormValue("state")),
	}
	if s := v.r.PostFormValue("rate"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			n = 0 // out of range, which is then said
		}
		in.Rate = webhooks.Set(n)
	}
	r, err := c.Replays.Create(v.ctx, v.caller.Account, v.id(), in, v.caller.Name)
	if err != nil {
		e := problem.Of(err)
		if !refillable(e) {
			return err
		}
		value := v.r.PostFormValue
		form := replayForm{
			From: value("from"), To: value("to"), State: value("state"), Rate: value("rate"),
			Problems: map[string]fieldProblem{},
		}
		for _, p := range e.Problems {
			if p.Pointer == "" {
				form.General = append(form.General, problemText(p))
			} else {
				form.Problems[p.Pointer[len("/data/"):]] = problemText(p)
			}
		}
		return c.showWebhook(v, httpstatus.Of(e), form)
	}
	c.Audit.Write(v.ctx, v.caller.Account, v.caller.Actor(), audit.Change{
		Action: "createReplay", Kind: "replay", ID: r.ID, After: r,
	})
	v.fields = append(v.fields, zap.String("replay_id", r.ID))
	v.redirect("/replays/" + r.ID)
	return nil
}

// replayData is the page of one replay.
type replayData struct {
	replays.View

	WebhookName string
	Done        uint64 // sent and skipped
	Percent     uint64
}

func (c *Console) replayPage(v *visit) error {
	r, err := c.Replays.Get(v.ctx, v.caller.Account, v.id())
	if err != nil {
		return err
	}
	data := replayData{View: r, Done: min(r.Sent+r.Skipped, max(r.Total, r.Sent))}
	switch {
	case r.State == replays.Done:
		data.Percent = 100
	case r.Total > 0:
		data.Percent = min(100*data.Done/r.Total, 100)
	}
	if w, err := c.Webhooks.Get(v.ctx, v.caller.Account, r.WebhookID); err == nil {
		data.WebhookName = w.Name
	} else if problem.Of(err).Kind != problem.Missing {
		return err
	}
	p := page{Title: "replay.title", Name: data.WebhookName, Tab: "webhooks", Data: data}
	if r.State == replays.Running {
		p.Poll = pollFast
	} else if !replays.Ended(r.State) {
		p.Poll = pollList
	}
	return c.show(v, http.StatusOK, "replay", p)
}

// moveReplay is an action that changes a replay's state.
func (c *Console) moveReplay(
	action string, move func(*replays.Service, context.Context, string, string) (replays.View, error),
) func(*visit) error {
	return func(v *visit) error {
		before, err := c.Replays.Get(v.ctx, v.caller.Account, v.id())
		if err != nil {
			return err
		}
		r, err := move(c.Replays, v.ctx, v.caller.Account, v.id())
		if err != nil {
			return err
		}
		c.Audit.Write(v.ctx, v.caller.Account, v.caller.Actor(), audit.Change{
			Action: action, Kind: "replay", ID: r.ID, Before: before, After: r,
		})
		v.redirect("/replays/" + r.ID)
		return nil
	}
}
