package management_test

import (
	"encoding/json"
	"fmt"
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
