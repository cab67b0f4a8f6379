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
	page, total := pick(s.byName.of(account, s.registry.Account), s.suspensions.URLs(account), q)
	return s.views(ctx, account, page), total
}

// pick returns the page of those of list that match, the ones with a suspended URL first and the disabled ones
// last, and how many match.
func pick(list []named, suspendedURLs map[string]bool, q Query) (page []*webhook.Webhook, total int) {
	var suspended, active, disabled []*named
	text := strings.ToLower(strings.TrimSpace(q.Text))
	if text == "" {
		active = make([]*named, 0, len(list))
	}
	for i := range list {
		n := &list[i]
		switch {
		case text != "" && !strings.Contains(n.text, text) && n.id != text:
		case n.disabled:
			disabled = append(disabled, n)
		case len(suspendedURLs) > 0 && suspendedURLs[n.w.URLKey]:
			suspended = append(suspended, n)
		default:
			active = append(active, n)
		}
	}
	for _, some := range [][]*named{suspended, active, disabled} {
		from := min(max(q.Offset-total, 0), len(some))
		for _, n := range some[from:min(from+q.Limit-len(page), len(some))] {
			page = append(page, n.w)
		}
		total += len(some)
	}
	return page, total
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

// named is a webhook with its keys for order and search, so that looking through very many touches nothing else.
type named struct {
	lower    string // the name, in lower case
	text     string // name, URL and event name, in lower case, a line each
	id       string
	disabled bool
	w        *webhook.Webhook
}

func newNamed(w *webhook.Webhook) named {
	lower := strings.ToLower(w.Name)
	text := lower + "\n" + strings.ToLower(w.URL) + "\n" + string(w.EventName)
	return named{text[:len(lower)], text, w.ID, w.Status == webhook.Disabled, w}
}

func compareNamed(a, b named) int {
	return cmp.Or(strings.Compare(a.lower, b.lower), strings.Compare(a.id, b.id))
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

// changed puts a webhook where it belongs now. A load that runs at the same time may hold the change already.
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

// All returns the account's webhooks, oldest first. The slice is shared: it must not be changed.
func (s *Service) All(account string) []*webhook.Webhook { return s.registry.Account(account) }
