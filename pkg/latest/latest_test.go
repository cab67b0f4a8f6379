package latest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/event"
	"gancho/pkg/notification"
)

var began = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// about returns the notification of event number i, whose body is that.
func about(name, body string, i int) *notification.Notification {
	return &notification.Notification{
		Account: "acme", WebhookID: "6f1c1c5e-5d0e-4a0b-9f0a-0b6f6c1d7a11", EventName: name, EventID: event.ID("acme", name, fmt.Sprint(i)),
		EventSequence: uint64(i), EventTime: began.Add(time.Duration(i) * time.Nanosecond), Body: []byte(body),
	}
}

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), bustest.Start(t).Topology(bustest.Limits()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Store) delivered(t *testing.T, ns ...*notification.Notification) {
	t.Helper()
	for _, n := range ns {
		if err := s.Delivered(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *Store) newest(t *testing.T, n *notification.Notification) notification.Place {
	t.Helper()
	p, err := s.Newest(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOnlyGrows(t *testing.T) {
	t.Parallel()
	s := open(t)
	deal := func(i int) *notification.Notification {
		return about("crm_deal_updated", `{"document":{"id":"d1"}}`, i)
	}
	if p := s.newest(t, deal(1)); p != (notification.Place{}) {
		t.Errorf("before any delivery the latest event is %+v", p)
	}
	s.delivered(t, deal(5), deal(3), deal(5), deal(4))
	if p := s.newest(t, deal(9)); p.Sequence != 5 || p.EventID != deal(5).EventID || !p.Time.Equal(deal(5).EventTime) {
		t.Errorf("after 5, 3, 5 and 4 the latest event is %+v", p)
	}
	s.delivered(t, deal(7))
	if p := s.newest(t, deal(1)); p.Sequence != 7 {
		t.Errorf("after 7 the latest event is %+v", p)
	}
}

func TestDocumentsAreKeptApart(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.delivered(t, about("crm_deal_updated", `{"document":{"id":"x"}}`, 5))
	other := about("crm_deal_updated", `{"document":{"id":"x"}}`, 1)
	other.WebhookID = "00000000-5d0e-4a0b-9f0a-0b6f6c1d7a11"
	elsewhere := about("crm_deal_updated", `{"document":{"id":"x"}}`, 1)
	elsewhere.Account = "globex"
	for name, c := range map[string]struct {
		n    *notification.Notification
		same bool
	}{
		"another action":      {about("crm_deal_deleted", `{"document":{"id":"x"}}`, 1), true},
		"an unknown action":   {about("crm_deal_won", `{"document":{"id":"x"}}`, 1), true},
		"another entity":      {about("crm_contact_updated", `{"document":{"id":"x"}}`, 1), false},
		"a longer entity":     {about("crm_deal_item_updated", `{"document":{"id":"x"}}`, 1), false},
		"another id":          {about("crm_deal_updated", `{"document":{"id":"y"}}`, 1), false},
		"no id":               {about("crm_deal_updated", `{"document":{}}`, 1), false},
		"no document":         {about("crm_deal_updated", `{"id":"x"}`, 1), false},
		"an id of no text":    {about("crm_deal_updated", `{"document":{"id":["x"]}}`, 1), false},
		"another webhook":     {other, false},
		"another account":     {elsewhere, false},
		"a test of a webhook": {about("crm_deal_updated", `{"document":{"id":"x"}}`, 0), false},
	} {
		if got := s.newest(t, c.n).Sequence == 5; got != c.same {
			t.Errorf("%s: the same document is %v, want %v", name, got, c.same)
		}
	}
	for name, entity := range map[string]string{"crm_lost_reason_created": "lost_reason", "crm_lead_rating_changed": "lead", "crm_lead_updated": "lead", "crm_proposal_created": "proposal"} {
		if got := event.Entity(name); got != entity {
			t.Errorf("%s is about a %s, want %s", name, got, entity)
		}
	}
}

// TestOneAtATime has many writers for the documents of one place: none loses another's event.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	s := open(t)
	var ids []string // documents of one place
	want := ""
	for i := 0; len(ids) < perPlace; i++ {
		d, _ := documentOf(about("crm_deal_updated", fmt.Sprintf(`{"document":{"id":%d}}`, i), 1))
		if key := d.key("acme"); want == "" || key == want {
			want = key
			ids = append(ids, fmt.Sprint(i))
		}
	}
	var writers sync.WaitGroup
	for i, id := range ids {
		writers.Go(func() {
			for _, at := range []int{1, 20, 10} {
				if err := s.Delivered(context.Background(), about("crm_deal_updated", `{"document":{"id":`+id+`}}`, at*100+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	for i, id := range ids {
		if p := s.newest(t, about("crm_deal_updated", `{"document":{"id":`+id+`}}`, 1)); p.Sequence != uint64(2000+i) {
			t.Errorf("the latest event of document %s is %d, want %d", id, p.Sequence, 2000+i)
		}
	}
	entries, _, err := s.read(t.Context(), want)
	if err != nil || len(entries) != perPlace {
		t.Errorf("the place holds %d entries (%v), want %d", len(entries), err, perPlace)
	}
	// One more document pushes out the oldest event.
	for i := 0; ; i++ {
		n := about("crm_deal_updated", fmt.Sprintf(`{"document":{"id":"more%d"}}`, i), 9999)
		if d, _ := documentOf(n); d.key("acme") == want {
			s.delivered(t, n)
			break
		}
	}
	if p := s.newest(t, about("crm_deal_updated", `{"document":{"id":`+ids[0]+`}}`, 1)); p.Sequence != 0 {
		t.Errorf("the oldest event is still there: %+v", p)
	}
	if p := s.newest(t, about("crm_deal_updated", `{"document":{"id":`+ids[1]+`}}`, 1)); p.Sequence != 2001 {
		t.Errorf("the second oldest event is gone: %+v", p)
	}
}

// TestUnreadablePlace has a value of another version in a place: nothing is known of it, and it is written over.
func TestUnreadablePlace(t *testing.T) {
	t.Parallel()
	s := open(t)
	n := about("crm_deal_updated", `{"document":{"id":"d1"}}`, 5)
	d, _ := documentOf(n)
	for i, value := range []string{"", "\x02" + strings.Repeat("x", entryBytes), "\x01" + strings.Repeat("x", entryBytes-1)} {
		if _, err := s.bucket.Put(t.Context(), d.key("acme"), []byte(value)); err != nil {
			t.Fatal(err)
		}
		if p := s.newest(t, n); p.Sequence != 0 {
			t.Errorf("value %d says that the latest event is %+v", i, p)
		}
		s.delivered(t, n)
		if p := s.newest(t, n); p.Sequence != 5 {
			t.Errorf("after value %d the latest event is %+v", i, p)
		}
	}
}
