package condition

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
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
	return Condition{}, fmt.Errorf("%q is not a condition; write a path, an operator (%s) and a value, such as document.amount_total gt 1000",
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
		var list []json.RawMessage
		for part := range strings.SplitSeq(written, ",") {
			list = append(list, Value(Eq, part))
		}
		out, err := json.Marshal(list)
		if err != nil {
			return nil
		}
		return out
	case json.Valid([]byte(written)):
		return json.RawMessage(written)
	}
	out, _ := json.Marshal(written) // a string always encodes
	return out
}
