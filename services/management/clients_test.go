package management_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"gancho/pkg/lane"
	"gancho/services/management"
)

// TestLinks follows the links of a list as clients of RD Station's API do: by link alone, and by page number.
func TestLinks(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for i := range 5 {
		s.do(acme, "POST", "/crm/v2/webhooks", hook(fmt.Sprintf("https://ok.example.com/%d", i), "name", fmt.Sprintf("hook %d", i))).want(201)
	}
	fetch := func(link string) map[string]any {
		t.Helper()
		u, err := url.Parse(link)
		if err != nil || !u.IsAbs() {
			t.Fatalf("%q is not absolute", link)
		}
		return s.do(acme, "GET", s.path(link), nil).want(200).json
	}
	page := s.do(acme, "GET", "/crm/v2/webhooks?page[size]=2&sort=-name", nil).want(200).json
	var names []string
	for pages := 1; ; pages++ {
		links := object(page, "links")
		for _, row := range array(page, "data") {
			w, _ := row.(map[string]any)
			names = append(names, text(w, "name"))
		}
		for _, name := range []string{"first", "self", "last"} {
			if !strings.HasPrefix(text(links, name), s.url+"/crm/v2/webhooks?") {
				t.Errorf("%s = %q", name, links[name])
			}
		}
		if fmt.Sprint(fetch(text(links, "self"))) != fmt.Sprint(page) {
			t.Error("self is another page")
		}
		if text(links, "next") == "" {
			if _, ok := links["next"]; !ok || pages != 3 || fmt.Sprint(fetch(text(links, "last"))["data"]) != fmt.Sprint(page["data"]) {
				t.Errorf("page %d is the last, with links %v", pages, links)
			}
			if first := fetch(text(links, "first")); fmt.Sprint(array(first, "data")[0]) == fmt.Sprint(array(page, "data")[0]) {
				t.Error("first is not the first page")
			}
			break
		}
		page = fetch(text(links, "next"))
	}
	if got := strings.Join(names, ","); got != "hook 4,hook 3,hook 2,hook 1,hook 0" {
		t.Errorf("names = %s", got)
	}

	public := start(t, func(c *management.Config) { c.PublicURL = "https://gancho.example.com/" })
	r := public.do(acme, "GET", "/crm/v2/webhooks/", nil, "Host", "evil.example").want(200)
	if self := text(object(r.json, "links"), "self"); self != "https://gancho.example.com/crm/v2/webhooks" {
		t.Errorf("self = %q under PUBLIC_URL", self)
	}
}

