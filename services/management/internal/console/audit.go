package console

import (
	"net/http"
	"strconv"

	"gancho/pkg/audit"
	"gancho/services/management/internal/problem"
)

const auditPerPage = 50

// auditData is the page of changes.
type auditData struct {
	Records               []audit.Record
	Action, Actor, Object string // filters
	Actions               []string
	listFilter

	First bool
	Next  string
}

// Limits reports whether the filter leaves anything out.
func (d *auditData) Limits() bool {
	return d.Action != "" || d.Actor != "" || d.Object != "" || d.listFilter.Limits()
}

// Link returns the address of the first page.
func (d *auditData) Link() string { return d.link("") }

// link returns the address of this page behind that place.
func (d *auditData) link(after string) string {
	return "/audit?" + d.query("action", d.Action, "actor", d.Actor, "object", d.Object, "after", after).Encode()
}

// auditActions are those that a page of the console or a client makes, for the filter.
func auditActions() []string {
	return []string{
		"createWebhook", "updateWebhook", "deleteWebhook", "suspendWebhook", "resumeWebhook", "rotateSecret", "testWebhook", "resendNotification",
		"createReplay", "startReplay", "pauseReplay", "resumeReplay", "cancelReplay", "createPortalLink", "updateAccount", "unsubscribe",
	}
}

func (c *Console) auditPage(v *visit) error {
	query := v.r.URL.Query()
	data := auditData{Action: query.Get("action"), Actor: query.Get("actor"), Object: query.Get("object"), Actions: auditActions(), First: true}
	f := audit.Filter{Account: v.caller.Account, Action: data.Action, Actor: data.Actor, Object: data.Object, Limit: auditPerPage}
	_, f.From, f.To = data.read(query)
	data.Event = ""
	if before, err := strconv.ParseUint(query.Get("after"), 10, 64); err == nil && before > 0 {
		f.Before, data.First = before, false
	}
	found, err := c.Audit.List(v.ctx, f)
	if err != nil {
		return problem.Broker(err)
	}
	data.Records = found.Records
	if found.Next > 0 {
		data.Next = data.link(strconv.FormatUint(found.Next, 10))
	}
	return c.show(v, http.StatusOK, "audit", page{Title: "audit.title", Tab: "audit", Data: &data})
}

// webhook is the account's webhook as it is shown; nil when there is none.
func (c *Console) webhook(v *visit, id string) any {
	w, err := c.Webhooks.Show(v.ctx, v.caller.Account, id)
	if err != nil {
		return nil
	}
	return w
}

// changed records a change of a webhook, before it is acknowledged.
func (c *Console) changed(v *visit, action, id string, before any) {
	change := audit.Change{Action: action, Kind: "webhook", ID: id, Before: before}
	if action != "deleteWebhook" {
		change.After = c.webhook(v, id)
	}
	c.Audit.Write(v.ctx, v.caller.Account, v.caller.Actor(), change)
}

// objectLink is the page of the changed object, "" where there is none.
func objectLink(o audit.Object) string {
	switch o.Kind {
	case "webhook", "notification", "replay":
		return "/" + o.Kind + "s/" + o.ID
	}
	return ""
}
