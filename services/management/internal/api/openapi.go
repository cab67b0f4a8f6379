package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"gancho/pkg/service"
	"gancho/services/management/internal/accounts"
	"gancho/services/management/internal/catalogue"
	"gancho/services/management/internal/dryrun"
	"gancho/services/management/internal/ingest"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/tail"
	"gancho/services/management/internal/webhooks"
)

var pathParameter = regexp.MustCompile(`\{([a-z_]+)\}`)

// schemaName names types whose Go names say too little outside their package.
func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[webhooks.View]():
		return "Webhook"
	case reflect.TypeFor[notifications.View]():
		return "Notification"
	case reflect.TypeFor[notifications.Listed]():
		return "ListedNotification"
	case reflect.TypeFor[notifications.Event]():
		return "Event"
	case reflect.TypeFor[notifications.Unmatched]():
		return "UnmatchedWebhook"
	case reflect.TypeFor[ingest.Accepted]():
		return "AcceptedEvent"
	case reflect.TypeFor[replays.View]():
		return "Replay"
	case reflect.TypeFor[tail.Attempt]():
		return "TailAttempt"
	case reflect.TypeFor[tail.Event]():
		return "TailEvent"
	case reflect.TypeFor[accounts.View]():
		return "Account"
	case reflect.TypeFor[catalogue.Type]():
		return "EventType"
	case reflect.TypeFor[dryrun.Result]():
		return "ConditionsResult"
	case reflect.TypeFor[dryrun.Checked]():
		return "CheckedCondition"
	case reflect.TypeFor[catalogue.Description]():
		return "EventDescription"
	case reflect.TypeFor[portal.Theme]():
		return "PortalTheme"
	case reflect.TypeFor[problem.Problem]():
		return "Error"
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// document makes the OpenAPI document from the routes. Schemas come from the Go types that are encoded.
func document(routes []route, types []catalogue.Type) ([]byte, error) {
	registry := huma.NewMapRegistry("#/components/schemas/", schemaName)
	ref := func(v any) *huma.Schema { return registry.Schema(reflect.TypeOf(v), true, "") }
	failure := &huma.Response{
		Description: "what is wrong",
		Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{
			Type: huma.TypeObject, Required: []string{"errors"},
			Properties: map[string]*huma.Schema{"errors": {Type: huma.TypeArray, Items: ref(problem.Problem{})}},
		}}},
	}
	slower := *failure
	slower.Description = "too many requests, or too many wrong tokens"
	slower.Headers = map[string]*huma.Param{"Retry-After": {Description: "seconds to wait", Required: true, Schema: &huma.Schema{Type: huma.TypeInteger}}}
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "Gancho", Version: service.Version,
			Description: "Webhooks of a CRM: registrations, notifications, resends and replays. The shape is that of RD Station CRM's API v2.",
			License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Servers: []*huma.Server{{URL: "/", Description: "where this document comes from"}},
		Tags: []*huma.Tag{
			{Name: "webhooks", Description: "registrations: which events are sent where"},
			{Name: "notifications", Description: "what became of each, and sending one again"},
			{Name: "replays", Description: "past events sent to a webhook again"},
			{Name: "events", Description: "publishing an event without NATS, and which events there are"},
			{Name: "receivers", Description: "the requests that receivers get"},
			{Name: "audit", Description: "who changed what"},
			{Name: "console", Description: "the console, for people without a token"},
			{Name: "erasures", Description: "operators' calls that erase an account's events"},
			{Name: "accounts", Description: "operators' calls about one account"},
			{Name: "meta", Description: "this document"},
		},
		Components: &huma.Components{
			Schemas:         registry,
			Responses:       map[string]*huma.Response{"Refused": failure, "TooMany": &slower},
			SecuritySchemes: map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer", Description: "a token of one account; an operator's also needs X-Account-Id"}},
		},
		Security: []map[string][]string{{"token": {}}},
		Paths:    map[string]*huma.PathItem{},
	}
	for _, r := range routes {
		op := operation(r, ref)
		item := doc.Paths[Prefix+r.path]
		if item == nil {
			item = &huma.PathItem{}
			doc.Paths[Prefix+r.path] = item
		}
		switch r.method {
		case http.MethodGet:
			item.Get = op
		case http.MethodPost:
			item.Post = op
		case http.MethodPut:
			item.Put = op
		case http.MethodDelete:
			item.Delete = op
		default:
			return nil, fmt.Errorf("openapi: %s is not expected", r.method)
		}
	}
	finish(registry, routes)
	doc.Webhooks = receivers(types)
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	return append(out, '\n'), nil
}

