package webhooks

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"gancho/pkg/webhook"
)

// Query says which webhooks of an account are wanted.
type Query struct {
	// Text is looked for in name, URL, event name and id, without regard to case; "" is in all.
	Text          string
	Offset, Limit int
}

// Search returns the account's webhooks that match, those with trouble first, then by name, and how many
// there are.
func (s *Service) Search(ctx context.Context, account string, q Query) ([]View, int) {
	type ranked struct {
		w      *webhook.Webhook
		status string
	}
	var found []ranked
	text := strings.ToLower(strings.TrimSpace(q.Text))
	for _, w := range s.registry.Account(account) {
		if text == "" || strings.Contains(strings.ToLower(w.Name), text) || strings.Contains(strings.ToLower(w.URL), text) ||
			strings.Contains(string(w.EventName), text) || w.ID == text {
			status, _ := s.Status(w)
			found = append(found, ranked{w, status})
		}
	}
	order := []string{StatusSuspended, StatusActive, StatusDisabled}
	slices.SortStableFunc(found, func(a, b ranked) int {
		return cmp.Or(
			cmp.Compare(slices.Index(order, a.status), slices.Index(order, b.status)),
			strings.Compare(strings.ToLower(a.w.Name), strings.ToLower(b.w.Name)),
		)
	})
	page := found[min(q.Offset, len(found)):]
	page = page[:min(q.Limit, len(page))]
	hooks := make([]*webhook.Webhook, 0, len(page))
	for _, r := range page {
		hooks = append(hooks, r.w)
	}
	return s.views(ctx, account, hooks), len(found)
}

// All returns the account's webhooks as registered, oldest first.
func (s *Service) All(account string) []*webhook.Webhook { return s.registry.Account(account) }

// Accounts returns the accounts that have webhooks, in order.
func (s *Service) Accounts() []string {
	var accounts []string
	for _, w := range s.registry.All() {
		accounts = append(accounts, w.Account)
	}
	slices.Sort(accounts)
	return slices.Compact(accounts)
}
