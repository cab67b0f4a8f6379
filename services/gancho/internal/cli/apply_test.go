package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// registered is a webhook as the API answers it.
func registered(n int, name, event, url, more string) string {
	return fmt.Sprintf(`{"id":"00000000-0000-4000-8000-%012d","name":%q,"event_name":%q,"http_method":"POST","url":%q,"auth_header":null,"status":"active",`+
		`"conditions":[],"signature":"hmac","suspension":null,"created_at":"2026-01-20T09:00:00Z","updated_at":"2026-01-20T09:00:00Z"%s}`, n, name, event, url, more)
}

const applyFile = `
webhooks:
  - name: Same
    event_name: crm_deal_created
    url: https://a.example.com/same
  - name: Moved
    event_name: crm_deal_*
    url: https://a.example.com/new
    conditions:
      - document.big gt 9007199254740993
      - {path: $changed, op: contains, value: stage}
  - name: Renamed
    event_name: crm_task_created
    url: https://a.example.com/renamed
  - name: Secret
    event_name: crm_lead_created
    url: https://a.example.com/secret
    auth_header: Authorization
    auth_key: Bearer ${ERP_TOKEN}
  - name: New
    event_name: crm_contact_created
    url: https://a.example.com/${STAGE}
    conditions: [{path: document.n, op: in, value: [1.50, "1", null, true]}]
`

func applyAnswers() map[string][]answer {
	one := func(n int) string { return fmt.Sprintf("%s/00000000-0000-4000-8000-%012d", hooks, n) }
	later := strings.NewReplacer(`"updated_at":"2026-01-20`, `"updated_at":"2026-01-22`)
	secret := registered(4, "Secret", "crm_lead_created", "https://a.example.com/secret", "")
	secret = strings.Replace(secret, `"auth_header":null`, `"auth_header":"Authorization"`, 1)
	return map[string][]answer{
		"GET " + hooks: page("",
			registered(1, "Same", "crm_deal_created", "https://a.example.com/same", ""),
			strings.Replace(registered(2, "Moved", "crm_deal_*", "https://a.example.com/old", ""), `"http_method":"POST"`, `"http_method":"PUT"`, 1),
			registered(3, "Before", "crm_task_created", "https://a.example.com/renamed", ""), secret,
			registered(5, "Old", "crm_deal_created", "https://a.example.com/old", "")),
		"PUT " + one(2):    data(later.Replace(registered(2, "Moved", "crm_deal_*", "https://a.example.com/new", ""))),
		"PUT " + one(3):    data(later.Replace(registered(3, "Renamed", "crm_task_created", "https://a.example.com/renamed", ""))),
		"PUT " + one(4):    data(later.Replace(secret)),
		"DELETE " + one(5): {{status: 204}},
		"POST " + hooks:    {{status: 201, body: `{"data":` + registered(6, "New", "crm_contact_created", "https://a.example.com/test", `,"signing_secret":"whsec_dGVzdA=="`) + `}`}},
	}
}

