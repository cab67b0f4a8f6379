package console

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/audit"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/shares"
)

const failuresPerPage = 50

// failureRow is one permanent failure.
type failureRow struct {
	notifications.Listed

	WebhookName string
}

// failureList is the page of permanent failures.
type failureList struct {
	Rows    []failureRow
	Total   int
	AtLeast bool // there may be more than Total
	First   bool
	Next    string
	Away    bool
	Partial bool
	Webhook string // of the filter, "" for all
	Hooks   []*webhook.Webhook
	listFilter
}

// filter reads the filter from a form. A session of one webhook sees that one only.
func (l *failureList) filter(form url.Values, only string) notifications.FailureFilter {
	l.Webhook = cmp.Or(only, form.Get("webhook_id"))
	f := notifications.FailureFilter{WebhookID: l.Webhook}
	f.EventName, f.From, f.To = l.read(form)
	return f
}

// Link returns the address of the first page.
func (l *failureList) Link() string { return l.link("") }

// link returns the address of this page behind that place.
func (l *failureList) link(after string) string {
	id := l.Webhook
	if uuid.Validate(id) != nil {
		id = ""
	}
	if q := l.query("webhook_id", id, "after", after); len(q) > 0 {
		return "/failures?" + q.Encode()
	}
	return "/failures"
}

func (c *Console) failuresPage(v *visit) error {
	query := v.r.URL.Query()
	only := v.session.only()
	data := &failureList{First: true}
	filter := data.filter(query, only)
	after, err := strconv.ParseUint(query.Get("after"), 10, 64)
	if err == nil && after > 0 {
		data.First = false
	}
	found, err := c.Notifications.Failures(v.ctx, v.caller.Account, filter, after, failuresPerPage)
	if err != nil {
		if problem.Of(err).Code() != "index_unavailable" {
			return err
		}
		data.Away = true
	}
	data.Hooks = found.Webhooks
	if only != "" {
		data.Hooks, _ = c.hooks(v)
	}
	slices.SortStableFunc(data.Hooks, func(a, b *webhook.Webhook) int {
		return strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name))
	})
	for _, n := range found.Notifications {
		row := failureRow{Listed: n}
		if w := c.Webhooks.Known(v.caller.Account, n.WebhookID); w != nil {
			row.WebhookName = w.Name
		}
		data.Rows = append(data.Rows, row)
	}
	data.Total, data.AtLeast, data.Partial = found.Total, found.Total >= notifications.MaxFailures, found.Partial
	if found.Next > 0 {
		data.Next = data.link(strconv.FormatUint(found.Next, 10))
	}
	return c.show(v, http.StatusOK, "failures", page{Title: "failures.title", Tab: "failures", Data: data})
}

// postResendMany sends the chosen ones again, or all that the list has.
func (c *Console) postResendMany(v *visit) error {
	ids := v.r.PostForm["id"]
	only := v.session.only()
	list := &failureList{}
	filter := list.filter(v.r.PostForm, only)
	if v.r.PostFormValue("all") != "" || only != "" {
		chosen := ids
		ids = nil
		for after := uint64(0); ; {
			found, err := c.Notifications.Failures(v.ctx, v.caller.Account, filter, after, failuresPerPage)
			if err != nil {
				return err
			}
			for _, n := range found.Notifications {
				if v.r.PostFormValue("all") != "" || slices.Contains(chosen, n.ID) {
					ids = append(ids, n.ID)
				}
			}
			if after = found.Next; after == 0 {
				break
			}
		}
	}
	to := list.Link()
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if len(ids) == 0 {
		return c.done(v, to, flash{Bad: true, Key: "done.none_chosen"})
	}
	if len(ids) > notifications.MaxFailures {
		return problem.New(problem.TooLarge, "too_large", "too many notifications at once")
	}
	refused, err := c.Notifications.ResendMany(v.ctx, v.caller.Account, ids)
	if err != nil {
		return err
	}
	sent := 0
	for i, p := range refused {
		if p == nil {
			sent++
			c.Audit.Write(v.ctx, v.caller.Account, v.caller.Actor(), audit.Change{Action: "resendNotification", Kind: "notification", ID: ids[i]})
		}
	}
	v.fields = append(v.fields, zap.Int("resent", sent))
	n := flash{Key: "done.resent_many", Args: map[string]string{"sent": strconv.Itoa(sent)}}
	if sent < len(ids) {
		n = flash{Bad: true, Key: "done.resent_some", Args: map[string]string{"sent": strconv.Itoa(sent), "refused": strconv.Itoa(len(ids) - sent)}}
		if slices.ContainsFunc(refused, func(p *problem.Error) bool { return p != nil && p.Code() == shares.Code }) {
			n.Key = "done.resent_share"
		}
	}
	return c.done(v, to, n)
}
