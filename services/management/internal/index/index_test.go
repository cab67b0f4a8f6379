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
				w.summary(summaryOf(r))
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
		batches, size := 3, 500
		if h%2 == 1 { // more than Lua passes on at once
			batches, size = 1, 4500
		}
		for range batches {
			w := newWrites()
			for i := range size {
				w.summary(summaryOf(&notification.Record{
					NotificationID: uuid.NewString(), WebhookID: hookID(h), State: notification.Delivered, Send: 1,
					At: now.Add(time.Duration(h*10_000+i) * time.Millisecond), Sequence: 1,
				}))
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

// TestAccountDropsItsOwn: an account with many webhooks, all busier than those of others, fills the index. Its own
// quietest go; those of others stay, also one that was deleted since.
func TestAccountDropsItsOwn(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client()
	x := New(Config{MaxEntries: 1000, MaxAge: time.Hour}, rdb, nil, zaptest.NewLogger(t))
	x.Owners = func() map[string]string {
		owners := map[string]string{}
		for h := range 20 {
			owners[hookID(h)] = []string{"attacker", "other"}[min(h/18, 1)]
		}
		return owners
	}
	now := time.Now()
	for h := range 21 { // the last one is deleted
		w := newWrites()
		for i := range 100 {
			at := now.Add(time.Duration(i) * time.Millisecond)
			if h >= 18 {
				at = at.Add(-time.Minute)
			}
			w.summary(summaryOf(&notification.Record{NotificationID: uuid.NewString(), WebhookID: hookID(h), State: notification.Delivered, Send: 1, At: at, Sequence: 1}))
		}
		if err := x.write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := 0
	for h := range 21 {
		entries, _, err := x.Recent(t.Context(), hookID(h))
		if err != nil {
			t.Fatal(err)
		}
		if h >= 18 && len(entries) != 100 {
			t.Errorf("webhook %d, not the attacker's, has %d entries", h, len(entries))
		}
		if h < 18 && len(entries) > 0 {
			left++
		}
	}
	if left != 7 {
		t.Errorf("%d of the attacker's webhooks are left, want the 7 that there is room for", left)
	}
}

// summaryOf is what the journal's reader gets of r.
func summaryOf(r *notification.Record) *notification.Summary {
	s := &notification.Summary{
		Kind: r.Kind, At: r.At, Account: r.Account, WebhookID: r.WebhookID, NotificationID: r.NotificationID, EventName: r.EventName, Send: r.Send,
		AttemptsDone: r.AttemptsDone, State: r.State, Reason: r.Reason, Sequence: r.Sequence, NextAttemptAt: r.NextAttemptAt, EventID: r.EventID, Replay: r.Replay,
	}
	if a := r.Attempt; a != nil {
		s.Outcome, s.FailureReason, s.HTTPStatus, s.StartedAt, s.DurationMS = a.Outcome, a.Reason, a.HTTPStatus, a.StartedAt, a.DurationMS
	}
	return s
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
					w.summary(summaryOf(&r))
				}
				if err := x.write(context.Background(), w); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestFailed keeps an account's failures in the order they happened, without those that were sent again,
// whatever order the records come in.
func TestFailed(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client()
	x := New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, rdb, nil, zaptest.NewLogger(t))
	now := time.Now()
	id := func(n int) uuid.UUID { return uuid.NewSHA1(uuid.NameSpaceURL, []byte{byte(n)}) }
	record := func(n, hook, send int, s notification.State, sequence uint64) *notification.Record {
		return &notification.Record{Account: "acme", NotificationID: id(n).String(), WebhookID: hookID(hook), State: s, Send: send, At: now, Sequence: sequence}
	}
	failed, delivered := notification.PermanentlyFailed, notification.Delivered
	records := []*notification.Record{
		record(1, 1, 1, failed, 10), record(2, 2, 1, failed, 11), record(3, 1, 1, delivered, 12),
		record(1, 1, 2, delivered, 13),                           // sent again with success
		record(2, 2, 2, notification.Retrying, 14),               // sent again, not ended
		record(4, 1, 1, failed, 15), record(4, 1, 2, failed, 16), // failed twice
		record(5, 2, 1, notification.Retrying, 17), record(5, 2, 1, failed, 18),
	}
	want := []Place{{hookID(2), id(5), 18}, {hookID(1), id(4), 16}}
	check := func(name string, records []*notification.Record) {
		t.Helper()
		if err := rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			w := newWrites()
			w.summary(summaryOf(r))
			if err := x.write(t.Context(), w); err != nil {
				t.Fatal(err)
			}
		}
		got, _, err := x.Failed(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		if of, _, err := x.FailedOf(t.Context(), hookID(1)); err != nil || !cmp.Equal(of, want[1:]) {
			t.Errorf("%s: of one webhook %v %v", name, of, err)
		}
		if other, _, err := x.Failed(t.Context(), "globex"); err != nil || len(other) > 0 {
			t.Errorf("%s: another account sees %v %v", name, other, err)
		}
	}
	check("as they were written", records)
	check("and twice", append(slices.Clone(records), records...))

	// A notification that is being sent again is listed no more, before its first attempt.
	w := newWrites()
	w.arrival(id(5), &notification.Notification{Account: "acme", WebhookID: hookID(2), Send: 2, Journal: 18}, now)
	if err := x.write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if got, _, err := x.Failed(t.Context(), "acme"); err != nil || !cmp.Equal(got, want[1:]) {
		t.Errorf("after a resend %v %v", got, err)
	}
}

func TestRow(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 12, 0, 0, int(7*time.Millisecond), time.UTC)
	full := Row{
		State: notification.Retrying, Reason: "status_5xx", EventID: uuid.NewString(), EventName: "crm_deal_created", Sends: 3, AttemptsMade: 2,
		NextAttemptAt: at.Add(time.Minute), Replay: uuid.NewString(), UpdatedAt: at,
		Attempt: &RowAttempt{StartedAt: at, Outcome: "failed", Reason: "status_5xx", HTTPStatus: 503, DurationMS: 12.345},
	}
	bare := Row{State: notification.Pending, EventID: uuid.NewString(), EventName: "crm_deal_created", Sends: 1, UpdatedAt: at}
	for _, want := range []Row{full, bare} {
		c := code(want.State)
		if want.State == notification.Pending {
			c = pendingCode
		}
		row := want.encode(8*123456 + int64(c))
		got, ok := decodeRow(row)
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("ok %v:\n%s", ok, diff)
		}
		for n := range len(row) { // cut off anywhere, it is no row, or one without its attempt
			if got, ok := decodeRow(row[:n]); ok && got.Attempt != nil {
				t.Errorf("%d of %d bytes are a row: %+v", n, len(row), got)
			}
		}
	}
	unknown := Row{State: notification.Delivered, EventName: "crm_deal_created", Sends: 1, UpdatedAt: at}
	if _, ok := decodeRow(unknown.encode(8 + 3)); ok {
		t.Error("a row without its event's id is taken for whole")
	}
	if a, b := full.encode(8*9), full.encode(8*10); a >= b {
		t.Error("rows do not sort as their ranks do")
	}
}

