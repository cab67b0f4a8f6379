package monitor

import (
	"cmp"
	"context"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/sleep"
	"gancho/pkg/suspension/status"
	"gancho/pkg/webhook"
)

// byOwner is the reason of a status event of a webhook that its owner disabled.
const byOwner = "by_owner"

// disabled publishes when webhooks were disabled, by their owners or because their receivers are gone. Its methods are
// safe for concurrent use.
type disabled struct {
	mu      sync.Mutex
	waiting map[string]*webhook.Webhook // by id
	more    chan struct{}               // holds one token while something waits
}

func newDisabled() *disabled {
	return &disabled{waiting: map[string]*webhook.Webhook{}, more: make(chan struct{}, 1)}
}

// changed takes in a change of the registry. When a process starts, every webhook comes once, so that none is missed
// that was disabled while no monitor ran.
func (d *disabled) changed(before, after *webhook.Webhook) {
	if after == nil || after.Status != webhook.Disabled || after.DisabledAt.IsZero() || before != nil &&
		before.DisabledAt.Equal(after.DisabledAt) {
		return
	}
	d.mu.Lock()
	d.waiting[after.ID] = after
	d.mu.Unlock()
	select {
	case d.more <- struct{}{}:
	default:
	}
}

// take returns the webhooks that wait.
func (d *disabled) take() map[string]*webhook.Webhook {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.waiting
	d.waiting = map[string]*webhook.Webhook{}
	return all
}

// publishDisabled publishes until ctx ends. The time at which a webhook was disabled names the step, so several
// monitors and restarts publish it once.
func (m *Monitor) publishDisabled(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.disabled.more:
		}
		for _, w := range m.disabled.take() {
			for ctx.Err() == nil {
				err := m.publishOne(ctx, w)
				if err == nil {
					break
				}
				m.lasting.Error("the status of a disabled webhook was not published; trying again", zap.Error(err))
				sleep.For(ctx, time.Second)
			}
		}
	}
}

func (m *Monitor) publishOne(ctx context.Context, w *webhook.Webhook) error {
	c := status.Change{
		Event: "disabled", Account: w.Account, WebhookID: w.ID, URLHost: webhook.URLHost(w.URL), At: w.DisabledAt,
		Reason: cmp.Or(w.DisabledReason, byOwner),
	}
	step := strconv.FormatInt(w.DisabledAt.UnixNano(), 10)
	known, err := status.Published(ctx, m.bus, c, step)
	if err != nil || known {
		return err
	}
	return status.Publish(ctx, m.bus, c, step)
}
