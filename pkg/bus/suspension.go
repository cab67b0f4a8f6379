package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/topology"
)

// Verbs of a suspension command.
const (
	CommandSuspend = "suspend"
	CommandResume  = "resume"
)

// Command is what management asks of the suspension-monitor: to suspend or resume a URL by hand.
type Command struct {
	Verb      string    `json:"command"` // CommandSuspend or CommandResume
	Account   string    `json:"account"`
	URLKey    string    `json:"url_key"`
	URLHost   string    `json:"url_host"`
	WebhookID string    `json:"webhook_id"`
	By        string    `json:"by"` // who asked, for the log
	At        time.Time `json:"at"`
}

// Command stores a command for the suspension-monitor.
func (b *Bus) Command(ctx context.Context, c Command, msgID string) error {
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode command: %w", err)
	}
	_, err = b.Publish(ctx, topology.Commands, NewMessage("gancho.suspensions."+c.Account+"."+c.URLKey, msgID, body))
	return err
}

// CommandConsumer reads the commands. One that waits to be delivered again holds up no other; of one URL, a command
// that comes after a later one is ignored by its sequence.
type CommandConsumer struct{ *Consumer }

// Commands returns the suspension-monitors' shared reader of commands.
func (b *Bus) Commands(ctx context.Context) (*CommandConsumer, error) {
	c, err := b.Consumer(ctx, topology.Commands, jetstream.ConsumerConfig{
		Durable: topology.ConsumerCommands, AckWait: 5 * time.Second, MaxAckPending: 64, MaxDeliver: -1, // their sequences keep the order of a URL's
	})
	return &CommandConsumer{c}, err
}

// Pull hands the next commands to handle with their stream sequences; a nil error from it settles one.
func (c *CommandConsumer) Pull(ctx context.Context, handle func(Command, uint64) error) error {
	_, err := c.Fetch(ctx, 1, Unbounded, func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		var cmd Command
		if err := json.Unmarshal(m.Data(), &cmd); err != nil {
			c.b.log.Error("an unreadable suspension command is skipped", zap.Error(err))
			_ = m.Ack()
			return
		}
		if err := handle(cmd, meta.Sequence.Stream); err != nil {
			_ = m.NakWithDelay(time.Second)
			return
		}
		_ = m.Ack()
	})
	return err
}

// Status is an event on WEBHOOK_STATUS, from which the CRM tells the owner.
type Status struct {
	Schema    int       `json:"schema"`
	Event     string    `json:"event"` // at_risk, suspended, probing, resumed, permanent_failure or disabled; deferred or caught_up of an account
	Account   string    `json:"account_id"`
	WebhookID string    `json:"webhook_id"` // "" of an account
	URLHost   string    `json:"url_host"`   // "" of an account
	At        time.Time `json:"at"`
	// Until is when a suspended URL is tried again; nil where nothing is due, as after a suspension by hand.
	Until    *time.Time `json:"until"`
	Reason   string     `json:"reason"`
	Evidence any        `json:"evidence"`
}

func (s *Status) subject() string {
	if s.WebhookID == "" {
		return "gancho.accounts." + s.Account + "." + s.Event
	}
	return "gancho.webhooks." + s.Account + "." + s.WebhookID + "." + s.Event
}

// Tell stores a status event. name is the step's: the same step told again within the duplicate window is
// stored once.
func (b *Bus) Tell(ctx context.Context, s Status, name string) error {
	s.Schema = 1
	body, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	m := NewMessage(s.subject(), cmp.Or(s.WebhookID, s.Account)+":"+s.Event+":"+name, body)
	m.Header["Gancho-Step"] = []string{name}
	_, err = b.Publish(ctx, topology.WebhookStatus, m)
	return err
}

// Told reports whether the newest status event of this kind and webhook is the step with that name. It
// closes the gap that the duplicate window leaves after a long absence.
func (b *Bus) Told(ctx context.Context, s Status, name string) (bool, error) {
	raw, err := b.Last(ctx, topology.WebhookStatus, s.subject())
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return raw.Header.Get("Gancho-Step") == name, nil
}
