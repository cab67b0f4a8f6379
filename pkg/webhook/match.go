package webhook

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"gancho/pkg/condition"
	"gancho/pkg/event"
)

// Pattern is the event_name of a webhook: an exact name, a name with one * for one or more characters
// after "crm_" (crm_deal_*, crm_*_deleted), or * for every event. Exact names are RD Station's; the star
// is an extension.
type Pattern string

// CheckPattern returns the fault of the pattern, nil if it is valid. An exact name must be known.
func CheckPattern(p Pattern, known event.Names) *Problem {
	s := string(p)
	switch {
	case s == "*":
		return nil
	case !strings.Contains(s, "*"):
		if known.Has(s) {
			return nil
		}
		return &Problem{
			"event_name", "unknown_event_name",
			"event_name is not a known event; see the list of events, or use a pattern such as crm_deal_*",
		}
	case strings.Count(s, "*") > 1, !strings.HasPrefix(s, "crm_"), len(s) > 64,
		strings.Trim(strings.ReplaceAll(s, "*", ""), "abcdefghijklmnopqrstuvwxyz0123456789_") != "":
		return &Problem{
			"event_name", "bad_pattern",
			"event_name may hold one * after crm_, as in crm_deal_* or crm_*_deleted, or be *",
		}
	}
	return nil
}

// Exact reports whether p names one event.
func (p Pattern) Exact() bool { return !strings.Contains(string(p), "*") }

// Matches reports whether an event of that name is meant by p.
func (p Pattern) Matches(name string) bool {
	before, after, star := strings.Cut(string(p), "*")
	if !star {
		return string(p) == name
	}
	return len(name) > len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after)
}

// Index answers which webhooks an event matches. It is safe for concurrent use; accounts never mix.
// Matching touches only the account's webhooks of that name and its patterns, and holds no lock.
type Index struct {
	mu       sync.RWMutex
	webhooks map[string]*Webhook // by key
	notices  map[string]*Webhook // what carries the notices of webhooks, by key
	accounts map[string]*accountIndex
	urls     map[string]int // webhooks per <account>.<url_key>
	rates    map[urlID]*rate
	limited  atomic.Int32 // the number of rates
}

// urlID names a URL of an account.
type urlID struct{ account, key string }

// rate is what the webhooks of one URL say of its MaxPerMinute; those without one are not counted.
type rate struct {
	lowest   int
	webhooks map[int]int // how many there are, by their MaxPerMinute
}

// Readers of the slices hold no lock, so their elements never change.
type accountIndex struct {
	exact    map[string][]*Webhook // by event name
	patterns []*Webhook
	ordered  []*Webhook // all of them, oldest first; nil until the first call
	count    int
}

// NewIndex returns an empty index.
func NewIndex() *Index {
	return &Index{
		webhooks: map[string]*Webhook{}, notices: map[string]*Webhook{}, accounts: map[string]*accountIndex{},
		urls: map[string]int{}, rates: map[urlID]*rate{},
	}
}

// Put adds w or replaces the one with its key.
func (x *Index) Put(w *Webhook) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.remove(w.Key())
	x.webhooks[w.Key()] = w
	if n := w.Notice(); n != nil {
		x.notices[n.Key()] = n
	}
	if w.Kind != "" {
		return
	}
	x.urls[w.Account+"."+w.URLKey]++
	x.limit(w, 1)
	a := x.accounts[w.Account]
	if a == nil {
		a = &accountIndex{exact: map[string][]*Webhook{}}
		x.accounts[w.Account] = a
	}
	a.count++
	if w.EventName.Exact() {
		a.exact[string(w.EventName)] = append(a.exact[string(w.EventName)], w)
	} else {
		a.patterns = append(a.patterns, w)
	}
	if a.ordered == nil {
		return
	}
	if at, _ := slices.BinarySearchFunc(a.ordered, w, byAge); at == len(a.ordered) {
		a.ordered = append(a.ordered, w)
	} else {
		a.ordered = slices.Insert(slices.Clone(a.ordered), at, w)
	}
}

// byAge orders webhooks oldest first.
func byAge(a, b *Webhook) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
}

// Delete removes the webhook with that key, if it is there.
func (x *Index) Delete(key string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.remove(key)
}

func (x *Index) remove(key string) {
	w := x.webhooks[key]
	if w == nil {
		return
	}
	delete(x.webhooks, key)
	if n := w.Notice(); n != nil {
		delete(x.notices, n.Key())
	}
	if w.Kind != "" {
		return
	}
	if u := w.Account + "." + w.URLKey; x.urls[u] > 1 {
		x.urls[u]--
	} else {
		delete(x.urls, u)
	}
	x.limit(w, -1)
	a := x.accounts[w.Account]
	a.count--
	is := func(o *Webhook) bool { return o == w }
	if !w.EventName.Exact() {
		a.patterns = without(a.patterns, is)
	} else if left := without(a.exact[string(w.EventName)], is); len(left) > 0 {
		a.exact[string(w.EventName)] = left
	} else {
		delete(a.exact, string(w.EventName))
	}
	if len(a.exact) == 0 && len(a.patterns) == 0 {
		delete(x.accounts, w.Account)
	} else if at, found := slices.BinarySearchFunc(a.ordered, w, byAge); found {
		a.ordered = slices.Delete(slices.Clone(a.ordered), at, at+1)
	}
}