// TestApply compares what an apply asks and prints with its golden files.
func TestApply(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "webhooks.yaml")
	if err := os.WriteFile(file, []byte(applyFile), 0o600); err != nil {
		t.Fatal(err)
	}
	unchanged := applyAnswers()
	for key, answers := range unchanged {
		if strings.HasPrefix(key, "PUT ") { // the same secret
			answers[0].body = strings.Replace(answers[0].body, `"updated_at":"2026-01-22`, `"updated_at":"2026-01-20`, 1)
		}
	}
	twice := applyAnswers()
	twice["GET "+hooks] = page("", registered(1, "Same", "crm_deal_created", "https://a.example.com/same", ""), registered(2, "Same", "crm_deal_updated", "https://a.example.com/same", ""))
	refused := applyAnswers()
	refused["POST "+hooks] = problem(422, "url_scheme", "url must begin with https://", "/data/url")
	for name, tc := range map[string]struct {
		args    string
		answers map[string][]answer
	}{
		"apply":             {"apply -f FILE", applyAnswers()},
		"apply_prune":       {"apply -f FILE --prune", applyAnswers()},
		"apply_dry_run":     {"apply -f FILE --prune --dry-run", applyAnswers()},
		"apply_json":        {"apply -f FILE -o json", applyAnswers()},
		"apply_same_secret": {"apply -f FILE", unchanged},
		"apply_twice":       {"apply -f FILE", twice},
		"apply_refused":     {"apply -f FILE", refused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newAPI(t, tc.answers)
			got := runWith(t, f.URL, []string{"ERP_TOKEN=hidden-token", "STAGE=test"}, split(strings.Replace(tc.args, "FILE", file, 1))...)
			text := fmt.Sprintf("$ gancho %s\n", tc.args)
			for _, line := range f.seen {
				text += "> " + strings.ReplaceAll(line, "\n", "\n> ") + "\n"
			}
			text += fmt.Sprintf("-- stdout\n%s-- stderr\n%s-- exit %d\n", got.stdout, got.stderr, got.code)
			if strings.Contains(got.stdout+got.stderr, "hidden-token") {
				t.Errorf("it prints the secret:\n%s", text)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(text, string(want)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// runWith is run with more variables.
func runWith(t *testing.T, url string, environ []string, args ...string) outcome {
	t.Helper()
	var stdout, stderr strings.Builder
	code := Run(Program{
		Args: args, Environ: append([]string{"GANCHO_URL=" + url, "GANCHO_TOKEN=secret-token"}, environ...),
		Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Setup: func(string, io.Writer) error { return nil },
	})
	return outcome{code, stdout.String(), stderr.String()}
}

func TestReadWebhooksRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                    "it is empty",
		"[]":                                  "line 1: here must be members",
		"hooks: []":                           "line 1: hooks is unknown",
		"webhooks: x":                         "no list",
		"webhooks: [x]":                       "line 1: here must be members",
		"webhooks: [{url: x}]":                "line 1: the webhook has no name",
		"webhooks: [{name: 5}]":               "line 1: the webhook has no name",
		"webhooks:\n- {name: a}\n- {name: a}": `line 3: two webhooks are called "a"`,
		"webhooks:\n- name: a\n  name: b":     "line 3: name stands twice",
		"webhooks: [{name: a, x: .inf}]":      "not a number of JSON",
		"webhooks: [{name: a, x: 0x10}]":      "not a number of JSON",
		"webhooks: [{name: a, auth_key: 'x ${GONE}'}]": "line 1: the environment variable GONE is not set",
		"webhooks: [{name: a, conditions: [a > 5]}]":   "line 1: \"a > 5\" is not a condition",
		"webhooks: {": "did not find expected",
	} {
		if _, err := readWebhooks([]byte(text), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	got, err := readWebhooks([]byte(`{"webhooks":[{"name":"a","x":"$${A} $changed","n":12345678901234567890.10}]}`), nil)
	if err != nil || string(got[0].members["x"]) != `"${A} $changed"` || string(got[0].members["n"]) != "12345678901234567890.10" || got[0].secret["x"] {
		t.Errorf("%v, %v", got, err)
	}
}

// TestApplyAuth holds what apply does with auth and notify: a secret is printed nowhere, also one that stands in the
// file, and what means the same is no change.
func TestApplyAuth(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "webhooks.yaml")
	text := `
webhooks:
  - name: Bank
    event_name: crm_deal_created
    url: https://a.example.com/bank
    auth: {type: oauth2, token_url: "https://auth.example.com/", client_id: crm, client_secret: hidden-in-file}
    notify: {emails: [ana@example.com]}
  - name: Erp
    event_name: crm_deal_created
    url: https://a.example.com/erp
    auth: {type: mtls, certificate: "${CERT}", private_key: "${KEY}"}
  - name: None
    event_name: crm_deal_created
    url: https://a.example.com/none
    auth: null
    notify: null
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	notify := `,"notify":{"emails":["ana@example.com"],"url":null,"language":"en"}`
	bank := registered(1, "Bank", "crm_deal_created", "https://a.example.com/bank", notify+`,"auth":{"type":"oauth2","token_url":"https://auth.example.com/","client_id":"crm"}`)
	none := registered(2, "None", "crm_deal_created", "https://a.example.com/none", `,"notify":null,"auth":null`)
	f := newAPI(t, map[string][]answer{
		"GET " + hooks: page("", bank, none), "PUT " + hooks + "/00000000-0000-4000-8000-000000000001": data(bank),
		"POST " + hooks: {{status: 201, body: `{"data":` + registered(3, "Erp", "crm_deal_created", "https://a.example.com/erp", `,"notify_secret":"whsec_bm90aWNlcw=="`) + `}`}},
	})
	got := runWith(t, f.URL, []string{"CERT=hidden\ncertificate", "KEY=hidden\nkey"}, "apply", "-f", file)
	if got.code != 0 || strings.Contains(got.stdout+got.stderr, "hidden") || !strings.Contains(got.stdout, "1 created, 0 changed, 0 deleted; 2 as they are") ||
		!strings.Contains(got.stdout, "secret of notices: whsec_bm90aWNlcw==") {
		t.Errorf("exit %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	asked := strings.Join(f.seen, "\n")
	for _, want := range []string{`"client_secret":"hidden-in-file"`, `"private_key":"hidden\nkey"`} {
		if !strings.Contains(asked, want) {
			t.Errorf("%s was not sent:\n%s", want, asked)
		}
	}
	if strings.Contains(asked, "000000000002") || strings.Count(asked, `"notify"`) != 0 {
		t.Errorf("it changes what is the same:\n%s", asked)
	}
}
