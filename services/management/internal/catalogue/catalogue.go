// Package catalogue describes the known events: the meaning, a sample body and a schema of each. The API, the
// OpenAPI document and the console show it, and test deliveries send its samples.
package catalogue

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gancho/pkg/event"
	"gancho/pkg/event/samples"
)

// Type is one kind of event.
type Type struct {
	Name        string          `json:"name"`
	Entity      string          `json:"entity"`
	Action      string          `json:"action"`
	Description Description     `json:"description"`
	Sample      json.RawMessage `json:"sample" doc:"a whole body"`
	Schema      json.RawMessage `json:"schema" doc:"JSON Schema 2020-12 of the body; the sample satisfies it"`
}

// Description says in two languages when the event happens.
type Description struct {
	EN string `json:"en"`
	PT string `json:"pt-BR"`
}

// Catalogue holds the known events. It is immutable.
type Catalogue struct {
	names event.Names
	types []Type // by name
}

// The transaction and the time of the samples that have none of their own.
const sampleTransaction = "b2fe9543-c69a-4925-9070-c42230f71727"

var sampleTime = time.Date(2026, 11, 5, 19, 3, 9, 0, time.UTC)

// New returns the events that RD Station documents, the names in extra, and those of the folder dir, "" for none.
//
// A file of the folder is called <event_name>.json and holds a sample body, or {"description": {"en", "pt-BR"},
// "sample": {...}}. The error names every file that cannot be used and every malformed name.
func New(extra []string, dir string) (*Catalogue, error) {
	own, err := read(dir)
	names := slices.Clone(extra)
	for name := range own {
		names = append(names, name)
	}
	known, nameErr := event.KnownNames(names...)
	if err := errors.Join(err, nameErr); err != nil {
		return nil, err
	}
	c := &Catalogue{names: known}
	for _, name := range known.All() {
		t := Type{Name: name}
		t.Entity, t.Action = split(name)
		t.Description = describe(name, t.Entity, t.Action)
		t.Sample = samples.Event(name, sampleTransaction, sampleTime)
		if file, ok := own[name]; ok {
			t.Sample = file.Sample
			if file.Description != (Description{}) {
				t.Description = file.Description
			}
		}
		if t.Schema, err = schemaOf(name, t.Sample); err != nil {
			return nil, fmt.Errorf("schema of %s: %w", name, err)
		}
		c.types = append(c.types, t)
	}
	return c, nil
}

// Names returns the names of the events.
func (c *Catalogue) Names() event.Names { return c.names }

// Types returns the events by name. The slice must not be changed.
func (c *Catalogue) Types() []Type { return c.types }

// Type returns the event of that name.
func (c *Catalogue) Type(name string) (Type, bool) {
	at, found := slices.BinarySearchFunc(c.types, name, func(t Type, name string) int {
		return strings.Compare(t.Name, name)
	})
	if !found {
		return Type{}, false
	}
	return c.types[at], true
}

// Event returns the body of a sample event as if it had happened at that time; see samples.Event.
func (c *Catalogue) Event(name, transaction string, at time.Time) []byte {
	if t, ok := c.Type(name); ok {
		if body, err := samples.Renew(t.Sample, name, transaction, at); err == nil {
			return body
		}
	}
	return samples.Event(name, transaction, at)
}

// file is one of the operator's.
type file struct {
	Description Description     `json:"description"`
	Sample      json.RawMessage `json:"sample"`
}

// maxFileBytes bounds the file of an event.
const maxFileBytes = 1 << 20

func read(dir string) (map[string]file, error) {
	if dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string]file{}
	var problems []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if e.IsDir() || !ok {
			continue
		}
		f, err := readFile(filepath.Join(dir, e.Name()), name)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", e.Name(), err))
			continue
		}
		files[name] = f
	}
	return files, errors.Join(problems...)
}

func readFile(path, name string) (file, error) {
	if !event.ValidName(name) {
		return file{}, errors.New("the file is not named after an event: crm_<entity>_<action>.json")
	}
	body, err := os.ReadFile(path)
	switch {
	case err != nil:
		return file{}, err
	case len(body) > maxFileBytes:
		return file{}, fmt.Errorf("it has %d bytes; at most %d are read", len(body), maxFileBytes)
	}
	var f file
	if err := json.Unmarshal(body, &f); err != nil {
		return file{}, fmt.Errorf("it is not a JSON object: %w", err)
	}
	if f.Sample == nil {
		f.Sample = body
	}
	none := func(string) string { return "" }
	if _, rejected := event.Parse(event.Message{
		Subject: event.Subject("a", name), Header: none,
		Body: f.Sample,
	}); rejected != nil {
		return file{}, fmt.Errorf("its sample is not an event of that name: %s", rejected.Detail)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, f.Sample); err != nil {
		return file{}, err
	}
	f.Sample = compact.Bytes()
	return f, nil
}