// limit counts w, with 1, among the webhooks that limit its URL, or with -1 no longer. The caller holds mu.
func (x *Index) limit(w *Webhook, n int) {
	if w.MaxPerMinute == 0 {
		return
	}
	id := urlID{w.Account, w.URLKey}
	r := x.rates[id]
	if r == nil {
		r = &rate{webhooks: map[int]int{}}
		x.rates[id] = r
	}
	if r.webhooks[w.MaxPerMinute] += n; r.webhooks[w.MaxPerMinute] == 0 {
		delete(r.webhooks, w.MaxPerMinute)
	}
	switch {
	case n > 0:
		r.lowest = min(cmp.Or(r.lowest, w.MaxPerMinute), w.MaxPerMinute)
	case len(r.webhooks) == 0:
		delete(x.rates, id)
	case r.webhooks[r.lowest] == 0:
		r.lowest = slices.Min(slices.Collect(maps.Keys(r.webhooks)))
	}
	x.limited.Store(int32(len(x.rates))) //nolint:gosec // webhooks fit into memory
}

// MaxPerMinute returns how many requests the URL may get in a minute: the lowest number of its webhooks, 0 when none of
// them has one.
func (x *Index) MaxPerMinute(account, urlKey string) int {
	if x.limited.Load() == 0 {
		return 0
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.rates[urlID{account, urlKey}]; r != nil {
		return r.lowest
	}
	return 0
}

// without copies, because Match hands the slices to readers that hold no lock.
func without(ws []*Webhook, is func(*Webhook) bool) []*Webhook {
	return slices.DeleteFunc(slices.Clone(ws), is)
}

// Get returns the account's webhook, or what carries its notices, nil when there is none.
func (x *Index) Get(account, id string) *Webhook {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if w := x.webhooks[account+"."+id]; w != nil {
		return w
	}
	return x.notices[account+"."+id]
}

// ByKey returns the webhook with that key, nil when there is none.
func (x *Index) ByKey(key string) *Webhook {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.webhooks[key]
}

// Match appends to dst the account's active webhooks that the event is for: their names match and their conditions
// hold. held, if not nil, is called for each that only its conditions keep from it.
func (x *Index) Match(dst []*Webhook, ev *event.Event, held func(*Webhook)) []*Webhook {
	x.mu.RLock()
	a := x.accounts[ev.Account]
	if a == nil {
		x.mu.RUnlock()
		return dst
	}
	exact, patterns := a.exact[ev.Name], a.patterns
	x.mu.RUnlock()
	var against *condition.Event // one for all, once a webhook has conditions
	take := func(w *Webhook) {
		if w.conditions.Len() > 0 {
			if against == nil {
				against = ConditionEvent(ev)
			}
			if w.conditions.Failing(against) >= 0 {
				if held != nil {
					held(w)
				}
				return
			}
		}
		dst = append(dst, w)
	}
	for _, w := range exact {
		if w.Status == Active {
			take(w)
		}
	}
	for _, w := range patterns {
		if w.Status == Active && w.EventName.Matches(ev.Name) {
			take(w)
		}
	}
	return dst
}

// Len returns the number of webhooks.
func (x *Index) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.webhooks)
}

// Count returns how many webhooks the account has.
func (x *Index) Count(account string) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if a := x.accounts[account]; a != nil {
		return a.count
	}
	return 0
}

// HasOthers reports whether any account but this one has webhooks.
func (x *Index) HasOthers(account string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.accounts) > 1 || len(x.accounts) == 1 && x.accounts[account] == nil
}

// UsesURL reports whether any webhook of the account still points at the URL.
func (x *Index) UsesURL(account, urlKey string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.urls[account+"."+urlKey] > 0
}

// Account returns the account's webhooks, oldest first. The slice must not be changed.
func (x *Index) Account(account string) []*Webhook {
	x.mu.RLock()
	a := x.accounts[account]
	if a == nil || a.ordered != nil {
		defer x.mu.RUnlock()
		if a == nil {
			return nil
		}
		return a.ordered
	}
	x.mu.RUnlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if a = x.accounts[account]; a == nil {
		return nil
	}
	if a.ordered == nil {
		for _, ws := range a.exact {
			a.ordered = append(a.ordered, ws...)
		}
		a.ordered = append(a.ordered, a.patterns...)
		slices.SortFunc(a.ordered, byAge)
	}
	return a.ordered
}

// Accounts returns the accounts that have webhooks, in order.
func (x *Index) Accounts() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Sorted(maps.Keys(x.accounts))
}

// All returns every webhook, in no order.
func (x *Index) All() []*Webhook {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]*Webhook, 0, len(x.webhooks))
	for _, w := range x.webhooks {
		out = append(out, w)
	}
	return out
}
