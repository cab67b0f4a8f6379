package webhooks

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

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
	var suspended, active, disabled []*webhook.Webhook
	urls := s.flags.Of(account)
	text := strings.ToLower(strings.TrimSpace(q.Text))
	for _, n := range s.byName.of(account, s.registry.Account) {
		w := n.w
		if text != "" && !strings.Contains(n.lower, text) && !strings.Contains(strings.ToLower(w.URL), text) &&
			!strings.Contains(string(w.EventName), text) && w.ID != text {
			continue
		}
		switch {
		case w.Status == webhook.Disabled:
			disabled = append(disabled, w)
		case urls[w.URLKey]:
			suspended = append(suspended, w)
		default:
			active = append(active, w)
		}
	}
	found := slices.Concat(suspended, active, disabled)
	page := found[min(q.Offset, len(found)):]
	return s.views(ctx, account, page[:min(q.Limit, len(page))]), len(found)
}

// ByName returns the account's webhooks by name, at most limit, and whether these are all.
func (s *Service) ByName(account string, limit int) (some []*webhook.Webhook, all bool) {
	named := s.byName.of(account, s.registry.Account)
	for _, n := range named[:min(limit, len(named))] {
		some = append(some, n.w)
	}
	return some, len(named) <= limit
}

// Accounts returns the accounts that have webhooks, in order.
func (s *Service) Accounts() []string { return s.registry.Accounts() }

// roster keeps the webhooks of the accounts that were asked for in the order of their names, so that an
// account with very many is not sorted for each page. It is safe for concurrent use.
type roster struct {
	mu       sync.Mutex
	accounts map[string][]named
}

// named is a webhook with its name in lower case.
type named struct {
	lower string
	w     *webhook.Webhook
}

func newNamed(w *webhook.Webhook) named { return named{strings.ToLower(w.Name), w} }

func compareNamed(a, b named) int {
	return cmp.Or(strings.Compare(a.lower, b.lower), strings.Compare(a.w.ID, b.w.ID))
}

// of returns the account's webhooks by name; they are loaded when it is the first time. The slice must not
// be changed.
func (r *roster) of(account string, load func(account string) []*webhook.Webhook) []named {
	r.mu.Lock()
	defer r.mu.Unlock()
	list, known := r.accounts[account]
	if !known {
		for _, w := range load(account) {
			list = append(list, newNamed(w))
		}
		slices.SortFunc(list, compareNamed)
		if r.accounts == nil {
			r.accounts = map[string][]named{}
		}
		r.accounts[account] = list
	}
	return list
}

// changed puts a webhook where it belongs now. What is loaded meanwhile may hold the change already.
func (r *roster) changed(before, after *webhook.Webhook) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before != nil {
		r.edit(newNamed(before), false)
	}
	if after != nil {
		r.edit(newNamed(after), true)
	}
}

func (r *roster) edit(n named, keep bool) {
	list, known := r.accounts[n.w.Account]
	if !known {
		return
	}
	at, found := slices.BinarySearchFunc(list, n, compareNamed)
	if !found && !keep {
		return
	}
	list = slices.Clone(list) // readers hold the old one
	switch {
	case !keep:
		list = slices.Delete(list, at, at+1)
	case found:
		list[at] = n
	default:
		list = slices.Insert(list, at, n)
	}
	r.accounts[n.w.Account] = list
}
