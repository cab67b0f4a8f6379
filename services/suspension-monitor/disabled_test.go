package monitor

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/suspension/status"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// TestDisabledIsPublished: each time a webhook becomes disabled has one status event, also when no monitor ran then.
func TestDisabledIsPublished(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	hooks, err := r.bus.Bucket(t.Context(), topology.BucketWebhooks)
	if err != nil {
		t.Fatal(err)
	}
	keys := seal.New()
	w := &webhook.Webhook{ID: uuid.NewString(), Account: "acme", EventName: "*", Method: "POST", URL: "https://hooks.example.com/x", Status: webhook.Active}
	put := func(now webhook.Status, reason string, at time.Time) {
		t.Helper()
		w.Status, w.DisabledReason, w.DisabledAt, w.Version = now, reason, at, w.Version+1
		body, err := registry.Sign(keys, w)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hooks.Put(t.Context(), w.Key(), body); err != nil {
			t.Fatal(err)
		}
	}
	// published returns the reasons of all events once there are n.
	published := func(n uint64) (reasons []string) {
		t.Helper()
		s, err := r.bus.Stream(t.Context(), topology.WebhookStatus)
		if err != nil {
			t.Fatal(err)
		}
		subject := "gancho.webhooks.acme." + w.ID + ".disabled"
		wait(t, fmt.Sprint(n, " events are published"), func() bool {
			info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
			if err != nil {
				t.Fatal(err)
			}
			return info.State.Subjects[subject] >= n
		})
		for next := uint64(1); ; {
			m, err := s.GetMsg(t.Context(), next, jetstream.WithGetMsgSubject(subject))
			if err != nil {
				return reasons
			}
			var c status.Change
			if err := json.Unmarshal(m.Data, &c); err != nil || c.URLHost != "hooks.example.com" {
				t.Errorf("%s: %v", m.Data, err)
			}
			reasons, next = append(reasons, c.Reason), m.Sequence+1
		}
	}
	first := time.Now().UTC()
	put(webhook.Active, "", time.Time{})
	put(webhook.Disabled, "", first)
	published(1)
	w.Name = "renamed"
	put(webhook.Disabled, "", first)
	r.stop()
	put(webhook.Active, "", time.Time{})
	put(webhook.Disabled, webhook.Gone, first.Add(time.Second))
	r.start()
	if got, want := published(2), []string{"by_owner", "gone"}; !slices.Equal(got, want) {
		t.Errorf("reasons %v, want %v", got, want)
	}
}
