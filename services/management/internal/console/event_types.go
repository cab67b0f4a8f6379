package console

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"

	"go.uber.org/zap"

	"gancho/services/management/internal/catalogue"
	"gancho/services/management/internal/problem"
)

// receivers are the samples of deploy/docs/receivers, written here by services/internal/docs.
//
//go:embed receivers
var receivers embed.FS

// snippet is a receiver that verifies the signature.
type snippet struct{ Name, Code string }

func snippets() ([]snippet, error) {
	files, err := fs.Glob(receivers, "receivers/*")
	if err != nil {
		return nil, err
	}
	var all []snippet
	for _, f := range files {
		code, err := receivers.ReadFile(f)
		if err != nil {
			return nil, err
		}
		all = append(all, snippet{strings.TrimSuffix(path.Base(f), ".txt"), string(code)})
	}
	return all, nil
}

// typesPage is the catalogue.
type typesPage struct {
	Types    []catalogue.Type
	Snippets []snippet
}

// typePage is one event of the catalogue.
type typePage struct {
	catalogue.Type

	Pretty, PrettySchema string
	// Hooks are the account's webhooks that get the event, the first mostHooks of them.
	Hooks []hookChoice
}

type hookChoice struct{ ID, Name string }

// mostHooks is how many webhooks a sample can be sent to from its page.
const mostHooks = 100

// DescriptionIn is the description in a language of the console.
func (p typePage) DescriptionIn(english bool) string { return describedIn(p.Type, english) }

// Describe is the description of one event of the catalogue.
func (typesPage) Describe(t catalogue.Type, english bool) string { return describedIn(t, english) }

func describedIn(t catalogue.Type, english bool) string {
	if english {
		return t.Description.EN
	}
	return t.Description.PT
}

func (c *Console) eventTypesPage(v *visit) error {
	samples, err := snippets()
	if err != nil {
		return err
	}
	return c.show(v, http.StatusOK, "event_types", page{
		Title: "types.title", Tab: "types", Data: typesPage{c.Catalogue.Types(), samples},
	})
}

func (c *Console) eventTypePage(v *visit) error {
	t, ok := c.Catalogue.Type(v.r.PathValue("name"))
	if !ok {
		return problem.NotFound("event")
	}
	data := typePage{Type: t, Pretty: indented(t.Sample), PrettySchema: indented(t.Schema)}
	for _, w := range c.Webhooks.Named(v.caller.Account, t.Name, mostHooks) {
		data.Hooks = append(data.Hooks, hookChoice{w.ID, w.Name})
	}
	return c.show(v, http.StatusOK, "event_type", page{Title: "types.title", Name: t.Name, Tab: "types", Data: data})
}

func indented(raw json.RawMessage) string {
	var out bytes.Buffer
	if json.Indent(&out, raw, "", "  ") != nil {
		return string(raw)
	}
	return out.String()
}

// postSample sends the sample of an event to a webhook.
func (c *Console) postSample(v *visit) error {
	name, id := v.r.PathValue("name"), v.r.PostFormValue("webhook_id")
	if _, ok := c.Catalogue.Type(name); !ok {
		return problem.NotFound("event")
	}
	n, err := c.Notifications.TestOf(v.ctx, v.caller.Account, id, name)
	if err != nil {
		return err
	}
	c.changed(v, "testWebhook", id, nil)
	v.fields = append(v.fields, zap.String("notification_id", n.ID))
	return c.done(v, fmt.Sprintf("/notifications/%s", n.ID), flash{Key: "done.test"})
}
