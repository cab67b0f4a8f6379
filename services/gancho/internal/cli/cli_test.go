package cli

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// answer is what the API answers to one request.
type answer struct {
	status int
	header map[string]string
	body   string
}

// api is a server that answers as the API's documentation says. Requests are noted as they come.
type api struct {
	*httptest.Server

	mu      sync.Mutex
	answers map[string][]answer // by method and path; the last one stays
	seen    []string
}

func newAPI(t *testing.T, answers map[string][]answer) *api {
	t.Helper()
	f := &api{answers: answers}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func (f *api) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	line := r.Method + " " + r.URL.RequestURI()
	for _, name := range []string{"X-Account-Id", "Content-Type"} {
		if v := r.Header.Get(name); v != "" {
			line += "\n" + name + ": " + v
		}
	}
	if len(body) > 0 {
		line += "\n" + string(body)
	}
	f.seen = append(f.seen, line)
	key := r.Method + " " + r.URL.Path
	if q := r.URL.Query().Get("page[after]"); q != "" {
		key += "?" + q
	}
	answers := f.answers[key]
	if len(answers) > 1 {
		f.answers[key] = answers[1:]
	}
	f.mu.Unlock()
	a := answer{status: http.StatusNotFound, body: `{"errors":[{"code":"not_found","detail":"this account has no such thing with that id"}]}`}
	switch {
	case r.Header.Get("Authorization") != "Bearer secret-token":
		a = answer{status: http.StatusUnauthorized, body: `{"errors":[{"code":"bad_token","detail":"the token is not good"}]}`}
	case len(answers) > 0:
		a = answers[0]
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	for k, v := range a.header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body)
}

// outcome is what one command line led to.
type outcome struct {
	code           int
	stdout, stderr string
}

func run(t *testing.T, url, stdin string, args ...string) outcome {
	t.Helper()
	var stdout, stderr strings.Builder
	none := func([]string, io.Writer, io.Writer) int { t.Error("a service was started"); return 9 }
	code := Run(Program{
		Args: args, Environ: []string{"GANCHO_URL=" + url, "GANCHO_TOKEN=secret-token"},
		Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr,
		Serve: none, Demo: none, Setup: func(string, io.Writer) error { return nil },
	})
	return outcome{code, stdout.String(), stderr.String()}
}