func TestWebhookFilters(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	tick := func() { // so that times in milliseconds differ
		for now := time.Now().UnixMilli(); time.Now().UnixMilli() == now; {
			runtime.Gosched()
		}
	}
	a := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://Ok.example.com:443/a", "name", "Alpha")).want(201).id()
	tick()
	b := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://ok.example.com/b?x=1", "name", "beta", "event_name", "crm_task_*", "status", "disabled")).want(201).id()
	tick()
	c := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://other.example.com/a", "name", "Alpha 2")).want(201).id()
	for query, want := range map[string][]string{
		"": {a, b, c}, "status=disabled": {b}, "status=active": {a, c}, "status=suspended": {}, "event_name=crm_task_*": {b}, "event_name=crm_deal_created": {a, c},
		"name=Alpha": {a}, "name=Alpha*": {a, c}, "name=alpha": {}, "url=https://ok.example.com/a": {a}, "url=https://Ok.example.com:443/a": {a},
		"url=" + url.QueryEscape("https://ok.example.com/b?x=1"): {b}, "url=https://ok.example.com/*": {b, a}, "url=https://ok.example.com": {},
		"sort=-created_at": {c, b, a}, "sort=name": {a, c, b}, "sort=-name&status=active": {c, a}, "sort=url": {a, b, c}, "sort=updated_at": {a, b, c},
	} {
		var got []string
		for _, w := range s.do(acme, "GET", "/crm/v2/webhooks?"+query, nil).want(200).rows() {
			got = append(got, text(w, "id"))
		}
		if query == "url=https://ok.example.com/*" { // a sorts before b, whatever the order here
			slices.Sort(got)
			want = slices.Sorted(slices.Values(want))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
	s.do(acme, "GET", "/crm/v2/webhooks?status=lost", nil).refused(422, "bad_parameter", "?status")
	s.do(acme, "GET", "/crm/v2/webhooks?sort=age", nil).refused(422, "bad_parameter", "?sort")
	for _, query := range []string{"Status=active", "page[Size]=1", "page=1", "limit=1", "stat%00us=active"} {
		name, _, _ := strings.Cut(query, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			t.Fatal(err)
		}
		s.do(acme, "GET", "/crm/v2/webhooks?"+query, nil).refused(400, "unknown_parameter", "?"+name)
	}
	s.do(acme, "GET", "/crm/v2/webhooks?name=a&name=b", nil).refused(400, "repeated_parameter", "?name")
	s.do(acme, "PUT", "/crm/v2/webhooks/"+a+"?force=1", map[string]any{"name": "x"}).refused(400, "unknown_parameter", "?force")
}

// TestPutBack sends back the answers of GET, as clients that read, change and write do.
func TestPutBack(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.monitor(t.Context())
	path := "/crm/v2/webhooks/" + s.do(acme, "POST", "/crm/v2/webhooks", map[string]any{
		"event_name": "crm_deal_created", "url": "HTTPS://ok.Example.com:443/In#x", "http_method": "patch", "auth_header": "X-Key", "auth_key": "k",
	}).want(201).id()
	got := s.do(acme, "GET", path+"/", nil).want(200)
	if d := got.data(); d["name"] != "crm_deal_created" || d["url"] != "HTTPS://ok.Example.com:443/In#x" || d["http_method"] != "PATCH" {
		t.Errorf("webhook = %v", d)
	}
	back := s.do(acme, "PUT", path, got.data(), "If-Match", got.header.Get("ETag")).want(200)
	if !bytes.Equal(back.raw, got.raw) || back.header.Get("ETag") != got.header.Get("ETag") {
		t.Errorf("PUT of what GET gave changed it:\n%s\n%s", got.raw, back.raw)
	}
	for name, value := range map[string]any{
		"id": uuid.NewString(), "created_at": "2026-01-01T00:00:00Z", "updated_at": nil, "suspension": map[string]any{"since": "2026-01-01T00:00:00Z"},
	} {
		changed := maps.Clone(got.data())
		changed[name] = value
		s.do(acme, "PUT", path, changed).refused(422, "read_only", "/data/"+name)
	}
	s.do(acme, "PUT", path, map[string]any{"status": "suspended"}).refused(422, "bad_status", "/data/status")
	s.do(acme, "PUT", path, map[string]any{"signing_secret": "x"}).refused(400, "unknown_member", "/data/signing_secret")

	s.do(acme, "POST", path+"/suspend", `{"data":null}`).want(200)
	got = s.do(acme, "GET", path, nil).want(200)
	if got.data()["status"] != "suspended" {
		t.Fatalf("suspended = %s", got.raw)
	}
	s.do(acme, "PUT", path, got.data()).want(200)
	changed := maps.Clone(got.data())
	changed["suspension"] = nil
	s.do(acme, "PUT", path, changed).refused(422, "read_only", "/data/suspension")
	changed = maps.Clone(got.data())
	changed["name"] = "Renamed"
	if r := s.do(acme, "PUT", path, changed).want(200); r.data()["name"] != "Renamed" {
		t.Errorf("renamed = %s", r.raw)
	}

	// Another spelling of the URL is stored, and is the same webhook; another origin needs the key again.
	if r := s.do(acme, "PUT", path, map[string]any{"url": "https://ok.example.com/In"}).want(200); r.data()["url"] != "https://ok.example.com/In" {
		t.Errorf("url = %s", r.raw)
	}
	for _, other := range []string{"https://ok.example.com:8443/In", "https://ok2.example.com/In"} {
		s.do(acme, "PUT", path, map[string]any{"url": other}).refused(422, "auth_key_required", "/data/auth_key")
		s.do(acme, "PUT", path, map[string]any{"url": other, "auth_header": "X-Key"}).refused(422, "auth_key_required", "/data/auth_key")
	}
	s.do(acme, "PUT", path, map[string]any{"url": "https://ok.example.com/other"}).want(200)
	s.do(acme, "PUT", path, map[string]any{"url": "https://ok2.example.com/In", "auth_key": "k2"}).want(200)
	if r := s.do(acme, "PUT", path, map[string]any{"url": "https://ok3.example.com/In", "auth_header": nil}).want(200); r.data()["auth_header"] != nil {
		t.Errorf("auth_header = %s", r.raw)
	}
	s.do(acme, "PUT", path, map[string]any{"url": "https://ok4.example.com/In"}).want(200)
}

// TestIdempotencyKey repeats requests under a key, one after the other, at once and on two replicas.
func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	bases := []string{s.url, s.run()}
	const path = "/crm/v2/webhooks"
	key := func(k string) []string { return []string{"Idempotency-Key", k} }

	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		answers = map[string]int{}
	)
	for i := range 10 {
		wg.Go(func() {
			r := s.at(bases[i%2], acme, "POST", path, hook("https://ok.example.com/a"), key("one")...).want(201)
			mu.Lock()
			defer mu.Unlock()
			answers[string(r.raw)+r.header.Get("ETag")+r.header.Get("Location")]++
		})
	}
	wg.Wait()
	if len(answers) != 1 {
		t.Errorf("%d different answers under one key", len(answers))
	}
	s.do(acme, "POST", path, hook("https://ok.example.com/b"), key("one")...).refused(409, "idempotency_key_reused", "")
	s.do(other, "POST", path, hook("https://ok.example.com/a"), key("one")...).want(201)
	s.do(acme, "POST", path, hook("https://ok.example.com/a")).refused(409, "webhook_exists", "")

	// A refusal leaves the key free for the request that is put right.
	s.do(acme, "POST", path, hook("http://ok.example.com/c"), key("two")...).refused(422, "url_forbidden_scheme", "/data/url")
	hookID := s.do(acme, "POST", path, hook("https://ok.example.com/c"), key("two")...).want(201).id()

	event := func(k string, body string) map[string]any {
		t.Helper()
		return s.do(acme, "POST", "/crm/v2/events/crm_deal_created", body, key(k)...).want(202).data()
	}
	first, again, next := event("e1", `{"document":{"n":1}}`), event("e1", `{"document":{"n":1}}`), event("e2", `{"document":{"n":1}}`)
	if first["event_id"] != again["event_id"] || first["sequence"] != again["sequence"] || first["event_id"] == next["event_id"] {
		t.Errorf("events = %v, %v, %v", first, again, next)
	}
	s.do(acme, "POST", "/crm/v2/events/crm_deal_created", `{"document":{"n":2}}`, key("e1")...).refused(409, "idempotency_key_reused", "")

	n := s.matched("acme", hookID, `{"transaction_uuid":"i"}`)
	s.attempted(n, "")
	resend := "/crm/v2/notifications/" + n.ID + "/resend"
	once := s.do(acme, "POST", resend, nil, key("r")...).want(202)
	if twice := s.do(acme, "POST", resend, nil, key("r")...).want(202); !bytes.Equal(once.raw, twice.raw) || twice.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("resends = %s, %s", once.raw, twice.raw)
	}
	s.do(acme, "POST", resend, nil, key("r2")...).refused(409, "still_on_its_way", "")
	replay := map[string]any{"from": "2026-01-01T00:00:00Z"}
	id := s.do(acme, "POST", path+"/"+hookID+"/replays", replay, key("p")...).want(201).id()
	if again := s.do(acme, "POST", path+"/"+hookID+"/replays", replay, key("p")...).want(201).id(); again != id {
		t.Errorf("replays %s and %s under one key", id, again)
	}
	for _, bad := range []string{"a b", strings.Repeat("k", 256), "é"} {
		s.do(acme, "POST", path, hook("https://ok.example.com/d"), key(bad)...).refused(400, "bad_idempotency_key", "")
	}
	s.do(acme, "POST", path, `{"data":`+strings.Repeat(" ", 3<<20), key("large")...).refused(413, "too_large", "")
}

