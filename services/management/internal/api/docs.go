package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"
)

//go:embed docs.html
var docsTemplate string

// docs is the page at /docs, made once: the OpenAPI document for people, without anything from elsewhere.
type docs struct {
	page   []byte
	policy string
}

// docOperation is one call on the page.
type docOperation struct {
	Method, Path, ID, Summary, Description string
	Parameters                             []docParameter
	Body                                   string // the JSON schema, indented
	Responses                              []docResponse
	Example                                string
}

type docParameter struct{ Name, In, Description, Type string }

type docResponse struct{ Status, Description, Schema string }

type docTag struct {
	Name, Description string
	Operations        []docOperation
}

type docSchema struct{ Name, Text string }

// openAPI is the part of the document that the page shows.
type openAPI struct {
	Info struct{ Title, Version, Description string }
	Tags []struct{ Name, Description string }
	// Paths and Webhooks hold operations by path, or event, and method.
	Paths, Webhooks map[string]map[string]openOperation
	Components      struct {
		Schemas   map[string]json.RawMessage
		Responses map[string]struct{ Description string }
	}
}

type openOperation struct {
	OperationID, Summary, Description string
	Tags                              []string
	Parameters                        []struct {
		Name, In, Description string
		Schema                struct {
			Type any
			Enum []any
		}
	}
	RequestBody struct {
		Content map[string]openMedia
	}
	Responses map[string]struct {
		Ref         string `json:"$ref"`
		Description string
		Content     map[string]openMedia
	}
}

type openMedia struct{ Schema, Example json.RawMessage }

func docsPage(document []byte) (*docs, error) {
	var doc openAPI
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	var tags []docTag
	for _, t := range doc.Tags {
		tag := docTag{Name: t.Name, Description: t.Description}
		for _, some := range []map[string]map[string]openOperation{doc.Paths, doc.Webhooks} {
			for _, path := range slices.Sorted(maps.Keys(some)) {
				for _, method := range slices.Sorted(maps.Keys(some[path])) {
					if op := some[path][method]; slices.Contains(op.Tags, t.Name) {
						tag.Operations = append(tag.Operations, doc.show(method, path, op))
					}
				}
			}
		}
		tags = append(tags, tag)
	}
	var schemas []docSchema
	for _, name := range slices.Sorted(maps.Keys(doc.Components.Schemas)) {
		schemas = append(schemas, docSchema{name, indented(doc.Components.Schemas[name])})
	}
	page, err := template.New("docs").Parse(docsTemplate)
	if err != nil {
		return nil, fmt.Errorf("the page of the API: %w", err)
	}
	var b bytes.Buffer
	if err := page.Execute(&b, map[string]any{"Info": doc.Info, "Tags": tags, "Schemas": schemas}); err != nil {
		return nil, fmt.Errorf("the page of the API: %w", err)
	}
	_, style, _ := strings.Cut(docsTemplate, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	return &docs{b.Bytes(), "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}, nil
}

func (d *openAPI) show(method, path string, op openOperation) docOperation {
	out := docOperation{
		Method: strings.ToUpper(method), Path: path, ID: op.OperationID, Summary: op.Summary,
		Description: op.Description,
	}
	for _, p := range op.Parameters {
		kind := fmt.Sprint(cmp.Or(p.Schema.Type, any("string")))
		var words []string
		for _, v := range p.Schema.Enum {
			words = append(words, fmt.Sprint(v))
		}
		if len(words) > 0 {
			kind += ": " + strings.Join(words, ", ")
		}
		out.Parameters = append(out.Parameters, docParameter{p.Name, p.In, p.Description, kind})
	}
	for _, media := range op.RequestBody.Content {
		out.Body, out.Example = indented(media.Schema), indented(media.Example)
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		r := op.Responses[status]
		shown := docResponse{Status: status, Description: r.Description}
		if r.Ref != "" {
			shown.Description = d.Components.Responses[r.Ref[strings.LastIndexByte(r.Ref, '/')+1:]].Description
		}
		for _, media := range r.Content {
			shown.Schema = indented(media.Schema)
		}
		out.Responses = append(out.Responses, shown)
	}
	return out
}

func indented(raw json.RawMessage) string {
	var b bytes.Buffer
	if len(raw) == 0 || json.Indent(&b, raw, "", "  ") != nil {
		return ""
	}
	return b.String()
}

// show answers the page.
func (d *docs) show(c *call) (*answer, error) {
	h := c.w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", d.policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache")
	if c.r.Method != http.MethodHead {
		_, _ = c.w.Write(d.page) // the client may have gone
	}
	return nil, nil
}
