package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gancho/pkg/client"
	"gancho/pkg/condition"
)

type eventsCmd struct {
	Send eventsSend `cmd:"" help:"Publish an event; answered after the broker stored it."`
	Get  eventsGet  `cmd:"" help:"Say what became of an event: its notifications, and why other webhooks have none."`
	Find eventsFind `cmd:"" help:"Find events by document, transaction, name or time, newest first."`
}

type eventsGet struct {
	ID string `arg:"" help:"Id of the event."`
	apiFlags
}

func (c eventsGet) Run(a *app) error {
	r, err := a.client.Event(a.ctx, c.ID)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.asJSON(r.Raw)
	}
	e := r.Value
	if e.Partial {
		a.warnPartial()
	}
	why, next := "", ""
	if e.Explain != nil {
		why, next = e.Explain.Text, e.Explain.Next
	}
	err = a.pairs(
		pair{"id", e.ID},
		pair{"event", e.EventName},
		pair{"stored", stamp(e.StoredAt)},
		pair{"bytes", strconv.Itoa(e.Bytes)},
		pair{"transaction", e.TransactionUUID},
		pair{"document", e.DocumentID},
		pair{"origin", e.Origin},
		pair{"changed", strings.Join(e.Changed, ", ")},
		pair{"why", why},
		pair{"next", next},
	)
	if err != nil {
		return err
	}
	rows := [][]string{{"WEBHOOK", "NOTIFICATION", "STATE", "REASON", "FOUND"}}
	for _, n := range e.Notifications {
		rows = append(rows, []string{n.WebhookID, n.ID, n.State, dash(n.Reason), "-"})
	}
	for _, u := range e.Unmatched {
		rows = append(rows, []string{u.WebhookID, "-", "not matched", reasonOf(u), dash(string(u.Found))})
	}
	if _, err := fmt.Fprintln(a.Stdout); err != nil {
		return err
	}
	return a.rows(rows)
}

// reasonOf says why a webhook has no notification, with the condition that kept it from one.
func reasonOf(u client.Unmatched) string {
	var c condition.Condition
	if len(u.Condition) == 0 || json.Unmarshal(u.Condition, &c) != nil {
		return u.Why
	}
	return u.Why + ": " + c.String()
}

type eventsFind struct {
	eventFlags
	From  when `placeholder:"TIME" help:"Only those stored from this time on: a time, a day, or how long ago (2h, 3d)."`
	To    when `placeholder:"TIME" help:"Only those stored before this time."`
	Limit int  `default:"50" help:"At most so many; 0 for all."`
	apiFlags
}

func (eventsFind) Help() string {
	return `Examples:

	gancho events find --document 9f3c --from 2d
	gancho events find --transaction 6c1f5a0e -o json | jq '.[].unmatched'`
}

