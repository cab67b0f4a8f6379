package cli

import (
	"encoding/json"
	"fmt"

	"gancho/pkg/bytesize"
	"gancho/pkg/client"
)

type replaysCmd struct {
	Create replaysCreate `cmd:"" help:"Prepare a replay and show how much it would send; nothing is sent yet."`
	List   replaysList   `cmd:"" help:"List the replays of a webhook, newest first."`
	Get    replaysGet    `cmd:"" help:"Show a replay."`
	Start  replaysStart  `cmd:"" help:"Start a replay that is a preview."`
	Pause  replaysPause  `cmd:"" help:"Pause a replay that runs."`
	Resume replaysResume `cmd:"" help:"Go on with a replay that is paused."`
	Cancel replaysCancel `cmd:"" help:"End a replay. Its notifications stay sent."`
}

type replaysCreate struct {
	Webhook string `arg:"" help:"Id of the webhook."`
	From    when   `required:"" placeholder:"TIME" help:"Events from this time on: a time, a day, or how long ago (2h, 3d)."`
	To      when   `placeholder:"TIME" help:"Events before this time; now, if not given."`
	State   string `placeholder:"STATE" help:"Only those whose notification is in this state: delivered or permanently_failed."`
	Rate    int    `placeholder:"N" help:"At most so many a second; 50, if not given."`
	apiFlags
}

func (replaysCreate) Help() string {
	return `Examples:

	gancho replays create WEBHOOK --from 2026-01-21T18:00:00Z --to 2026-01-21T20:00:00Z
	gancho replays create WEBHOOK --from 2d --state permanently_failed --rate 20
	gancho replays start REPLAY`
}

func (c replaysCreate) Run(a *app) error {
	selected, err := rangeFlags{c.State, c.From, c.To}.selected(a.now)
	if err != nil {
		return err
	}
	if selected.To.IsZero() {
		selected.To = a.now
	}
	if !selected.From.Before(selected.To) {
		return usage("--from must be before --to")
	}
	if c.Rate < 0 {
		return usage("--rate must be above 0")
	}
	return a.showReplay(a.client.CreateReplay(a.ctx, c.Webhook, selected, c.Rate))
}

func (a *app) showReplay(r client.Result[client.Replay], err error) error {
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.asJSON(r.Raw)
	}
	j := r.Value
	events, rate, next := "", "", ""
	if j.State == "preview" {
		events = fmt.Sprintf("%d (%s), about %s", j.Events, bytesize.Text(j.Bytes), duration(j.EstimatedSeconds))
		next = "gancho replays start " + j.ID
	}
	if j.Rate > 0 {
		rate = fmt.Sprintf("%g a second", j.Rate)
	}
	return a.pairs(
		pair{"id", j.ID},
		pair{"webhook", j.WebhookID},
		pair{"state", j.State},
		pair{"events from", stamp(j.From)},
		pair{"to", stamp(j.To)},
		pair{"only", j.Only},
		pair{"would send", events},
		pair{"rate", rate},
		pair{"sent", progress(j)},
		pair{"problem", j.Problem},
		pair{"next", next},
	)
}

func progress(j client.Replay) string {
	text := fmt.Sprintf("%d of %d", j.Sent, j.Total)
	if j.Skipped > 0 {
		text += fmt.Sprintf(", %d skipped", j.Skipped)
	}
	return text
}

type replaysList struct {
	Webhook string `arg:"" help:"Id of the webhook."`
	apiFlags
}

func (c replaysList) Run(a *app) error {
	rows := [][]string{{"ID", "STATE", "FROM", "TO", "ONLY", "RATE", "SENT"}}
	var all []json.RawMessage
	for r, err := range a.client.Replays(a.ctx, c.Webhook) {
		if err != nil {
			return err
		}
		j := r.Value
		all = append(all, r.Raw)
		rows = append(rows, []string{
			j.ID, j.State, stamp(j.From), stamp(j.To), dash(j.Only), fmt.Sprint(j.Rate), progress(j),
		})
	}
	if a.output == "json" {
		return a.allAsJSON(all)
	}
	return a.rows(rows)
}

func duration(seconds float64) string {
	switch {
	case seconds < 120:
		return fmt.Sprintf("%.0f s", seconds)
	case seconds < 2*3600:
		return fmt.Sprintf("%.0f min", seconds/60)
	}
	return fmt.Sprintf("%.1f h", seconds/3600)
}

// replayArg names the replay of a command.
type replayArg struct {
	ID string `arg:"" help:"Id of the replay."`
}

type replaysGet struct {
	replayArg
	apiFlags
}

func (c replaysGet) Run(a *app) error {
	return a.showReplay(a.client.Replay(a.ctx, c.ID))
}

type replaysStart struct {
	replayArg
	apiFlags
}

func (c replaysStart) Run(a *app) error {
	return a.showReplay(a.client.StartReplay(a.ctx, c.ID))
}

type replaysPause struct {
	replayArg
	apiFlags
}

func (c replaysPause) Run(a *app) error {
	return a.showReplay(a.client.PauseReplay(a.ctx, c.ID))
}

type replaysResume struct {
	replayArg
	apiFlags
}

func (c replaysResume) Run(a *app) error {
	return a.showReplay(a.client.ResumeReplay(a.ctx, c.ID))
}

type replaysCancel struct {
	replayArg
	apiFlags
}

func (c replaysCancel) Run(a *app) error {
	if err := a.client.CancelReplay(a.ctx, c.ID); err != nil {
		return err
	}
	return a.done("cancelled", c.ID)
}
