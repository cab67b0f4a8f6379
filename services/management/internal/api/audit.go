package api

import (
	"net/http"
	"strconv"

	"gancho/pkg/audit"
	"gancho/services/management/internal/problem"
)

// kinds are the objects that the routes of a tag change.
var kinds = map[string]string{
	"webhooks": "webhook", "replays": "replay", "notifications": "notification", "accounts": "account", "console": "portal_link", "erasures": "erasure",
}

// audited wraps a route's handler: its change is recorded before it is acknowledged.
func (a *API) audited(rt *route) func(*call) (*answer, error) {
	handle := rt.handle
	kind := kinds[rt.tag]
	if kind == "" {
		kind = "other"
	}
	return func(c *call) (*answer, error) {
		before := a.state(c, kind, c.id())
		ans, err := handle(c)
		if err != nil {
			return ans, err
		}
		change := audit.Change{Action: rt.id, Kind: kind, ID: c.object, Before: before, After: c.after}
		if change.ID == "" {
			change.ID = c.id()
		}
		if change.After == nil && c.r.Method != http.MethodDelete {
			change.After = a.state(c, kind, change.ID)
		}
		a.Audit.Write(c.ctx, c.caller.Account, c.caller.Actor(), change)
		return ans, nil
	}
}

// state is how the API shows an object now; nil where there is none, and for objects without settings.
func (a *API) state(c *call, kind, id string) any {
	if id == "" {
		return nil
	}
	var v any
	var err error
	switch kind {
	case "webhook":
		v, err = a.Webhooks.Show(c.ctx, c.caller.Account, id)
	case "replay":
		v, err = a.Replays.Get(c.ctx, c.caller.Account, id)
	case "account":
		v, err = a.Accounts.Get(c.ctx, id)
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	return v
}

// listAudit answers the records of an account, for an operator also those of all.
func (a *API) listAudit(c *call) (*answer, error) {
	var problems problem.List
	f := audit.Filter{Account: c.caller.Account, Action: c.query.Get("action"), Actor: c.query.Get("actor"), Object: c.query.Get("object")}
	f.From, f.To, f.Limit = c.span(&problems)
	if after := c.query.Get("page[after]"); c.query.Has("page[after]") {
		var err error
		if f.Before, err = strconv.ParseUint(after, 10, 64); err != nil || f.Before == 0 {
			problems.Add("?page[after]", "bad_parameter", "page[after] is not one that links.next gave")
		}
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	found, err := a.Audit.List(c.ctx, f)
	if err != nil {
		return nil, problem.Broker(err)
	}
	after := ""
	if found.Next > 0 {
		after = strconv.FormatUint(found.Next, 10)
	}
	return cursorPage(c, found.Records, after, false), nil
}