const (
	webhookID      = "0d9a6f2e-3a63-4a0e-9f57-1f0a5c7f8a11"
	notificationID = "3c0f7d0a-52b9-5d5c-8a3e-6a4f3a1c9b22"
	replayID       = "7e1b8c44-0c1d-4f4e-b1de-2f9a7c3e5d33"

	active = `{"id":"` + webhookID + `","name":"Deals to the ERP","event_name":"crm_deal_*","http_method":"POST",` +
		`"url":"https://erp.example.com/in?k=1","auth_header":"Authorization","status":"active","suspension":null,` +
		`"created_at":"2026-01-20T09:00:00Z","updated_at":"2026-01-21T10:30:00.5Z","new_member":true}`
	suspended = `{"id":"` + webhookID + `","name":"Deals","event_name":"crm_deal_created","http_method":"POST",` +
		`"url":"https://erp.example.com/in","auth_header":null,"status":"suspended","suspension":{"since":"2026-01-21T10:00:00Z",` +
		`"until":"2026-01-21T10:05:30Z","reason":"always_failing","evidence":{"failures":21,"first_at":"2026-01-21T09:58:00Z",` +
		`"last_at":"2026-01-21T09:59:59Z","statuses":["500","timeout"]},"parked":120,"oldest_parked_at":"2026-01-21T10:00:02Z"},` +
		`"created_at":"2026-01-20T09:00:00Z","updated_at":"2026-01-20T09:00:00Z"}`
	byHand = `{"id":"` + webhookID + `","name":"Deals","event_name":"crm_deal_created","http_method":"POST",` +
		`"url":"https://erp.example.com/in","auth_header":null,"status":"suspended","suspension":{"since":"2026-01-21T10:00:00Z",` +
		`"until":null,"reason":"by_hand","evidence":{"failures":0,"statuses":[]},"parked":null,"oldest_parked_at":null},` +
		`"created_at":"2026-01-20T09:00:00Z","updated_at":"2026-01-20T09:00:00Z"}`
	became = `{"id":"` + notificationID + `","event_name":"crm_deal_created","stored_at":"2026-01-21T10:00:00.123456Z","bytes":182,` +
		`"transaction_uuid":"t-1","document_id":"d-1","origin":null,"changed":["stage","name"],"partial":true,"notifications":[` + listed + `],` +
		`"unmatched":[{"webhook_id":"` + webhookID + `","why":"condition","condition":{"path":"document.amount","op":"gt","value":1000},"found":10},` +
		`{"webhook_id":"` + replayID + `","why":"other_name"}],"explain":{"reason":"account_deferred","text":"It waits.","next":"Later."}}`
	withSecret = `{"id":"` + webhookID + `","name":"Deals","event_name":"crm_deal_created","http_method":"POST",` +
		`"url":"https://erp.example.com/in","auth_header":"X-Key","status":"active","suspension":null,` +
		`"created_at":"2026-01-20T09:00:00Z","updated_at":"2026-01-20T09:00:00Z","signing_secret":"whsec_dGVzdA=="}`
	conditional = `{"id":"` + webhookID + `","name":"Deals","event_name":"crm_deal_created","http_method":"POST",` +
		`"url":"https://erp.example.com/in","auth_header":null,"status":"active","suspension":null,"conditions":[` +
		`{"path":"document.amount","op":"gt","value":9007199254740993},{"path":"document.stage.id","op":"in","value":["a","b"]}],` +
		`"created_at":"2026-01-20T09:00:00Z","updated_at":"2026-01-20T09:00:00Z","signing_secret":"whsec_dGVzdA=="}`
	pending = `{"id":"` + notificationID + `","webhook_id":"` + webhookID + `","event_id":"b2fe9543-c69a-5925-9070-c42230f71727",` +
		`"event_name":"crm_deal_created","state":"pending","reason":null,"sends":1,"attempts_made":0,"next_attempt_at":null,"replay_id":null,` +
		`"created_at":"2026-01-21T10:00:00Z","updated_at":"2026-01-21T10:00:00Z","attempts":[],` +
		`"explain":{"reason":"waiting_for_first_attempt","text":"The first attempt has not been made yet.","next":"It is made soon."}}`
	retrying = `{"id":"` + notificationID + `","webhook_id":"` + webhookID + `","event_id":"b2fe9543-c69a-5925-9070-c42230f71727",` +
		`"event_name":"crm_deal_created","state":"retrying","reason":"status_5xx","sends":2,"attempts_made":1,"next_attempt_at":"2026-01-21T10:02:11Z",` +
		`"replay_id":"` + replayID + `","created_at":"2026-01-21T10:00:00Z","updated_at":"2026-01-21T10:02:01Z","partial":true,"attempts":[` +
		`{"number":6,"send":1,"started_at":"2026-01-21T10:01:00Z","outcome":"failed","reason":"timeout","http_status":null,"duration_ms":5000.2,` +
		`"phases_ms":{"dns":3.2,"connect":10.6,"tls":22,"first_byte":0},"request_headers":{},"response_headers":{},"response_body":""},` +
		`{"number":1,"send":2,"started_at":"2026-01-21T10:02:00Z","outcome":"failed","reason":"status_5xx","http_status":500,"duration_ms":12.34,` +
		`"phases_ms":{"dns":0,"connect":0,"tls":0,"first_byte":12.1},"request_headers":{},"response_headers":{},"response_body":"no\u001b[31m red\nand a text that goes on for much longer than a table has room for it"}],` +
		`"explain":{"reason":"attempt_failed","text":"Attempt 1 of 6 failed: the receiver answered 500.","next":"Attempt 2 is due at 2026-01-21 10:02:11 UTC."}}`
	listed = `{"id":"` + notificationID + `","webhook_id":"` + webhookID + `","event_id":"b2fe9543-c69a-5925-9070-c42230f71727",` +
		`"event_name":"crm_deal_created","state":"permanently_failed","reason":"status_4xx","sends":1,"attempts_made":6,"next_attempt_at":null,"replay_id":null,` +
		`"created_at":"2026-01-21T10:00:00Z","updated_at":"2026-01-21T10:00:00Z",` +
		`"last_attempt":{"number":6,"send":1,"started_at":"2026-01-21T10:00:00Z","outcome":"failed","reason":"status_4xx","http_status":404,"duration_ms":3.21}}`
	delivered = `{"id":"` + notificationID + `","webhook_id":"` + webhookID + `","event_id":"b2fe9543-c69a-5925-9070-c42230f71727",` +
		`"event_name":"crm_deal_created","state":"delivered","reason":null,"sends":1,"attempts_made":1,"next_attempt_at":null,"replay_id":null,` +
		`"created_at":"2026-01-21T10:00:00Z","updated_at":"2026-01-21T10:00:00Z","attempts":[` +
		`{"number":1,"send":1,"started_at":"2026-01-21T10:00:00Z","outcome":"delivered","reason":null,"http_status":204,"duration_ms":3.21,` +
		`"phases_ms":{"dns":0,"connect":0,"tls":0,"first_byte":3.1},"request_headers":{},"response_headers":{},"response_body":""}],` +
		`"explain":{"reason":"delivered","text":"Attempt 1 was answered with 204 after 3 ms.","next":"Nothing more is sent. It can be sent again."}}`
	preview = `{"id":"` + replayID + `","webhook_id":"` + webhookID + `","state":"preview","from":"2026-01-20T00:00:00Z","to":"2026-01-21T00:00:00Z",` +
		`"events":5400,"bytes":27000000,"estimated_seconds":270,"rate":20,"sent":0,"total":5400}`
	changed = `{"id":"2f1c5a3e-6f4d-4b7e-9a1c-0d8e7f6a5b4c","at":"2026-01-21T10:00:00Z","account_id":"acme",` +
		`"actor":{"kind":"token","name":"tok_00c0ffee","address":"192.0.2.7"},"action":"updateWebhook",` +
		`"object":{"kind":"webhook","id":"` + webhookID + `"},"before":{"name":"one"},"after":{"name":"two"}}`
	running = `{"id":"` + replayID + `","webhook_id":"` + webhookID + `","state":"running","from":"2026-01-20T00:00:00Z","to":"2026-01-21T00:00:00Z",` +
		`"notification_state":"permanently_failed","problem":null,"events":5400,"bytes":27000000,"estimated_seconds":270,"rate":20,"sent":1200,"skipped":3,"total":5400}`
)

