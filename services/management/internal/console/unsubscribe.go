package console

import (
	"net/http"
	"reflect"

	"gancho/pkg/audit"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/notices"
	"gancho/services/management/internal/problem"
)

// leaving is the page of a link to unsubscribe from notices.
type leaving struct {
	From  string // sealed
	Email string
	Done  bool
}

var errBadLink = problem.New(problem.Forbidden, "bad_link", "this link is not complete")

// unsubscribePage asks first: a program that only opens the links of an e-mail takes no address off a list.
func (c *Console) unsubscribePage(v *visit) error {
	from := v.r.URL.Query().Get("from")
	d := c.Notices.Leaving(from)
	if d.Email == "" {
		return errBadLink
	}
	return c.show(v, http.StatusOK, "unsubscribe", page{Title: "unsubscribe.title", Data: leaving{From: from, Email: d.Email}})
}

// postUnsubscribe serves the page's button and the one click of mail programs (RFC 8058), whose link is in the query.
func (c *Console) postUnsubscribe(v *visit) error {
	d := c.Notices.Leaving(v.r.FormValue("from"))
	if d.Email == "" {
		return errBadLink
	}
	before := c.notified(v, d)
	if err := c.Notices.Leave(v.ctx, d); err != nil {
		return err
	}
	if after := c.notified(v, d); !reflect.DeepEqual(before, after) {
		by := audit.Actor{Kind: string(auth.KindEmail), Name: d.Email, Address: auth.AddressOf(v.r.RemoteAddr)}
		change := audit.Change{Action: "unsubscribe", Kind: "webhook", ID: d.Webhook, Before: before, After: after}
		if d.Webhook == "" {
			change.Kind, change.ID = "account", d.Account
		}
		c.Audit.Write(v.ctx, d.Account, by, change)
	}
	return c.show(v, http.StatusOK, "unsubscribe", page{Title: "unsubscribe.title", Data: leaving{Email: d.Email, Done: true}})
}

// notified is whom notices of a departure's list go to, as records of changes show it.
func (c *Console) notified(v *visit, d notices.Departure) any {
	if d.Webhook == "" {
		return map[string]any{"notify": c.Webhooks.AccountNotify(d.Account)}
	}
	w, err := c.Webhooks.Show(v.ctx, d.Account, d.Webhook)
	if err != nil {
		return nil
	}
	return map[string]any{"notify": w.Notify}
}
