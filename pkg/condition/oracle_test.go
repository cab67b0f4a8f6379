package condition

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// oracle answers by another way: encoding/json reads the body token by token, big.Rat compares the numbers.
type oracle struct{ body []byte }

// at returns the value at the segments; ok is false when there is none.
func (o oracle) at(segments []string) (value any, raw string, ok bool) {
	raw = string(o.body)
	for _, segment := range segments {
		d := json.NewDecoder(strings.NewReader(raw))
		first, err := d.Token()
		if err != nil {
			return nil, "", false
		}
		found := false
		for i := 0; d.More() && !found; i++ {
			name := strconv.Itoa(i)
			switch first {
			case json.Delim('{'):
				token, _ := d.Token()
				name = fmt.Sprint(token)
			case json.Delim('['):
			default:
				return nil, "", false
			}
			var member json.RawMessage
			if d.Decode(&member) != nil {
				return nil, "", false
			}
			if name == segment {
				raw, found = string(member), true
			}
		}
		if !found {
			return nil, "", false
		}
	}
	d := json.NewDecoder(strings.NewReader(raw))
	d.UseNumber()
	if d.Decode(&value) != nil {
		return nil, "", false
	}
	return value, raw, true
}

func same(a, b any) bool {
	switch a := a.(type) {
	case nil:
		return b == nil
	case bool:
		other, ok := b.(bool)
		return ok && a == other
	case string:
		other, ok := b.(string)
		return ok && a == other
	case json.Number:
		c, ok := order(a, b)
		return ok && c == 0
	}
	return false
}

func order(a, b any) (int, bool) {
	switch a := a.(type) {
	case string:
		if other, ok := b.(string); ok {
			return bytes.Compare([]byte(a), []byte(other)), true
		}
	case json.Number:
		if other, ok := b.(json.Number); ok {
			x, okX := new(big.Rat).SetString(a.String())
			y, okY := new(big.Rat).SetString(other.String())
			return x.Cmp(y), okX && okY
		}
	}
	return 0, false
}

func (o oracle) holds(segments []string, op Op, written json.RawMessage) bool {
	d := json.NewDecoder(bytes.NewReader(written))
	d.UseNumber()
	var want any
	if d.Decode(&want) != nil {
		return false
	}
	got, _, there := o.at(segments)
	in := func(list any) bool {
		values, _ := list.([]any)
		return slices.ContainsFunc(values, func(v any) bool { return same(got, v) })
	}
	c, ordered := order(got, want)
	switch op {
	case Eq:
		return there && same(got, want)
	case Ne:
		return !there || !same(got, want)
	case In:
		return there && in(want)
	case NotIn:
		return !there || !in(want)
	case Gt:
		return there && ordered && c > 0
	case Gte:
		return there && ordered && c >= 0
	case Lt:
		return there && ordered && c < 0
	case Lte:
		return there && ordered && c <= 0
	case Exists:
		return there == (want == any(true))
	case Contains:
		if s, ok := got.(string); ok {
			part, ok := want.(string)
			return ok && strings.Contains(s, part)
		}
		values, ok := got.([]any)
		return ok && slices.ContainsFunc(values, func(v any) bool { return same(v, want) })
	case StartsWith:
		s, ok := got.(string)
		prefix, isText := want.(string)
		return ok && isText && strings.HasPrefix(s, prefix)
	}
	return false
}

// scalars are values that are easily mistaken for one another.
var scalars = []string{
	`null`, `true`, `false`, `""`, `"a"`, `"ab"`, `"\u0061"`, `"\u00e7"`, `"ç"`, `"\ud83d\ude00"`, `"😀"`, `"\ud800"`, `"\ud800\u0041"`, `"\"\\\/\n"`,
	`"1"`, `"null"`, `0`, `-0`, `0.0`, `-0.0e7`, `1`, `1.0`, `10e-1`, `0.1e1`, `-1`, `1.5`, `1.50`, `15e-1`, `100`, `1e2`, `1E+2`, `0.01`, `1e-2`,
	`9007199254740992`, `9007199254740993`, `9007199254740993.0`, `90071992547409930e-1`, `1e400`, `10e399`, `-1e400`, `1e-400`, `0.1e-399`, `123.456`,
	`123456e-3`, `99`, `9.9e1`,
}

var names = []string{"a", "b", "ab", "", "0", "1", "a.b", `a\b`, "*", "#", "?", "@this", "@reverse", "a|b", "ç", "#(a)", "%", "!"}

func randomValue(r *rand.Rand, depth int) string {
	kind := r.IntN(3)
	if depth == 0 || kind == 0 {
		return scalars[r.IntN(len(scalars))]
	}
	var parts []string
	for range r.IntN(5) {
		value := randomValue(r, depth-1)
		if kind == 1 {
			name, _ := json.Marshal(names[r.IntN(len(names))])
			value = string(name) + strings.Repeat(" ", r.IntN(2)) + ":" + value
		}
		parts = append(parts, value)
	}
	space := strings.Repeat("\n", r.IntN(2))
	if kind == 1 {
		return "{" + space + strings.Join(parts, ","+space) + "}"
	}
	return "[" + strings.Join(parts, space+",") + space + "]"
}