func data(v string) []answer { return []answer{{status: 200, body: `{"data":` + v + `}`}} }

func page(next string, items ...string) []answer {
	links, more := `null`, "false"
	if next != "" {
		links, more = `"/crm/v2/somewhere/else?page%5Bafter%5D=`+next+`"`, "true"
	}
	return []answer{{status: 200, body: `{"data":[` + strings.Join(items, ",") + `],"links":{"next":` + links + `},"has_more":` + more + `}`}}
}

func problem(status int, code, detail, pointer string) []answer {
	p := ""
	if pointer != "" {
		p = `,"pointer":"` + pointer + `"`
	}
	return []answer{{status: status, header: map[string]string{"X-Request-Id": "req-1"}, body: `{"errors":[{"code":"` + code + `","detail":"` + detail + `"` + p + `}]}`}}
}

// split returns the words of a command line; ~ is a space in one.
func split(line string) []string {
	words := strings.Fields(line)
	for i, w := range words {
		words[i] = strings.ReplaceAll(w, "~", " ")
	}
	return words
}

const (
	hooks         = "/crm/v2/webhooks"
	hook          = hooks + "/" + webhookID
	notifications = "/crm/v2/notifications/" + notificationID
	replay        = "/crm/v2/replays/" + replayID
)

// TestCommands compares what each command asks, prints and returns with its golden file.
func TestCommands(t *testing.T) {
	t.Parallel()
	event := filepath.Join(t.TempDir(), "deal.json")
	if err := os.WriteFile(event, []byte(`{ "event_name":"crm_deal_created", "document":{"id":9007199254740993} }`), 0o600); err != nil {
		t.Fatal(err)
	}
	certificate := filepath.Join(filepath.Dir(event), "cert.pem")
	if err := os.WriteFile(certificate, []byte("-----BEGIN CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args    string
		stdin   string
		answers map[string][]answer
	}{
		"webhooks_list": {"webhooks list", "", map[string][]answer{"GET " + hooks: page("2", active), "GET " + hooks + "?2": page("", suspended)}},
		"webhooks_list_find": {"webhooks list --status suspended --event crm_deal_* --url https://erp.example.com/* --name D* --sort=-name", "", map[string][]answer{
			"GET " + hooks: page("", suspended),
		}},
		"webhooks_list_json":   {"webhooks list -o json", "", map[string][]answer{"GET " + hooks: page("", active)}},
		"webhooks_list_empty":  {"webhooks list", "", map[string][]answer{"GET " + hooks: page("")}},
		"webhooks_list_none":   {"webhooks list --output=json", "", map[string][]answer{"GET " + hooks: page("")}},
		"webhooks_list_loop":   {"webhooks list", "", map[string][]answer{"GET " + hooks: page("2", active), "GET " + hooks + "?2": page("2", active)}},
		"webhooks_get":         {"webhooks get " + webhookID, "", map[string][]answer{"GET " + hook: data(suspended)}},
		"webhooks_get_active":  {"webhooks get " + webhookID + " --account acme", "", map[string][]answer{"GET " + hook: data(active)}},
		"webhooks_get_json":    {"webhooks get " + webhookID + " -o json", "", map[string][]answer{"GET " + hook: data(active)}},
		"webhooks_get_unknown": {"webhooks get 1", "", nil},
		"webhooks_create": {"webhooks create --name Deals --event crm_deal_created --url https://erp.example.com/in --auth-header X-Key --auth-key-file -", "s3cret\n", map[string][]answer{
			"POST " + hooks: {{status: 201, body: `{"data":` + withSecret + `}`}},
		}},
		"webhooks_create_refused": {"webhooks create --name Deals --event crm_deal_created --url http://erp.example.com/in", "", map[string][]answer{
			"POST " + hooks: problem(422, "url_scheme", "url must begin with https://", "/data/url"),
		}},
		"webhooks_create_when": {"webhooks create --name Deals --event crm_deal_created --url https://erp.example.com/in --when document.amount~gt~9007199254740993 --when document.stage.id~in~a,b --when $changed~contains~stage", "", map[string][]answer{
			"POST " + hooks: {{status: 201, body: `{"data":` + conditional + `}`}},
		}},
		"webhooks_create_when_bad": {"webhooks create --name Deals --event crm_deal_created --url https://erp.example.com/in --when amount>5", "", nil},
		"webhooks_update_always":   {"webhooks update " + webhookID + " --always", "", map[string][]answer{"PUT " + hook: data(active)}},
		"webhooks_match": {"webhooks match " + webhookID + " - --changed stage,name --origin erp", `{"document":{"amount":9007199254740993}}`, map[string][]answer{
			"POST " + hook + "/conditions/test": data(`{"held":false,"conditions":[{"path":"document.amount","op":"gt","value":9007199254740993,"held":false,"found":9007199254740993},` +
				`{"path":"document.stage.id","op":"in","value":["a","b"],"held":false},{"path":"$changed","op":"contains","value":"stage","held":true,"found":["stage","name"]}]}`),
		}},
		"webhooks_match_event": {"webhooks match " + webhookID + " --event-id " + notificationID, "", map[string][]answer{
			"POST " + hook + "/conditions/test": data(`{"held":true,"conditions":[]}`),
		}},
		"webhooks_match_nothing":  {"webhooks match " + webhookID, "", nil},
		"webhooks_create_missing": {"webhooks create --name Deals", "", nil},
		"webhooks_create_twice": {"webhooks create --name Deals --event crm_deal_created --url https://erp.example.com/in", "", map[string][]answer{
			"POST " + hooks: problem(409, "webhook_exists", "this account has a webhook with this event_name and url already", ""),
		}},
		"webhooks_update": {"webhooks update " + webhookID + " --status disabled --no-auth", "", map[string][]answer{"PUT " + hook: data(active)}},
		"webhooks_create_oauth2": {"webhooks create --name Deals --event crm_deal_created --url https://erp.example.com/in --oauth2-token-url https://auth.example.com/token --oauth2-client-id crm " +
			"--oauth2-client-secret-file - --oauth2-scope hooks --notify-email ana@example.com --notify-email bia@example.com --notify-url https://ops.example.com/in --notify-language pt-BR", "s3cret\n", map[string][]answer{
			"POST " + hooks: {{status: 201, body: `{"data":` + strings.TrimSuffix(withSecret, "}") + `,"auth":{"type":"oauth2","token_url":"https://auth.example.com/token","client_id":"crm","scope":"hooks"},` +
				`"notify":{"emails":["ana@example.com","bia@example.com"],"url":"https://ops.example.com/in","language":"pt-BR"},"notify_secret":"whsec_bm90aWNlcw=="}}`}},
		}},
		"webhooks_get_mtls": {"webhooks get " + webhookID, "", map[string][]answer{
			"GET " + hook: data(strings.TrimSuffix(active, "}") + `,"auth":{"type":"mtls","subject":"CN=crm","expires_at":"2027-01-20T09:00:00Z"}}`),
		}},
		"webhooks_update_mtls": {"webhooks update " + webhookID + " --no-auth --client-certificate " + certificate + " --client-key - --no-notify", "-----BEGIN PRIVATE KEY-----\n", map[string][]answer{
			"PUT " + hook: data(active),
		}},
		"webhooks_update_key":       {"webhooks update " + webhookID + " --client-key -", "", nil},
		"webhooks_update_client":    {"webhooks update " + webhookID + " --oauth2-client-id crm", "", nil},
		"webhooks_update_language":  {"webhooks update " + webhookID + " --notify-language en", "", nil},
		"webhooks_update_no_notify": {"webhooks update " + webhookID + " --no-notify --notify-email ana@example.com", "", nil},
		"webhooks_update_nothing":   {"webhooks update " + webhookID, "", nil},
		"webhooks_update_status":    {"webhooks update " + webhookID + " --status broken", "", nil},
		"webhooks_delete":           {"webhooks delete " + webhookID, "", map[string][]answer{"DELETE " + hook: {{status: 204}}}},
		"webhooks_delete_json":      {"webhooks delete " + webhookID + " -o json", "", map[string][]answer{"DELETE " + hook: {{status: 204}}}},
		"webhooks_test":             {"webhooks test " + webhookID, "", map[string][]answer{"POST " + hook + "/test": {{status: 202, body: `{"data":` + pending + `}`}}}},
		"webhooks_test_wait": {"webhooks test --wait " + webhookID, "", map[string][]answer{
			"POST " + hook + "/test": {{status: 202, body: `{"data":` + pending + `}`}},
			"GET " + notifications:   slices.Concat(data(pending), data(delivered)),
		}},
		"webhooks_test_fails": {"webhooks test --wait " + webhookID, "", map[string][]answer{
			"POST " + hook + "/test": {{status: 202, body: `{"data":` + pending + `}`}}, "GET " + notifications: data(retrying),
		}},
		"webhooks_suspend":       {"webhooks suspend " + webhookID, "", map[string][]answer{"POST " + hook + "/suspend": data(byHand)}},
		"webhooks_resume":        {"webhooks resume " + webhookID, "", map[string][]answer{"POST " + hook + "/resume": data(active)}},
		"webhooks_rotate_secret": {"webhooks rotate-secret " + webhookID, "", map[string][]answer{"POST " + hook + "/rotate_secret": data(withSecret)}},
		"notifications_list": {"notifications list " + webhookID + " --state retrying --from 2026-01-20 --to 2026-01-21T12:00:00-03:00", "", map[string][]answer{
			"GET " + hook + "/notifications": page("c1", retrying, delivered), "GET " + hook + "/notifications?c1": page("", pending),
		}},
		"notifications_list_limit": {"notifications list " + webhookID + " --limit 1", "", map[string][]answer{"GET " + hook + "/notifications": page("c1", retrying, delivered)}},
		"notifications_list_partial": {"notifications list " + webhookID, "", map[string][]answer{
			"GET " + hook + "/notifications": {{status: 200, body: `{"data":[` + listed + `],"links":{"next":null},"has_more":false,"partial":true}`}},
		}},
		"notifications_list_account": {"notifications list --document d/1 --transaction t-1 --event crm_deal_created --event-id " + notificationID, "", map[string][]answer{
			"GET /crm/v2/notifications": page("c1"), "GET /crm/v2/notifications?c1": page("", retrying), // a page can be empty
		}},
		"events_get":      {"events get " + notificationID, "", map[string][]answer{"GET /crm/v2/events/" + notificationID: data(became)}},
		"events_get_json": {"events get -o json " + notificationID, "", map[string][]answer{"GET /crm/v2/events/" + notificationID: data(became)}},
		"events_find":     {"events find --document d-1 --from 2026-01-20 --limit 10", "", map[string][]answer{"GET /crm/v2/events": page("", became)}},
		"usage": {"usage acme --from 2026-01-20", "", map[string][]answer{"GET /crm/v2/usage": page("",
			`{"account_id":"acme","from":"2026-01-20T00:00:00Z","to":"2026-01-21T00:00:00Z","events":12,"event_bytes":34567,"notifications":24,"attempts":30,"delivered":23,"failed":7}`)}},
		"events_find_time":        {"events find --to tomorrow", "", nil},
		"notifications_list_time": {"notifications list " + webhookID + " --from yesterday", "", nil},
		"notifications_get":       {"notifications get " + notificationID, "", map[string][]answer{"GET " + notifications: data(retrying)}},
		"notifications_get_json":  {"notifications get -o json " + notificationID, "", map[string][]answer{"GET " + notifications: data(retrying)}},
		"notifications_explain":   {"notifications explain " + notificationID, "", map[string][]answer{"GET " + notifications: data(retrying)}},
		"notifications_explain_json": {"notifications explain -o json " + notificationID, "", map[string][]answer{
			"GET " + notifications: data(retrying),
		}},
		"notifications_resend": {"notifications resend " + notificationID, "", map[string][]answer{"POST " + notifications + "/resend": {{status: 202, body: `{"data":` + pending + `}`}}}},
		"notifications_resend_early": {"notifications resend " + notificationID, "", map[string][]answer{
			"POST " + notifications + "/resend": problem(409, "still_on_its_way", "the notification is still on its way", ""),
		}},
		"replays_create": {"replays create " + webhookID + " --from 2026-01-20 --to 2026-01-21 --state permanently_failed --rate 20", "", map[string][]answer{
			"POST " + hook + "/replays": {{status: 201, body: `{"data":` + preview + `}`}},
		}},
		"replays_create_backwards": {"replays create " + webhookID + " --from 2026-01-21 --to 2026-01-20", "", nil},
		"replays_list":             {"replays list " + webhookID, "", map[string][]answer{"GET " + hook + "/replays": page("", running, preview)}},
		"audit": {"audit --from 2026-01-20 --action updateWebhook --actor tok_00c0ffee --limit 10", "", map[string][]answer{
			"GET /crm/v2/audit": page("", changed),
		}},
		"audit_json":     {"audit -o json", "", map[string][]answer{"GET /crm/v2/audit": page("", changed)}},
		"replays_get":    {"replays get " + replayID, "", map[string][]answer{"GET " + replay: data(running)}},
		"replays_start":  {"replays start " + replayID, "", map[string][]answer{"POST " + replay + "/start": data(running)}},
		"replays_pause":  {"replays pause " + replayID + " -o json", "", map[string][]answer{"POST " + replay + "/pause": data(running)}},
		"replays_resume": {"replays resume " + replayID, "", map[string][]answer{"POST " + replay + "/resume": data(running)}},
		"replays_cancel": {"replays cancel " + replayID, "", map[string][]answer{"DELETE " + replay: {{status: 204}}}},
		"events_send": {"events send " + event, "", map[string][]answer{
			"POST /crm/v2/events/crm_deal_created": {{status: 202, body: `{"data":{"event_id":"b2fe9543-c69a-5925-9070-c42230f71727","stream":"CRM_EVENTS","sequence":17,"duplicate":false}}`}},
		}},
		"events_send_stdin": {"events send - --event crm_deal_updated", `{"document":{}}`, map[string][]answer{
			"POST /crm/v2/events/crm_deal_updated": {{status: 202, body: `{"data":{"event_id":"b2fe9543-c69a-5925-9070-c42230f71727","stream":"CRM_EVENTS","sequence":17,"duplicate":true}}`}},
		}},
		"events_send_nameless": {"events send -", `{"document":{}}`, nil},
		"events_send_empty":    {"events send -", " \n", nil},
		"events_send_missing":  {"events send /nowhere/deal.json", "", nil},
		"operator_no_account": {"webhooks list", "", map[string][]answer{
			"GET " + hooks: problem(400, "account_required", "an operator's token needs the header X-Account-Id", ""),
		}},
		"bad_token":    {"webhooks list --token wrong", "", nil},
		"read_only":    {"webhooks resume " + webhookID, "", map[string][]answer{"POST " + hook + "/resume": problem(403, "read_only", "this token may only read", "")}},
		"fault":        {"webhooks list", "", map[string][]answer{"GET " + hooks: problem(500, "internal_error", "the request could not be fulfilled", "")}},
		"not_gancho":   {"webhooks list", "", map[string][]answer{"GET " + hooks: {{status: 502, header: map[string]string{"Content-Type": "text/html"}, body: "<html>Bad gateway"}}}},
		"redirect":     {"webhooks list", "", map[string][]answer{"GET " + hooks: {{status: 302, header: map[string]string{"Location": "https://elsewhere.example/"}}}}},
		"unknown":      {"webhooks lst", "", nil},
		"unknown_flag": {"webhooks list --colour", "", nil},
		"bad_address":  {"webhooks list --api ftp://example.com", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newAPI(t, tc.answers)
			got := run(t, f.URL, tc.stdin, split(tc.args)...)
			var b strings.Builder
			fmt.Fprintf(&b, "$ gancho %s\n", strings.NewReplacer(event, "deal.json", certificate, "cert.pem").Replace(tc.args))
			for _, line := range f.seen {
				b.WriteString("> " + strings.ReplaceAll(line, "\n", "\n> ") + "\n")
			}
			fmt.Fprintf(&b, "-- stdout\n%s-- stderr\n%s-- exit %d\n", got.stdout, got.stderr, got.code)
			compare(t, name, strings.ReplaceAll(b.String(), f.URL, "http://gancho.test"))
		})
	}
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it with -update and read it", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got)\n%s", path, diff)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                       "notifications explain",
		"--help":                 "rotate-secret",
		"webhooks create --help": "gancho webhooks create --name Deals",
		"tail -h":                "--outcome",
	} {
		got := run(t, "", "", strings.Fields(args)...)
		if got.code != exitOK || !strings.Contains(got.stdout, want) || got.stderr != "" {
			t.Errorf("%q: exit %d, stderr %q; %q expected in %q", args, got.code, got.stderr, want, got.stdout)
		}
	}
}

