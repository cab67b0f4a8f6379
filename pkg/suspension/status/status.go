// Package status publishes changes of webhooks and accounts on the stream WEBHOOK_STATUS, from which the CRM informs
// their owners.
package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// headerStep names the step that a change reports.
const headerStep = "Gancho-Step"

// Change is one message on WEBHOOK_STATUS.
type Change struct {
	Schema int `json:"schema"` // set by Publish
	// Event is at_risk, suspended, probing, resumed, permanent_failure or disabled for a webhook, deferred or caught_up
	// for an account.
	Event     string    `json:"event"`
	Account   string    `json:"account_id"`
	WebhookID string    `json:"webhook_id"` // "" for an account
	URLHost   string    `json:"url_host"`   // "" for an account
	At        time.Time `json:"at"`
	// Until is when a suspended URL is tried again; nil where nothing is due, as after a suspension by hand.
	Until    *time.Time `json:"until"`
	Reason   string     `json:"reason"`
	Evidence any        `json:"evidence"`
}

func (c *Change) subject() string {
	if c.WebhookID == "" {
		return "gancho.accounts." + c.Account + "." + c.Event
	}
	return "gancho.webhooks." + c.Account + "." + c.WebhookID + "." + c.Event
}

// Publish stores a change. The same step published again within the duplicate window is stored once.
func Publish(ctx context.Context, b *bus.Bus, c Change, step string) error {
	c.Schema = 1
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	m := bus.NewMessage(c.subject(), cmp.Or(c.WebhookID, c.Account)+":"+c.Event+":"+step, body)
	m.Header[headerStep] = []string{step}
	_, err = b.Publish(ctx, topology.WebhookStatus, m)
	return err
}

// Published reports whether the newest change of this event and webhook is the step. It recognises a step that the
// broker's duplicate window has forgotten.
func Published(ctx context.Context, b *bus.Bus, c Change, step string) (bool, error) {
	raw, err := b.Last(ctx, topology.WebhookStatus, c.subject())
	if errors.Is(err, bus.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return raw.Header.Get(headerStep) == step, nil
}

// followWait is when a change that handle could not take is delivered again.
const followWait = 30 * time.Second

// Follow hands the changes of webhooks to handle, each at least once over all that follow under the same durable name,
// until ctx ends. It begins with those that are published after the durable was made. sequence grows from change to
// change; one that is not higher came before. After an error of handle the change comes again.
func Follow(ctx context.Context, b *bus.Bus, durable string, handle func(change []byte, sequence uint64) error) error {
	c, err := b.Consumer(ctx, topology.WebhookStatus, jetstream.ConsumerConfig{
		Durable: durable, FilterSubject: "gancho.webhooks.*.*.*", AckWait: followWait, MaxDeliver: -1,
		MaxAckPending: 1000, DeliverPolicy: jetstream.DeliverNewPolicy,
	})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		_, _ = c.Fetch(ctx, 100, bus.Unbounded, func(m jetstream.Msg) { // it logs its errors, and waits
			meta, err := m.Metadata()
			if err == nil && handle(m.Data(), meta.Sequence.Stream) == nil {
				_ = m.Ack()
			}
		})
	}
	return nil
}
