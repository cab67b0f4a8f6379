package console

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/numbers"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/problem"
)

const (
	numbersWithin = 3 * time.Second // for the numbers below a chart; the page goes without them after that
	numbersKept   = 15 * time.Second
	mostKept      = 1000
	reasonsShown  = 5
	hostsShown    = 10
	accountsShown = 50
)

// figures are the numbers of a day.
type figures struct {
	Attempts, Failed, Held uint64
	ErrorRate              string
	P50, P95, P99          float64 // ms
	Reasons                []reasonCount
}

type reasonCount struct {
	Reason string
	Count  uint64
}

// figures puts counts into the words of a page.
func (l language) figures(n *numbers.Counts) *figures {
	f := &figures{
		Attempts: n.Attempts(), Failed: n.Failed, Held: n.Held, ErrorRate: l.percent(n.Failed, n.Attempts()),
		P50: n.Quantile(0.5), P95: n.Quantile(0.95), P99: n.Quantile(0.99),
	}
	for reason, count := range n.Reasons {
		f.Reasons = append(f.Reasons, reasonCount{reason, count})
	}
	slices.SortFunc(f.Reasons, func(a, b reasonCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason))
	})
	f.Reasons = f.Reasons[:min(len(f.Reasons), reasonsShown)]
	return f
}

// percent writes a part of all; a small part is not written as none.
func (l language) percent(part, all uint64) string {
	switch share := 100 * float64(part) / float64(max(all, 1)); {
	case part > 0 && share < 0.1:
		return "< " + l.decimal(0.1) + " %"
	default:
		return l.decimal(share) + " %"
	}
}

// day returns the last 24 hours, from the beginning of an hour on.
func day() (from, to time.Time) {
	now := time.Now().UTC()
	return now.Add(-24 * time.Hour).Truncate(time.Hour), now.Truncate(time.Hour).Add(time.Hour)
}

// lately holds the numbers of webhooks whose pages were shown lately: an open page asks every few seconds.
type lately struct {
	mu  sync.Mutex
	all map[string]counted
}

type counted struct {
	at time.Time
	n  *numbers.Counts
}

func (l *lately) get(key string) *numbers.Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.all[key]; time.Since(c.at) < numbersKept {
		return c.n
	}
	return nil
}

func (l *lately) put(key string, n *numbers.Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil || len(l.all) >= mostKept {
		l.all = map[string]counted{}
	}
	l.all[key] = counted{time.Now(), n}
}

// webhookFigures returns a webhook's numbers, nil when they cannot be had, which no page depends on.
func (c *Console) webhookFigures(v *visit, id string) *figures {
	key := v.caller.Account + "/" + id
	if n := c.lately.get(key); n != nil {
		return v.lang.figures(n)
	}
	ctx, cancel := context.WithTimeout(v.ctx, numbersWithin)
	defer cancel()
	from, to := day()
	hours, err := c.Numbers.Webhook(ctx, v.caller.Account, id, from, to, time.Hour)
	if err != nil {
		v.fields = append(v.fields, zap.NamedError("numbers", err))
		return nil
	}
	var n numbers.Counts
	for i := range hours {
		n.Add(&hours[i].Counts)
	}
	c.lately.put(key, &n)
	return v.lang.figures(&n)
}

// numbersView is the page of an account's numbers.
type numbersView struct {
	*figures

	Events, Notifications uint64
	Hosts                 []hostFigures
}

// hostFigures are the numbers of all webhooks whose URLs have one host.
type hostFigures struct {
	Host string
	*figures
}

func (c *Console) numbersPage(v *visit) error {
	from, to := day()
	all, err := c.Numbers.Webhooks(v.ctx, v.caller.Account, from, to, time.Hour)
	if err != nil {
		return problem.Broker(err)
	}
	var total numbers.Counts
	for _, n := range all {
		total.Add(n)
	}
	hosts := map[string]*numbers.Counts{}
	for _, w := range c.Webhooks.All(v.caller.Account) {
		if n := all[w.ID]; n != nil && n.Attempts() > 0 {
			host := webhook.URLHost(w.URL)
			if hosts[host] == nil {
				hosts[host] = &numbers.Counts{}
			}
			hosts[host].Add(n)
		}
	}
	data := numbersView{figures: v.lang.figures(&total), Events: total.Events, Notifications: total.States["pending"]}
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		data.Hosts = append(data.Hosts, hostFigures{host, v.lang.figures(hosts[host])})
	}
	slices.SortStableFunc(data.Hosts, func(a, b hostFigures) int { return cmp.Compare(b.P95, a.P95) })
	data.Hosts = data.Hosts[:min(len(data.Hosts), hostsShown)]
	return c.show(v, http.StatusOK, "numbers", page{Title: "numbers.title", Tab: "numbers", Data: data})
}

// accountUsage is what an account used in a day.
type accountUsage struct {
	Account          string
	Events, Attempts uint64
	ErrorRate        string
}

// usage returns the usage of the accounts with most attempts, none when it cannot be had.
func (c *Console) usage(v *visit) []accountUsage {
	ctx, cancel := context.WithTimeout(v.ctx, numbersWithin)
	defer cancel()
	from, to := day()
	hours, err := c.Numbers.Accounts(ctx, "", from, to, time.Hour)
	if err != nil {
		v.fields = append(v.fields, zap.NamedError("numbers", err))
		return nil
	}
	sums := map[string]*numbers.Counts{}
	for i := range hours {
		if sums[hours[i].Account] == nil {
			sums[hours[i].Account] = &numbers.Counts{}
		}
		sums[hours[i].Account].Add(&hours[i].Counts)
	}
	var all []accountUsage
	for _, account := range slices.Sorted(maps.Keys(sums)) {
		n := sums[account]
		all = append(all, accountUsage{account, n.Events, n.Attempts(), v.lang.percent(n.Failed, n.Attempts())})
	}
	slices.SortStableFunc(all, func(a, b accountUsage) int { return cmp.Compare(b.Attempts, a.Attempts) })
	return all[:min(len(all), accountsShown)]
}