func TestNoToken(t *testing.T) {
	t.Parallel()
	var stderr strings.Builder
	code := Run(Program{Args: []string{"webhooks", "list"}, Stdout: io.Discard, Stderr: &stderr})
	if code != exitUsage || !strings.Contains(stderr.String(), "GANCHO_TOKEN") {
		t.Errorf("exit %d, %q; want 2 and the variable's name", code, stderr.String())
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	f := newAPI(t, nil)
	f.Close()
	got := run(t, f.URL, "", "webhooks", "list")
	if got.code != exitError || !strings.Contains(got.stderr, f.URL) || !strings.Contains(got.stderr, "GANCHO_URL") {
		t.Errorf("exit %d, %q", got.code, got.stderr)
	}
}

func TestRunsWhatItIsGiven(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"serve", "demo"} {
		called := ""
		start := func(name string) func([]string, io.Writer, io.Writer) int {
			return func(environ []string, _, _ io.Writer) int { called = name + strings.Join(environ, ""); return 7 }
		}
		code := Run(Program{
			Args: []string{command}, Environ: []string{"A=b"}, Stdout: io.Discard, Stderr: io.Discard, Serve: start("serve"), Demo: start("demo"),
		})
		if code != 7 || called != command+"A=b" {
			t.Errorf("%s: exit %d, called %q", command, code, called)
		}
	}
	dir := ""
	code := Run(Program{
		Args: []string{"setup", "--dir", "/x"}, Stdout: io.Discard, Stderr: io.Discard,
		Setup: func(d string, _ io.Writer) error { dir = d; return nil },
	})
	if code != 0 || dir != "/x" {
		t.Errorf("setup: exit %d, dir %q", code, dir)
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	state, status := `{"ready":true}`, http.StatusOK
	ops := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			t.Errorf("asked %s", r.URL.Path)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, state)
	}))
	defer ops.Close()
	check := func(flags ...string) (int, string) {
		var stderr strings.Builder
		code := Run(Program{
			Args: append([]string{"healthcheck"}, flags...), Environ: []string{"OPS_ADDR=" + ops.Listener.Addr().String()}, Stdout: io.Discard, Stderr: &stderr,
		})
		return code, stderr.String()
	}
	if code, text := check(); code != 0 || text != "" {
		t.Errorf("exit %d: %s", code, text)
	}
	if code, text := check("-v"); code != 0 || text != "ready\n" {
		t.Errorf("-v: exit %d: %s", code, text)
	}
	state = `{"ready":true,"degraded":["redis: away"]}`
	if code, text := check(); code != 0 || !strings.Contains(text, "redis: away") {
		t.Errorf("degraded: exit %d: %s", code, text)
	}
	state, status = `{"ready":false,"reasons":["nats: not connected"]}`, http.StatusServiceUnavailable
	if code, text := check(); code != 1 || !strings.Contains(text, "not connected") {
		t.Errorf("exit %d: %s", code, text)
	}
}

