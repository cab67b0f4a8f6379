// Package command carries orders to suspend or resume a URL by hand from management to the suspension-monitor, over
// the stream SUSPENSION_COMMANDS.
package command

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// Verbs of a command.
const (
	Suspend = "suspend"
	Resume  = "resume"
)

// Command asks the suspension-monitor to suspend or resume a URL.
type Command struct {
	Verb      string    `json:"command"` // Suspend or Resume
	Account   string    `json:"account"`
	URLKey    string    `json:"url_key"`
	URLHost   string    `json:"url_host"`
	WebhookID string    `json:"webhook_id"`
	By        string    `json:"by"` // who asked, for the log
	At        time.Time `json:"at"`
}

// Send stores a command. Sending it again with the same message id within the duplicate window changes nothing.
func Send(ctx context.Context, b *bus.Bus, c Command, msgID string) error {
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode command: %w", err)
	}
	_, err = b.Publish(ctx, topology.Commands, bus.NewMessage("gancho.suspensions."+c.Account+"."+c.URLKey, msgID,
		body))
	return err
}

// Consumer reads the commands. A command that waits for redelivery holds up no other: the handler orders the commands
// of one URL by their sequences. One goroutine uses it.
type Consumer struct {
	consumer *bus.Consumer
	log      *zap.Logger
}

// Consume returns the consumer that all suspension-monitors share.
func Consume(ctx context.Context, b *bus.Bus) (*Consumer, error) {
	c, err := b.Consumer(ctx, topology.Commands, jetstream.ConsumerConfig{
		Durable: topology.ConsumerCommands, AckWait: 5 * time.Second, MaxAckPending: 64, MaxDeliver: -1,
	})
	return &Consumer{c, b.Logger()}, err
}

// Pull waits about a second for the next command and hands it to handle with its stream sequence. A nil error from
// handle settles the command; after any other error it comes again in a second.
func (c *Consumer) Pull(ctx context.Context, handle func(Command, uint64) error) error {
	_, err := c.consumer.Fetch(ctx, 1, bus.Unbounded, func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		var cmd Command
		if err := json.Unmarshal(m.Data(), &cmd); err != nil {
			c.log.Error("an unreadable suspension command is skipped", zap.Error(err))
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