// TestActivity compares the bars with a count of the entries themselves, for webhooks with few and with more
// notifications than the index keeps, which change their states.
func TestActivity(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client()
	x := New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, rdb, nil, zaptest.NewLogger(t))
	now := time.Now()
	spans := []time.Duration{24 * time.Hour, 2 * time.Hour, 24 * time.Minute}
	all := append(slices.Clone(states), "") // and pending
	var hooks []string
	sequence := uint64(0)
	for h, n := range []int{0, 1, 300, 1500, 1500} {
		hooks = append(hooks, hookID(h))
		apart := []time.Duration{0, 0, 10 * time.Minute, 12 * time.Second, 100 * time.Millisecond}[h]
		for batch := range 10 { // each notification in two of them
			w := newWrites()
			for i := batch % 5; i < n; i += 5 {
				id := uuid.NewSHA1(uuid.NameSpaceURL, []byte{byte(h), byte(i), byte(i >> 8)})
				at := now.Add(-time.Duration(i) * apart)
				for range 1 + rand.IntN(3) {
					sequence++
					s := all[rand.IntN(len(all))]
					if s == "" {
						w.arrival(id, &notification.Notification{Account: "acme", WebhookID: hookID(h), Send: 1 + int(sequence), Journal: sequence}, at)
						continue
					}
					w.summary(summaryOf(&notification.Record{NotificationID: id.String(), WebhookID: hookID(h), State: s, Send: 1, At: at.Add(time.Duration(rand.IntN(3)) * time.Hour / 2), Sequence: sequence}))
				}
			}
			if err := x.write(t.Context(), w); err != nil {
				t.Fatal(err)
			}
		}
	}
	rdb.ScriptFlush(t.Context()) // as after a restart of Redis
	got, _, err := x.Activity(t.Context(), hooks, spans, now)
	if err != nil {
		t.Fatal(err)
	}
	for h, w := range hooks {
		entries, _, err := x.Recent(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		want := Activity{Span: []time.Duration{24 * time.Hour, 24 * time.Hour, 24 * time.Hour, 2 * time.Hour, 24 * time.Minute}[h]}
		begin := now.Add(-want.Span).Truncate(time.Millisecond)
		for _, e := range entries {
			if e.Created.Before(begin) {
				continue
			}
			b := &want.Bars[min(int(e.Created.Sub(begin)/(want.Span/Bars)), Bars-1)]
			switch e.State {
			case notification.Delivered:
				b.Delivered++
			case notification.PermanentlyFailed:
				b.Failed++
			default:
				b.Open++
			}
		}
		if got[h].Span != want.Span || got[h].Bars != want.Bars {
			t.Errorf("webhook %d over %v:\n%v, want over %v\n%v", h, got[h].Span, got[h].Bars, want.Span, want.Bars)
		}
		if len(got[h].Newest) != min(len(entries), newest) {
			t.Errorf("webhook %d: %d newest", h, len(got[h].Newest))
		}
		if n := rdb.ZCard(t.Context(), keyFates(w)).Val(); n > int64(len(entries)) {
			t.Errorf("webhook %d: %d fates of %d entries", h, n, len(entries))
		}
	}
	if err := x.Forget(t.Context(), hooks[3]); err != nil {
		t.Fatal(err)
	}
	if n := rdb.Exists(t.Context(), keysOf(hooks[3])...).Val(); n != 0 {
		t.Errorf("%d keys of a forgotten webhook are left", n)
	}
}
