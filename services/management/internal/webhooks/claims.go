package webhooks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/problem"
)

// claim is who has a combination of account, event name and URL.
//
// Two replicas that register the same combination at once meet here: creating the key is one compare-and-set.
// The webhook is written after its claim, and a claim whose webhook does not exist, or no longer has that
// combination, is left over from a crash: after staleAfter it is taken over. A replica that was frozen
// between claim and webhook finds out afterwards (see holds) and takes its webhook back.
type claim struct {
	WebhookID string    `json:"webhook_id"`
	At        time.Time `json:"at"`
}

// staleAfter is longer than any request may take.
const staleAfter = time.Minute

// claimKey is <account>.<first 128 bits of a hash>; event names may hold a star, which no key can.
func claimKey(w *webhook.Webhook) string {
	sum := sha256.Sum256([]byte(string(w.EventName) + "\n" + w.URL))
	return w.Account + "." + hex.EncodeToString(sum[:16])
}

func taken(id string) error {
	e := problem.New(problem.Conflict, "webhook_exists",
		"this account has a webhook with this event_name and url already: "+id+"; change that one, or use another url")
	e.Problems[0].ID = id
	return e
}

// take claims w's combination for w. It returns a 409 when another webhook has it.
func (s *Service) take(ctx context.Context, w *webhook.Webhook) error {
	for _, other := range s.registry.Account(w.Account) {
		if other.ID != w.ID && other.EventName == w.EventName && other.URL == w.URL {
			if current, err := s.fetch(ctx, w.Account, other.ID); err == nil && current.EventName == w.EventName &&
				current.URL == w.URL {
				return taken(other.ID)
			}
		}
	}
	value, err := json.Marshal(claim{w.ID, time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("encode claim: %w", err)
	}
	key := claimKey(w)
	_, err = s.claims.Create(ctx, key, value)
	for errors.Is(err, bus.ErrConflict) {
		var e bus.Entry
		if e, err = s.claims.Get(ctx, key); errors.Is(err, bus.ErrNotFound) { // given back since
			_, err = s.claims.Create(ctx, key, value)
			continue
		}
		if err != nil {
			break
		}
		var c claim
		if err := json.Unmarshal(e.Value, &c); err != nil {
			return fmt.Errorf("decode claim %s: %w", key, err)
		}
		if c.WebhookID == w.ID {
			return nil
		}
		holder, lookErr := s.fetch(ctx, w.Account, c.WebhookID)
		gone := problem.Of(lookErr).Kind == problem.Missing
		switch {
		case lookErr != nil && !gone:
			return lookErr
		case lookErr == nil && holder.EventName == w.EventName && holder.URL == w.URL, time.Since(c.At) < staleAfter &&
			gone:
			return taken(c.WebhookID)
		}
		_, err = s.claims.Update(ctx, key, value, e.Revision)
	}
	return problem.Broker(err)
}

// holds reports whether w's combination is still claimed for w.
func (s *Service) holds(ctx context.Context, w *webhook.Webhook) (bool, error) {
	e, err := s.claims.Get(ctx, claimKey(w))
	if errors.Is(err, bus.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, problem.Broker(err)
	}
	var c claim
	if err := json.Unmarshal(e.Value, &c); err != nil {
		return false, fmt.Errorf("decode claim: %w", err)
	}
	return c.WebhookID == w.ID, nil
}

// releaseClaim removes w's claim, if it is w's. A failure leaves a stale claim, which is harmless.
func (s *Service) releaseClaim(ctx context.Context, w *webhook.Webhook) {
	e, err := s.claims.Get(ctx, claimKey(w))
	if err != nil {
		return
	}
	var c claim
	if json.Unmarshal(e.Value, &c) == nil && c.WebhookID == w.ID {
		_ = s.claims.Delete(ctx, claimKey(w), e.Revision)
	}
}