func TestWhen(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 21, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                          {},
		"2026-01-21T09:00:00-03:00": now,
		"2026-01-21":                now.Truncate(24 * time.Hour),
		"90s":                       now.Add(-90 * time.Second),
		"2h":                        now.Add(-2 * time.Hour),
		"1.5d":                      now.Add(-36 * time.Hour),
		"0s":                        now,
	} {
		var w when
		if err := w.UnmarshalText([]byte(text)); err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got, err := w.at(now); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"-2h", "tomorrow", "2026-13-01", "2", "-1d"} {
		var w when
		if err := w.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q must be refused", text)
		}
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"São Paulo":           "São Paulo",
		"a\nb\tc":             "a b c",
		"\x1b[2Jgone":         "?[2Jgone",
		"\u009b31m":           "?31m",
		"\u202efdp.exe":       "?fdp.exe",
		"bell\a del\x7f":      "bell? del?",
		"\u2066isolate\u200f": "?isolate?",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// interrupting is a standard input that says nothing, and whose reader is interrupted.
type interrupting struct{ t *testing.T }

func (i interrupting) Read([]byte) (int, error) {
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		i.t.Error(err)
	}
	<-i.t.Context().Done()
	return 0, io.EOF
}

// TestInterrupt is not parallel: the signal reaches every command of the process.
func TestInterrupt(t *testing.T) {
	code := Run(Program{
		Args: []string{"events", "send", "-"}, Environ: []string{"GANCHO_URL=http://127.0.0.1:1", "GANCHO_TOKEN=secret-token"},
		Stdin: interrupting{t}, Stdout: io.Discard, Stderr: io.Discard,
	})
	if code != exitInterrupted {
		t.Errorf("got exit code %d, want %d", code, exitInterrupted)
	}
}

