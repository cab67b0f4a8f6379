package management_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/uuid"

	"gancho/services/management"
)

// operation is one row of the API, as its OpenAPI document tells.
type operation struct {
	method, path string
	public       bool
	body         bool
	responses    map[string]json.RawMessage
}

func (s *instance) operations() []operation {
	s.t.Helper()
	var doc struct {
		Paths map[string]map[string]struct {
			RequestBody json.RawMessage            `json:"requestBody"`
			Security    *[]any                     `json:"security"`
			Responses   map[string]json.RawMessage `json:"responses"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(s.do("", "GET", "/crm/v2/openapi.json", nil).want(200).raw, &doc); err != nil {
		s.t.Fatal(err)
	}
	var ops []operation
	for path, methods := range doc.Paths {
		for method, o := range methods {
			ops = append(ops, operation{strings.ToUpper(method), path, o.Security != nil && len(*o.Security) == 0, o.RequestBody != nil, o.Responses})
		}
	}
	sort.Slice(ops, func(i, j int) bool { return ops[i].path+ops[i].method < ops[j].path+ops[j].method })
	if len(ops) < 20 {
		s.t.Fatalf("the document has %d operations", len(ops))
	}
	return ops
}

// TestWalk makes every request of the API with every kind of token and every kind of malformed input. Each
// must be refused with the right status, in the shape of errors, and documented.
func TestWalk(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) { c.Limits.EventMaxBytes, c.APIBadTokensPerMinute = 4096, 100_000 })
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	notificationID := s.matched("acme", hookID, `{"transaction_uuid":"w"}`).ID
	replayID := s.do(acme, "POST", "/crm/v2/webhooks/"+hookID+"/replays", map[string]any{"from": "2026-01-01T00:00:00Z"}).want(201).id()
	realID := func(path string) string {
		switch {
		case strings.Contains(path, "/notifications/{id}"):
			return notificationID
		case strings.Contains(path, "/replays/{id}"):
			return replayID
		}
		return hookID
	}
	for _, op := range s.operations() {
		if strings.Contains(op.path, "/accounts/") || strings.HasSuffix(op.path, "/usage") || strings.Contains(op.path, "/erasures") {
			continue // operators' calls: TestAccounts, TestNumbers, TestErasures
		}
		t.Run(op.method+" "+op.path, func(t *testing.T) {
			t.Parallel()
			s := &instance{t: t, url: s.url}
			path := strings.NewReplacer("{id}", realID(op.path), "{event}", "crm_deal_created").Replace(op.path)
			write, scoped := op.method != http.MethodGet && !strings.HasSuffix(op.path, "/conditions/test"), strings.Contains(op.path, "{id}")
			body := any(nil)
			if op.body {
				body = `{"data":{}}`
			}
			refused := func(r reply, want ...int) {
				t.Helper()
				if !slices.Contains(want, r.status) {
					t.Errorf("status %d, want one of %v\n%.300s", r.status, want, r.raw)
				}
				var e struct {
					Errors []struct{ Code, Detail string }
				}
				if err := json.Unmarshal(r.raw, &e); op.method != http.MethodHead && (err != nil || len(e.Errors) == 0 || e.Errors[0].Code == "" || e.Errors[0].Detail == "") {
					t.Errorf("not the shape of an error: %.300s", r.raw)
				}
				if op.responses[fmt.Sprint(r.status)] == nil {
					t.Errorf("status %d is not documented", r.status)
				}
				if r.header.Get("X-Request-Id") == "" || r.header.Get("X-Content-Type-Options") != "nosniff" {
					t.Errorf("headers missing: %v", r.header)
				}
			}
			if op.public {
				s.do("", op.method, path, body).want(200)
				refused(s.do("", op.method, path+"?no_such=1", body), 400)
				return
			}
			refused(s.do("", op.method, path, body), 401)
			for _, bad := range []string{"nonsense", "", "a b", acme + "x", strings.ToUpper(acme), "eyJhbGciOiJub25lIn0.eyJhY2NvdW50X2lkIjoiYWNtZSIsImV4cCI6OTk5OTk5OTk5OX0."} {
				refused(s.do(acme, op.method, path, body, "Authorization", "Bearer "+bad), 401)
			}
			refused(s.do(acme, op.method, path, body, "Authorization", "Basic "+acme), 401)
			refused(s.do(acme, op.method, path+"?no_such=1", body), 400)
			if op.path != "/crm/v2/audit" { // of all accounts
				refused(s.do(operator, op.method, path, body), 400)
			}
			refused(s.do(operator, op.method, path, body, "X-Account-Id", "no.such>account"), 400)
			refused(s.do(acme, op.method, path, body, "X-Account-Id", "globex"), 403)
			if write {
				refused(s.do(acmeRead, op.method, path, body), 403)
			}
			if scoped {
				foreign := s.do(other, op.method, path, validBody(op))
				refused(foreign, 404)
				unknown := s.do(other, op.method, strings.Replace(op.path, "{id}", uuid.NewString(), 1), validBody(op))
				for _, h := range []http.Header{foreign.header, unknown.header} {
					h.Del("X-Request-Id")
					h.Del("Date")
				}
				if !bytes.Equal(foreign.raw, unknown.raw) || fmt.Sprint(foreign.header) != fmt.Sprint(unknown.header) {
					t.Errorf("another account's is told apart from what is not there:\n%s %v\n%s %v", foreign.raw, foreign.header, unknown.raw, unknown.header)
				}
				refused(s.do(operator, op.method, path, validBody(op), "X-Account-Id", "globex"), 404)
				for _, id := range []string{
					"x", "%2e%2e", "..%2f..%2fx", "%00", strings.Repeat("a", 10_000), "*", "%3E", strings.ToUpper(uuid.NewString()) + "0",
					"{" + hookID + "}", "urn:uuid:" + hookID, strings.ReplaceAll(hookID, "-", ""), uuid.NewString(), "%F0%9F%92%A9",
				} {
					malformed := strings.Replace(op.path, "{id}", id, 1)
					r := s.do(acme, op.method, malformed, validBody(op))
					if r.status != 404 {
						t.Errorf("id %.40q: status %d, want 404\n%.300s", id, r.status, r.raw)
					}
				}
			}
			if op.body {
				refused(s.do(acme, op.method, path, `{"data":{}}`, "Content-Type", "text/plain"), 415)
				refused(s.do(acme, op.method, path, `{"data":{}}`, "Content-Type", ""), 415)
				refused(s.do(acme, op.method, path, `{"data":{}}`, "Content-Type", "application/json; charset=latin1"), 415)
				refused(s.do(acme, op.method, path, `{"data":{}}`, "Content-Encoding", "gzip"), 415)
				refused(s.do(acme, op.method, path, `{"data":"`+strings.Repeat("x", 1<<20)+`"}`), 413)
				refused(s.do(acme, op.method, path, `{"data":`), 400)
				if !strings.Contains(op.path, "/events/") {
					refused(s.do(acme, op.method, path, `{"data":{"no_such":1}}`), 400)
					refused(s.do(acme, op.method, path, `{"data":[]}`), 422)
					refused(s.do(acme, op.method, path, `"data"`), 422)
				}
			}
		})
	}
	t.Run("elsewhere", func(t *testing.T) {
		t.Parallel()
		s := &instance{t: t, url: s.url}
		for _, path := range []string{"/.git/config", "/debug/pprof/", "/metrics", "/crm/v2", "/crm/v2/", "/crm/v2/webhooks//", "/crm//v2/webhooks", "/crm/v2/../v2/webhooks", "/crm/v1/webhooks"} {
			s.do(acme, "GET", path, nil).refused(404, "no_such_path", "")
		}
		for _, method := range []string{"TRACE", "PATCH", "OPTIONS", "BREW", "DELETE"} {
			r := s.do(acme, method, "/crm/v2/webhooks", nil)
			r.refused(405, "method_not_allowed", "")
			if r.header.Get("Allow") != "GET, POST" {
				t.Errorf("Allow = %q", r.header.Get("Allow"))
			}
		}
		s.do(acme, "HEAD", "/crm/v2/webhooks/"+hookID, nil).want(200)
	})
}

// TestHeadersThatRuleNothing: row 93 of the bad inputs. Neither the method, nor the client's address, nor where
// links lead is taken from what a client says of itself.
func TestHeadersThatRuleNothing(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) { c.APIBadTokensPerMinute = 4 })
	evil := []string{
		"Host", "evil.example", "X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "gopher", "X-Original-Url", "/crm/v2/openapi.json", "X-Rewrite-Url", "/",
		"X-HTTP-Method-Override", "DELETE", "X-HTTP-Method", "DELETE", "X-Method-Override", "DELETE", "X-Account-Id", "",
	}
	created := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x"), evil...).want(201)
	path := "/crm/v2/webhooks/" + created.id()
	if at := created.header.Get("Location"); at != path {
		t.Errorf("Location = %q, want %q", at, path)
	}
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/y")).want(201)
	list := s.do(acme, "GET", "/crm/v2/webhooks?page[size]=1", nil, evil...).want(200)
	if next := text(object(list.json, "links"), "next"); !strings.HasPrefix(next, "http://evil.example/crm/v2/webhooks?") { // the request's own Host
		t.Errorf("next = %q", next)
	}
	list = s.do(acme, "GET", "/crm/v2/webhooks?page[size]=1", nil, evil[2:]...).want(200)
	if next := text(object(list.json, "links"), "next"); !strings.HasPrefix(next, s.url+"/crm/v2/webhooks?") {
		t.Errorf("next = %q, by a header that no proxy of ours sent", next)
	}
	s.do(acme, "GET", path, nil, evil...).want(200)
	s.do(acme, "PUT", path, map[string]any{"name": "changed"}, evil...).want(200)
	s.do(acme, "POST", path, nil, evil...).refused(405, "method_not_allowed", "")
	s.do(acme, "POST", path+"/rotate_secret", nil, evil...).want(200)
	if r := s.do(acme, "GET", path, nil).want(200); r.data()["name"] != "changed" {
		t.Errorf("webhook = %s", r.raw)
	}
	// Each guess says it comes from elsewhere, and all are counted as the one client's that they are.
	from := func(i int) []string {
		a := fmt.Sprintf("203.0.113.%d", i)
		return []string{"X-Forwarded-For", a, "X-Real-Ip", a, "Forwarded", "for=" + a, "True-Client-Ip", a}
	}
	for i := range 4 {
		s.do("guess", "GET", path, nil, from(i)...).refused(401, "bad_token", "")
	}
	s.do("guess", "GET", path, nil, from(5)...).refused(429, "locked_out", "")
	s.do(acme, "GET", path, nil).want(200)
}

// TestBodiesThatLie: row 84 of the bad inputs, written by hand as no client would. Each is refused and its connection
// closed; bytes behind a body are not taken for a part of it.
func TestBodiesThatLie(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := start(t, nil)
	const endless = "" // chunks without an end
	whole := `{"data":{"name":"n","event_name":"crm_deal_created","http_method":"POST","url":"https://hooks.example.com/x"}}`
	t.Run("all", func(t *testing.T) {
		for name, tc := range map[string]struct {
			head, body string
			cut        bool // nothing follows, and the server learns it
			status     int
		}{
			"length 1 and more":        {"Content-Length: 1\r\n", whole + "\r\n\r\n", false, 400},
			"longer than it says":      {fmt.Sprintf("Content-Length: %d\r\n", len(whole)-1), whole + "\r\n\r\n", false, 400},
			"shorter than it says":     {fmt.Sprintf("Content-Length: %d\r\n", len(whole)+1), whole, true, 400},
			"two lengths":              {fmt.Sprintf("Content-Length: 2\r\nContent-Length: %d\r\n", len(whole)), whole, false, 400},
			"a length that is none":    {"Content-Length: -1\r\n", whole, false, 400},
			"endless chunks":           {"Transfer-Encoding: chunked\r\n", endless, false, 413},
			"chunks cut off":           {"Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n", true, 400},
			"a chunk of nonsense":      {"Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n", false, 400},
			"a coding nobody knows":    {"Transfer-Encoding: gzip, chunked\r\n", "2\r\n{}\r\n0\r\n\r\n", false, 501},
			"10 MB that are announced": {"Content-Length: 10485760\r\n", strings.Repeat(" ", 2<<20), true, 413},
		} {
			for _, path := range []string{"/crm/v2/webhooks", "/crm/v2/events/crm_deal_created"} {
				t.Run(name+" "+path, func(t *testing.T) {
					t.Parallel()
					c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					go func() {
						_, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n%s\r\n%s", path, acme, tc.head, tc.body)
						for chunk := "400\r\n" + strings.Repeat(" ", 0x400) + "\r\n"; err == nil && tc.body == endless; {
							_, err = c.Write([]byte(chunk))
						}
						if tc.cut {
							_ = c.(*net.TCPConn).CloseWrite() //nolint:errcheck // it is TCP
						}
					}()
					br := bufio.NewReader(c)
					resp, err := http.ReadResponse(br, nil)
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					if resp.StatusCode != tc.status {
						t.Errorf("status %d, want %d", resp.StatusCode, tc.status)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					for more := 0; ; more++ { // until the connection ends
						resp, err := http.ReadResponse(br, nil)
						if err != nil {
							break
						}
						_ = resp.Body.Close()
						if resp.StatusCode != 400 || more > 0 {
							t.Fatalf("what is behind the body was answered with %d", resp.StatusCode)
						}
					}
				})
			}
		}
	})
	if r := s.do(acme, "GET", "/crm/v2/webhooks", nil).want(200); len(r.rows()) > 0 {
		t.Errorf("stored: %s", r.raw)
	}
}

// validBody is one that an operation accepts, so that what is refused is something else.
func validBody(op operation) any {
	switch {
	case !op.body:
		return nil
	case strings.HasSuffix(op.path, "/replays"):
		return `{"data":{"from":"2026-01-01T00:00:00Z"}}`
	}
	return `{"data":{}}`
}

// TestDocument checks that the OpenAPI document is whole: every reference leads somewhere.
func TestDocument(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	r := s.do("", "GET", "/crm/v2/openapi.json", nil).want(200)
	if r.json["openapi"] != "3.1.0" {
		t.Errorf("openapi = %v", r.json["openapi"])
	}
	refs, ids := 0, map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				refs++
				at := any(r.json)
				for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
					m, _ := at.(map[string]any)
					at = m[part]
				}
				if at == nil {
					t.Errorf("%s leads nowhere", ref)
				}
			}
			if id, ok := v["operationId"].(string); ok {
				if ids[id] {
					t.Errorf("operationId %s stands twice", id)
				}
				ids[id] = true
			}
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(r.json)
	if refs < 30 || len(ids) < 20 {
		t.Errorf("%d references and %d operations", refs, len(ids))
	}
}
