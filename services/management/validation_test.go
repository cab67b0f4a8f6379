package management_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestRegistrationRefuses is the list of what can never be sent, or cannot be understood.
func TestRegistrationRefuses(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const ok = "https://ok.example.com/"
	body := func(changes ...any) string {
		m := hook(ok, changes...)
		for k, v := range m {
			if v == "absent" {
				delete(m, k)
			}
		}
		b, err := json.Marshal(map[string]any{"data": m})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	url := func(v any) string { return body("url", v) }
	for name, tc := range map[string]struct {
		body          string
		status        int
		code, pointer string
	}{
		"url missing":           {url("absent"), 422, "required", "/data/url"},
		"url null":              {url(nil), 422, "wrong_type", "/data/url"},
		"url empty":             {url(""), 422, "bad_url", "/data/url"},
		"url a number":          {url(123), 422, "wrong_type", "/data/url"},
		"http":                  {url("http://ok.example.com/"), 422, "url_forbidden_scheme", "/data/url"},
		"file":                  {url("file:///etc/passwd"), 422, "url_forbidden_scheme", "/data/url"},
		"no scheme":             {url("ok.example.com/x"), 422, "bad_url", "/data/url"},
		"userinfo":              {url("https://user:pass@ok.example.com/"), 422, "url_userinfo", "/data/url"},
		"loopback":              {url("https://127.0.0.1/"), 422, "url_forbidden_address", "/data/url"},
		"metadata":              {url("https://169.254.169.254/latest/meta-data/"), 422, "url_forbidden_address", "/data/url"},
		"localhost":             {url("https://LOCALHOST./"), 422, "url_forbidden_name", "/data/url"},
		"internal name":         {url("https://metadata.google.internal/"), 422, "url_forbidden_name", "/data/url"},
		"port":                  {url("https://ok.example.com:6379/"), 422, "url_forbidden_port", "/data/url"},
		"line break":            {url("https://ok.example.com/\r\nX: y"), 422, "bad_url", "/data/url"},
		"2,049 bytes":           {url(ok + strings.Repeat("a", 2049-len(ok))), 422, "url_too_long", "/data/url"},
		"id":                    {body("id", "x"), 422, "read_only", "/data/id"},
		"limit 0":               {body("max_per_minute", 0), 422, "bad_max_per_minute", "/data/max_per_minute"},
		"limit below 0":         {body("max_per_minute", -1), 422, "bad_max_per_minute", "/data/max_per_minute"},
		"limit 60,001":          {body("max_per_minute", 60001), 422, "bad_max_per_minute", "/data/max_per_minute"},
		"limit a fraction":      {body("max_per_minute", 1.5), 422, "wrong_type", "/data/max_per_minute"},
		"limit a text":          {body("max_per_minute", "60"), 422, "wrong_type", "/data/max_per_minute"},
		"name empty":            {body("name", " "), 422, "bad_name", "/data/name"},
		"name of 256":           {body("name", strings.Repeat("é", 256)), 422, "bad_name", "/data/name"},
		"name with NUL":         {body("name", "a\x00b"), 422, "bad_name", "/data/name"},
		"event null":            {body("event_name", nil, "name", "absent"), 422, "wrong_type", "/data/event_name"},
		"event empty":           {body("event_name", "", "name", "absent"), 422, "unknown_event_name", "/data/event_name"},
		"unknown event":         {body("event_name", "crm_deal_frozen"), 422, "unknown_event_name", "/data/event_name"},
		"NATS wildcard":         {body("event_name", "crm.>"), 422, "unknown_event_name", "/data/event_name"},
		"200 names":             {body("event_name", slices.Repeat([]string{"crm_deal_created"}, 200)), 422, "wrong_type", "/data/event_name"},
		"200 names in one":      {body("event_name", strings.Repeat("crm_deal_created,", 200)), 422, "unknown_event_name", "/data/event_name"},
		"two stars":             {body("event_name", "crm_*_*"), 422, "bad_pattern", "/data/event_name"},
		"method TRACE":          {body("http_method", "TRACE"), 422, "bad_http_method", "/data/http_method"},
		"method posts":          {body("http_method", "posts"), 422, "bad_http_method", "/data/http_method"},
		"status suspended":      {body("status", "suspended"), 422, "bad_status", "/data/status"},
		"header not a token":    {body("auth_header", "X-A\r\nX-B", "auth_key", "k"), 422, "bad_auth_header", "/data/auth_header"},
		"header empty":          {body("auth_header", "", "auth_key", "k"), 422, "bad_auth_header", "/data/auth_header"},
		"header reserved":       {body("auth_header", "Idempotency-Key", "auth_key", "k"), 422, "reserved_auth_header", "/data/auth_header"},
		"header without key":    {body("auth_header", "X-A"), 422, "auth_pair", "/data/auth_key"},
		"key without header":    {body("auth_key", "k"), 422, "auth_pair", "/data/auth_header"},
		"key with a line break": {body("auth_header", "X-A", "auth_key", "a\nb"), 422, "bad_auth_key", "/data/auth_key"},
		"key of 8,193 bytes":    {body("auth_header", "X-A", "auth_key", strings.Repeat("k", 8193)), 422, "bad_auth_key", "/data/auth_key"},

		"unknown member": {body("urls", "x"), 400, "unknown_member", "/data/urls"},
		"other case":     {`{"data":{"name":"n","event_name":"crm_deal_created","url":"` + ok + `","URL":"https://169.254.169.254/"}}`, 400, "unknown_member", "/data/URL"},
		"url twice":      {`{"data":{"url":"` + ok + `","url":"` + ok + `"}}`, 400, "duplicate_member", "/data/url"},
		"beside data":    {`{"data":{},"x":1}`, 400, "unknown_member", "/x"},
		"trailing data":  {body() + `{}`, 400, "bad_json", ""},
		"cut off":        {`{"data":{"name":`, 400, "bad_json", "/data/name"},
		"not UTF-8":      {"{\"data\":{\"name\":\"\xff\"}}", 400, "bad_json", "/data/name"},
		"empty":          {"", 400, "empty_body", ""},
		"no data":        {`{}`, 422, "required", "/data"},
		"data null":      {`{"data":null}`, 422, "required", "/data"},
		"data an array":  {`{"data":[]}`, 422, "wrong_type", "/data"},
		"an array":       {`[]`, 422, "wrong_type", ""},
		"10 MB":          {`{"data":{"name":"` + strings.Repeat("a", 10<<20) + `"}}`, 413, "too_large", ""},
		"10,001 deep":    {`{"data":` + strings.Repeat("[", 10_001), 422, "wrong_type", "/data"},
		"deep in a name": {`{"data":{"name":` + strings.Repeat("[", 10_001), 400, "bad_json", "/data/name" + strings.Repeat("/0", 59)},
		"a long name":    {`{"data":{"` + strings.Repeat("x", 1000) + `":1}}`, 400, "unknown_member", "/data"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &instance{t: t, url: s.url}
			s.do(acme, "POST", "/crm/v2/webhooks", tc.body).refused(tc.status, tc.code, tc.pointer)
		})
	}
	t.Cleanup(func() {
		for _, w := range []string{acme, other} {
			req, err := http.NewRequest(http.MethodGet, s.url+"/crm/v2/webhooks", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+w)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var page struct{ Data []any }
			if err := json.NewDecoder(resp.Body).Decode(&page); err != nil || len(page.Data) > 0 {
				t.Errorf("something was stored: %v, %v", page.Data, err)
			}
		}
	})
}

