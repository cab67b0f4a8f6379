package webhooks

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"gancho/pkg/webhook"
)

// TestRoster changes webhooks at random and compares the roster with one that is made again.
func TestRoster(t *testing.T) {
	t.Parallel()
	var r roster
	registry := webhook.NewIndex()
	fresh := func() []named { return new(roster).of("acme", registry.Account) }
	for i := range 400 {
		w := &webhook.Webhook{ID: fmt.Sprint(rand.IntN(40)), Account: "acme", EventName: "*", Name: []string{"Billing", "sync", "SYNC", "a"}[rand.IntN(4)]}
		before := registry.ByKey(w.Key())
		if rand.IntN(3) == 0 {
			w = nil
		}
		switch {
		case w != nil:
			registry.Put(w)
		case before != nil:
			registry.Delete(before.Key())
		}
		if i == 100 { // loaded between a change and the news of it
			r.of("acme", registry.Account)
		}
		held := r.of("acme", registry.Account)
		copied := slices.Clone(held)
		r.changed(before, w)
		if !slices.Equal(held, copied) {
			t.Fatalf("step %d changed a list that was handed out", i)
		}
		if got, want := r.of("acme", registry.Account), fresh(); !slices.Equal(got, want) {
			t.Fatalf("step %d: %v, want %v", i, words(got), words(want))
		}
	}
}

func words(list []named) string {
	var out []string
	for _, n := range list {
		out = append(out, n.lower+"/"+n.w.ID)
	}
	return strings.Join(out, " ")
}

// hundredThousand makes the webhooks of a large account.
func hundredThousand() []named {
	var list []named
	for i := range 100_000 {
		w := &webhook.Webhook{
			ID: uuid.NewString(), Account: "acme", EventName: "crm_deal_created", Name: fmt.Sprintf("Deals to the warehouse %05d", i),
			URL: fmt.Sprintf("https://hooks-%d.example.com/crm/%05d", i%500, i), Status: webhook.Active,
		}
		w.URLKey = webhook.URLKey(w.URL)
		list = append(list, newNamed(w))
	}
	return list
}

// BenchmarkSearch looks through 100,000 webhooks for a page.
func BenchmarkSearch(b *testing.B) {
	list := hundredThousand()
	for _, text := range []string{"", "house 1", "nowhere"} {
		b.Run("text="+text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pick(list, nil, Query{Text: text, Limit: 25})
			}
		})
	}
}

// TestPick: pages follow each other without gaps over suspended, active and disabled webhooks, in this order.
func TestPick(t *testing.T) {
	t.Parallel()
	var list []named
	for i := range 30 {
		w := &webhook.Webhook{ID: fmt.Sprint(i), Name: fmt.Sprintf("Hook %02d", i), URL: fmt.Sprintf("https://a.example/Path/%d", i), EventName: "crm_deal_*", Status: webhook.Active}
		w.URLKey = w.URL
		if i%3 == 1 {
			w.Status = webhook.Disabled
		}
		list = append(list, newNamed(w))
	}
	suspended := map[string]bool{"https://a.example/Path/3": true, "https://a.example/Path/4": true, "https://a.example/Path/27": true}
	var want []string
	for _, group := range []func(i int) bool{
		func(i int) bool { return i == 3 || i == 27 },
		func(i int) bool { return i%3 != 1 && i != 3 && i != 27 },
		func(i int) bool { return i%3 == 1 },
	} {
		for i := range 30 {
			if group(i) {
				want = append(want, fmt.Sprint(i))
			}
		}
	}
	for _, limit := range []int{1, 4, 7, 30, 100} {
		var got []string
		for offset := 0; offset < 40; offset += limit {
			page, total := pick(list, suspended, Query{Offset: offset, Limit: limit})
			if total != 30 {
				t.Fatalf("%d in all", total)
			}
			for _, w := range page {
				got = append(got, w.ID)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v, want %v", limit, got, want)
		}
	}
	for text, found := range map[string]int{"hOOk 1": 10, "a.example/path/2": 11, "crm_deal_": 30, " 07 ": 1, "7": 3, "x": 30, "zzz": 0} {
		if _, total := pick(list, nil, Query{Text: text, Limit: 1}); total != found {
			t.Errorf("%q: %d, want %d", text, total, found)
		}
	}
}
