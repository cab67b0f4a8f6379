package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"gancho/pkg/webhook"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

// olderPrefix begins the paths of RD Station's older API, which knows webhooks only. Its bodies are flat, its token
// may be in the query or the body, and a webhook is called by its uuid.
const olderPrefix = "/api/v1/webhooks"

// defaultOlderSize is how many webhooks the older API lists on a page.
const defaultOlderSize = 20

func (a *API) older() []route {
	token := parameter{name: "token", kind: "string"}
	all := []route{
		{
			method: http.MethodGet, path: olderPrefix, query: []parameter{token, {name: "page"}, {name: "limit"}},
			handle: a.olderList,
		},
		{
			method: http.MethodPost, path: olderPrefix, id: "createWebhook", tag: "webhooks", write: true,
			idempotent: true, handle: a.olderCreate,
		},
		{method: http.MethodGet, path: olderPrefix + "/{id}", handle: a.olderGet},
		{
			method: http.MethodPut, path: olderPrefix + "/{id}", id: "updateWebhook", tag: "webhooks", write: true,
			handle: a.olderUpdate,
		},
		{
			method: http.MethodDelete, path: olderPrefix + "/{id}", id: "deleteWebhook", tag: "webhooks", write: true,
			handle: a.olderDelete,
		},
	}
	for i := range all {
		all[i].older = true
		if all[i].query == nil {
			all[i].query = []parameter{token}
		}
	}
	return all
}

// tokenOfOlder moves the token from the query or the body to the header, unless the header has one.
func tokenOfOlder(c *call) error {
	if c.r.Header.Get("Authorization") != "" {
		return nil
	}
	token := c.r.URL.Query().Get("token")
	if token == "" && (c.r.Method == http.MethodPost || c.r.Method == http.MethodPut) {
		body, err := readBody(c.w, c.r, maxBodyBytes)
		if err != nil {
			return err
		}
		c.r.Body = io.NopCloser(bytes.NewReader(body))
		var said struct {
			Token string `json:"token"`
		}
		_ = json.Unmarshal(bytes.TrimPrefix(body, []byte(mark)), &said) // the handler reports any error in the body
		token = said.Token
	}
	if token != "" {
		c.r.Header.Set("Authorization", "Bearer "+token)
	}
	return nil
}

// olderWebhook is a webhook in the older API.
type olderWebhook struct {
	UUID          string `json:"uuid"`
	EventType     string `json:"event_type"`
	URL           string `json:"url"`
	Method        string `json:"http_method"`
	Status        string `json:"status"`
	SigningSecret string `json:"signing_secret,omitempty"`
}

func inOlderForm(v webhooks.View) olderWebhook {
	return olderWebhook{v.ID, v.EventName, v.URL, v.Method, v.Status, v.SigningSecret}
}

// olderInput is the body of a create or an update.
type olderInput struct {
	Token      webhooks.Field[string]         `json:"token"`
	UUID       webhooks.Field[jsontext.Value] `json:"uuid"`
	EventType  webhooks.Field[string]         `json:"event_type"`
	Method     webhooks.Field[string]         `json:"http_method"`
	URL        webhooks.Field[string]         `json:"url"`
	AuthHeader webhooks.Field[string]         `json:"auth_header"`
	AuthKey    webhooks.Field[string]         `json:"auth_key"`
	Status     webhooks.Field[string]         `json:"status"`
}

func (c *call) olderInput() (webhooks.Input, error) {
	body, err := readBody(c.w, c.r, maxBodyBytes)
	if err != nil {
		return webhooks.Input{}, err
	}
	if len(body) == 0 {
		return webhooks.Input{}, problem.New(problem.Malformed, "empty_body", "the body is empty; send a JSON object")
	}
	var in olderInput
	if err := unmarshal(body, &in); err != nil {
		return webhooks.Input{}, badJSON(err)
	}
	return webhooks.Input{
		ID: in.UUID, EventName: in.EventType, Method: in.Method, URL: in.URL, AuthHeader: in.AuthHeader,
		AuthKey: in.AuthKey, Status: in.Status,
	}, nil
}

// inOlderWords renames the places in the request that err names.
func inOlderWords(err error) error {
	e, ok := errors.AsType[*problem.Error](err)
	if !ok {
		return err
	}
	out := *e
	out.Problems = nil
	for _, p := range e.Problems {
		name, found := strings.CutPrefix(p.Pointer, "/data/")
		if found {
			switch name {
			case "event_name":
				name = "event_type"
			case "id":
				name = "uuid"
			}
			p.Detail = strings.ReplaceAll(p.Detail, "event_name", "event_type")
			p.Pointer = "/" + name
		}
		out.Problems = append(out.Problems, p)
	}
	return &out
}

func (a *API) olderList(c *call) (*answer, error) {
	var problems problem.List
	number := intParameter(c.query, "page", 1, 1<<30, &problems)
	size := intParameter(c.query, "limit", defaultOlderSize, maxPageSize, &problems)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	views, total := a.Webhooks.List(c.ctx, c.caller.Account, webhooks.Filter{}, min(number-1, maxPage)*size, size)
	rows := []olderWebhook{}
	for _, v := range views {
		rows = append(rows, inOlderForm(v))
	}
	return &answer{status: http.StatusOK, body: map[string]any{
		"webhooks": rows, "total": total,
		"has_more": number*size < total,
	}}, nil
}

func (a *API) olderCreate(c *call) (*answer, error) {
	in, err := c.olderInput()
	if err != nil {
		return nil, err
	}
	v, secret, err := a.Webhooks.Create(c.ctx, c.caller.Account, in)
	if err != nil {
		return nil, inOlderWords(err)
	}
	c.object = v.ID
	c.fields = append(c.fields, zap.String("webhook_id", v.ID), zap.String("url_host", webhook.URLHost(v.URL)))
	v.SigningSecret = secret
	return &answer{status: http.StatusOK, body: inOlderForm(v)}, nil
}

func (a *API) olderGet(c *call) (*answer, error) {
	v, err := a.Webhooks.Show(c.ctx, c.caller.Account, c.id())
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusOK, body: inOlderForm(v)}, nil
}

func (a *API) olderUpdate(c *call) (*answer, error) {
	in, err := c.olderInput()
	if err != nil {
		return nil, err
	}
	v, _, err := a.Webhooks.Update(c.ctx, c.caller.Account, c.id(), in, nil, c.caller.Name)
	if err != nil {
		return nil, inOlderWords(err)
	}
	return &answer{status: http.StatusOK, body: inOlderForm(v)}, nil
}

func (a *API) olderDelete(c *call) (*answer, error) { return a.deleteWebhook(c) }