// TestOlderAPI is a client of RD Station's API v1.
func TestOlderAPI(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const path = "/api/v1/webhooks"
	made := s.do("", "POST", path, `{"token":"`+acme+`","event_type":"crm_deal_updated","http_method":"post","url":"https://erp.example.com/In"}`).want(200)
	id := text(made.json, "uuid")
	if uuid.Validate(id) != nil || made.json["event_type"] != "crm_deal_updated" || made.json["http_method"] != "POST" || made.json["status"] != "active" {
		t.Errorf("created = %s", made.raw)
	}
	s.do("", "POST", path+"?token="+acme, `{"event_type":"crm_deal_created","url":"https://erp.example.com/In","auth_header":"X-A","auth_key":"k"}`).want(200)
	got := s.do("", "GET", path+"/"+id+"?token="+acme, nil).want(200)
	for _, name := range []string{"uuid", "event_type", "url", "http_method", "status"} {
		if got.json[name] != made.json[name] {
			t.Errorf("%s = %v, want %v", name, got.json[name], made.json[name])
		}
	}
	list := s.do("", "GET", path+"/?token="+acme+"&limit=1&page=2", nil).want(200)
	if rows := array(list.json, "webhooks"); len(rows) != 1 || list.json["total"] != 2.0 || list.json["has_more"] != false {
		t.Errorf("list = %s", list.raw)
	}
	if list := s.do(acme, "GET", path, nil).want(200); len(array(list.json, "webhooks")) != 2 {
		t.Errorf("list = %s", list.raw)
	}
	changed := s.do("", "PUT", path+"/"+id, `{"token":"`+acme+`","uuid":"`+id+`","url":"https://erp.example.com/other"}`).want(200)
	if changed.json["url"] != "https://erp.example.com/other" {
		t.Errorf("changed = %s", changed.raw)
	}
	s.do("", "PUT", path+"/"+id+"?token="+acme, `{"uuid":"x"}`).refused(422, "read_only", "/uuid")
	s.do("", "POST", path+"?token="+acme, `{"url":"https://erp.example.com/x"}`).refused(422, "required", "/event_type")
	s.do("", "POST", path+"?token="+acme, `{"event_type":"crm_deal_updated","url":"https://erp.example.com/other"}`).refused(409, "webhook_exists", "")
	s.do("", "POST", path+"?token="+acme, `{"event_name":"crm_deal_updated"}`).refused(400, "unknown_member", "/event_name")
	s.do("", "GET", path+"?token="+acme+"&limit=x", nil).refused(422, "bad_parameter", "?limit")
	s.do("", "GET", path+"?token="+acme+"&per_page=1", nil).refused(400, "unknown_parameter", "?per_page")
	s.do("", "GET", path, nil).refused(401, "no_token", "")
	s.do("", "GET", path+"?token=nonsense", nil).refused(401, "bad_token", "")
	s.do("", "DELETE", path+"/"+id+"?token="+acmeRead, nil).refused(403, "read_only", "")
	s.do("", "GET", path+"/"+id+"?token="+other, nil).refused(404, "not_found", "")
	s.do("", "DELETE", path+"/"+id+"?token="+acme, nil).want(204)
	s.do("", "GET", path+"/"+id+"?token="+acme, nil).refused(404, "not_found", "")
	s.do(acme, "PATCH", path, nil).refused(405, "method_not_allowed", "")
}

