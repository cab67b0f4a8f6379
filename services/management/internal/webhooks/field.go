package webhooks

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Field is a member of a JSON object that may be absent, null or set.
type Field[T any] struct {
	Present, Null bool
	Value         T
}

// Set returns a field that is set.
func Set[T any](v T) Field[T] { return Field[T]{Present: true, Value: v} }

// UnmarshalJSONFrom reads the member's value.
func (f *Field[T]) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	f.Present = true
	if d.PeekKind() == 'n' {
		f.Null = true
		_, err := d.ReadToken()
		return err
	}
	return json.UnmarshalDecode(d, &f.Value)
}
