package webhooks

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"gancho/pkg/webhook"
)

// TestRoster changes webhooks at random and compares the roster with one that is made anew.
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
