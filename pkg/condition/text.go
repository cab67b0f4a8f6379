package condition

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// Parse reads a condition as people write it: a path, an operator and a value, with white space between them, such as
// document.amount_total gt 1000. See [Value] for how the value is read.
func Parse(line string) (Condition, error) {
	line = strings.TrimSpace(line)
	for i := range len(line) {
		if line[i] != ' ' && line[i] != '\t' {
			continue
		}
		word, value := strings.TrimLeft(line[i:], " \t"), ""
		if end := strings.IndexAny(word, " \t"); end >= 0 {
			word, value = word[:end], word[end:]
		}
		if op := Op(word); slices.Contains(Ops(), op) {
			return Condition{Path: strings.TrimSpace(line[:i]), Op: op, Value: Value(op, value)}, nil
		}
	}
	return Condition{}, fmt.Errorf("%q is not a condition; write a path, an operator (%s) and a value, such as "+
		"document.amount_total gt 1000",
		line, joined(Ops()))
}

// Value returns the JSON that a value written by hand means: itself when it is JSON, else a string. For in and not_in
// a list may also be written with commas, and exists without a value means true.
func Value(op Op, written string) json.RawMessage {
	written = strings.TrimSpace(written)
	listed := op == In || op == NotIn
	switch {
	case op == Exists && written == "":
		return json.RawMessage("true")
	case listed && json.Valid([]byte(written)) && strings.HasPrefix(written, "["):
		return json.RawMessage(written)
	case listed:
		var list []string
		for part := range strings.SplitSeq(written, ",") {
			list = append(list, string(Value(Eq, part)))
		}
		return json.RawMessage("[" + strings.Join(list, ",") + "]")
	case json.Valid([]byte(written)):
		return json.RawMessage(written)
	}
	return quoted(written)
}

// Written returns the value as people write it: the shortest text from which [Value] makes it again.
func (c Condition) Written() string {
	written := string(canonical(c.Value))
	reads := func(text string) bool {
		return (Condition{Op: c.Op, Value: Value(c.Op, text)}).Equal(Condition{Op: c.Op, Value: c.Value})
	}
	if s, ok := unquoted(c.Value); ok && s != "" && reads(s) {
		return s
	}
	var list []json.RawMessage
	if json.Unmarshal(c.Value, &list) != nil || len(list) == 0 {
		return written
	}
	parts := make([]string, 0, len(list))
	for _, v := range list {
		part := string(v)
		if s, ok := unquoted(v); ok {
			part = s
		}
		parts = append(parts, part)
	}
	if text := strings.Join(parts, ", "); reads(text) {
		return text
	}
	return written
}

func unquoted(value json.RawMessage) (string, bool) {
	var s string
	return s, len(value) > 0 && value[0] == '"' && json.Unmarshal(value, &s) == nil
}

// maxPaths bounds the paths that are suggested of one body.
const maxPaths = 200

// Paths returns paths of an event's body that conditions may use, in the body's order, to suggest them. Of an array
// they name the array and what its first element holds.
func Paths(body []byte) []string {
	var paths []string
	var walk func(v gjson.Result, above []string)
	walk = func(v gjson.Result, above []string) {
		index := 0
		v.ForEach(func(key, member gjson.Result) bool {
			name := key.Str
			if v.IsArray() {
				name = strconv.Itoa(index)
			}
			at := append(slices.Clone(above), name)
			if index++; name != "" && len(at) <= 8 && !(v.IsArray() && !member.IsObject()) {
				if !member.IsObject() {
					paths = append(paths, Join(at...))
				}
				if member.IsObject() || member.IsArray() {
					walk(member, at)
				}
			}
			return len(paths) < maxPaths && !v.IsArray()
		})
	}
	walk(gjson.ParseBytes(body), nil)
	return paths
}
