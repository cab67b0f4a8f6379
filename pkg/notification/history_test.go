package notification

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

func attempted(n int, body string) *Record {
	at := time.Date(2026, 11, 20, 12, 0, 0, n, time.UTC).Add(time.Duration(n) * time.Hour)
	return &Record{
		Schema: 1, Kind: KindAttempt, At: at, Account: "acme", WebhookID: "0c5a0c4e-8f3b-4a52-9d0a-3f3c9b6a3b11", NotificationID: "1d5a0c4e-8f3b-4a52-9d0a-3f3c9b6a3b12",
		EventID: "2e5a0c4e-8f3b-4a52-9d0a-3f3c9b6a3b13", EventName: "crm_deal_created", EventSequence: 12345678, URLKey: "0123456789abcdef0123456789abcdef",
		URLHost: "hooks.example.com", Send: 1, AttemptsDone: n, State: Retrying, Reason: "status_5xx", NextAttemptAt: at.Add(time.Hour), Moves: n / 2,
		Attempt: &Attempt{
			Number: n, Send: 1, StartedAt: at, Outcome: OutcomeFailed, Reason: "status_5xx", HTTPStatus: 503, DurationMS: 41.7 + float64(n),
			Phases:          PhasesMS{DNS: 1.2, Connect: 9.8, TLS: 18.1, FirstByte: 12.1},
			RequestHeaders:  map[string]string{"Content-Type": "application/json", "Webhook-Timestamp": fmt.Sprint(at.Unix()), "Webhook-Signature": "***"},
			ResponseHeaders: map[string]string{"Date": at.Format(time.RFC1123), "X-Request-Id": uuid.NewString()}, ResponseBody: body,
		},
	}
}

// journal stores records as the dispatcher does: the first retry has not read the record before it.
func journal(t *testing.T, records []*Record) {
	t.Helper()
	var last *Record
	for i, r := range records {
		switch {
		case i == 1:
			r.Previous = last.Sequence
		case i > 1:
			r.Follow(last)
		}
		stored, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		last = &Record{Sequence: uint64(1000 + 17*i)}
		if err := json.Unmarshal(stored, last); err != nil {
			t.Fatal(err)
		}
		r.Sequence = last.Sequence
	}
}

// TestCarried: what a record carries is what the records before it said, with their places in the journal.
func TestCarried(t *testing.T) {
	t.Parallel()
	noise := func() string {
		b := make([]byte, 4096)
		for i := range b {
			b[i] = byte(' ' + rand.IntN(90))
		}
		return string(b)
	}
	for name, body := range map[string]func() string{
		"small":               func() string { return `{"error":"busy"}` },
		"escaped":             func() string { return strings.Repeat("\x00", 4096) },
		"nothing in common":   noise,
		"newlines and quotes": func() string { return "\n\"\n" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var records []*Record
			for n := range 40 {
				records = append(records, attempted(n+1, body()))
			}
			journal(t, records)
			for i, r := range records {
				carried, err := r.Carried()
				if err != nil {
					t.Fatal(err)
				}
				if len(r.Earlier) > maxPacked || len(carried) > maxCarried {
					t.Fatalf("record %d carries %d records in %d bytes", i, len(carried), len(r.Earlier))
				}
				if name == "small" && len(carried) != min(max(i-1, 0), maxCarried) {
					t.Errorf("record %d carries %d", i, len(carried))
				}
				for back, got := range carried {
					want := *records[i-1-back]
					want.Earlier = nil
					if diff := cmp.Diff(&want, got); diff != "" {
						t.Fatalf("record %d, %d before it:\n%s", i, back+1, diff)
					}
				}
			}
			if last := records[39]; name == "nothing in common" {
				if carried, _ := last.Carried(); len(carried) == 0 && len(records[38].Earlier) == 0 {
					t.Error("two records running carry nothing, although one fits")
				}
			}
		})
	}
}

// TestCarriedIsNotTrusted: what no dispatcher wrote is an error and no more; it is not carried on.
func TestCarriedIsNotTrusted(t *testing.T) {
	t.Parallel()
	r := attempted(1, "")
	r.Earlier = pack([][]byte{[]byte(`{"kind":"attempt"}`)})
	whole := slices.Clone(r.Earlier)
	for name, earlier := range map[string][]byte{
		"cut off": whole[:len(whole)-3], "no deflate": []byte("records"), "no JSON": pack([][]byte{[]byte("x")}),
		"a bomb": pack([][]byte{make([]byte, 3<<20)}),
	} {
		r.Earlier = earlier
		if _, err := r.Carried(); err == nil {
			t.Errorf("%s: no error", name)
		}
		next := attempted(2, "")
		next.Follow(r)
		if carried, err := next.Carried(); name != "no JSON" && (err != nil || len(carried) != 1) {
			t.Errorf("%s: %d records are carried on, %v", name, len(carried), err)
		}
	}
	r.Earlier = whole
	if carried, err := r.Carried(); err != nil || len(carried) != 1 {
		t.Errorf("%d %v", len(carried), err)
	}
}

// BenchmarkFollow measures the sixth record of a send, without its own encoding.
func BenchmarkFollow(b *testing.B) {
	records := make([]*Record, 6)
	for i := range records {
		records[i] = attempted(i+1, `<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>`)
		if i > 1 {
			records[i].Follow(records[i-1])
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		records[5].Follow(records[4])
	}
	b.ReportMetric(float64(len(records[5].Earlier)), "carried-B")
}
