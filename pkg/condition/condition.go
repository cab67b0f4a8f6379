package condition

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unique"

	"github.com/tidwall/gjson"
)

// Limits of a webhook's conditions.
const (
	Max           = 25   // conditions
	MaxPathBytes  = 512  // of one path
	MaxValueBytes = 4096 // of one value as JSON
	MaxListed     = 100  // values of in and not_in
)

// Op is an operator.
type Op string

// The operators. Contains and StartsWith are for strings, Contains also for arrays and $changed; a path in
// $changed is contained when it is the value or lies below it.
const (
	Eq         Op = "eq"
	Ne         Op = "ne"
	In         Op = "in"
	NotIn      Op = "not_in"
	Gt         Op = "gt"
	Gte        Op = "gte"
	Lt         Op = "lt"
	Lte        Op = "lte"
	Exists     Op = "exists"
	Contains   Op = "contains"
	StartsWith Op = "starts_with"
)

// Ops returns the operators.
func Ops() []Op { return []Op{Eq, Ne, In, NotIn, Gt, Gte, Lt, Lte, Exists, Contains, StartsWith} }

// The paths that name no member of the body.
const (
	PathChanged = "$changed"
	PathOrigin  = "$origin"
)

// Condition is one condition as its owner wrote it.
type Condition struct {
	Path  string          `json:"path" example:"document.deal_stage.id" doc:"into the body, or $changed or $origin; a dot in a name is written \\."`
	Op    Op              `json:"op" enum:"eq,ne,in,not_in,gt,gte,lt,lte,exists,contains,starts_with"`
	Value json.RawMessage `json:"value" doc:"a string, number, true, false or null; an array of them for in and not_in; true or false for exists"`
}

// String returns the condition as the command line writes it: path, operator and value.
func (c Condition) String() string { return c.Path + " " + string(c.Op) + " " + string(c.Value) }

// Equal reports whether both are the same condition, apart from white space and escapes in the value.
func (c Condition) Equal(o Condition) bool {
	return c.Path == o.Path && c.Op == o.Op && bytes.Equal(canonical(c.Value), canonical(o.Value))
}

// canonical returns a value without white space and with its strings escaped in one way.
func canonical(value json.RawMessage) json.RawMessage {
	switch v := gjson.ParseBytes(value); {
	case v.Type == gjson.String:
		return quoted(v.Str)
	case v.IsArray():
		var list []string
		for _, e := range v.Array() {
			list = append(list, string(canonical(json.RawMessage(e.Raw))))
		}
		return json.RawMessage("[" + strings.Join(list, ",") + "]")
	default:
		return json.RawMessage(v.Raw)
	}
}

