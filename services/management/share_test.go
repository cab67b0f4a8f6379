package management_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"gancho/pkg/share"
	"gancho/pkg/topology"
	"gancho/services/management"
)

// TestAccountIsHeldToItsShare: an account that sends large or many events over HTTP is refused at its share of
// CRM_EVENTS, and the others are not; one whose events wait is refused what makes more work, and nothing else.
func TestAccountIsHeldToItsShare(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *management.Config) { c.Limits.EventsMaxBytes = 1 << 20 })
	s.do(other, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201)
	id := text(s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/y")).want(201).data(), "id")
	const path = "/crm/v2/events/crm_deal_created"
	send := func(token string, i, size int) reply {
		return s.do(token, "POST", path, fmt.Sprintf(`{"transaction_uuid":"t-%d","filler":%q}`, i, strings.Repeat("x", size)))
	}
	for i := range 3 {
		send(acme, i, 60<<10).want(202)
	}
	refused := send(acme, 4, 60<<10)
	refused.refused(429, "account_share", "")
	if refused.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	for i := range 3 {
		send(other, i, 60<<10).want(202)
	}
	s.until("many small ones are refused too", func() bool { return send(acme, 1000+int(time.Now().UnixNano()%1e9), 10).status == 429 })
	send(other, 9, 10).want(202)

	shares, err := s.bus.Bucket(t.Context(), topology.BucketShares)
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(share.Deferral{Since: time.Now(), Store: share.StoreWork})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shares.Put(t.Context(), share.DeferralKey("globex"), value); err != nil {
		t.Fatal(err)
	}
	s.until("its events wait", func() bool { return send(other, 10, 10).status == 429 })
	s.do(other, "GET", "/crm/v2/webhooks", nil).want(200)
	s.do(acme, "POST", "/crm/v2/webhooks/"+id+"/test", nil).want(202)
	if err := shares.Delete(t.Context(), share.DeferralKey("globex"), 0); err != nil {
		t.Fatal(err)
	}
	s.until("it has caught up", func() bool { return send(other, 11, 10).status == 202 })
}

// TestAccountsSettingsHold: what an operator sets for an account bounds its events over HTTP and its webhooks, within
// moments and for it alone, and what was taken away bounds nothing.
func TestAccountsSettingsHold(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const path = "/crm/v2/accounts/acme"
	n := 0
	send := func(token string) reply {
		n++
		return s.do(token, "POST", "/crm/v2/events/crm_deal_created", fmt.Sprintf(`{"transaction_uuid":"t-%d"}`, n))
	}
	register := func(token string) reply {
		n++
		return s.do(token, "POST", "/crm/v2/webhooks", hook(fmt.Sprintf("https://hooks.example.com/%d", n)))
	}
	for range 2 {
		send(acme).want(202)
		register(acme).want(201)
	}
	s.do(operator, "PUT", path, map[string]any{"ingest_rate": 0.001, "webhooks": 1}).want(200)
	s.until("the rate holds", func() bool { return send(acme).status == 429 })
	refused := send(acme)
	refused.refused(429, "account_rate", "")
	if after, err := strconv.Atoi(refused.header.Get("Retry-After")); err != nil || after < 1 || after > 1000 {
		t.Errorf("Retry-After: %q, want up to 1000 s", refused.header.Get("Retry-After"))
	}
	register(acme).refused(422, "too_many_webhooks", "")
	s.do(acme, "GET", "/crm/v2/webhooks", nil).want(200)
	for range 3 {
		send(other).want(202)
		register(other).want(201)
	}
	s.do(operator, "PUT", path, map[string]any{"ingest_rate": nil, "webhooks": nil}).want(200)
	s.until("the rate is gone", func() bool { return send(acme).status == 202 })
	for range 3 {
		send(acme).want(202)
		register(acme).want(201)
	}
}

// TestConsoleOfDeferredAccount: what an account at its share cannot send, the console refuses on the page of the
// button, in words and in the language of the session.
func TestConsoleOfDeferredAccount(t *testing.T) {
	t.Parallel()
	x := exhibit(t)
	shares, err := x.bus.Bucket(t.Context(), topology.BucketShares)
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(share.Deferral{Since: time.Now(), Store: share.StoreWork})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shares.Put(t.Context(), share.DeferralKey("acme"), value); err != nil {
		t.Fatal(err)
	}
	x.until("its events wait", func() bool { return x.do(acme, "POST", "/crm/v2/webhooks/"+x.hook+"/test", nil).status == 429 })
	for language, text := range map[string]string{"en": "nothing can be added for now", "pt-BR": "nada pode ser acrescentado por ora"} {
		b := x.signedIn(acme, language)
		now := time.Now().UTC()
		span := []string{"from", now.Add(-time.Hour).Format("2006-01-02T15:04"), "to", now.Format("2006-01-02T15:04")}
		for _, action := range []struct {
			path, page string
			form       []string
		}{
			{"/webhooks/" + x.hook + "/test", "/webhooks/" + x.hook, nil},
			{"/webhooks/" + x.hook + "/replays", "/webhooks/" + x.hook, span},
			{"/replays/" + x.replay + "/start", "/replays/" + x.replay, nil},
			{"/notifications/" + x.failed + "/resend", "/notifications/" + x.failed, nil},
			{"/event_types/crm_deal_created/send", "/event_types/crm_deal_created", []string{"webhook_id", x.hook}},
			{"/failures/resend", "/failures", []string{"id", x.failed}},
		} {
			if to := b.post(action.path, action.form...).leads(action.page); to != action.page {
				t.Errorf("%s leads to %s", action.path, to)
			}
			b.get(action.page).want(200).safe(language).has(text)
			b.get(action.page).want(200).lacks(text) // once
		}
	}
}
