package condition

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const body = `{
	"event_name": "crm_deal_updated",
	"document": {
		"id": "d1", "amount_total": 1000.50, "big": 9007199254740993, "huge": 1e400, "zero": -0, "flag": true, "none": null,
		"deal_stage": {"id": "s1", "name": "Negocia\u00e7\u00e3o"}, "tags": ["new", "vip", 7, null, true, "a\"b"],
		"dot.ted": "yes", "back\\slash": "yes", "*": "star", "#": "hash", "a|b": "pipe", "@this": "modifier", "0": "zero",
		"twice": 1, "twice": 2, "at": "2026-11-05T19:03:09.000Z", "empty": "", "nested": [[1, 2], {"x": "y"}], "": "nameless"
	}
}`

// TestHolds holds one condition at a time against one event.
func TestHolds(t *testing.T) {
	t.Parallel()
	e := NewEvent([]byte(body), []string{"deal_stage", "custom_fields.cf1.value", "amount"}, "erp:1")
	for line, want := range map[string]bool{
		// Paths are literal.
		`document.id eq d1`:                         true,
		`document.deal_stage.id eq "s1"`:            true,
		`document.deal_stage.name eq Negociação`:    true,
		`document.dot\.ted eq yes`:                  true,
		`document.dot.ted exists true`:              false,
		`document.back\\slash eq yes`:               true,
		`document.* eq star`:                        true,
		`document.# eq hash`:                        true,
		`document.a|b eq pipe`:                      true,
		`document.@this eq modifier`:                true,
		`document.d* exists`:                        false,
		`document.tags.# exists`:                    false,
		`document.0 eq zero`:                        true,
		`document.tags.0 eq new`:                    true,
		`document.tags.01 exists`:                   false,
		`document.tags.+1 exists`:                   false,
		`document.tags.-1 exists`:                   false,
		`document.tags.6 exists`:                    false,
		`document.tags.99999999999999999999 exists`: false,
		`document.nested.0.1 eq 2`:                  true,
		`document.nested.1.x eq y`:                  true,
		`document.id.x exists`:                      false,
		`document exists`:                           true,
		`document.twice eq 1`:                       true,
		`document.twice ne 2`:                       true,
		`Document.id exists`:                        false,
		// Numbers compare as numbers.
		`document.amount_total eq 1000.5`:   true,
		`document.amount_total eq 10005e-1`: true,
		`document.amount_total gt 1000`:     true,
		`document.amount_total gt 1000.5`:   false,
		`document.amount_total gte 1000.5`:  true,
		`document.amount_total lt 1000.51`:  true,
		`document.amount_total lte 1000.5`:  true,
		`document.amount_total gt -5`:       true,
		`document.amount_total eq "1000.5"`: false,
		`document.amount_total gt "1"`:      false,
		`document.big eq 9007199254740993`:  true,
		`document.big eq 9007199254740992`:  false,
		`document.big gt 9007199254740992`:  true,
		`document.huge eq 1e400`:            true,
		`document.huge eq 10e399`:           true,
		`document.huge gt 9.99e399`:         true,
		`document.huge lt 1.0001e400`:       true,
		`document.zero eq 0`:                true,
		`document.zero eq 0.0e5`:            true,
		`document.zero lt 1e-400`:           true,
		`document.zero gt -1e-400`:          true,
		`document.zero in [0]`:              true,
		// Strings compare by their bytes.
		`document.at gt 2026-11-05T19:03:08.999Z`: true,
		`document.at lt 2026-11-05T19:03:08.999Z`: false,
		`document.empty eq ""`:                    true,
		`document.empty exists`:                   true,
		`document.id starts_with d`:               true,
		`document.id starts_with D`:               false,
		`document.id contains ""`:                 true,
		`document.flag starts_with t`:             false,
		// Booleans and null.
		`document.flag eq true`:      true,
		`document.flag ne false`:     true,
		`document.flag eq "true"`:    false,
		`document.flag gt 0`:         false,
		`document.none eq null`:      true,
		`document.none exists`:       true,
		`document.none exists false`: false,
		`document.none ne 1`:         true,
		`document.none in [1,null]`:  true,
		`document.none lt 1`:         false,
		// Missing members.
		`document.gone exists`:         false,
		`document.gone exists false`:   true,
		`document.gone eq null`:        false,
		`document.gone ne null`:        true,
		`document.gone ne x`:           true,
		`document.gone in [null]`:      false,
		`document.gone not_in [null]`:  true,
		`document.gone lt 5`:           false,
		`document.gone contains x`:     false,
		`document.gone starts_with ""`: false,
		`document.gone.further ne x`:   true,
		// Lists.
		`document.id in d0,d1`:                  true,
		`document.id not_in d0,d1`:              false,
		`document.amount_total in 1000.50,7`:    true,
		`document.deal_stage in [1]`:            false,
		`document.deal_stage ne 1`:              true,
		`document.deal_stage not_in ["a"]`:      true,
		`document.tags contains vip`:            true,
		`document.tags contains vi`:             false,
		`document.tags contains 7.0`:            true,
		`document.tags contains "7"`:            false,
		`document.tags contains null`:           true,
		`document.tags contains true`:           true,
		`document.tags contains false`:          false,
		`document.tags contains "a\"b"`:         true,
		`document.deal_stage.name contains ção`: true,
		`document.deal_stage contains s1`:       false,
		`document.flag contains true`:           false,
		// The CRM's headers.
		`$changed contains deal_stage`:        true,
		`$changed contains deal`:              false,
		`$changed contains deal_stage.id`:     false,
		`$changed contains custom_fields`:     true,
		`$changed contains custom_fields.cf1`: true,
		`$changed contains custom_fields.cf`:  false,
		`$changed exists`:                     true,
		`$origin eq erp:1`:                    true,
		`$origin ne erp:1`:                    false,
		`$origin starts_with erp:`:            true,
		`$origin not_in erp:1,erp:2`:          false,
	} {
		c, err := Parse(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		s, problems := Compile([]Condition{c})
		if problems != nil {
			t.Errorf("%s: %v", line, problems)
			continue
		}
		if got := s.Failing(e) == -1; got != want {
			t.Errorf("%s: held %v, want %v", line, got, want)
		}
	}
}

// TestHeadersAreOptional holds conditions against an event whose publisher sent no headers.
func TestHeadersAreOptional(t *testing.T) {
	t.Parallel()
	e := NewEvent([]byte(`{}`), nil, "")
	for line, want := range map[string]bool{
		`$changed exists`: false, `$changed exists false`: true, `$changed contains x`: false,
		`$origin exists`: false, `$origin ne erp`: true, `$origin not_in erp`: true, `$origin eq erp`: false,
	} {
		if s := compiled(t, line); (s.Failing(e) == -1) != want {
			t.Errorf("%s: held %v", line, !want)
		}
	}
}

func compiled(t testing.TB, lines ...string) Set {
	t.Helper()
	var list []Condition
	for _, line := range lines {
		c, err := Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	s, problems := Compile(list)
	if problems != nil {
		t.Fatal(problems)
	}
	return s
}

func TestAllMustHold(t *testing.T) {
	t.Parallel()
	e := NewEvent([]byte(body), nil, "")
	s := compiled(t, "document.id eq d1", "document.amount_total gt 1e9", "document.flag eq false")
	if got := s.Failing(e); got != 1 {
		t.Errorf("condition %d fails first, want 1", got)
	}
	if (Set{}).Failing(e) != -1 {
		t.Error("no conditions, and yet one fails")
	}
	for i, want := range []string{`true "d1"`, `false 1000.50`, `false true`} {
		held, found := s.Holds(i, e)
		if got := fmt.Sprintf("%v %s", held, found); got != want {
			t.Errorf("condition %d: %s, want %s", i, got, want)
		}
	}
}

func TestFound(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ç", 2000)
	e := NewEvent([]byte(`{"s":"`+long+`","a":[`+strings.Repeat("1,", 2000)+`1],"bad":"`+"\xff"+`"}`), []string{"a", "b.c"}, "erp")
	for path, want := range map[string]string{
		"s": `"` + long[:MaxFoundBytes] + `…"`, "a": `"[` + strings.Repeat("1,", 511) + `1…"`, "bad": "\"\uFFFD\"",
		"$changed": `["a","b.c"]`, "$origin": `"erp"`, "gone": "",
	} {
		_, found := compiled(t, path+" exists").Holds(0, e)
		if string(found) != want {
			t.Errorf("%s: found %s, want %s", path, found, want)
		}
		if found != nil && !json.Valid(found) {
			t.Errorf("%s: found is not JSON", path)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	path, value := strings.Repeat("a", MaxPathBytes+1), `"`+strings.Repeat("a", MaxValueBytes)+`"`
	list := "[" + strings.Repeat("1,", MaxListed) + "1]"
	for _, c := range []struct {
		path, op, value string
		pointer, code   string
	}{
		{"", "eq", "1", "/0/path", "bad_path"},
		{"a..b", "eq", "1", "/0/path", "bad_path"},
		{".a", "eq", "1", "/0/path", "bad_path"},
		{"a.", "eq", "1", "/0/path", "bad_path"},
		{`a\`, "eq", "1", "/0/path", "bad_path"},
		{`a\b`, "eq", "1", "/0/path", "bad_path"},
		{"$event", "eq", "1", "/0/path", "bad_path"},
		{path, "eq", "1", "/0/path", "bad_path"},
		{"a", "like", "1", "/0/op", "bad_op"},
		{"a", "", "1", "/0/op", "bad_op"},
		{"$changed", "eq", `"a"`, "/0/op", "bad_op"},
		{"$changed", "contains", `""`, "/0/value", "bad_value"},
		{"$changed", "contains", "1", "/0/value", "bad_value"},
		{"a", "eq", "", "/0/value", "bad_value"},
		{"a", "eq", "{", "/0/value", "bad_value"},
		{"a", "eq", "[1]", "/0/value", "bad_value"},
		{"a", "eq", "{}", "/0/value", "bad_value"},
		{"a", "eq", value, "/0/value", "bad_value"},
		{"a", "gt", "true", "/0/value", "bad_value"},
		{"a", "lt", "null", "/0/value", "bad_value"},
		{"a", "gt", "1e9999999999999", "/0/value", "bad_value"},
		{"a", "exists", "1", "/0/value", "bad_value"},
		{"a", "starts_with", "1", "/0/value", "bad_value"},
		{"a", "in", "1", "/0/value", "bad_value"},
		{"a", "in", "[]", "/0/value", "bad_value"},
		{"a", "in", list, "/0/value", "bad_value"},
		{"a", "not_in", "[1,[2]]", "/0/value/1", "bad_value"},
	} {
		_, problems := Compile([]Condition{{c.path, Op(c.op), json.RawMessage(c.value)}})
		if len(problems) != 1 || problems[0].Pointer != c.pointer || problems[0].Code != c.code {
			t.Errorf("%.20q %s %.20s: %v, want %s at %s", c.path, c.op, c.value, problems, c.code, c.pointer)
		}
	}
	if _, problems := Compile(make([]Condition, Max+1)); len(problems) != 1 || problems[0].Code != "too_many_conditions" {
		t.Errorf("too many: %v", problems)
	}
	good := Condition{"a", Eq, json.RawMessage("1")}
	if _, problems := Compile([]Condition{good, {"", Eq, nil}, good, {"a", "x", nil}}); len(problems) != 2 || problems[1].Pointer != "/3/op" {
		t.Errorf("not all problems, or at wrong places: %v", problems)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"document.amount gt 1000":        `{"path":"document.amount","op":"gt","value":1000}`,
		"  document.name  eq  José  da ": `{"path":"document.name","op":"eq","value":"José  da"}`,
		`document.name eq "1"`:           `{"path":"document.name","op":"eq","value":"1"}`,
		"document.in\tin\t1, x,null":     `{"path":"document.in","op":"in","value":[1,"x",null]}`,
		`a in ["a,b"]`:                   `{"path":"a","op":"in","value":["a,b"]}`,
		"two words exists":               `{"path":"two words","op":"exists","value":true}`,
		"a exists false":                 `{"path":"a","op":"exists","value":false}`,
		"a eq":                           `{"path":"a","op":"eq","value":""}`,
		"a equals 1":                     "",
		"eq 1":                           "",
		"":                               "",
	} {
		got := ""
		if c, err := Parse(line); err == nil {
			out, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			got = string(out)
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("%q: %s", line, diff)
		}
	}
}

// TestSearchesAreBounded searches one long string for many conditions: indexed, they find the same.
func TestSearchesAreBounded(t *testing.T) {
	t.Parallel()
	e := NewEvent([]byte(`{"s":"`+strings.Repeat("ab", longString)+`needle"}`), nil, "")
	for i := range 3 * manySearches {
		if compiled(t, "s contains needle").Failing(e) != -1 || compiled(t, "s contains "+fmt.Sprint("x", i)).Failing(e) == -1 ||
			compiled(t, `s contains ""`).Failing(e) != -1 {
			t.Fatalf("search %d found something else", i)
		}
	}
	if e.looked[compiled(t, "s exists").tests[0].path].index == nil {
		t.Error("there is no index")
	}
}

func TestWritten(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		`"José"`: "José", `"1"`: `"1"`, `"true"`: `"true"`, `""`: `""`, `" a"`: `" a"`, `1.50`: "1.50", `null`: "null", `"a, b"`: "a, b", `"<"`: "<",
	} {
		c := Condition{Path: "a", Op: Eq, Value: json.RawMessage(value)}
		if got := c.Written(); got != want || !c.Equal(Condition{"a", Eq, Value(Eq, got)}) {
			t.Errorf("%s: written %s, want %s, which is %s again", value, got, want, Value(Eq, got))
		}
	}
	for value, want := range map[string]string{
		`["a",1,null]`: "a, 1, null", `["a,b"]`: `["a,b"]`, `["1",1]`: `["1",1]`, `[ 1, 2 ]`: "1, 2", `["\u003c", "ç"]`: "<, ç", `["x y"]`: "x y",
	} {
		c := Condition{Path: "a", Op: In, Value: json.RawMessage(value)}
		if got := c.Written(); got != want || !c.Equal(Condition{"a", In, Value(In, got)}) {
			t.Errorf("%s: written %s, want %s, which is %s again", value, got, want, Value(In, got))
		}
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	got := Paths([]byte(`{"event_name":"x","document":{"id":"1","deal.stage":{"id":"2"},"tags":["a","b"],"products":[{"id":3,"price":4},{"other":5}],"empty":[],"none":null,"":1}}`))
	want := []string{
		"event_name", "document.id", `document.deal\.stage.id`, "document.tags", "document.products", "document.products.0.id", "document.products.0.price",
		"document.empty", "document.none",
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
}
