package numbers

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/topology"
)

// Steps of an answer, by their names.
var steps = map[string]time.Duration{"1m": time.Minute, "1h": time.Hour, "1d": 24 * time.Hour} //nolint:gochecknoglobals // never written

// Step returns the step of a name, false for one that does not exist.
func Step(name string) (time.Duration, bool) {
	d, ok := steps[name]
	return d, ok
}

// StepNames returns the names of all steps.
func StepNames() []string { return []string{"1m", "1h", "1d"} }

// Kept is how long minutes are kept, at least; hours are kept for 400 days.
const Kept = 48 * time.Hour

// Total holds the counts of one step.
type Total struct {
	Account  string
	From, To time.Time
	Counts
}

// Webhook returns the numbers of a webhook, one for each step from from on and before to, both multiples of step.
func (k *Keeper) Webhook(
	ctx context.Context, account, webhook string, from, to time.Time, step time.Duration,
) ([]Total, error) {
	all := make([]Total, 0, to.Sub(from)/step)
	for at := from; at.Before(to); at = at.Add(step) {
		all = append(all, Total{Account: account, From: at, To: at.Add(step)})
	}
	err := k.each(ctx, account, from, to, step, func(_, hook string, at time.Time, n *Counts) {
		if i := int(at.Sub(from) / step); hook == webhook && i >= 0 && i < len(all) {
			all[i].Add(n)
		}
	})
	return all, err
}

// Webhooks returns the numbers of each webhook of an account from from on and before to, by its id; those of the
// account only are at "".
func (k *Keeper) Webhooks(
	ctx context.Context, account string, from, to time.Time, step time.Duration,
) (map[string]*Counts, error) {
	all := map[string]*Counts{}
	err := k.each(ctx, account, from, to, step, func(_, hook string, _ time.Time, n *Counts) {
		if all[hook] == nil {
			all[hook] = &Counts{}
		}
		all[hook].Add(n)
	})
	return all, err
}

// Accounts returns the numbers of an account, or of each with "": one for each step with any, in the order of time and
// account.
func (k *Keeper) Accounts(
	ctx context.Context, account string, from, to time.Time, step time.Duration,
) ([]Total, error) {
	type key struct {
		at      time.Time
		account string
	}
	sums := map[key]*Total{}
	err := k.each(ctx, account, from, to, step, func(account, _ string, at time.Time, n *Counts) {
		at = at.Truncate(step)
		c := key{at, account}
		if sums[c] == nil {
			sums[c] = &Total{Account: account, From: at, To: at.Add(step)}
		}
		sums[c].Add(n)
	})
	all := make([]Total, 0, len(sums))
	for _, t := range sums {
		all = append(all, *t)
	}
	slices.SortFunc(all, func(a, b Total) int {
		return cmp.Or(a.From.Compare(b.From), strings.Compare(a.Account, b.Account))
	})
	return all, err
}

// each hands every count of the account (of all with "") in the time to handle: from the hours that were added up,
// unless step is a minute, from the slices behind them, and from the streams behind those.
func (k *Keeper) each(
	ctx context.Context, account string, from, to time.Time, step time.Duration,
	handle func(account, webhook string, at time.Time, n *Counts),
) error {
	inside := func(at time.Time) bool { return !at.Before(from) && at.Before(to) }
	// The mark is read first: an hour that is added up after that is taken from its slices, and is neither missing nor
	// counted twice.
	m, _, err := k.mark(ctx)
	if err != nil {
		return err
	}
	first, since := m.Slice, time.Time{}
	if step < time.Hour {
		m, first, since = mark{}, 0, from
	}
	var newest *slice
	over := false // the slices go beyond the time
	err = k.slices(ctx, first, since, func(s *slice, _ uint64) bool {
		newest = s
		for i := range s.Cells {
			r := &s.Cells[i]
			at := time.Unix(r.Minute*60, 0).UTC()
			if at.Before(m.Until) { // it is in an hour
				continue
			}
			if (account == "" || r.Account == account) && inside(at) {
				handle(r.Account, r.Webhook, at, &r.Counts)
			}
		}
		over = s.Until.After(to.Add(time.Minute))
		return !over
	})
	if err != nil {
		return err
	}
	if !over {
		if newest == nil { // no slice is behind the hours, or so late
			last, _, err := k.last(ctx)
			if err != nil {
				return err
			}
			newest = &last
		}
		_, counts, _, err := k.count(ctx, newest, account, 1<<20, sources())
		if err != nil {
			return err
		}
		for c, n := range counts {
			if at := time.Unix(c.minute*60, 0).UTC(); inside(at) {
				handle(c.account, c.webhook, at, n)
			}
		}
	}
	if m.Until.IsZero() {
		return nil
	}
	return k.hours(ctx, account, from, min2(to, m.Until), handle)
}

func min2(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// hours hands the hours in the time to handle. Of one that was written twice, the later writing counts.
func (k *Keeper) hours(
	ctx context.Context, account string, from, to time.Time,
	handle func(account, webhook string, at time.Time, n *Counts),
) error {
	state, err := k.bus.StreamState(ctx, topology.Usage)
	if err != nil || state.Messages == 0 {
		return err
	}
	type key struct {
		account string
		from    time.Time
		part    int
	}
	known := map[key]hour{}
	cfg := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{topology.SubjectUsage(cmp.Or(account, "*"))},
		DeliverPolicy:  jetstream.DeliverByStartTimePolicy, OptStartTime: &from,
	}
	var bad error
	err = k.bus.Read(ctx, topology.Usage, cfg, func(m jetstream.Msg, sequence, pending uint64) (bool, error) {
		var h hour
		if bad = json.Unmarshal(m.Data(), &h); bad != nil {
			return false, nil
		}
		if name := strings.TrimPrefix(m.Subject(),
			topology.SubjectUsage("")); !h.From.Before(from.Truncate(time.Hour)) && h.From.Before(to) {
			known[key{name, h.From, h.Part}] = h
		}
		return sequence < state.Last && pending > 0, nil
	})
	if bad != nil {
		return fmt.Errorf("decode usage: %w", bad)
	}
	for c, h := range known {
		for i := range h.Rows {
			handle(c.account, h.Rows[i].Webhook, h.From, &h.Rows[i].Counts)
		}
	}
	return err
}
