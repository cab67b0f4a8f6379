package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"gancho/pkg/event"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

// maxBodyBytes limits the bodies of all calls but ingest.
const maxBodyBytes = 1 << 20

// charsets are the names that programs give to UTF-8, or to a part of it.
var charsets = []string{"", "utf-8", "utf8", "us-ascii"}

// readBody returns the request's body of at most limit bytes, in UTF-8 and of one of the media types, which are
// application/json if none is given. The wrapper of a CloudEvent does not count against the limit.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, types ...string) ([]byte, error) {
	if len(types) == 0 {
		types = []string{"application/json"}
	} else {
		limit += event.Headroom
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, problem.New(problem.TooLarge, "too_large",
			fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit))
	}
	if err != nil {
		return nil, &problem.Error{Kind: problem.Malformed, Cause: err, Problems: []problem.Problem{{
			Code: "bad_body", Detail: "the body could not be read to its end",
		}}}
	}
	if len(body) == 0 {
		return nil, nil
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !slices.Contains(types, media) || !slices.Contains(charsets, strings.ToLower(params["charset"])) {
		return nil, problem.New(problem.Unsupported, "unsupported_media_type",
			"send the body as Content-Type: "+strings.Join(types, " or ")+", in UTF-8")
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return nil, problem.New(problem.Unsupported, "unsupported_encoding", "send the body without Content-Encoding")
	}
	return body, nil
}

// decode reads {"data": ...} into v. JSON that is broken or ambiguous (unknown members, names that differ in
// case, the same member twice, anything after the value, bytes that are not UTF-8) is 400; a value of the
// wrong type is 422.
func decode[T any](body []byte, v *T) error {
	if len(body) == 0 {
		return problem.New(problem.Malformed, "empty_body", `the body is empty; send {"data": {...}}`)
	}
	var envelope struct {
		Data webhooks.Field[T] `json:"data"`
	}
	if err := unmarshal(body, &envelope); err != nil {
		return outsideData(err)
	}
	if !envelope.Data.Present || envelope.Data.Null {
		return problem.At(problem.Invalid, "/data", "required", `data is missing; send {"data": {...}}`)
	}
	*v = envelope.Data.Value
	return nil
}

// decodeOptional reads {"data": ...} as decode does. It leaves v alone when data is null.
func decodeOptional[T any](body []byte, v *T) error {
	var envelope struct {
		Data webhooks.Field[T] `json:"data"`
	}
	if err := unmarshal(body, &envelope); err != nil {
		return outsideData(err)
	}
	if !envelope.Data.Present {
		return problem.At(problem.Invalid, "/data", "required", `data is missing; send no body, or {"data": {...}}`)
	}
	*v = envelope.Data.Value
	return nil
}

// mark is the byte order mark that some programs begin a text with.
const mark = "\ufeff"

// unmarshal reads a body into v. A byte order mark at its beginning is no part of it (RFC 8259, section 8.1).
func unmarshal(body []byte, v any) error {
	return json.Unmarshal(bytes.TrimPrefix(body, []byte(mark)), v, json.RejectUnknownMembers(true), json.WithUnmarshalers(wholeNumbers))
}

// wholeNumbers takes 60.0 and 6e1 for the whole numbers that they are: some programs write all numbers so.
var wholeNumbers = json.UnmarshalFromFunc(func(d *jsontext.Decoder, v *int) error {
	if d.PeekKind() != '0' {
		return json.SkipFunc
	}
	token, err := d.ReadToken()
	if err != nil {
		return err
	}
	f, err := strconv.ParseFloat(token.String(), 64)
	const exact = 1 << 53
	if err != nil || f != math.Trunc(f) || math.Abs(f) > exact {
		return &json.SemanticError{GoType: reflect.TypeFor[int](), Err: errNoWhole}
	}
	*v = int(f)
	return nil
})

var errNoWhole = errors.New("no whole number")

// outsideData is badJSON for a body whose members should stand inside data.
func outsideData(err error) error {
	semantic, ok := errors.AsType[*json.SemanticError](err)
	if ok && errors.Is(err, json.ErrUnknownName) && semantic.JSONPointer.Parent() == "" {
		return problem.At(problem.Malformed, bounded(semantic.JSONPointer), "unknown_member",
			`this member is outside data; send {"data": {...}}, with all members inside`)
	}
	return badJSON(err)
}

func badJSON(err error) error {
	if semantic, ok := errors.AsType[*json.SemanticError](err); ok {
		pointer := bounded(semantic.JSONPointer)
		if errors.Is(err, json.ErrUnknownName) {
			return problem.At(problem.Malformed, pointer, "unknown_member",
				"this member is unknown or cannot be set; names are case-sensitive")
		}
		return problem.At(problem.Invalid, pointer, "wrong_type",
			"this value has the wrong type; give "+wanted(semantic.GoType))
	}
	pointer, code, detail := "", "bad_json", "the body is not one well-formed JSON value in UTF-8"
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		pointer = bounded(syntactic.JSONPointer)
		detail += fmt.Sprintf(" (at byte %d)", syntactic.ByteOffset)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			code, detail = "duplicate_member", "this member stands more than once in its object"
		}
	}
	return problem.At(problem.Malformed, pointer, code, detail)
}

// maxPointerBytes bounds how much of a client's own names an answer repeats.
const maxPointerBytes = 128

// bounded returns the pointer, or the innermost of its parents that is short enough.
func bounded(p jsontext.Pointer) string {
	for len(p) > maxPointerBytes {
		p = p.Parent()
	}
	return string(p)
}

// wanted names a Go type in the words of JSON.
func wanted(t reflect.Type) string {
	if t == nil {
		return "another one"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	default:
		return "another one"
	}
}
