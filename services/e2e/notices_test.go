package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"gancho/pkg/delivery"
)

// testNoticeReachesItsURL: a webhook whose URL always fails is suspended, and its owner's URL gets a signed notice of
// it, with the times of the next steps.
func testNoticeReachesItsURL(t *testing.T, s *system) {
	failing := newReceiver(t, func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusInternalServerError) })
	type request struct {
		header http.Header
		body   []byte
	}
	came := make(chan request, 10)
	owner := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); err == nil {
			came <- request{r.Header, body}
		}
	}))
	t.Cleanup(owner.Close)
	var h struct {
		hook

		NotifySecret string `json:"notify_secret"`
	}
	s.call(http.MethodPost, "/crm/v2/webhooks", map[string]any{
		"event_name": dealCreated, "url": failing.URL + "/in", "notify": map[string]any{"url": owner.URL + "/notices"},
	}, &h)
	secret, err := delivery.ParseSecret(h.NotifySecret)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // on a busy machine a publisher may learn of the webhook later than after the contract's second
		s.settle()
		s.publish(dealCreated)
	}
	s.waitStatus(h.ID, "suspended")
	told := map[string]bool{}
	for !told["webhook.at_risk"] || !told["webhook.suspended"] {
		var r request
		select {
		case r = <-came:
		case <-time.After(time.Minute):
			t.Fatalf("no notice within a minute, after %v", told)
		}
		seconds, err := strconv.ParseInt(r.header.Get("Webhook-Timestamp"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if want := delivery.Sign(r.header.Get("Webhook-Id"), time.Unix(seconds, 0), r.body, [][]byte{secret}); r.header.Get("Webhook-Signature") != want {
			t.Errorf("signature = %q, want %q", r.header.Get("Webhook-Signature"), want)
		}
		var notice struct {
			Type string `json:"type"`
			Data struct {
				WebhookID string `json:"webhook_id"`
				Until     string `json:"until"`
				Text      string `json:"text"`
			} `json:"data"`
		}
		if err := json.Unmarshal(r.body, &notice); err != nil {
			t.Fatalf("%v: %s", err, r.body)
		}
		if told[notice.Type] {
			t.Errorf("told twice: %s", r.body)
		}
		told[notice.Type] = true
		if notice.Type == "webhook.permanent_failure" { // of those in flight
			continue
		}
		if notice.Data.WebhookID != h.ID || notice.Data.Until == "" || notice.Data.Text == "" {
			t.Errorf("notice = %s", r.body)
		}
	}
}