// TestCareless: programs join slashes twice, write ids in capitals, UTF-8 by another name or with a mark, and whole
// numbers with a fraction. Refusals name the cause.
func TestCareless(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://ok.example.com/in")).want(201).id()
	path := "/crm/v2/webhooks/" + id
	capitals := strings.ToUpper(id)
	for _, p := range []string{"/crm/v2//webhooks/" + id, "//crm/v2/webhooks/" + id, "//crm/v2//webhooks/" + id, "/crm/v2/webhooks/" + capitals} {
		if got := s.do(acme, "GET", p, nil).want(200).id(); got != id {
			t.Errorf("%s shows %s", p, got)
		}
	}
	s.do(acme, "GET", "/crm/v2/webhooks/"+capitals+"/replays", nil).want(200)
	s.do(acme, "GET", "/api/v1//webhooks/"+capitals+"?token="+acme, nil).want(200)
	for _, p := range []string{"/crm/v2/%2Fwebhooks", "/crm/v2/x/..//webhooks", "/crm/v2///webhooks", "/crm/v2//../v2/webhooks"} {
		s.do(acme, "GET", p, nil).refused(404, "no_such_path", "")
	}

	for _, kind := range []string{"application/json; charset=utf8", "application/json;charset=UTF8", `application/json; charset="us-ascii"`} {
		s.do(acme, "PUT", path, `{"data":{"name":"a"}}`, "Content-Type", kind).want(200)
	}
	s.do(acme, "PUT", path, "\ufeff"+`{"data":{"name":"a"}}`).want(200)
	s.do(acme, "POST", path+"/test", "\ufeff"+`{"data":{}}`).want(202)
	s.do("", "PUT", "/api/v1/webhooks/"+id, "\ufeff"+`{"token":"`+acme+`","http_method":"put"}`).want(200)
	r := s.do(acme, "POST", "/crm/v2/events/crm_deal_created", "\ufeff"+`{}`)
	if r.refused(400, "bad_json", ""); !strings.Contains(string(r.raw), "byte order mark") {
		t.Errorf("an event with a mark: %s", string(r.raw))
	}

	for number, want := range map[string]string{"60.0": "60", "6e1": "60", "1.2E2": "120", "60": "60"} {
		if got := fmt.Sprint(s.do(acme, "PUT", path, `{"data":{"max_per_minute":`+number+`}}`).want(200).data()["max_per_minute"]); got != want {
			t.Errorf("%s is taken for %s", number, got)
		}
	}
	for _, number := range []string{"60.5", `"60"`, "1e400", "true", "9007199254740994"} {
		r := s.do(acme, "PUT", path, `{"data":{"max_per_minute":`+number+`}}`)
		if r.refused(422, "wrong_type", "/data/max_per_minute"); !strings.Contains(string(r.raw), "give a whole number") {
			t.Errorf("%s: %s", number, string(r.raw))
		}
	}

	r = s.do(acme, "PUT", path, `{"name":"a"}`)
	if r.refused(400, "unknown_member", "/name"); !strings.Contains(string(r.raw), "outside data") {
		t.Errorf("a flat body: %s", string(r.raw))
	}
	r = s.do(acme, "PUT", path, `{"data":{"name":"a"}}`, "If-Match", "W/"+s.do(acme, "GET", path, nil).header.Get("ETag"))
	if r.refused(412, "bad_if_match", ""); !strings.Contains(string(r.raw), "weak") {
		t.Errorf("a weak ETag: %s", string(r.raw))
	}
}