// finish adds to the schemas the facts that the generator omits: objects that may be null, and that answers may
// get more members in later versions, while requests may have no others.
func finish(registry huma.Registry, routes []route) {
	requests := map[reflect.Type]bool{}
	for _, r := range routes {
		if r.body != nil {
			requests[reflect.TypeOf(r.body)] = true
		}
	}
	for name, schema := range registry.Map() {
		t := registry.TypeFromRef("#/components/schemas/" + name)
		if !requests[t] {
			schema.AdditionalProperties = nil
		}
		for f := range t.Fields() {
			member, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if p := schema.Properties[member]; p != nil && f.Type.Kind() == reflect.Pointer && p.Ref != "" {
				schema.Properties[member] = nullable(p)
			}
		}
	}
}

func operation(r route, ref func(any) *huma.Schema) *huma.Operation {
	op := &huma.Operation{
		OperationID: r.id, Summary: r.summary, Description: r.about, Tags: []string{r.tag}, Responses: map[string]*huma.Response{},
	}
	for _, m := range pathParameter.FindAllStringSubmatch(r.path, -1) {
		s := &huma.Schema{Type: huma.TypeString}
		if m[1] == "id" {
			s.Format = "uuid"
		}
		op.Parameters = append(op.Parameters, &huma.Param{Name: m[1], In: "path", Required: true, Schema: s})
	}
	add := func(in string, params []parameter) {
		for _, p := range params {
			s := &huma.Schema{Type: p.kind, Format: p.format}
			for _, e := range p.enum {
				s.Enum = append(s.Enum, e)
			}
			op.Parameters = append(op.Parameters, &huma.Param{Name: p.name, In: in, Description: p.about, Schema: s})
		}
	}
	add("query", r.query)
	if r.idempotent {
		add("header", []parameter{{
			name: "Idempotency-Key", kind: "string",
			about: "the same request again under the same key within 24 hours is answered as the first was; another request under it is 409",
		}})
	}
	add("header", r.headers)
	wrap := func(s *huma.Schema) *huma.Schema {
		return &huma.Schema{Type: huma.TypeObject, Required: []string{"data"}, Properties: map[string]*huma.Schema{"data": s}}
	}
	switch {
	case r.action:
		s := &huma.Schema{Type: huma.TypeObject, Nullable: true}
		if r.body != nil {
			s = nullable(ref(r.body))
		}
		body := wrap(s)
		body.Required = nil
		op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{"application/json": {Schema: body}}}
	case r.body != nil:
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: wrap(ref(r.body))}}}
	case r.rawBody:
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Type: huma.TypeObject}}}}
	}
	for _, res := range r.results {
		op.Responses[strconv.Itoa(res.status)] = response(res, ref, wrap)
	}
	fails := append(slices.Clone(r.fails), 400)
	if r.idempotent {
		fails = append(fails, 409)
	}
	if !r.public && r.operator {
		s := op.Parameters[0].Schema
		s.Format, s.Pattern = "", "^[A-Za-z0-9_-]{1,64}$"
	}
	if !r.public {
		op.Parameters = append(op.Parameters, &huma.Param{
			Name: "X-Account-Id", In: "header", Description: "for an operator's token: the account to act for", Schema: &huma.Schema{Type: huma.TypeString},
		})
		fails = append(fails, 401, 403, 429, 500, 503)
		if r.body != nil || r.rawBody || r.action {
			fails = append(fails, 413, 415, 422)
		}
	} else {
		op.Security = []map[string][]string{}
	}
	for _, status := range fails {
		op.Responses[strconv.Itoa(status)] = &huma.Response{Ref: "#/components/responses/" + failureOf(status)}
	}
	return op
}

// failureOf names the component that describes the answers of a status.
func failureOf(status int) string {
	if status == http.StatusTooManyRequests {
		return "TooMany"
	}
	return "Refused"
}

