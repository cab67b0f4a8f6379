package index

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/zap/zaptest"

	"gancho/pkg/notification"
	"gancho/pkg/redistest"
)

// TestOrderDoesNotMatter writes the same records forwards, shuffled and twice, in batches of any size.
func TestOrderDoesNotMatter(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client()
	const webhook = "0c5a0c4e-8f3b-4a52-9d0a-3f3c9b6a3b11"
	began := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	var records []*notification.Record
	for i := range 300 {
		id := uuid.NewSHA1(uuid.NameSpaceURL, []byte{byte(i), byte(i >> 8)}).String()
		for n, s := range []notification.State{notification.Retrying, notification.Parked, notification.Delivered}[:1+i%3] {
			records = append(records, &notification.Record{
				NotificationID: id, WebhookID: webhook, State: s, Send: 1,
				At: began.Add(time.Duration(i)*time.Second + time.Duration(n)*time.Hour), Sequence: uint64(1 + i + 1000*n),
			})
		}
	}
	x := New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, rdb, nil, zaptest.NewLogger(t))
	feed := func(records []*notification.Record) []Entry {
		t.Helper()
		if err := rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		for len(records) > 0 {
			n := min(1+rand.IntN(40), len(records))
			w := newWrites()
			for _, r := range records[:n] {
				w.record(r)
			}
			if err := x.write(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			records = records[n:]
		}
		entries, _, err := x.Recent(t.Context(), webhook)
		if err != nil {
			t.Fatal(err)
		}
		return entries
	}
	want := feed(records)
	if len(want) != 300 || !want[0].Created.Equal(began.Add(299*time.Second)) || want[0].State != notification.Delivered {
		t.Fatalf("%d entries, the first %+v", len(want), want[0])
	}
	shuffled := append(slices.Clone(records), records...)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	slices.Reverse(records)
	for name, r := range map[string][]*notification.Record{"backwards": records, "shuffled and twice": shuffled} {
		if diff := cmp.Diff(want, feed(r)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client()
	x := New(Config{MaxEntries: 2500, MaxAge: time.Hour}, rdb, nil, zaptest.NewLogger(t))
	now := time.Now()
	for h := range 5 {
		for range 3 {
			w := newWrites()
			for i := range 500 {
				w.record(&notification.Record{
					NotificationID: uuid.NewString(), WebhookID: hookID(h), State: notification.Delivered, Send: 1,
					At: now.Add(time.Duration(h*1000+i) * time.Millisecond), Sequence: 1,
				})
			}
			if err := x.write(t.Context(), w); err != nil {
				t.Fatal(err)
			}
		}
		if n := rdb.ZCard(t.Context(), keyOrder(hookID(h))).Val(); n != perWebhook {
			t.Errorf("webhook %d has %d entries, want %d", h, n, perWebhook)
		}
	}
	if err := x.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for h := range 5 {
		entries, _, err := x.Recent(t.Context(), hookID(h))
		if err != nil {
			t.Fatal(err)
		}
		if kept := h >= 3; kept != (len(entries) > 0) {
			t.Errorf("webhook %d has %d entries; want those of the two that were active last", h, len(entries))
		}
	}
	if n := rdb.ZCard(t.Context(), keyWebhooks).Val(); n != 2 {
		t.Errorf("%d webhooks are known, want 2", n)
	}
}

func hookID(n int) string { return fmt.Sprintf("0c5a0c4e-8f3b-4a52-9d0a-3f3c9b6a%04d", n) }

// BenchmarkFeed is what one journal record costs: decoding it and writing it, in batches.
func BenchmarkFeed(b *testing.B) {
	for _, webhooks := range []int{1, 100, 2000} {
		b.Run(fmt.Sprintf("webhooks=%d", webhooks), func(b *testing.B) {
			rdb := redistest.Start(b).Client()
			x := New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, rdb, nil, zaptest.NewLogger(b))
			raws := make([][]byte, batchSize)
			for i := range raws {
				r := notification.Record{
					Schema: 1, Kind: notification.KindAttempt, At: time.Now().UTC(), Account: "acme", WebhookID: hookID(i % webhooks),
					NotificationID: uuid.NewString(), EventID: uuid.NewString(), EventName: "crm_deal_created", EventSequence: 12345678,
					URLKey: "0123456789abcdef0123456789abcdef", URLHost: "hooks.example.com", Send: 1, AttemptsDone: 1, State: notification.Delivered,
					Attempt: &notification.Attempt{
						Number: 1, Send: 1, StartedAt: time.Now().UTC(), Outcome: "delivered", HTTPStatus: 200, DurationMS: 12.3,
						RequestHeaders:  map[string]string{"Content-Type": "application/json", "User-Agent": "Gancho/1.0", "Webhook-Id": uuid.NewString(), "Webhook-Signature": "***"},
						ResponseHeaders: map[string]string{"Content-Type": "application/json", "Date": "Mon, 23 Nov 2026 10:00:00 GMT"}, ResponseBody: `{"ok":true}`,
					},
				}
				raws[i], _ = json.Marshal(r)
			}
			b.ResetTimer()
			sequence := uint64(0)
			for n := 0; n < b.N; n += batchSize {
				w := newWrites()
				for _, raw := range raws[:min(batchSize, b.N-n)] {
					var r notification.Record
					if err := json.Unmarshal(raw, &r); err != nil {
						b.Fatal(err)
					}
					sequence++
					r.Sequence = sequence
					w.record(&r)
				}
				if err := x.write(context.Background(), w); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