// TestEventTypes: every sample satisfies its schema, the operator's own included, and the OpenAPI document has them.
func TestEventTypes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, body := range map[string]string{
		"crm_visit_scheduled.json": `{"description":{"en":"A visit was planned.","pt-BR":"Uma visita foi marcada."},"sample":{"document":{"id":"1","at":null}}}`,
		"crm_call_ended.json":      `{"event_name":"crm_call_ended","document":{"id":7,"tags":["a",1]}}`,
		"README.md":                "not one",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, func(c *management.Config) { c.EventTypesDir, c.EventNames = dir, []string{"crm_visit_missed"} })
	rows := s.do(acme, "GET", "/crm/v2/event_types", nil).want(200).rows()
	if len(rows) != 31 {
		t.Errorf("%d types, want 28 and 3 of the operator", len(rows))
	}
	doc := s.do("", "GET", "/crm/v2/openapi.json", nil).want(200).json
	for _, row := range rows {
		name := text(row, "name")
		description := object(row, "description")
		if "crm_"+text(row, "entity")+"_"+text(row, "action") != name || text(description, "en") == "" || text(description, "pt-BR") == "" {
			t.Errorf("type = %v", row)
		}
		schema := object(row, "schema")
		if schema["$schema"] != "https://json-schema.org/draft/2020-12/schema" {
			t.Errorf("%s: $schema = %v", name, schema["$schema"])
		}
		compiler := jsonschema.NewCompiler()
		if err := compiler.AddResource("urn:"+name, schema); err != nil {
			t.Fatal(err)
		}
		compiled, err := compiler.Compile("urn:" + name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := compiled.Validate(object(row, "sample")); err != nil {
			t.Errorf("%s: the sample does not satisfy the schema: %v", name, err)
		}
		if err := compiled.Validate(map[string]any{"event_name": name + "x", "document": "none"}); err == nil {
			t.Errorf("%s: the schema accepts anything", name)
		}
		if object(object(object(doc, "webhooks"), name), "post") == nil {
			t.Errorf("%s is not among the document's webhooks", name)
		}
	}
	own, _ := array(s.do(acme, "GET", "/crm/v2/event_types", nil).json, "data")[0].(map[string]any)
	if own["name"] != "crm_call_ended" {
		t.Errorf("first = %v", own["name"])
	}
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://ok.example.com/", "event_name", "crm_visit_scheduled")).want(201)
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://ok.example.com/", "event_name", "crm_call_ended")).want(201).id()
	n := s.do(acme, "POST", "/crm/v2/webhooks/"+hookID+"/test", nil).want(202).id()
	m, err := lane.Pending(t.Context(), s.bus, "acme", n)
	if err != nil || !strings.Contains(string(m.Body), `"tags":["a",1]`) {
		t.Errorf("the test sent %s (%v)", m.Body, err)
	}
}

