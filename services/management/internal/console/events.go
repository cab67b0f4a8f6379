package console

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/google/uuid"

	lang "gancho/services/management/internal/language"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/webhooks"
)

const (
	maxSearch   = 200 // characters of a question
	searchShows = 20  // of each kind
)

// searchData is the page of a search that did not lead to one thing alone.
type searchData struct {
	Query      string
	Webhooks   []webhooks.View
	Events     []*notifications.Event
	Partial    bool
	More       bool // there are more events than the page shows
	listFilter      // of the events
}

// Empty reports whether nothing was found.
func (d *searchData) Empty() bool { return len(d.Webhooks)+len(d.Events) == 0 }

// searchPage looks for a webhook by name or URL, a notification or an event by its id, and events by transaction_uuid
// or document.id. An id leads to the page of its thing.
func (c *Console) searchPage(v *visit) error {
	data := searchData{Query: strings.TrimSpace(clip(v.r.URL.Query().Get("q"), maxSearch))}
	if data.Query != "" {
		if to := c.byID(v, data.Query); to != "" {
			http.Redirect(v.w, v.r, to, http.StatusSeeOther)
			return nil
		}
		data.Webhooks, _ = c.Webhooks.Search(v.ctx, v.caller.Account, webhooks.Query{
			Text: data.Query, Limit: searchShows,
		})
		name, from, to := data.read(v.r.URL.Query())
		for _, f := range []notifications.EventFilter{
			{ID: asUUID(data.Query), Limit: 1}, {TransactionUUID: data.Query, Limit: searchShows}, {
				DocumentID: data.Query, Limit: searchShows,
			},
		} {
			if f.ID == "" && f.TransactionUUID == "" && f.DocumentID == "" {
				continue
			}
			if f.ID == "" {
				f.Name, f.From, f.To = name, from, to
			}
			found, err := c.Notifications.FindEvents(v.ctx, v.caller.Account, f, lang.Language(v.lang))
			if err != nil {
				return err
			}
			if f.ID != "" && len(found.Events) > 0 {
				http.Redirect(v.w, v.r, "/events/"+found.Events[0].ID, http.StatusSeeOther)
				return nil
			}
			data.Events, data.Partial = append(data.Events, found.Events...), data.Partial || found.Partial
			data.More = data.More || found.Next > 0 && len(found.Events) > 0
		}
	}
	return c.show(v, http.StatusOK, "search", page{Title: "search.title", Tab: "search", Data: &data})
}

// byID returns the page of the account's notification or webhook with that id, "" when there is none.
func (c *Console) byID(v *visit, id string) string {
	if id = asUUID(id); id == "" {
		return ""
	}
	if _, err := c.Notifications.Summary(v.ctx, v.caller.Account, id); err == nil {
		return "/notifications/" + id
	}
	if c.Webhooks.Known(v.caller.Account, id) != nil {
		return "/webhooks/" + id
	}
	return ""
}

// asUUID returns the canonical form of a UUID, "" for anything else.
func asUUID(s string) string {
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return ""
	}
	return id.String()
}

// eventData is the page of one event.
type eventData struct {
	*notifications.Event

	Names      map[string]string // of webhooks, by id; one that was deleted has none
	Payload    string
	PayloadCut bool
}

// eventPage shows an event: its notifications, and why other webhooks have none.
func (c *Console) eventPage(v *visit) error {
	e, err := c.Notifications.Event(v.ctx, v.caller.Account, v.id(), lang.Language(v.lang))
	if err != nil {
		return err
	}
	data := eventData{Event: e, Names: map[string]string{}}
	data.Payload, data.PayloadCut = pretty(e.Body())
	name := func(id string) {
		if w := c.Webhooks.Known(v.caller.Account, id); w != nil {
			data.Names[id] = w.Name
		}
	}
	for _, n := range e.Notifications {
		name(n.WebhookID)
	}
	for _, u := range e.Unmatched {
		name(u.WebhookID)
	}
	return c.show(v, http.StatusOK, "event", page{Title: "event.title", Name: e.EventName, Tab: "search", Data: &data})
}

// searchLink is the search for a text.
func searchLink(q string) string { return "/search?q=" + url.QueryEscape(q) }
