package webhooks

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"gancho/pkg/egress"
	"gancho/pkg/webhook"
)

// Filter selects webhooks of an account. Empty members select all.
type Filter struct {
	Status    string // active, suspended or disabled
	EventName string // exactly the registration's
	// URL and Name match exactly, or with * for any characters. A URL also matches in its normalised form.
	URL, Name string
	// Sort is one of Sorts, with a leading - for the other direction; empty: created_at.
	Sort string
}

// Sorts are the members by which a list can be sorted.
func Sorts() []string { return []string{"created_at", "updated_at", "name", "event_name", "url"} }

// Statuses are the states of a webhook in the API.
func Statuses() []string { return []string{StatusActive, StatusSuspended, StatusDisabled} }

// List returns the account's webhooks that match, from offset on and at most limit, and how many match in all.
func (s *Service) List(ctx context.Context, account string, f Filter, offset, limit int) ([]View, int) {
	all := s.registry.Account(account)
	if f != (Filter{}) {
		all = s.selected(all, f)
	}
	page := all[min(offset, len(all)):]
	page = page[:min(limit, len(page))]
	return s.views(ctx, account, page), len(all)
}

func (s *Service) selected(all []*webhook.Webhook, f Filter) []*webhook.Webhook {
	url, name := matcher(f.URL, s.policy), matcher(f.Name, nil)
	found := []*webhook.Webhook{}
	for _, w := range all {
		if f.EventName != "" && f.EventName != string(w.EventName) || !name(w.Name) || !url(w.ShownURL()) &&
			!url(w.URL) {
			continue
		}
		if f.Status != "" {
			if status, _ := s.Status(w); status != f.Status {
				continue
			}
		}
		found = append(found, w)
	}
	member, descending := strings.CutPrefix(f.Sort, "-")
	order := func(a, b *webhook.Webhook) int { return a.CreatedAt.Compare(b.CreatedAt) }
	switch member {
	case "updated_at":
		order = func(a, b *webhook.Webhook) int { return a.UpdatedAt.Compare(b.UpdatedAt) }
	case "name":
		order = func(a, b *webhook.Webhook) int {
			return cmp.Or(cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.Name, b.Name))
		}
	case "event_name":
		order = func(a, b *webhook.Webhook) int { return cmp.Compare(a.EventName, b.EventName) }
	case "url":
		order = func(a, b *webhook.Webhook) int { return cmp.Compare(a.URL, b.URL) }
	}
	slices.SortFunc(found, func(a, b *webhook.Webhook) int {
		c := cmp.Or(order(a, b), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
		if descending {
			return -c
		}
		return c
	})
	return found
}

// matcher returns a test for a pattern with * for any characters; every text matches an empty one. With a policy the
// normalised form of the pattern matches too, where it is a URL.
func matcher(pattern string, policy *egress.Policy) func(string) bool {
	if pattern == "" {
		return func(string) bool { return true }
	}
	normal := pattern
	if policy != nil {
		if n, problem := webhook.NormalizeURL(pattern, policy); problem == nil {
			normal = n
		}
	}
	parts := strings.Split(pattern, "*")
	return func(text string) bool {
		return text == pattern || text == normal || len(parts) > 1 && matches(parts, text)
	}
}

// matches reports whether text consists of the parts in their order with anything between them.
func matches(parts []string, text string) bool {
	text, ok := strings.CutPrefix(text, parts[0])
	if !ok {
		return false
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(text, part)
		if !found {
			return false
		}
		text = after
	}
	return strings.HasSuffix(text, parts[last])
}