// TestDocumentForBrowsers: the document may be read from any page and is sent once; text is compressed on request.
func TestDocumentForBrowsers(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) { c.EgressPublished = []string{"203.0.113.7", "2001:db8::/64"} })
	doc := s.do("", "GET", "/crm/v2/openapi.json", nil).want(200)
	tag := doc.header.Get("ETag")
	if doc.header.Get("Access-Control-Allow-Origin") != "*" || !strings.HasPrefix(tag, `"`) {
		t.Errorf("headers = %v", doc.header)
	}
	if r := s.do("", "GET", "/crm/v2/openapi.json", nil, "If-None-Match", tag).want(304); len(r.raw) > 0 {
		t.Errorf("304 with %d bytes", len(r.raw))
	}
	if addresses := array(s.do("", "GET", "/crm/v2/egress", nil).want(200).data(), "addresses"); fmt.Sprint(addresses) != "[203.0.113.7 2001:db8::/64]" {
		t.Errorf("egress = %v", addresses)
	}
	if none := start(t, nil).do("", "GET", "/crm/v2/egress", nil).want(200); !strings.Contains(string(none.raw), `"addresses":[]`) {
		t.Errorf("without any: %s", none.raw)
	}
	for path, kind := range map[string]string{"/crm/v2/openapi.json": "application/json", "/docs": "text/html", "/sign-in": "text/html"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", "gzip") // set by hand, the client does not undo it
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.Header.Get("Content-Encoding") != "gzip" || !strings.HasPrefix(resp.Header.Get("Content-Type"), kind) || !strings.Contains(strings.Join(resp.Header.Values("Vary"), ","), "Accept-Encoding") {
			t.Fatalf("%s: headers = %v", path, resp.Header)
		}
		plain, err := gzip.NewReader(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(plain)
		if err != nil || len(body) < 1000 {
			t.Errorf("%s: %d bytes, %v", path, len(body), err)
		}
	}
	page := s.do("", "GET", "/docs/", nil).want(200)
	for _, part := range []string{"createWebhook", "/crm/v2/notifications/{id}", "crm_lead_rating_changed", "<style>"} {
		if !bytes.Contains(page.raw, []byte(part)) {
			t.Errorf("the page lacks %q", part)
		}
	}
	for _, outside := range []string{"<script", "src=", "http-equiv", "@import"} {
		if bytes.Contains(page.raw, []byte(outside)) {
			t.Errorf("the page holds %q", outside)
		}
	}
	var whole struct {
		Components struct{ Schemas, Responses map[string]any }
	}
	if err := json.Unmarshal(doc.raw, &whole); err != nil {
		t.Fatal(err)
	}
	for name := range whole.Components.Responses {
		if whole.Components.Schemas[name] != nil {
			t.Errorf("%s is both a schema and a response, which generators cannot tell apart", name)
		}
	}
}

