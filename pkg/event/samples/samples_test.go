package samples

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gancho/pkg/event"
)

func TestEveryKnownNameHasASample(t *testing.T) {
	t.Parallel()
	known, err := event.KnownNames()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(known.All(), Names()); diff != "" {
		t.Errorf("known names (-) and samples (+) differ:\n%s", diff)
	}
}

func TestSamplesAreEvents(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 10, 11, 12, 345_000_000, time.FixedZone("", -3*3600))
	for _, name := range append(Names(), "crm_visit_scheduled") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := Event(name, "tx-1", at)
			ev, rejected := event.Parse(event.Message{
				Subject: event.Subject("acme", name), Header: func(string) string { return "" }, Body: body,
			})
			if rejected != nil {
				t.Fatalf("rejected: %v\n%s", rejected, body)
			}
			if ev.Transaction != "tx-1" || ev.Document == "" {
				t.Errorf("transaction_uuid %q and document %q: the given transaction_uuid is not used, or no document has an id", ev.Transaction, ev.Document)
			}
			var e struct {
				Document  map[string]any `json:"document"`
				Timestamp string         `json:"event_timestamp"`
			}
			if err := json.Unmarshal(body, &e); err != nil {
				t.Fatal(err)
			}
			if e.Timestamp != "2026-11-20T13:11:12.000Z" {
				t.Errorf("event_timestamp = %s", e.Timestamp)
			}
			if id, _ := e.Document["id"].(string); len(id) != 24 {
				t.Errorf("document.id = %q, want 24 hex digits", id)
			}
		})
	}
}
