package event

import (
	"cmp"
	"strings"
	"testing"
)

func parse(t *testing.T, body string, h func(string) string) Event {
	t.Helper()
	ev, rejected := Parse(Message{Subject: subject, Header: h, Body: []byte(body), Sequence: 7, MaxBytes: 1 << 20})
	if rejected != nil {
		t.Fatal(rejected)
	}
	return ev
}

func TestIdentityNamesTheDocument(t *testing.T) {
	t.Parallel()
	long, longest := strings.Repeat("9", 129), strings.Repeat("é", 128)
	for body, want := range map[string]struct{ key, msgID string }{
		`{"transaction_uuid":"t","document":{"id":"d-1"}}`:                 {"t/d-1", "t:d-1"},
		`{"document":{"x":{"id":"no"},"id":"d-2"},"transaction_uuid":"t"}`: {"t/d-2", "t:d-2"},
		`{"transaction_uuid":"t","document":{"id":9007199254740993}}`:      {"t/9007199254740993", "t:9007199254740993"},
		`{"transaction_uuid":"t","document":{"id":-5}}`:                    {"t/-5", "t:-5"},
		`{"transaction_uuid":"t","document":{"id":"a:b"}}`:                 {"t/a:b", "t:a:b"},
		`{"transaction_uuid":"t","document":{"\u0069d":"\u0064-1"}}`:       {"t/d-1", "t:d-1"},
		`{"transaction_uuid":"t","document":{"id":"first","id":"second"}}`: {"t/first", "t:first"},
		`{"transaction_uuid":"t","document":{"id":"` + longest + `"}}`:     {"t/" + longest, ""},
		`{"transaction_uuid":"t","document":{"id":"a\r\nNats-Msg-Id: b"}}`: {"t/a\r\nNats-Msg-Id: b", ""},
		`{"transaction_uuid":"t","document":{"id":""}}`:                    {"t", "t"},
		`{"transaction_uuid":"t","document":{"id":"` + long + `"}}`:        {"t", "t"},
		`{"transaction_uuid":"t","document":{"id":` + long + `}}`:          {"t", "t"},
		`{"transaction_uuid":"t","document":{"id":1.5}}`:                   {"t", "t"},
		`{"transaction_uuid":"t","document":{"id":1e3}}`:                   {"t", "t"},
		`{"transaction_uuid":"t","document":{"id":null}}`:                  {"t", "t"},
		`{"transaction_uuid":"t","document":{"id":true}}`:                  {"t", "t"},
		`{"transaction_uuid":"t","document":{"id":{"id":"x"}}}`:            {"t", "t"},
		`{"transaction_uuid":"t","document":[{"id":"x"}]}`:                 {"t", "t"},
		`{"transaction_uuid":"t","document":"{\"id\":\"x\"}"}`:             {"t", "t"},
		`{"transaction_uuid":"t","document.id":"x"}`:                       {"t", "t"},
		`{"transaction_uuid":"t"}`:                                         {"t", "t"},
	} {
		ev := parse(t, body, header(HeaderCEID, "ce", HeaderMsgID, "m"))
		if ev.ID != ID("acme", "crm_deal_created", want.key) {
			t.Errorf("%.80s: the key is not %q", body, want.key)
		}
		msgID := "acme:crm_deal_created:" + want.msgID
		if want.msgID == "" {
			msgID = "acme:crm_deal_created:" + ev.ID
		}
		if got := ev.MsgID(); got != msgID {
			t.Errorf("%.80s: message id %q, want %q", body, got, msgID)
		}
	}
	for ceID, want := range map[string]string{"ce": "ce", "t:d": "", "a b": "", "a\r\nb": ""} {
		ev := parse(t, `{"document":{"id":"d-1"}}`, header(HeaderCEID, ceID))
		if ev.ID != ID("acme", "crm_deal_created", ceID) {
			t.Error("document.id counts only with a transaction_uuid")
		}
		if got := ev.MsgID(); got != "acme:crm_deal_created:"+cmp.Or(want, ev.ID) {
			t.Errorf("ce-id %q: message id %q", ceID, got)
		}
	}
	if ev := parse(t, `{"document":{"id":"d-1"}}`, header()); ev.MsgID() != "" {
		t.Errorf("an event without any id has the message id %q", ev.MsgID())
	}
	if ev := parse(t, `{"transaction_uuid":"t","document":{"id":"d-1"}}`, header()); !ev.Is(ev.ID) || !ev.Is(ID("acme", "crm_deal_created", "t")) || ev.Is(ID("acme", "crm_deal_created", "d-1")) {
		t.Error("an event is known by its id and by the one without its document")
	}
}

const ceHead = `{"specversion":"1.0","id":"ce-1","source":"/crm","type":"crm_deal_created",`