// TestCompletion runs the scripts in the shells that are there.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ shell, ask string }{
		"bash": {"bash", `complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _gancho; echo "${COMPREPLY[*]}"; }
complete_line gancho we; complete_line gancho webhooks r; complete_line gancho webhooks list -o ''; complete_line gancho webhooks list --o
complete_line gancho completion ''; complete_line gancho webhooks list --output json notifications`},
		"fish": {"fish", `complete -C 'gancho we' | cut -f1 | string join ' '; complete -C 'gancho webhooks r' | cut -f1 | string join ' '
complete -C 'gancho webhooks list -o ' | cut -f1 | string join ' '; complete -C 'gancho webhooks list --o' | cut -f1 | string join ' '
complete -C 'gancho completion ' | cut -f1 | string join ' '; complete -C 'gancho webhooks list --output json notifications' | cut -f1 | string join ' '; echo`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, err := exec.LookPath(tc.shell)
			if err != nil {
				t.Logf("%s is not installed: its script was not run", tc.shell)
				return
			}
			script := run(t, "", "", "completion", tc.shell)
			if script.code != 0 {
				t.Fatal(script.stderr)
			}
			file := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(file, []byte(script.stdout+"\n"+tc.ask+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), path, file).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			want := "webhooks\nresume rotate-secret\ntable json\n--output\nbash zsh fish\n\n"
			if sorted(string(out)) != sorted(want) {
				t.Errorf("got %q, want %q", out, want)
			}
		})
	}
	if got := run(t, "", "", "completion", "tcsh"); got.code != exitUsage {
		t.Errorf("an unknown shell: exit %d", got.code)
	}
}

