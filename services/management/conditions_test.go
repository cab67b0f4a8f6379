package management_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"gancho/pkg/redistest"
	"gancho/services/management"
)

func TestConditions(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const conditions = `[{"path":"document.big","op":"gt","value":9007199254740993},{"path":"document.none","op":"eq","value":null},` +
		`{"path":"$changed","op":"contains","value":"deal_stage"},{"path":"a\\.b","op":"in","value":[1.50,"x"]},{"path":"a","op":"exists","value":false}]`
	created := s.do(acme, "POST", "/crm/v2/webhooks", `{"data":{"event_name":"crm_deal_updated","url":"https://hooks.example.com/a","conditions":`+conditions+`}}`).want(http.StatusCreated)
	if !strings.Contains(string(created.raw), `"conditions":`+conditions) {
		t.Errorf("created = %s", created.raw)
	}
	path, etag := "/crm/v2/webhooks/"+created.id(), created.header.Get("ETag")

	var got struct {
		Data json.RawMessage `json:"data"`
	}
	read := s.do(acme, "GET", path, nil).want(http.StatusOK)
	if err := json.Unmarshal(read.raw, &got); err != nil {
		t.Fatal(err)
	}
	if back := s.do(acme, "PUT", path, `{"data":`+string(got.Data)+`}`).want(http.StatusOK); back.header.Get("ETag") != etag {
		t.Errorf("what GET gave was a change: %s", back.raw)
	}
	if r := s.do(acme, "PUT", path, `{"data":{"name":"x"}}`).want(http.StatusOK); !strings.Contains(string(r.raw), conditions) {
		t.Errorf("a change of the name took conditions away: %s", r.raw)
	}
	old := s.do("", "GET", "/api/v1/webhooks/"+created.id()+"?token="+acme, nil).want(http.StatusOK)
	if strings.Contains(string(old.raw), "conditions") {
		t.Errorf("the older API shows them: %s", old.raw)
	}
	s.do("", "PUT", "/api/v1/webhooks/"+created.id()+"?token="+acme, `{"http_method":"PUT"}`).want(http.StatusOK)
	if r := s.do(acme, "GET", path, nil); !strings.Contains(string(r.raw), conditions) {
		t.Errorf("a change by the older API took conditions away: %s", r.raw)
	}
	for _, none := range []string{"null", "[]"} {
		s.do(acme, "PUT", path, `{"data":{"conditions":`+conditions+`}}`).want(http.StatusOK)
		if r := s.do(acme, "PUT", path, `{"data":{"conditions":`+none+`}}`).want(http.StatusOK); !strings.Contains(string(r.raw), `"conditions":[]`) {
			t.Errorf("conditions %s: %s", none, r.raw)
		}
	}

	many := strings.TrimSuffix(strings.Repeat(`{"path":"a","op":"eq","value":1},`, 26), ",")
	for _, tc := range []struct{ conditions, code, pointer string }{
		{`[{"path":"a","op":"eq","value":1},{"op":"eq","value":1}]`, "bad_path", "/data/conditions/1/path"},
		{`[{"path":"a","op":"like","value":1}]`, "bad_op", "/data/conditions/0/op"},
		{`[{"path":"a","op":"eq"}]`, "bad_value", "/data/conditions/0/value"},
		{`[{"path":"a","op":"in","value":[1,{}]}]`, "bad_value", "/data/conditions/0/value/1"},
		{`[` + many + `]`, "too_many_conditions", "/data/conditions"},
		{`{}`, "wrong_type", "/data/conditions"},
		{`[{"path":1,"op":"eq","value":1}]`, "wrong_type", "/data/conditions/0/path"},
	} {
		body := `{"data":{"event_name":"crm_deal_updated","url":"https://hooks.example.com/b","conditions":` + tc.conditions + `}}`
		s.do(acme, "POST", "/crm/v2/webhooks", body).refused(422, tc.code, tc.pointer)
		s.do(acme, "PUT", path, `{"data":{"conditions":`+tc.conditions+`}}`).refused(422, tc.code, tc.pointer)
	}
	s.do(acme, "PUT", path, `{"data":{"conditions":[{"path":"a","op":"eq","value":1,"not":true}]}}`).refused(400, "unknown_member", "/data/conditions/0/not")
}

