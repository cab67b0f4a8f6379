package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/condition"
	"gancho/pkg/event"
	"gancho/pkg/wireversion"
)

// stored returns the webhook as it comes back from the registry.
func stored(t testing.TB, w Webhook, lines ...string) *Webhook {
	t.Helper()
	w.ID, w.URL = uuid.NewString(), "https://receiver.example/"
	for _, line := range lines {
		c, err := condition.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		w.Conditions = append(w.Conditions, c)
	}
	value, err := w.Encode()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Decode(value)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var dealt = event.Event{
	Account: "acme", Name: "crm_deal_updated", Body: []byte(`{"document":{"amount_total":9007199254740993}}`), Changed: []string{"amount_total"}, Origin: "erp",
}

func TestMatchHoldsBack(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	base := Webhook{Account: "acme", EventName: "crm_deal_updated", Status: Active}
	free := stored(t, base)
	wants := stored(t, base, "document.amount_total gt 9007199254740992", "$changed contains amount_total")
	star := base
	star.EventName = "crm_deal_*"
	not := stored(t, star, "$origin ne erp")
	for _, w := range []*Webhook{free, wants, not} {
		x.Put(w)
	}
	var held []*Webhook
	matched := x.Match(nil, &dealt, func(w *Webhook) { held = append(held, w) })
	if !slices.Equal(matched, []*Webhook{free, wants}) || !slices.Equal(held, []*Webhook{not}) {
		t.Errorf("matched %v, held back %v", matched, held)
	}
	other := dealt
	other.Origin = ""
	if got := len(x.Match(nil, &other, nil)); got != 3 {
		t.Errorf("without an origin: %d webhooks, want all 3", got)
	}
}

func TestUnmatched(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	base := Webhook{Account: "acme", EventName: "crm_deal_*", Status: Active, CreatedAt: at.Add(-time.Hour), UpdatedAt: at.Add(-time.Hour)}
	name, later, off, changed := base, base, base, base
	name.EventName = "crm_task_*"
	later.CreatedAt = at.Add(time.Second)
	off.Status = Disabled
	changed.UpdatedAt = at.Add(time.Hour)
	for name, tc := range map[string]struct {
		webhook *Webhook
		want    string
	}{
		"for it":       {stored(t, base, "$origin eq erp"), ""},
		"other name":   {stored(t, name), "other_name"},
		"later":        {stored(t, later), "registered_later"},
		"disabled":     {stored(t, off, "$origin ne erp"), "disabled"},
		"condition":    {stored(t, base, "$origin eq erp", "document.amount_total lt 5"), "condition document.amount_total lt 5, found 9007199254740993"},
		"nothing":      {stored(t, base, "document.gone exists"), "condition document.gone exists true, found "},
		"changed":      {stored(t, changed), "registered_later"},
		"changed, not": {stored(t, changed, "$origin ne erp"), `condition $origin ne "erp", found "erp"`},
	} {
		got := ""
		if u := tc.webhook.Unmatched(&dealt, at, nil); u != nil {
			got = string(u.Why)
			if u.Condition != nil {
				got += fmt.Sprintf(" %s, found %s", u.Condition, u.Found)
			}
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestConditionsOfOtherVersions reads webhooks that this version, or the one before, must not read as if they had no
// conditions.
func TestConditionsOfOtherVersions(t *testing.T) {
	t.Parallel()
	base := Webhook{Account: "acme", EventName: "*", Status: Active}
	if s := stored(t, base).Schema; s != 0 {
		t.Errorf("without conditions the schema is %d: older versions could not read it", s)
	}
	with := stored(t, base, "$origin eq erp")
	if with.Schema != schemaConditions {
		t.Errorf("with conditions the schema is %d: older versions would send everything", with.Schema)
	}
	with.Conditions[0].Op = "matches"
	unknown, err := with.Encode()
	if err != nil {
		t.Fatal(err)
	}
	newer, err := json.Marshal(map[string]any{"schema": 99, "id": with.ID, "account_id": "acme", "url": with.URL, "conditions": "else"})
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range [][]byte{unknown, newer} {
		if _, err := Decode(value); !errors.Is(err, wireversion.ErrNewer) {
			t.Errorf("%s: %v, want ErrNewer", value, err)
		}
	}
}
