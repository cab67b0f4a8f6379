package event

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func header(kv ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == key {
				return kv[i+1]
			}
		}
		return ""
	}
}

const subject = "crm.events.acme.crm_deal_created"

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		subject, body string
		header        func(string) string
		want          Reason
	}{
		"45 empty":                     {body: "", want: NotObject},
		"45 null":                      {body: "null", want: NotObject},
		"45 array":                     {body: "[]", want: NotObject},
		"45 string":                    {body: `"x"`, want: NotObject},
		"45 number":                    {body: "42", want: NotObject},
		"46 truncated":                 {body: `{"a":`, want: BadJSON},
		"46 trailing garbage":          {body: `{} x`, want: BadJSON},
		"46 two objects":               {body: `{}{}`, want: BadJSON},
		"46 byte order mark":           {body: "\ufeff{}", want: BadJSON},
		"49 10,001 nested":             {body: `{"a":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + `}`, want: BadJSON},
		"49 a megabyte of nesting":     {body: `{"a":` + strings.Repeat("[", 1<<20), want: BadJSON},
		"49 nested objects":            {body: strings.Repeat(`{"a":`, 10_001) + "1" + strings.Repeat("}", 10_001), want: BadJSON},
		"54 uuid not a string":         {body: `{"transaction_uuid":7}`, want: BadTransactionUUID},
		"54 uuid null":                 {body: `{"transaction_uuid":null}`, want: BadTransactionUUID},
		"54 uuid empty":                {body: `{"transaction_uuid":""}`, want: BadTransactionUUID},
		"54 uuid too long":             {body: `{"transaction_uuid":"` + strings.Repeat("a", 129) + `"}`, want: BadTransactionUUID},
		"55 uuid with a dot":           {body: `{"transaction_uuid":"a.b"}`, want: BadTransactionUUID},
		"51 event_name twice":          {body: `{"event_name":"crm_deal_created","event_name":"crm_deal_created"}`, want: BadJSON},
		"51 event_name escaped":        {body: `{"event_name":"crm_deal_created","\u0065vent_name":"x"}`, want: BadJSON},
		"51 transaction_uuid twice":    {body: `{"transaction_uuid":"a","x":{},"transaction_uuid":"b"}`, want: BadJSON},
		"51 transaction_uuid and null": {body: `{"transaction_uuid":null,"transaction_uuid":"b"}`, want: BadJSON},
		"57 other name":                {body: `{"event_name":"crm_deal_updated"}`, want: EventNameMismatch},
		"57 name not a string":         {body: `{"event_name":null}`, want: EventNameMismatch},
		"57 other ce-type":             {body: `{}`, header: header(HeaderCEType, "crm_deal_updated"), want: EventNameMismatch},
		"57 subject without name":      {subject: "crm.events.acme", body: `{}`, want: BadSubject},
		"57 subject with more tokens":  {subject: "crm.events.acme.crm_deal_created.x", body: `{}`, want: BadSubject},
		"57 account with space":        {subject: "crm.events.ac me.crm_deal_created", body: `{}`, want: BadSubject},
		"57 account of 65":             {subject: "crm.events." + strings.Repeat("a", 65) + ".crm_deal_created", body: `{}`, want: BadSubject},
		"57 upper-case name":           {subject: "crm.events.acme.crm_Deal_created", body: `{}`, want: BadSubject},
		"57 name without action":       {subject: "crm.events.acme.crm_deal", body: `{}`, want: BadSubject},
		"57 name of 65":                {subject: "crm.events.acme.crm_deal_" + strings.Repeat("a", 56), body: `{}`, want: BadSubject},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.subject == "" {
				tc.subject = subject
			}
			if tc.header == nil {
				tc.header = header()
			}
			_, rejected := Parse(Message{Subject: tc.subject, Header: tc.header, Body: []byte(tc.body), Sequence: 1})
			if rejected == nil || rejected.Reason != tc.want {
				t.Fatalf("got %v, want %s", rejected, tc.want)
			}
		})
	}
}

func TestParseKeepsBytes(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"53 numbers":             `{"a":9007199254740993,"b":1e400,"c":-0,"d":1E+2}`,
		"52 invalid UTF-8":       "{\"a\":\"\xff\"}",
		"52 lone surrogate":      `{"a":"\ud800\u0000"}`,
		"51 names in other case": `{"event_name":"crm_deal_created","Event_Name":"y","Transaction_UUID":"a.b"}`,
		"51 other names twice":   `{"a":1,"a":2,"document":{"id":"1"},"document":{"event_name":1,"event_name":2}}`,
		"a member named data":    `{"event_name":"crm_deal_created","specversion":"1.0","id":"1","source":"/","type":"x","data":[]}`,
		"white space":            " {\n\t\"a\" : 1 } \r\n",
		"unknown name accepted":  `{"anything":true}`,
		"49 10,000 levels":       strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000),
		"50 100,000 keys":        `{` + manyKeys(100_000) + `"transaction_uuid":"t-1"}`,
		"50 large key":           `{"` + strings.Repeat("k", 100_000) + `":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ev, rejected := Parse(Message{Subject: subject, Header: header(), Body: []byte(body), Sequence: 1})
			if rejected != nil {
				t.Fatal(rejected)
			}
			if string(ev.Body) != body {
				t.Fatalf("body changed: %q", ev.Body)
			}
		})
	}
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"key-%d":%d,`, i, i)
	}
	return b.String()
}

func TestEventID(t *testing.T) {
	t.Parallel()
	id := func(subject, body string, h func(string) string, seq uint64) string {
		ev, rejected := Parse(Message{Subject: subject, Header: h, Body: []byte(body), Sequence: seq})
		if rejected != nil {
			t.Fatal(rejected)
		}
		return ev.ID
	}
	withUUID := `{"transaction_uuid":"t-1"}`
	base := id(subject, withUUID, header(), 1)
	if want := ID("acme", "crm_deal_created", "t-1"); base != want {
		t.Fatalf("got %s, want %s", base, want)
	}
	if got := id(subject, `{`+manyKeys(100_000)+withUUID[1:], header(), 1); got != base {
		t.Error("row 50: a transaction_uuid behind 100,000 keys counts too")
	}
	if got := id(subject, withUUID, header(HeaderCEID, "other", HeaderMsgID, "more"), 2); got != base {
		t.Error("transaction_uuid must rule over every header")
	}
	if got := id(subject, `{}`, header(HeaderCEID, "t-1", HeaderMsgID, "x"), 3); got != base {
		t.Error("ce-id comes second")
	}
	if got := id(subject, `{}`, header(HeaderMsgID, "t-1"), 4); got != base {
		t.Error("Nats-Msg-Id comes third")
	}
	if got := id(subject, `{}`, header(), 5); got != ID("acme", "crm_deal_created", "CRM_EVENTS/5") {
		t.Error("the stream's sequence comes last")
	}
	if id("crm.events.acme.crm_deal_updated", withUUID, header(), 1) == base {
		t.Error("two events of one change must not share an id")
	}
	if id("crm.events.other.crm_deal_created", withUUID, header(), 1) == base {
		t.Error("two accounts must not share an id")
	}
	wh := uuid.MustParse("0190a5d4-0000-7000-8000-000000000001")
	if NotificationID(base, wh) != NotificationID(base, wh) {
		t.Error("a notification id is deterministic")
	}
	if strings.Contains(NotificationID(base, wh), ".") {
		t.Error("a webhook-id must hold no dot")
	}
}

// TestTraceparent is row 68 of the bad inputs.
func TestTraceparent(t *testing.T) {
	t.Parallel()
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for name, tc := range map[string]struct{ in, want string }{
		"good":           {good, good},
		"none":           {"", ""},
		"upper case":     {strings.ToUpper(good), ""},
		"zero trace":     {"00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""},
		"zero span":      {"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", ""},
		"other version":  {"ff" + good[2:], ""},
		"longer":         {good + "-x", ""},
		"line break":     {good + "\n", ""},
		"10 KB":          {good + strings.Repeat("0", 10<<10), ""},
		"right length":   {strings.Repeat("-", len(good)), ""},
		"control letter": {"00-4bf92f3577b34da6a3ce929d0e0e473\x00-00f067aa0ba902b7-01", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ev, rejected := Parse(Message{Subject: subject, Header: header(HeaderTraceparent, tc.in), Body: []byte("{}"), Sequence: 1})
			if rejected != nil || ev.Traceparent != tc.want {
				t.Errorf("got %q, %v; want %q", ev.Traceparent, rejected, tc.want)
			}
		})
	}
}

func TestKnownNames(t *testing.T) {
	t.Parallel()
	names, err := KnownNames()
	if err != nil || len(names.All()) != 28 {
		t.Fatalf("got %d names, %v, want 28", len(names.All()), err)
	}
	if !names.Has("crm_lost_reason_deleted") || names.Has("crm_lead_deleted") {
		t.Error("wrong list")
	}
	if more, err := KnownNames("crm_lead_deleted", " "); err != nil || !more.Has("crm_lead_deleted") {
		t.Errorf("an added name is missing: %v", err)
	}
	if _, err := KnownNames("Deal"); err == nil {
		t.Error("a malformed name must be refused")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(subject, `{"event_name":"crm_deal_created","transaction_uuid":"x"}`)
	f.Add("crm.events.a.crm_a_b", `[]`)
	f.Fuzz(func(t *testing.T, subject, body string) {
		ev, rejected := Parse(Message{Subject: subject, Header: header(), Body: []byte(body), Sequence: 1})
		if (rejected == nil) != (ev.ID != "") {
			t.Fatal("either an event or a reason")
		}
		if rejected == nil && !strings.Contains(body, string(ev.Body)) {
			t.Fatal("the body is not the bytes that came")
		}
	})
}

func BenchmarkParse(b *testing.B) {
	body := []byte(`{"event_name":"crm_deal_created","document":{"name":"` + strings.Repeat("x", 900) + `"},"event_timestamp":"2026-01-21T20:58:22.000Z","transaction_uuid":"b2fe9543-c69a-4925-9070-c42230f71727"}`)
	m := Message{Subject: subject, Header: header(), Body: body, Sequence: 1}
	b.ReportAllocs()
	for b.Loop() {
		if _, rejected := Parse(m); rejected != nil {
			b.Fatal(rejected)
		}
	}
}
