package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"gancho/pkg/client"
)

type eventsCmd struct {
	Send eventsSend `cmd:"" help:"Publish an event; answered after the broker stored it."`
}

type eventsSend struct {
	File  string `arg:"" help:"File that holds the event, a JSON object; - is standard input."`
	Event string `placeholder:"NAME" help:"Event name; event_name of the event, if not given."`
	apiFlags
}

// Help has more about the command.
func (eventsSend) Help() string {
	return `The file's bytes are passed on as they are. Examples:

	gancho events send deal.json
	echo '{"document":{"id":"1"}}' | gancho events send - --event crm_deal_created`
}

// Run runs the command.
func (c eventsSend) Run(a *app) error {
	if err := c.connect(a); err != nil {
		return err
	}
	body, err := a.read(c.File)
	if err != nil {
		return err
	}
	from := c.File
	if from == "-" {
		from = "standard input"
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return usage("%s is empty; an event is a JSON object", from)
	}
	name := c.Event
	if name == "" {
		var e struct {
			EventName string `json:"event_name"`
		}
		if err := json.Unmarshal(body, &e); err != nil || e.EventName == "" {
			return usage("%s has no event_name; give --event NAME, such as crm_deal_created", from)
		}
		name = e.EventName
	}
	defer a.interruptible()()
	r, err := a.client.SendEvent(a.ctx, name, body)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.asJSON(r.Raw)
	}
	e := r.Value
	duplicate := ""
	if e.Duplicate {
		duplicate = "yes: it was accepted before, and is delivered once"
	}
	return a.pairs(
		pair{"event", e.EventID},
		pair{"stored", fmt.Sprintf("%s/%d", e.Stream, e.Sequence)},
		pair{"duplicate", duplicate},
	)
}

type tailCmd struct {
	Webhook string `placeholder:"ID" help:"Only attempts of this webhook."`
	Outcome string `enum:"delivered,failed,all" default:"all" help:"Only attempts with this outcome: delivered, failed or all."`
	apiFlags
}

// Help has more about the command.
func (tailCmd) Help() string {
	return `It goes on until it is interrupted, and connects again by itself. With -o json every attempt is one line. Examples:

	gancho tail --outcome failed
	gancho tail --webhook ID -o json | jq -r .response_body`
}

// tailFormat are the columns of a tail: they cannot be aligned afterwards, so they have fixed widths.
const tailFormat = "%-20s  %-9s  %-6s  %-15s  %8s  %-7s  %-18s  %-36s  %s\n"

// Run runs the command.
func (c tailCmd) Run(a *app) error {
	if err := c.connect(a); err != nil {
		return err
	}
	defer a.interruptible()()
	watch := client.Watch{WebhookID: c.Webhook, Outcome: strings.TrimPrefix(c.Outcome, "all")}
	if a.output != "json" {
		if _, err := fmt.Fprintf(a.Stdout, tailFormat, "STARTED", "OUTCOME", "STATUS", "REASON", "MS", "ATTEMPT", "NOW", "WEBHOOK", "NOTIFICATION"); err != nil {
			return err
		}
	}
	return a.client.Tail(a.ctx, watch, func(r client.Result[client.Attempt]) error {
		if a.output == "json" {
			var line bytes.Buffer
			if err := json.Compact(&line, r.Raw); err != nil {
				return fmt.Errorf("print as JSON: %w", err)
			}
			line.WriteByte('\n')
			_, err := a.Stdout.Write(line.Bytes())
			return err
		}
		t := r.Value
		_, err := fmt.Fprintf(a.Stdout, tailFormat, stamp(t.StartedAt), clean(t.Outcome), status(t.HTTPStatus), clean(dash(t.Reason)),
			ms(t.DurationMS), fmt.Sprintf("%d/6", t.Number), clean(t.State), clean(t.WebhookID), clean(t.NotificationID))
		return err
	}, func(err error) {
		fmt.Fprintln(a.Stderr, "gancho:", clean(err.Error())+"; connecting again")
	})
}