// TestConditionsTest holds conditions against bodies and against stored events, which no webhook need have got.
func TestConditionsTest(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	s := start(t, func(c *management.Config) { c.RedisURL = redis.URL() })
	id := s.do(acme, "POST", "/crm/v2/webhooks", `{"data":{"event_name":"crm_deal_updated","url":"https://hooks.example.com/a","conditions":`+
		`[{"path":"document.amount","op":"gt","value":1e3},{"path":"$changed","op":"contains","value":"deal_stage"}]}}`).want(http.StatusCreated).id()
	path := "/crm/v2/webhooks/" + id + "/conditions/test"
	check := func(body, want string) {
		t.Helper()
		got := s.do(acmeRead, "POST", path, `{"data":`+body+`}`).want(http.StatusOK)
		if want = `{"data":` + want + "}"; strings.TrimSpace(string(got.raw)) != want {
			t.Errorf("%s: %s\nwant %s", body, got.raw, want)
		}
	}
	const amount, stage = `{"path":"document.amount","op":"gt","value":1e3,"held":`, `{"path":"$changed","op":"contains","value":"deal_stage","held":`
	check(`{"body":{"document":{"amount":1000.50}},"changed":["amount","deal_stage.id"]}`,
		`{"held":true,"conditions":[`+amount+`true,"found":1000.50},`+stage+`true,"found":["amount","deal_stage.id"]}]}`)
	check(`{"body":{"document":{"amount":"1001"}}}`, `{"held":false,"conditions":[`+amount+`false,"found":"1001"},`+stage+`false}]}`)
	check(`{"body":{},"origin":"erp","conditions":[{"path":"$origin","op":"eq","value":"erp"}]}`,
		`{"held":true,"conditions":[{"path":"$origin","op":"eq","value":"erp","held":true,"found":"erp"}]}`)

	var ids []string
	for i := range 3 { // more than are read at once would not be quick
		sent := s.do(acme, "POST", "/crm/v2/events/crm_deal_updated", `{"document":{"amount":`+strings.Repeat("9", i+3)+`}}`, "Gancho-Changed", "deal_stage").want(http.StatusAccepted)
		ids = append(ids, text(sent.data(), "event_id"))
	}
	check(`{"event_id":"`+ids[0]+`"}`, `{"held":false,"conditions":[`+amount+`false,"found":999},`+stage+`true,"found":["deal_stage"]}]}`)
	check(`{"event_id":"`+ids[2]+`"}`, `{"held":true,"conditions":[`+amount+`true,"found":99999},`+stage+`true,"found":["deal_stage"]}]}`)

	refuse := func(body, code, pointer string) {
		t.Helper()
		s.do(acme, "POST", path, `{"data":`+body+`}`).refused(422, code, pointer)
	}
	refuse(`{}`, "event_required", "/data")
	refuse(`{"body":{},"event_id":"`+ids[0]+`"}`, "event_required", "/data")
	refuse(`{"body":[]}`, "wrong_type", "/data/body")
	refuse(`{"body":{},"origin":"a b"}`, "bad_origin", "/data/origin")
	refuse(`{"body":{},"conditions":[{"path":"","op":"eq","value":1}]}`, "bad_path", "/data/conditions/0/path")
	refuse(`{"event_id":"x"}`, "bad_event_id", "/data/event_id")
	refuse(`{"event_id":"`+id+`"}`, "no_such_event", "/data/event_id")
	s.do(other, "POST", path, `{"data":{"body":{}}}`).refused(404, "not_found", "")
}
