package management_test

import (
	"testing"
	"time"
)

func TestBrokerAway(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := start(t, nil)
	id := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	s.nats.Stop()
	began := time.Now()
	s.do(acme, "GET", "/crm/v2/webhooks/"+id, nil).want(200) // from memory
	s.do(acme, "POST", "/crm/v2/events/crm_deal_created", `{"transaction_uuid":"x"}`).refused(503, "broker_unavailable", "")
	s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/y")).refused(503, "broker_unavailable", "")
	s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"name": "x"}).refused(503, "broker_unavailable", "")
	s.do(acme, "GET", "/crm/v2/notifications/"+id, nil).refused(503, "broker_unavailable", "")
	t.Logf("refused after %v", time.Since(began))
	s.nats.Run()
	s.until("it works again", func() bool {
		return s.do(acme, "PUT", "/crm/v2/webhooks/"+id, map[string]any{"name": "y"}).status == 200
	})
	began = time.Now()
	s.until("this process sees it", func() bool {
		return s.do(acme, "GET", "/crm/v2/webhooks/"+id, nil).want(200).data()["name"] == "y"
	})
	t.Logf("seen after %v", time.Since(began))
}
