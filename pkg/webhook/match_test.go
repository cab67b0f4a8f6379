package webhook

import (
	"fmt"
	"slices"
	"testing"

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
	for _, w := range x.Match(nil, account, name) {
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
			b.ReportAllocs()
			for b.Loop() {
				dst = x.Match(dst[:0], "account0", "crm_deal_created")
			}
		})
	}
}
