// Package samples has one realistic event for each name that RD Station documents, in its envelope and with
// invented people and companies. Test deliveries send them, and demonstrations use them.
package samples

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

//go:embed data/*.json
var files embed.FS

// Names returns the event names that have a sample, in alphabetical order.
func Names() []string {
	entries, err := files.ReadDir("data")
	if err != nil {
		panic(err) // the directory is part of the program
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".json"))
	}
	return names
}

// envelope keeps RD Station's order of the four members.
type envelope struct {
	EventName   string          `json:"event_name"`
	Document    json.RawMessage `json:"document"`
	Timestamp   string          `json:"event_timestamp"`
	Transaction string          `json:"transaction_uuid"`
}

// Event returns the body of a sample event with that name, as if it had happened at that time with that
// transaction_uuid: compact JSON, the time in UTC with whole seconds as RD Station writes it. A name without
// a sample gets a document with an id and a name.
func Event(name, transaction string, at time.Time) []byte {
	body, err := files.ReadFile("data/" + name + ".json")
	if err != nil { // no sample
		body = []byte(`{"document":{"id":"670d2a6e8b41c7001f9e5d31","name":"Exemplo"}}`)
	}
	out, err := Renew(body, name, transaction, at)
	if err != nil {
		panic(fmt.Sprintf("sample %s: %v", name, err)) // part of the program, and tested
	}
	return out
}

// Renew returns the event in body with another name, transaction_uuid and time, in the form that Event describes. The
// error says that body is not a JSON object.
func Renew(body []byte, name, transaction string, at time.Time) ([]byte, error) {
	var e envelope
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, err
	}
	e.EventName, e.Transaction = name, transaction
	e.Timestamp = at.UTC().Truncate(time.Second).Format("2006-01-02T15:04:05.000Z")
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}
