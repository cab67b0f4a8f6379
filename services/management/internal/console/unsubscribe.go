package console

import (
	"net/http"

	"gancho/services/management/internal/problem"
)

// leaving is the page of a link to unsubscribe from notices.
type leaving struct {
	From  string // sealed
	Email string
	Done  bool
}

// unsubscribePage asks first: a program that only opens the links of an e-mail takes no address off a list.
func (c *Console) unsubscribePage(v *visit) error {
	from := v.r.URL.Query().Get("from")
	email := c.Notices.Leaving(from)
	if email == "" {
		return problem.New(problem.Forbidden, "bad_link", "this link is not complete")
	}
	return c.show(v, http.StatusOK, "unsubscribe", page{Title: "unsubscribe.title", Data: leaving{From: from, Email: email}})
}

// postUnsubscribe serves the page's button and the one click of mail programs (RFC 8058), whose link is in the query.
func (c *Console) postUnsubscribe(v *visit) error {
	from := v.r.FormValue("from")
	if err := c.Notices.Leave(v.ctx, from); err != nil {
		return err
	}
	return c.show(v, http.StatusOK, "unsubscribe", page{Title: "unsubscribe.title", Data: leaving{Email: c.Notices.Leaving(from), Done: true}})
}
