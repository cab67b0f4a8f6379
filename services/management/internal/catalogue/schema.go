package catalogue

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// draft is the dialect of the schemas.
const draft = "https://json-schema.org/draft/2020-12/schema"

// schemaOf returns a schema that the sample satisfies. It says of each member which type it has in the sample.
// Receivers get more members in time and fewer where the CRM left one out, so none below document is required.
func schemaOf(name string, sample []byte) (json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(sample))
	d.UseNumber()
	var body map[string]any
	if err := d.Decode(&body); err != nil {
		return nil, err
	}
	s := infer(body)
	s["$schema"] = draft
	s["title"] = name
	var required []string
	for _, member := range []string{"document", "event_name", "event_timestamp", "transaction_uuid"} {
		if _, ok := body[member]; ok {
			required = append(required, member)
		}
	}
	if len(required) > 0 {
		s["required"] = required
	}
	if members, ok := s["properties"].(map[string]any); ok {
		if _, ok := members["event_name"]; ok {
			members["event_name"] = map[string]any{"type": "string", "const": name}
		}
	}
	return json.Marshal(s)
}

func infer(v any) map[string]any {
	switch v := v.(type) {
	case map[string]any:
		s := map[string]any{"type": "object"}
		if len(v) > 0 {
			members := map[string]any{}
			for name, value := range v {
				members[name] = infer(value)
			}
			s["properties"] = members
		}
		return s
	case []any:
		s := map[string]any{"type": "array"}
		if len(v) > 0 {
			s["items"] = merged(v)
		}
		return s
	case string:
		if _, err := time.Parse(time.RFC3339, v); err == nil {
			return map[string]any{"type": "string", "format": "date-time"}
		}
		return map[string]any{"type": "string"}
	case json.Number:
		return map[string]any{"type": "number"}
	case bool:
		return map[string]any{"type": "boolean"}
	}
	return map[string]any{} // null: the sample says nothing of its type
}

// merged is the schema of an array's items: that of all of them where they agree, else of none.
func merged(items []any) map[string]any {
	first, err := json.Marshal(infer(items[0]))
	if err != nil {
		return map[string]any{}
	}
	for _, item := range items[1:] {
		other, err := json.Marshal(infer(item))
		if err != nil || !bytes.Equal(first, other) {
			return map[string]any{"type": slices.Sorted(maps.Keys(kinds(items)))}
		}
	}
	return infer(items[0])
}

func kinds(items []any) map[string]bool {
	all := map[string]bool{}
	for _, item := range items {
		if kind, ok := infer(item)["type"].(string); ok {
			all[kind] = true
		} else {
			all["null"] = true
		}
	}
	return all
}
