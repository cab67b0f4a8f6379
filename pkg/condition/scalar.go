package condition

import (
	"cmp"
	"strings"

	"github.com/tidwall/gjson"
)

// kind is the kind of a value.
type kind uint8

const (
	missing kind = iota
	null
	boolean
	number
	text
	array
	object
	changed // the paths of $changed
)

// scalar is a value in normal form: two are the same value of the same kind when they are ==. Arrays and objects have
// none, and conditions never compare with them.
type scalar struct {
	kind  kind
	truth bool // of a boolean; of a number: it is negative
	// text is a string's bytes, or the significant digits of a number: it is 0.<text> x 10^exp, and zero without any.
	text string
	exp  int64
}

func scalarOf(v gjson.Result) scalar {
	switch v.Type {
	case gjson.Null:
		if v.Raw == "" {
			return scalar{}
		}
		return scalar{kind: null}
	case gjson.True, gjson.False:
		return scalar{kind: boolean, truth: v.Type == gjson.True}
	case gjson.String:
		return scalar{kind: text, text: v.Str}
	case gjson.Number:
		return decimal(v.Raw)
	case gjson.JSON:
		if v.IsArray() {
			return scalar{kind: array}
		}
	}
	return scalar{kind: object}
}

const (
	// maxExponent bounds the exponents of conditions.
	maxExponent = 1e12
	// farExponent stands for every exponent in a body that is far outside that: such numbers are compared only with
	// those of conditions, never with one another. It leaves room for a body's digits.
	farExponent = 1 << 50
)

// decimal reads a number of JSON.
func decimal(raw string) scalar {
	s := scalar{kind: number}
	raw, s.truth = strings.CutPrefix(raw, "-")
	mantissa, exponent := raw, ""
	if at := strings.IndexAny(raw, "eE"); at >= 0 {
		mantissa, exponent = raw[:at], raw[at+1:]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	whole = strings.TrimLeft(whole, "0")
	fraction = strings.TrimRight(fraction, "0")
	switch {
	case whole == "":
		s.text = strings.TrimLeft(fraction, "0")
		s.exp = int64(len(s.text) - len(fraction))
	case fraction == "":
		s.text = strings.TrimRight(whole, "0")
		s.exp = int64(len(whole))
	default:
		s.text = whole + fraction
		s.exp = int64(len(whole))
	}
	if s.text == "" {
		return scalar{kind: number} // zero has neither sign nor exponent
	}
	s.exp += exponentOf(exponent)
	return s
}

func exponentOf(raw string) int64 {
	raw, negative := strings.CutPrefix(strings.TrimPrefix(raw, "+"), "-")
	raw = strings.TrimLeft(raw, "0")
	n := int64(0)
	for _, digit := range []byte(raw) {
		if n = 10*n + int64(digit-'0'); n > farExponent {
			n = farExponent
			break
		}
	}
	if negative {
		return -n
	}
	return n
}

// compare orders two numbers or two strings; ok is false for anything else.
func (s *scalar) compare(o *scalar) (c int, ok bool) {
	switch {
	case s.kind != o.kind:
		return 0, false
	case s.kind == text:
		return strings.Compare(s.text, o.text), true
	case s.kind != number:
		return 0, false
	case s.sign() != o.sign():
		return cmp.Compare(s.sign(), o.sign()), true
	case s.exp != o.exp:
		if s.exp > o.exp {
			return s.sign(), true
		}
		return -s.sign(), true
	}
	return s.sign() * strings.Compare(s.text, o.text), true
}

// sign is -1, 0 or 1.
func (s *scalar) sign() int {
	switch {
	case s.text == "":
		return 0
	case s.truth:
		return -1
	}
	return 1
}