func TestCloudEventsStructured(t *testing.T) {
	t.Parallel()
	data := "{ \"n\" : 1.50,\r\n\t\"s\":\"\\u00e9\" }"
	said := header(HeaderContentType, "application/cloudevents+json; charset=UTF-8")
	for name, tc := range map[string]struct {
		body string
		h    func(string) string
		key  string
	}{
		"recognised":           {ceHead + `"time":"2026-01-01T00:00:00Z","data": ` + data + " }\n", header(), "ce-1"},
		"said":                 {ceHead + `"data":` + data + `}`, said, "ce-1"},
		"said in lower case":   {ceHead + `"data":` + data + `}`, header("content-type", MediaTypeStructured), "ce-1"},
		"data first":           {`{"data":` + data + `,` + ceHead[1:len(ceHead)-1] + `}`, header(), "ce-1"},
		"said, without the id": {`{"data":` + data + `}`, said, "CRM_EVENTS/7"},
		"said, event_name too": {`{"event_name":"crm_deal_created","data":` + data + `,"id":"ce-2"}`, said, "ce-2"},
		"id rules over ce-id":  {ceHead + `"data":` + data + `}`, header(HeaderCEID, "other", HeaderMsgID, "m"), "ce-1"},
		"id of a number":       {`{"id":5,"data":` + data + `}`, header(HeaderContentType, MediaTypeStructured, HeaderCEID, "h"), "h"},
	} {
		ev := parse(t, tc.body, tc.h)
		if string(ev.Body) != data || ev.ID != ID("acme", "crm_deal_created", tc.key) {
			t.Errorf("%s: got %q and not the id of %s", name, ev.Body, tc.key)
		}
	}
	inner := `{"event_name":"crm_deal_created","transaction_uuid":"t","document":{"id":"d"}}`
	if ev := parse(t, ceHead+`"data":`+inner+`}`, header()); ev.ID != ID("acme", "crm_deal_created", "t/d") || string(ev.Body) != inner {
		t.Error("the identity inside data rules over the wrapper's id")
	}
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if ev := parse(t, ceHead+`"traceparent":"`+trace+`","data":{}}`, header()); ev.Traceparent != trace {
		t.Error("the wrapper's traceparent counts")
	}
	// What only looks like a wrapper is an event.
	for _, body := range []string{
		`{"event_name":"crm_deal_created",` + ceHead[1:] + `"data":{"a":1}}`,
		`{"specversion":"1.0","id":"ce-1","source":"/crm","data":{"a":1}}`,
		ceHead + `"Data":{"a":1}}`,
	} {
		if ev := parse(t, body, header()); string(ev.Body) != body {
			t.Errorf("%s was unwrapped to %s", body, ev.Body)
		}
	}
}

func TestCloudEventsRefused(t *testing.T) {
	t.Parallel()
	said := header(HeaderContentType, MediaTypeStructured)
	for name, tc := range map[string]struct {
		body string
		h    func(string) string
		want Reason
	}{
		"data_base64":             {ceHead + `"data_base64":"e30="}`, header(), NotObject},
		"data_base64 and data":    {ceHead + `"data":{},"data_base64":"e30="}`, header(), NotObject},
		"data is an array":        {ceHead + `"data":[]}`, header(), NotObject},
		"data is a string":        {ceHead + `"data":"{}"}`, header(), NotObject},
		"data is null":            {ceHead + `"data":null}`, header(), NotObject},
		"no data":                 {ceHead[:len(ceHead)-1] + `}`, said, NotObject},
		"a batch":                 {`[` + ceHead + `"data":{}}]`, said, NotObject},
		"another type":            {strings.Replace(ceHead, "deal_created", "deal_updated", 1) + `"data":{}}`, header(), EventNameMismatch},
		"type is a number":        {`{"type":1,"data":{}}`, said, EventNameMismatch},
		"another ce-type":         {ceHead + `"data":{}}`, header(HeaderCEType, "crm_deal_updated"), EventNameMismatch},
		"another event_name":      {ceHead + `"data":{"event_name":"crm_deal_updated"}}`, header(), EventNameMismatch},
		"event_name twice inside": {ceHead + `"data":{"event_name":"crm_deal_created","event_name":"crm_deal_created"}}`, header(), BadJSON},
		"data twice":              {ceHead + `"data":{},"data":{"x":1}}`, header(), BadJSON},
		"id twice":                {ceHead + `"id":"ce-2","data":{}}`, header(), BadJSON},
		"bad transaction inside":  {ceHead + `"data":{"transaction_uuid":"a.b"}}`, header(), BadTransactionUUID},
	} {
		if _, rejected := Parse(Message{Subject: subject, Header: tc.h, Body: []byte(tc.body), Sequence: 1}); rejected == nil || rejected.Reason != tc.want {
			t.Errorf("%s: got %v, want %s", name, rejected, tc.want)
		}
	}
}

func TestWrapperLeavesTheLimitToTheEvent(t *testing.T) {
	t.Parallel()
	const most = 10_000
	of := func(n int) string { return `{"n":"` + strings.Repeat("x", n-8) + `"}` }
	try := func(body string) *Rejected {
		_, rejected := Parse(Message{Subject: subject, Header: header(), Body: []byte(body), Sequence: 1, MaxBytes: most})
		return rejected
	}
	if r := try(ceHead + `"data":` + of(most) + `}`); r != nil {
		t.Errorf("an event of the limit in a wrapper: %v", r)
	}
	for _, body := range []string{of(most + 1), ceHead + `"data":` + of(most+1) + `}`, ceHead + `"pad":"` + strings.Repeat("x", most+Headroom) + `","data":{}}`} {
		if r := try(body); r == nil || r.Reason != NotObject {
			t.Errorf("%d bytes: got %v", len(body), r)
		}
	}
}

func TestHeadersOfTheChange(t *testing.T) {
	t.Parallel()
	ev := parse(t, `{}`, header(HeaderChanged, " deal_stage.id, amount_total ,,", HeaderOrigin, "app:7.a_b-c"))
	if strings.Join(ev.Changed, "|") != "deal_stage.id|amount_total" || ev.Origin != "app:7.a_b-c" {
		t.Errorf("got %q and %q", ev.Changed, ev.Origin)
	}
	for _, bad := range []string{"a b", strings.Repeat("a", 129), "a\n", "é"} {
		if ev := parse(t, `{}`, header(HeaderOrigin, bad)); ev.Origin != "" || ev.Changed != nil {
			t.Errorf("origin %q was taken", bad)
		}
	}
}