// sorted sorts the words of each line: shells order them in their own way.
func sorted(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		words := strings.Fields(line)
		slices.Sort(words)
		lines[i] = strings.Join(words, " ")
	}
	return strings.Join(lines, "\n")
}

func TestCompletionZsh(t *testing.T) {
	t.Parallel()
	got := run(t, "", "", "completion", "zsh")
	for _, want := range []string{"#compdef gancho", "'rotate-secret:", "compadd -- table json", "compdef _gancho gancho"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is missing", want)
		}
	}
	path, err := exec.LookPath("zsh")
	if err != nil {
		t.Log("zsh is not installed: its script was not run")
		return
	}
	file := filepath.Join(t.TempDir(), "script")
	ask := `
_describe() { print -l -- ${found%%:*} }
_files() { print files }
at() { words=("$@"); CURRENT=$#; PREFIX=${words[$#]}; _gancho }
at gancho webhooks r | grep -c .
at gancho webhooks list --
at gancho events send x
`
	if err := os.WriteFile(file, []byte("compdef() { : }\n"+got.stdout+ask), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, "-f", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--output\n") || !strings.HasSuffix(string(out), "files\n") || !strings.HasPrefix(string(out), "9\n") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestStatus asks three processes, of which one is not ready and one is gone.
func TestStatus(t *testing.T) {
	t.Parallel()
	ops := func(status int, state string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, state)
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	well := ops(http.StatusOK, `{"ready":true}`)
	degraded := ops(http.StatusOK, `{"ready":true,"degraded":["redis: away"]}`)
	waiting := ops(http.StatusServiceUnavailable, `{"ready":false,"reasons":["nats: login refused"]}`)
	gone := httptest.NewServer(nil)
	gone.Close()
	run := func(addrs ...string) (int, string) {
		var stdout, stderr strings.Builder
		code := Run(Program{Args: []string{"status"}, Environ: []string{"GANCHO_OPS_ADDRS=" + strings.Join(addrs, ",")}, Stdout: &stdout, Stderr: &stderr})
		return code, stdout.String() + stderr.String()
	}
	if code, text := run(well, degraded); code != exitOK || !strings.Contains(text, "redis: away") {
		t.Errorf("ready: exit %d\n%s", code, text)
	}
	code, text := run(well, waiting, gone.Listener.Addr().String())
	for _, want := range []string{well, "ready", "nats: login refused", "not reachable"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if code != exitError {
		t.Errorf("exit %d\n%s", code, text)
	}
}
