package index

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap/zaptest"

	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/redistest"
)

// whole marks the streams as read into Redis.
func whole(t *testing.T, x *Index) {
	t.Helper()
	if err := put.Load(t.Context(), x.rdb).Err(); err != nil { // else the first pipeline runs twice
		t.Fatal(err)
	}
	for _, s := range []*source{x.journal, x.events} {
		if err := s.start(t.Context(), 1, 1); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSearch compares what Search finds with what a look at every notification finds, however their records were
// written.
func TestSearch(t *testing.T) {
	t.Parallel()
	x := New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, redistest.Start(t).Client(), nil, zaptest.NewLogger(t))
	whole(t, x)
	began := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	names := []string{"crm_deal_created", "crm_deal_updated", "crm_task_deleted"}
	type truth struct {
		hit  Hit
		half uint64
		name string
	}
	known := map[uuid.UUID]*truth{}
	var records []*notification.Record
	for i := range 400 {
		eventID := uuid.NewSHA1(uuid.NameSpaceURL, []byte{byte(i / 3), byte(i >> 8)}).String()
		id := uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "n%d", i))
		name := names[i/3%3]
		for n, s := range []notification.State{notification.Retrying, notification.Parked, notification.Delivered}[:1+i%3] {
			at := began.Add(time.Duration(i)*time.Second + time.Duration(n)*time.Hour)
			records = append(records, &notification.Record{
				NotificationID: id.String(), Account: "acme", WebhookID: hookID(i % 7), EventID: eventID, EventName: name, State: s, Send: 1,
				At: at, Sequence: uint64(1 + i + 70_000*n), // the steps of one stand in several blocks
			})
			if n == 0 {
				known[id] = &truth{Hit{Entry{id, at, s}, hookID(i % 7), Half(eventID)}, Half(eventID), name}
			}
			known[id].hit.State = s
		}
	}
	var all []*truth
	for _, k := range known {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *truth) int { return Compare(a.hit.Entry, b.hit.Entry) })
	queries := map[string]Query{
		"all":            {},
		"state":          {State: notification.Parked},
		"webhook":        {Webhook: hookID(3)},
		"name":           {Name: names[1]},
		"event":          {Events: []uint64{all[17].half}},
		"no event":       {Events: []uint64{}},
		"from":           {From: began.Add(200 * time.Second)},
		"to":             {To: began.Add(100 * time.Second)},
		"all of them":    {State: notification.Delivered, Webhook: hookID(2), Name: names[2], From: began.Add(20 * time.Second), To: began.Add(300 * time.Second)},
		"another's hook": {Webhook: uuid.NewString()},
	}
	check := func(when string) {
		t.Helper()
		for name, q := range queries {
			var want []Hit
			for _, k := range all {
				if (q.State == "" || k.hit.State == q.State) && (q.Webhook == "" || k.hit.Webhook == q.Webhook) && (q.Name == "" || k.name == q.Name) &&
					(q.Events == nil || slices.Contains(q.Events, k.half)) && !k.hit.Created.Before(q.From) && (q.To.IsZero() || k.hit.Created.Before(q.To)) {
					want = append(want, k.hit)
				}
			}
			var got []Hit
			q.Limit = 1 + rand.IntN(40)
			for {
				page, err := x.Search(t.Context(), "acme", q)
				if err != nil {
					t.Fatal(err)
				}
				if got = append(got, page.Hits...); !page.More {
					break
				}
				q.After = page.Hits[len(page.Hits)-1].Entry
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %s: %d found, want %d", when, name, len(got), len(want))
			}
		}
	}
	write := func(records []*notification.Record) {
		t.Helper()
		for part := range slices.Chunk(records, 37) {
			w := newWrites()
			for _, r := range part {
				w.summary(summaryOf(r))
			}
			if err := x.write(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			if rand.IntN(3) == 0 { // another query in between
				if _, err := x.Search(t.Context(), "acme", Query{Limit: 3}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	write(records)
	check("shuffled")
	write(records[:200])
	check("some twice")
	if page, err := x.Search(t.Context(), "globex", Query{Limit: 10}); err != nil || len(page.Hits) > 0 {
		t.Errorf("another account finds %d, %v", len(page.Hits), err)
	}

	// A loss is noticed, and what was read before is read again.
	if err := x.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if page, err := x.Search(t.Context(), "acme", Query{Limit: 10}); err != nil || len(page.Hits) > 0 || page.Low < 1<<50 || !page.Partial {
		t.Errorf("after a loss: %d found, complete from %d on, %v", len(page.Hits), page.Low, err)
	}
	whole(t, x)
	write(records)
	check("after a loss")
}

// TestTrim drops the oldest postings of the account that has the most of them, and says from where on the index is
// complete.
func TestTrim(t *testing.T) {
	t.Parallel()
	x := New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, redistest.Start(t).Client(), nil, zaptest.NewLogger(t))
	whole(t, x)
	const perBlock = 100
	fill := func(account string, blocks, n int) {
		w := newWrites()
		for b := range blocks {
			for i := range n {
				w.summary(summaryOf(&notification.Record{
					NotificationID: uuid.NewString(), Account: account, WebhookID: hookID(1), State: notification.Delivered, Send: 1,
					At: time.Now(), Sequence: uint64(b<<blockBits + i + 1),
				}))
			}
		}
		if err := x.write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	fill("big", 6, perBlock)
	fill("small", 6, 5)
	count := func(account string) (found int, low uint64) {
		page, err := x.Search(t.Context(), account, Query{Limit: 10_000})
		if err != nil {
			t.Fatal(err)
		}
		return len(page.Hits), page.Low
	}
	if n, low := count("big"); n != 6*perBlock || low != 1 {
		t.Errorf("before: %d, complete from %d on", n, low)
	}
	if err := x.trim(t.Context(), ofNotifications, 1, 4*perBlock); err != nil {
		t.Fatal(err)
	}
	if n, low := count("big"); n != 3*perBlock || low != 3<<blockBits {
		t.Errorf("the large account has %d, complete from %d on", n, low)
	}
	if n, low := count("small"); n != 30 || low != 1 {
		t.Errorf("the small account has %d, complete from %d on", n, low)
	}
	// What the stream no longer holds goes.
	if err := x.trim(t.Context(), ofNotifications, 5<<blockBits, 1e6); err != nil {
		t.Fatal(err)
	}
	if n, _ := count("big"); n != perBlock {
		t.Errorf("of the last block %d are left, want %d", n, perBlock)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	x := New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, redistest.Start(t).Client(), nil, zaptest.NewLogger(t))
	whole(t, x)
	began := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	p := postings{}
	for i := range 100 {
		p.event(&event.Event{
			ID: uuid.NewSHA1(uuid.NameSpaceURL, []byte{byte(i)}).String(), Account: "acme", Name: []string{"crm_deal_created", "crm_deal_updated"}[i%2],
			Sequence: uint64(i + 1), Transaction: fmt.Sprint("t", i/4), Document: fmt.Sprint("d", i%10),
		}, began.Add(time.Duration(i)*time.Second))
	}
	for range 2 { // twice changes nothing
		if err := x.writeEvents(t.Context(), p, 100); err != nil {
			t.Fatal(err)
		}
	}
	find := func(q EventQuery) []uint64 {
		t.Helper()
		if q.Limit == 0 {
			q.Limit = 1000
		}
		page, err := x.Events(t.Context(), "acme", q)
		if err != nil {
			t.Fatal(err)
		}
		return page.Sequences
	}
	for name, tc := range map[string]struct {
		q    EventQuery
		want []uint64
	}{
		"id":          {EventQuery{IDs: []string{uuid.NewSHA1(uuid.NameSpaceURL, []byte{7}).String()}}, []uint64{8}},
		"transaction": {EventQuery{Transaction: "t3"}, []uint64{16, 15, 14, 13}},
		"document":    {EventQuery{Document: "d4", From: began.Add(50 * time.Second)}, []uint64{95, 85, 75, 65, 55}},
		"both":        {EventQuery{Transaction: "t3", Document: "d4"}, []uint64{15}},
		"time":        {EventQuery{From: began.Add(10 * time.Second), To: began.Add(12 * time.Second)}, []uint64{12, 11}},
		"name":        {EventQuery{Name: "crm_deal_updated", To: began.Add(6 * time.Second)}, []uint64{6, 4, 2}},
		"page":        {EventQuery{Before: 50, Limit: 2}, []uint64{49, 48}},
		"none":        {EventQuery{Document: "d11"}, nil},
	} {
		if got := find(tc.q); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
	if page, err := x.Events(t.Context(), "globex", EventQuery{Limit: 10}); err != nil || len(page.Sequences) > 0 {
		t.Errorf("another account finds %v, %v", page.Sequences, err)
	}
}