func (c eventsFind) Run(a *app) error {
	selected, err := rangeFlags{From: c.From, To: c.To}.selected(a.now)
	if err != nil {
		return err
	}
	rows := [][]string{{"ID", "EVENT", "STORED", "DOCUMENT", "TRANSACTION", "NOTIFICATIONS", "NOT MATCHED"}}
	var all []json.RawMessage
	partial := false
	find := client.Find{Range: selected, EventName: c.Event, DocumentID: c.Document, TransactionUUID: c.Transaction}
	for r, err := range a.client.FindEvents(a.ctx, find, c.Limit, func() { partial = true }) {
		if err != nil {
			return err
		}
		e := r.Value
		all = append(all, r.Raw)
		rows = append(rows, []string{
			e.ID, e.EventName, stamp(e.StoredAt), dash(e.DocumentID), dash(e.TransactionUUID),
			states(e.Notifications), strconv.Itoa(len(e.Unmatched)),
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

// states counts notifications by state: "2 delivered, 1 retrying".
func states(all []client.Notification) string {
	counts := map[string]int{}
	for _, n := range all {
		counts[n.State]++
	}
	words := make([]string, 0, len(counts))
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, strconv.Itoa(counts[s])+" "+s)
	}
	return dash(strings.Join(words, ", "))
}

type eventsSend struct {
	File  string `arg:"" help:"File that holds the event, a JSON object; - is standard input."`
	Event string `placeholder:"NAME" help:"Event name; event_name of the event, if not given."`
	apiFlags
}

func (eventsSend) Help() string {
	return `The file's bytes are passed on as they are. Examples:

	gancho events send deal.json
	echo '{"document":{"id":"1"}}' | gancho events send - --event crm_deal_created`
}

func (c eventsSend) Run(a *app) error {
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

type usageCmd struct {
	Account string `arg:"" optional:"" help:"Id of the account; all if not given."`
	From    when   `placeholder:"TIME" help:"From this time on: a time, a day, or how long ago (2h, 3d); 24 hours ago by default."`
	To      when   `placeholder:"TIME" help:"Before this time; now by default."`
	Step    string `enum:"1m,1h,1d" default:"1d" help:"How long each row is: 1m, 1h or 1d."`
	apiFlags
}

func (usageCmd) Help() string {
	return `It needs an operator's token. Examples:

	gancho usage --from 30d
	gancho usage acme --step 1h -o json`
}

func (c usageCmd) Run(a *app) error {
	selected, err := rangeFlags{From: c.From, To: c.To}.selected(a.now)
	if err != nil {
		return err
	}
	rows := [][]string{{"FROM", "ACCOUNT", "EVENTS", "BYTES", "NOTIFICATIONS", "ATTEMPTS", "DELIVERED", "FAILED"}}
	var all []json.RawMessage
	for r, err := range a.client.Usage(a.ctx, c.Account,
		client.Period{From: selected.From, To: selected.To, Step: c.Step}) {
		if err != nil {
			return err
		}
		u := r.Value
		all = append(all, r.Raw)
		row := []string{stamp(u.From), u.AccountID}
		for _, n := range []uint64{u.Events, u.EventBytes, u.Notifications, u.Attempts, u.Delivered, u.Failed} {
			row = append(row, strconv.FormatUint(n, 10))
		}
		rows = append(rows, row)
	}
	if a.output == "json" {
		return a.allAsJSON(all)
	}
	return a.rows(rows)
}

type tailCmd struct {
	Webhook string `placeholder:"ID" help:"Only attempts of this webhook."`
	Outcome string `enum:"delivered,failed,all" default:"all" help:"Only attempts with this outcome: delivered, failed or all."`
	apiFlags
}

func (tailCmd) Help() string {
	return `It goes on until it is interrupted, and connects again by itself. With -o json every attempt is one line. Examples:

	gancho tail --outcome failed
	gancho tail --webhook ID -o json | jq -r .response_body`
}

// tailFormat are the columns of a tail: they cannot be aligned afterwards, so they have fixed widths.
const tailFormat = "%-20s  %-9s  %-6s  %-15s  %8s  %-7s  %-18s  %-36s  %s\n"

func (c tailCmd) Run(a *app) error {
	watch := client.Watch{WebhookID: c.Webhook, Outcome: strings.TrimPrefix(c.Outcome, "all")}
	if a.output != "json" {
		if _, err := fmt.Fprintf(a.Stdout, tailFormat, "STARTED", "OUTCOME", "STATUS", "REASON", "MS", "ATTEMPT", "NOW",
			"WEBHOOK", "NOTIFICATION"); err != nil {
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
		_, err := fmt.Fprintf(a.Stdout, tailFormat, stamp(t.StartedAt), clean(t.Outcome), status(t.HTTPStatus),
			clean(dash(t.Reason)),
			ms(t.DurationMS), fmt.Sprintf("%d/6", t.Number), clean(t.State), clean(t.WebhookID),
			clean(t.NotificationID))
		return err
	}, func(err error) {
		fmt.Fprintln(a.Stderr, "gancho:", clean(err.Error())+"; connecting again")
	})
}
