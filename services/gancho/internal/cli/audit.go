package cli

import (
	"encoding/json"

	"gancho/pkg/client"
)

type auditCmd struct {
	From   when   `placeholder:"TIME" help:"Only changes from this time on: a time, a day, or how long ago (2h, 3d)."`
	To     when   `placeholder:"TIME" help:"Only changes before this time."`
	Action string `placeholder:"ACTION" help:"Only this action, such as updateWebhook."`
	Actor  string `placeholder:"NAME" help:"Only by this one: the subject of a JWT or the public name of a token (tok_...)."`
	Object string `placeholder:"ID" help:"Only of this webhook, replay, notification or account."`
	Limit  int    `default:"50" help:"At most so many; 0 for all."`
	apiFlags
}

func (auditCmd) Help() string {
	return `An operator without --account sees the changes of all accounts. Examples:

	gancho audit --object WEBHOOK
	gancho audit --from 7d --action deleteWebhook -o json`
}

func (c auditCmd) Run(a *app) error {
	f := client.ChangeFilter{Action: c.Action, Actor: c.Actor, Object: c.Object}
	var err error
	if f.From, err = c.From.at(a.now); err != nil {
		return usage("--from: %v", err)
	}
	if f.To, err = c.To.at(a.now); err != nil {
		return usage("--to: %v", err)
	}
	rows := [][]string{{"AT", "ACCOUNT", "BY", "NAME", "ADDRESS", "ACTION", "OBJECT", "ID"}}
	var all []json.RawMessage
	for r, err := range a.client.Changes(a.ctx, f, c.Limit) {
		if err != nil {
			return err
		}
		v := r.Value
		all = append(all, r.Raw)
		rows = append(rows, []string{
			stamp(v.At), v.Account, v.Actor.Kind, dash(v.Actor.Name), dash(v.Actor.Address), v.Action, v.Object.Kind,
			dash(v.Object.ID),
		})
		if len(all) == c.Limit {
			break
		}
	}
	if a.output == "json" {
		return a.allAsJSON(all)
	}
	return a.rows(rows)
}