// quoted returns the string as JSON.
func quoted(s string) json.RawMessage {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always encodes
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// Problem describes the problem of a condition. Pointer is the place in the list, such as /0/value.
type Problem struct{ Pointer, Code, Detail string }

// Set is a webhook's conditions, compiled. It is immutable; the zero Set holds for every event.
type Set struct{ tests []test }

// test is a compiled condition.
type test struct {
	path     unique.Handle[string]
	segments []string // nil for $changed and $origin
	op       Op
	value    scalar
	listed   map[scalar]struct{} // the values of in and not_in
}

// Compile returns the conditions ready for use, or everything that is wrong with them.
func Compile(conditions []Condition) (Set, []Problem) {
	if len(conditions) > Max {
		return Set{}, []Problem{{"", "too_many_conditions", fmt.Sprintf("a webhook may have %d conditions", Max)}}
	}
	var s Set
	var problems []Problem
	for i, c := range conditions {
		t, p := compile(c)
		if p != nil {
			p.Pointer = fmt.Sprintf("/%d%s", i, p.Pointer)
			problems = append(problems, *p)
			continue
		}
		s.tests = append(s.tests, t)
	}
	if problems != nil {
		return Set{}, problems
	}
	return s, nil
}

func compile(c Condition) (test, *Problem) {
	t := test{path: unique.Make(c.Path), op: c.Op}
	var wrong string
	if t.segments, wrong = split(c.Path); wrong != "" {
		return t, &Problem{"/path", "bad_path", wrong}
	}
	if !slices.Contains(Ops(), c.Op) {
		return t, &Problem{"/op", "bad_op", fmt.Sprintf("op must be one of %s", joined(Ops()))}
	}
	if c.Path == PathChanged && c.Op != Contains && c.Op != Exists {
		return t, &Problem{"/op", "bad_op", "$changed is a set of paths; use contains or exists with it"}
	}
	pointer, wrong := t.read(c)
	if wrong != "" {
		return t, &Problem{"/value" + pointer, "bad_value", wrong}
	}
	return t, nil
}

func joined(ops []Op) string {
	words := make([]string, 0, len(ops))
	for _, o := range ops {
		words = append(words, string(o))
	}
	return strings.Join(words, ", ")
}

// read reads the value and checks that the operator can use it. It returns the place and the text of a problem.
func (t *test) read(c Condition) (pointer, wrong string) {
	switch {
	case len(c.Value) == 0:
		return "", "value is missing"
	case len(c.Value) > MaxValueBytes:
		return "", fmt.Sprintf("value is too long; it may have %d bytes", MaxValueBytes)
	case !json.Valid(c.Value):
		return "", "value is not JSON"
	}
	v := gjson.ParseBytes(c.Value)
	if c.Op == In || c.Op == NotIn {
		return t.readList(v, c.Op)
	}
	if t.value, wrong = readScalar(v); wrong != "" {
		return "", wrong
	}
	switch k := t.value.kind; c.Op {
	case Exists:
		if k != boolean {
			wrong = "exists takes true or false"
		}
	case Gt, Gte, Lt, Lte:
		if k != number && k != text {
			wrong = string(c.Op) + " takes a number or a string"
		}
	case StartsWith:
		if k != text {
			wrong = "starts_with takes a string"
		}
	case Contains:
		if k != text && (c.Path == PathChanged || c.Path == PathOrigin) {
			wrong = "contains takes a string here"
		} else if k == text && t.value.text == "" && c.Path == PathChanged {
			wrong = "give a path below document, such as deal_stage"
		}
	case Eq, Ne, In, NotIn:
	}
	return "", wrong
}

func (t *test) readList(v gjson.Result, op Op) (pointer, wrong string) {
	if !v.IsArray() {
		return "", string(op) + " takes an array of values"
	}
	elements := v.Array()
	if len(elements) == 0 || len(elements) > MaxListed {
		return "", fmt.Sprintf("%s takes 1 to %d values", op, MaxListed)
	}
	t.listed = make(map[scalar]struct{}, len(elements))
	for i, e := range elements {
		s, wrong := readScalar(e)
		if wrong != "" {
			return fmt.Sprintf("/%d", i), wrong
		}
		t.listed[s] = struct{}{}
	}
	return "", ""
}

// readScalar reads a value that a condition compares with.
func readScalar(v gjson.Result) (scalar, string) {
	s := scalarOf(v)
	switch {
	case s.kind == array || s.kind == object:
		return s, "a value is a string, a number, true, false or null"
	case s.kind == number && (s.exp > maxExponent || s.exp < -maxExponent):
		return s, "the exponent of the number is too large"
	}
	return s, ""
}

// split returns the segments of a path, nil for $changed and $origin, or its problem.
func split(path string) (segments []string, wrong string) {
	switch {
	case path == PathChanged, path == PathOrigin:
		return nil, ""
	case path == "":
		return nil, "path is empty; give one such as document.deal_stage.id"
	case len(path) > MaxPathBytes:
		return nil, fmt.Sprintf("path is too long; it may have %d bytes", MaxPathBytes)
	case path[0] == '$':
		return nil, "a path with $ in front is $changed or $origin"
	}
	var segment []byte
	for i := 0; i < len(path); i++ {
		switch c := path[i]; c {
		case '\\':
			if i++; i == len(path) || path[i] != '.' && path[i] != '\\' {
				return nil, `a backslash in a path stands before a dot or a backslash: \. or \\`
			}
			segment = append(segment, path[i])
		case '.':
			if len(segment) == 0 {
				return nil, "path has an empty segment; write one dot between two names"
			}
			segments, segment = append(segments, string(segment)), nil
		default:
			segment = append(segment, c)
		}
	}
	if len(segment) == 0 {
		return nil, "path ends with a dot; a dot in a name is written \\."
	}
	return append(segments, string(segment)), ""
}

// Join returns the path with those segments.
func Join(segments ...string) string {
	escaped := make([]string, 0, len(segments))
	for _, s := range segments {
		escaped = append(escaped, strings.NewReplacer(`\`, `\\`, `.`, `\.`).Replace(s))
	}
	return strings.Join(escaped, ".")
}

// Len returns how many conditions there are.
func (s Set) Len() int { return len(s.tests) }

// Failing returns the index of the first condition that does not hold, -1 when all hold.
func (s Set) Failing(e *Event) int {
	for i := range s.tests {
		if t := &s.tests[i]; !t.holds(e.find(t)) {
			return i
		}
	}
	return -1
}

// Holds reports whether the condition at that index holds, and returns the value it found as JSON: nil when there is
// none, and a string that says its beginning when it is longer than [MaxFoundBytes].
func (s Set) Holds(i int, e *Event) (held bool, value json.RawMessage) {
	f := e.find(&s.tests[i])
	return s.tests[i].holds(f), f.shown()
}

func (t *test) holds(f *found) bool {
	switch t.op {
	case Eq:
		return f.scalar == t.value
	case Ne:
		return f.scalar != t.value
	case In, NotIn:
		_, listed := t.listed[f.scalar]
		return listed == (t.op == In)
	case Gt:
		c, ok := f.compare(&t.value)
		return ok && c > 0
	case Gte:
		c, ok := f.compare(&t.value)
		return ok && c >= 0
	case Lt:
		c, ok := f.compare(&t.value)
		return ok && c < 0
	case Lte:
		c, ok := f.compare(&t.value)
		return ok && c <= 0
	case Exists:
		return (f.kind != missing) == t.value.truth
	case Contains:
		return f.contains(&t.value)
	case StartsWith:
		return f.kind == text && strings.HasPrefix(f.text, t.value.text)
	}
	return false
}