func response(res result, ref func(any) *huma.Schema, wrap func(*huma.Schema) *huma.Schema) *huma.Response {
	out := &huma.Response{Description: res.about}
	if res.etag {
		out.Headers = map[string]*huma.Param{"ETag": {Description: "the revision of the registration, for If-Match", Schema: &huma.Schema{Type: huma.TypeString}}}
	}
	if res.data == nil {
		return out
	}
	var s *huma.Schema
	switch {
	case res.media != "":
		s = &huma.Schema{Type: huma.TypeString, Description: "data of each event: see the schema " + schemaName(reflect.TypeOf(res.data), "")}
		ref(res.data)
	case res.list:
		s = &huma.Schema{Type: huma.TypeObject, Required: []string{"data", "links", "has_more"}, Properties: map[string]*huma.Schema{
			"data": {Type: huma.TypeArray, Items: ref(res.data)},
			"links": {Type: huma.TypeObject, Required: []string{"first", "self", "next"}, Properties: map[string]*huma.Schema{
				"first": {Type: huma.TypeString, Format: "uri"},
				"self":  {Type: huma.TypeString, Format: "uri"},
				"next":  {Type: huma.TypeString, Format: "uri", Nullable: true, Description: "the next page; null on the last one"},
				"last":  {Type: huma.TypeString, Format: "uri", Description: "the last page, where pages have numbers"},
			}},
			"has_more": {Type: huma.TypeBoolean},
			"partial":  {Type: huma.TypeBoolean, Description: "true while the index is being rebuilt: some are missing"},
		}}
	case reflect.TypeOf(res.data).Kind() == reflect.Map:
		s = &huma.Schema{Type: huma.TypeObject}
	default:
		s = wrap(ref(res.data))
	}
	media := res.media
	if media == "" {
		media = "application/json"
	}
	out.Content = map[string]*huma.MediaType{media: {Schema: s}}
	return out
}

// nullable is a schema that also accepts null.
func nullable(s *huma.Schema) *huma.Schema {
	return &huma.Schema{Description: s.Description, AnyOf: []*huma.Schema{{Ref: s.Ref}, {Type: "null"}}}
}

// receivers describes the requests that receivers get, one for each known event.
func receivers(types []catalogue.Type) map[string]*huma.PathItem {
	text := func(name, about, example string) *huma.Param {
		return &huma.Param{Name: name, In: "header", Description: about, Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Example: example}
	}
	all := map[string]*huma.PathItem{}
	for _, t := range types {
		all[t.Name] = &huma.PathItem{Post: &huma.Operation{
			OperationID: "receive_" + t.Name, Summary: t.Description.EN, Tags: []string{"receivers"}, Security: []map[string][]string{},
			Description: "Sent with the webhook's http_method. The body is the event, byte for byte as the CRM wrote it.",
			Parameters: []*huma.Param{
				text("webhook-id", "the notification's id: the same on every attempt and resend", "2c0f0f3e-6a0b-5c64-9a1b-5d3f6f0a1b2c"),
				text("webhook-timestamp", "of this attempt, in seconds since 1970", "1764356589"),
				text("webhook-signature", "v1,<base64 of HMAC-SHA256 over id.timestamp.body>, or v1a,<base64 of the Ed25519 signature>; several, separated by spaces, while a secret is rotated",
					"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
				text("Gancho-Event", "the event name", t.Name),
				text("Gancho-Attempt", "1 to 6", "1"),
			},
			RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {
				Schema: schemaOf(t.Schema), Example: t.Sample,
			}}},
			Responses: map[string]*huma.Response{
				"2XX":     {Description: "accepted, when it comes within 5 s"},
				"default": {Description: "not accepted: sent again, five times in all"},
			},
		}}
	}
	return all
}

// schemaOf turns a JSON schema of the catalogue into one of the document, without the members that the document's
// dialect implies.
func schemaOf(raw json.RawMessage) *huma.Schema {
	var s map[string]any
	if err := json.Unmarshal(raw, &s); err != nil {
		return &huma.Schema{Type: huma.TypeObject}
	}
	delete(s, "$schema")
	return &huma.Schema{Extensions: s}
}