func TestRegistrationAccepts(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for name, tc := range map[string]struct{ given, stored string }{
		"normalised":                          {"HTTPS://OK.EXAMPLE.COM.:443/a/../b?x#frag", "https://ok.example.com/a/../b?x"},
		"no path":                             {"https://ok.example.com:", "https://ok.example.com/"},
		"idna":                                {"https://bücher.example.com/", "https://xn--bcher-kva.example.com/"},
		"a name that may resolve to anything": {"https://127.0.0.1.nip.example/", "https://127.0.0.1.nip.example/"},
	} {
		r := s.do(acme, "POST", "/crm/v2/webhooks", hook(tc.given)).want(201)
		if r.data()["url"] != tc.given {
			t.Errorf("%s: answered %v, want it as it was written", name, r.data()["url"])
		}
		twice := s.do(acme, "POST", "/crm/v2/webhooks", hook(tc.stored)) // the normalised form decides
		twice.refused(409, "webhook_exists", "")
		first, _ := array(twice.json, "errors")[0].(map[string]any)
		if first["id"] != r.id() {
			t.Errorf("%s: the 409 has id %v, want %s", name, first["id"], r.id())
		}
	}
	for i, name := range []string{"\u202eRTL", "<script>alert(1)</script>", "{{7*7}}", strings.Repeat("é", 255)} {
		r := s.do(acme, "POST", "/crm/v2/webhooks", hook(fmt.Sprintf("https://ok.example.com/%d", i), "name", name)).want(201)
		if r.data()["name"] != name {
			t.Errorf("name %q became %q", name, r.data()["name"])
		}
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for i := range 5 {
		s.do(acme, "POST", "/crm/v2/webhooks", hook(fmt.Sprintf("https://ok.example.com/%d", i))).want(201)
	}
	seen := map[string]bool{}
	path := "/crm/v2/webhooks?page%5Bsize%5D=2"
	for pages := 1; ; pages++ {
		r := s.do(acme, "GET", path, nil).want(200)
		for _, w := range r.rows() {
			seen[text(w, "url")] = true
		}
		next := text(object(r.json, "links"), "next")
		if (next != "") != (r.json["has_more"] == true) {
			t.Fatalf("next %q and has_more %v disagree", next, r.json["has_more"])
		}
		if next == "" {
			if pages != 3 || len(seen) != 5 {
				t.Errorf("%d pages with %d webhooks, want 3 with 5", pages, len(seen))
			}
			break
		}
		path = s.path(next)
	}
	for _, bad := range []string{"0", "-1", "1e9", "abc", "201", "+5", "", "1.5"} {
		s.do(acme, "GET", "/crm/v2/webhooks?page%5Bsize%5D="+strings.ReplaceAll(bad, "+", "%2B"), nil).refused(422, "bad_parameter", "?page[size]")
	}
	s.do(acme, "GET", "/crm/v2/webhooks?page[number]=0", nil).refused(422, "bad_parameter", "?page[number]")
	if r := s.do(acme, "GET", "/crm/v2/webhooks?page[number]=1000000000&page[size]=200", nil).want(200); len(r.rows()) != 0 {
		t.Errorf("far page = %s", r.raw)
	}
	s.do(acme, "GET", "/crm/v2/webhooks?page[size]=%zz", nil).refused(400, "bad_query", "")
}