func randomCondition(r *rand.Rand) (Condition, []string) {
	var segments []string
	for range 1 + r.IntN(3) {
		if s := names[r.IntN(len(names))]; s != "" {
			segments = append(segments, s)
		}
	}
	if segments == nil {
		segments = []string{"a"}
	}
	c := Condition{Path: Join(segments...), Op: Ops()[r.IntN(len(Ops()))]}
	value := func() string { return scalars[r.IntN(len(scalars))] }
	c.Value = json.RawMessage(value())
	switch c.Op {
	case In, NotIn:
		c.Value = json.RawMessage("[" + value() + "," + value() + ", " + value() + "]")
	case Exists:
		c.Value = json.RawMessage(strconv.FormatBool(r.IntN(2) == 0))
	case Eq, Ne, Gt, Gte, Lt, Lte, Contains, StartsWith:
	}
	return c, segments
}

// TestOracle compares random conditions on random bodies with the oracle.
func TestOracle(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	checked, held := 0, 0
	for range 20_000 {
		raw := []byte(`{"a":` + randomValue(r, 3) + `,"b":` + randomValue(r, 2) + `,"a":1}`)
		e := NewEvent(raw, nil, "")
		for range 5 {
			c, segments := randomCondition(r)
			s, problems := Compile([]Condition{c})
			if problems != nil { // such as gt null
				continue
			}
			want := oracle{raw}.holds(segments, c.Op, c.Value)
			got, _ := s.Holds(0, e)
			if got != want {
				t.Fatalf("seed %d: %s on %s: %v, the oracle says %v", seed, c, raw, got, want)
			}
			checked++
			if got {
				held++
			}
		}
	}
	if checked < 50_000 || held < checked/20 {
		t.Errorf("%d conditions checked, %d held: too few to mean something", checked, held)
	}
}

// FuzzDecimal compares how numbers compare with big.Rat.
func FuzzDecimal(f *testing.F) {
	for _, a := range scalars {
		f.Add(a, "1")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, n := range []string{a, b} {
			if !json.Valid([]byte(n)) || strings.Trim(n, "-+.eE0123456789") != "" || len(n) > 40 {
				return
			}
			if at := strings.IndexAny(n, "eE"); at >= 0 && len(n)-at > 5 {
				return // big.Rat would take too long
			}
		}
		x, y := decimal(strings.TrimSpace(a)), decimal(strings.TrimSpace(b))
		got, ok := x.compare(&y)
		want, _ := order(json.Number(a), json.Number(b))
		if !ok || got != want || (x == y) != (want == 0) {
			t.Errorf("%s and %s: %d, equal %v; want %d", a, b, got, x == y, want)
		}
	})
}

// TestFarExponents compares numbers that no big.Rat can hold.
func TestFarExponents(t *testing.T) {
	t.Parallel()
	ascending := []string{
		"-1e99999999999999999999", "-1e1000000000000", "-1", "-1e-99999999999999999999", "0e99999999999999999999",
		"1e-99999999999999999999", "1e-1000000000000", "1", "9e999999999999", "1e1000000000000", "1e99999999999999999999",
	}
	for i, a := range ascending {
		for j, b := range ascending {
			x, y := decimal(a), decimal(b)
			if got, ok := x.compare(&y); !ok || got != cmp.Compare(i, j) {
				t.Errorf("%s and %s: %d", a, b, got)
			}
		}
	}
}

// BenchmarkFailing is what conditions cost: webhooks with 5 conditions each, on 30 distinct paths of one event. In the
// worst case all conditions hold; in the usual one the first or second does not.
func BenchmarkFailing(b *testing.B) {
	var members []string
	for i := range 30 {
		members = append(members, fmt.Sprintf(`"field_%d":%d,"other_%d":{"id":"%d","name":"Some name of it %d"}`, i, i*1000, i, i, i))
	}
	event := []byte(`{"event_name":"crm_deal_updated","document":{` + strings.Join(members, ",") + `},"transaction_uuid":"x"}`)
	for _, hooks := range []int{1, 1_000, 20_000} {
		for _, all := range []bool{true, false} {
			b.Run(fmt.Sprintf("webhooks=%d/held=%v", hooks, all), func(b *testing.B) {
				r := rand.New(rand.NewPCG(1, 2))
				sets := make([]Set, hooks)
				for i := range sets {
					var list []Condition
					for range 5 {
						at := r.IntN(30)
						c := Condition{Path: fmt.Sprintf("document.field_%d", at), Op: Gte, Value: json.RawMessage(strconv.Itoa(at * 1000))}
						if r.IntN(2) == 0 {
							c = Condition{Path: fmt.Sprintf("document.other_%d.id", at%15), Op: Eq, Value: json.RawMessage(fmt.Sprintf(`"%d"`, at%15))}
						}
						if !all && r.IntN(2) == 0 {
							c.Op = Ne
							if c.Path[9] == 'f' {
								c.Op = Lt
							}
						}
						list = append(list, c)
					}
					s, problems := Compile(list)
					if problems != nil {
						b.Fatal(problems)
					}
					sets[i] = s
				}
				b.ReportAllocs()
				held := 0
				for b.Loop() {
					e := NewEvent(event, nil, "")
					for i := range sets {
						if sets[i].Failing(e) == -1 {
							held++
						}
					}
				}
				if all && held == 0 {
					b.Error("nothing held")
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(hooks), "ns/webhook")
			})
		}
	}
}
