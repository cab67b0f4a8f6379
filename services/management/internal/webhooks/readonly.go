package webhooks

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"gancho/pkg/delivery"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/problem"
)

// changedReadOnly lists the members of in that only the service sets and that differ from those of w. How many
// notifications wait for a suspended URL is not compared: the numbers move between two requests.
func (s *Service) changedReadOnly(ctx context.Context, w *webhook.Webhook, in Input) (problems problem.List) {
	refuse := func(name, detail string) { problems.Add("/data/"+name, "read_only", detail) }
	if in.ID.Present && !same(in.ID, w.ID) {
		refuse("id", "id cannot be changed")
	}
	if in.PublicKey.Present && !same(in.PublicKey, delivery.PublicKey(w.PublicKey())) {
		refuse("public_key", "public_key cannot be changed; POST .../rotate_secret makes a new one")
	}
	if in.CreatedAt.Present && !sameTime(in.CreatedAt, w.CreatedAt) {
		refuse("created_at", "created_at cannot be changed")
	}
	if in.UpdatedAt.Present && !sameTime(in.UpdatedAt, w.UpdatedAt) {
		refuse("updated_at", "updated_at is not that of the webhook as it is: read it again, or leave the member out")
	}
	if in.DisabledReason.Present && (in.DisabledReason.Null != (w.DisabledReason == "") || !in.DisabledReason.Null &&
		!same(in.DisabledReason, w.DisabledReason)) {
		refuse("disabled_reason", "disabled_reason cannot be changed; status active takes it away")
	}
	if in.Suspension.Present && !sameSuspension(in.Suspension, s.view(ctx, w).Suspension) {
		refuse("suspension", "suspension cannot be changed; POST .../suspend and .../resume do that")
	}
	return problems
}

func same(f Field[jsontext.Value], want string) bool {
	var got string
	return !f.Null && json.Unmarshal(f.Value, &got) == nil && got == want
}

func sameTime(f Field[jsontext.Value], want time.Time) bool {
	var got time.Time
	return !f.Null && json.Unmarshal(f.Value, &got) == nil && got.Equal(want)
}

func sameSuspension(f Field[jsontext.Value], want *Suspension) bool {
	if f.Null || want == nil {
		return f.Null == (want == nil)
	}
	var got Suspension
	if json.Unmarshal(f.Value, &got) != nil {
		return false
	}
	got.Parked, got.OldestParkedAt = nil, nil
	now := *want
	now.Parked, now.OldestParkedAt = nil, nil
	a, err := json.Marshal(got)
	if err != nil {
		return false
	}
	b, err := json.Marshal(now)
	return err == nil && bytes.Equal(a, b)
}

// suspended reports whether the URL of w is set aside.
func (s *Service) suspended(w *webhook.Webhook) bool {
	_, flag := s.Status(w)
	return flag != nil
}
