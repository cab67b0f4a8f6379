package webhook

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"gancho/pkg/event"
)

func TestPatternMatches(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		pattern Pattern
		name    string
		want    bool
	}{
		{"crm_deal_created", "crm_deal_created", true},
		{"crm_deal_created", "crm_deal_updated", false},
		{"*", "crm_anything_new", true},
		{"crm_deal_*", "crm_deal_created", true},
		{"crm_deal_*", "crm_deal_", false}, // one or more characters
		{"crm_*_deleted", "crm_lost_reason_deleted", true},
		{"crm_*_deleted", "crm__deleted", false},
		{"crm_*_deleted", "crm_deal_created", false},
		{"crm_*", "crm_x", true},
	} {
		if got := tc.pattern.Matches(tc.name); got != tc.want {
			t.Errorf("%q matches %q: got %v, want %v", tc.pattern, tc.name, got, tc.want)
		}
	}
}

func TestCheckPattern(t *testing.T) {
	t.Parallel()
	known, err := event.KnownNames("crm_lead_deleted")
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[Pattern]string{
		"crm_deal_created": "", "crm_lead_deleted": "", "*": "", "crm_deal_*": "", "crm_*_deleted": "",
		"": "unknown_event_name", "crm_deal_create": "unknown_event_name", "crm.>": "unknown_event_name",
		"**": "bad_pattern", "crm_*_*": "bad_pattern", "*_deleted": "bad_pattern", "crm_Deal*": "bad_pattern",
	} {
		got := ""
		if problem := CheckPattern(p, known); problem != nil {
			got = problem.Code
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", p, got, want)
		}
	}
}

func hook(account, id string, p Pattern) *Webhook {
	return &Webhook{ID: id, Account: account, EventName: p, Status: Active, URLKey: "u"}
}

func match(x *Index, account, name string) []string {
	var ids []string
	for _, w := range x.Match(nil, &event.Event{Account: account, Name: name}, nil) {
		ids = append(ids, w.ID)
	}
	slices.Sort(ids)
	return ids
}

func TestIndex(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	x.Put(hook("a", "1", "crm_deal_created"))
	x.Put(hook("a", "2", "crm_deal_*"))
	x.Put(hook("b", "3", "*"))
	if got := match(x, "a", "crm_deal_created"); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("got %v", got)
	}
	if got := match(x, "b", "crm_deal_created"); !slices.Equal(got, []string{"3"}) {
		t.Errorf("accounts mix: %v", got)
	}
	x.Put(hook("a", "1", "crm_task_created")) // an update moves it
	if got := match(x, "a", "crm_deal_created"); !slices.Equal(got, []string{"2"}) {
		t.Errorf("after an update: %v", got)
	}
	off := hook("a", "2", "crm_deal_*")
	off.Status = Disabled
	x.Put(off)
	if got := match(x, "a", "crm_deal_created"); got != nil {
		t.Errorf("a disabled webhook matches: %v", got)
	}
	for _, key := range []string{"a.1", "a.2", "b.3", "b.3"} {
		x.Delete(key)
	}
	if x.Len() != 0 || len(x.accounts) != 0 || len(x.urls) != 0 {
		t.Errorf("something is left: %+v", x)
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 100, 100_000} {
		b.Run(fmt.Sprintf("webhooks=%d", n), func(b *testing.B) {
			x := NewIndex()
			for i := range n {
				x.Put(hook(fmt.Sprint("account", i%(n/10+1)), fmt.Sprint(i), "crm_deal_created"))
			}
			var dst []*Webhook
			ev := &event.Event{Account: "account0", Name: "crm_deal_created"}
			b.ReportAllocs()
			for b.Loop() {
				dst = x.Match(dst[:0], ev, nil)
			}
		})
	}
}

// TestAccountOrder changes an account's webhooks at random and compares their order with a sorted one; lists
// that were handed out stay as they were.
func TestAccountOrder(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	began := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	held := map[string]*Webhook{}
	want := func() []*Webhook {
		return slices.SortedFunc(maps.Values(held), func(a, b *Webhook) int {
			return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
		})
	}
	var before, copied []*Webhook
	for i := range 500 {
		w := &Webhook{
			ID: fmt.Sprint(rand.IntN(60)), Account: "acme", EventName: []Pattern{"*", "crm_deal_created"}[rand.IntN(2)], Status: Active,
			CreatedAt: began.Add(time.Duration(rand.IntN(20)) * time.Hour),
		}
		if rand.IntN(3) == 0 {
			x.Delete(w.Key())
			delete(held, w.ID)
		} else {
			x.Put(w)
			held[w.ID] = w
		}
		if !slices.Equal(before, copied) {
			t.Fatalf("step %d changed a list that was handed out", i)
		}
		if i < 100 || i%3 > 0 {
			continue // not asked for at first, so that what is loaded is sorted once
		}
		before = x.Account("acme")
		copied = slices.Clone(before)
		if !slices.Equal(before, want()) {
			t.Fatalf("step %d: the webhooks are not in order, or not those registered", i)
		}
	}
	if got := x.Accounts(); !slices.Equal(got, []string{"acme"}) {
		t.Errorf("accounts %v", got)
	}
	for key := range held {
		x.Delete("acme." + key)
	}
	if x.Account("acme") != nil || len(x.Accounts()) != 0 {
		t.Error("an account without webhooks is left")
	}
}

// TestLowestLimitOfAURLCounts changes and deletes webhooks of one URL at random and compares with a search of all.
func TestLowestLimitOfAURLCounts(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	held := map[string]*Webhook{}
	for i := range 2000 {
		w := &Webhook{
			ID: fmt.Sprint(rand.IntN(20)), Account: fmt.Sprint("account", rand.IntN(2)), URLKey: fmt.Sprint("url", rand.IntN(2)),
			EventName: "*", Status: Active, MaxPerMinute: max(rand.IntN(8)-3, 0),
		}
		if rand.IntN(3) == 0 {
			x.Delete(w.Key())
			delete(held, w.Key())
		} else {
			x.Put(w)
			held[w.Key()] = w
		}
		for _, account := range []string{"account0", "account1"} {
			for _, url := range []string{"url0", "url1"} {
				want := 0
				for _, h := range held {
					if h.Account == account && h.URLKey == url && h.MaxPerMinute > 0 && (want == 0 || h.MaxPerMinute < want) {
						want = h.MaxPerMinute
					}
				}
				if got := x.MaxPerMinute(account, url); got != want {
					t.Fatalf("step %d: %s of %s may get %d requests a minute, want %d", i, url, account, got, want)
				}
			}
		}
	}
	for key := range held {
		x.Delete(key)
	}
	if n := x.limited.Load(); n != 0 {
		t.Errorf("%d URLs have a limit that no webhook sets", n)
	}
}