// TestAccounts sets, shows and takes away what operators set for an account.
func TestAccounts(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const path = "/crm/v2/accounts/acme"
	before := s.do(operator, "GET", path, nil).want(200)
	if d := before.data(); d["id"] != "acme" || d["status"] != "active" || d["share"] != nil || object(d, "retention")["log_max_age"] != nil {
		t.Errorf("account = %v", d)
	}
	set := s.do(operator, "PUT", path, map[string]any{"share": 0.5, "webhooks": 10, "ingest_rate": 100, "retention": map[string]any{"log_max_age": 86400}}).want(200)
	if d := set.data(); d["share"] != 0.5 || d["webhooks"] != 10.0 || d["ingest_rate"] != 100.0 || object(d, "retention")["log_max_age"] != 86400.0 {
		t.Errorf("set = %v", d)
	}
	if back := s.do(operator, "PUT", path, set.data(), "X-Account-Id", "acme").want(200); !bytes.Equal(back.raw, set.raw) {
		t.Errorf("PUT of what GET gave: %s", back.raw)
	}
	for name, bad := range map[string]any{"share": 1.5, "webhooks": 0, "ingest_rate": -1, "retention/failed_max_age": map[string]any{"failed_max_age": 1 << 40}} {
		member, _, _ := strings.Cut(name, "/")
		s.do(operator, "PUT", path, map[string]any{member: bad}).refused(422, "out_of_range", "/data/"+name)
	}
	s.do(operator, "PUT", path, map[string]any{"status": "deferred"}).refused(422, "read_only", "/data/status")
	s.do(operator, "PUT", path, map[string]any{"no_such": 1}).refused(400, "unknown_member", "/data/no_such")
	if d := s.do(operator, "PUT", path, map[string]any{"share": nil, "retention": nil}).want(200).data(); d["share"] != nil || d["webhooks"] != 10.0 || object(d, "retention")["log_max_age"] != nil {
		t.Errorf("taken away: %v", d)
	}
	s.do(acme, "GET", path, nil).refused(403, "operator_only", "")
	s.do(acme, "PUT", path, map[string]any{}).refused(403, "operator_only", "")
	s.do("", "GET", path, nil).refused(401, "no_token", "")
	s.do(operator, "GET", "/crm/v2/accounts/no.such", nil).refused(404, "not_found", "")
	s.do(operator, "GET", path, nil, "X-Account-Id", "globex").refused(400, "bad_account", "")
}
