package lane

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// Puller hands out the deliveries of one lane. One goroutine pulls.
type Puller struct {
	consumer *bus.Consumer
	bus      *bus.Bus
	lane     notification.Lane
}

// First returns the puller of first attempts, which all dispatchers share. ackWait is how long a dispatcher may be
// silent about a notification.
func First(ctx context.Context, b *bus.Bus, ackWait time.Duration) (*Puller, error) {
	c, err := b.Consumer(ctx, topology.Notifications, jetstream.ConsumerConfig{
		Durable: topology.ConsumerFirst, AckWait: ackWait, MaxAckPending: 50_000, MaxDeliver: -1,
	})
	return puller(c, b, notification.LaneFirst, err)
}

// Retries returns the puller of due retries, which all dispatchers share. The broker enforces the limit of retries: it
// delivers each message five times.
func Retries(ctx context.Context, b *bus.Bus, ackWait time.Duration) (*Puller, error) {
	c, err := b.Consumer(ctx, topology.Retries, jetstream.ConsumerConfig{
		Durable: topology.ConsumerRetries, AckWait: ackWait, MaxAckPending: 500_000, MaxDeliver: notification.MaxAttempts - 1,
		FilterSubject: topology.SubjectsRetriesDue,
	})
	return puller(c, b, notification.LaneRetry, err)
}

// puller counts bodies that messages refer to as if these carried them.
func puller(c *bus.Consumer, b *bus.Bus, l notification.Lane, err error) (*Puller, error) {
	if err != nil {
		return nil, err
	}
	c.Weigh = func(m jetstream.Msg) int { return notification.ReferredBytes(m.Headers()) }
	return &Puller{c, b, l}, nil
}

// Pull asks for at most n deliveries of together about room bytes at most (at least topology.MaxMessage) and hands each
// to handle as it comes. It returns their number once n came or about a second has passed. A message that is not a
// notification goes to QUARANTINE.
func (p *Puller) Pull(ctx context.Context, n, room int, handle func(*Delivery)) (int, error) {
	handled := 0
	_, err := p.consumer.Fetch(ctx, n, room, func(m jetstream.Msg) {
		if d := delivery(ctx, p.bus, p.lane, m, p.consumer.Again); d != nil {
			handled++
			handle(d)
		}
	})
	return handled, err
}

// AckPending returns how many messages are delivered and not settled, waiting retries included.
func (p *Puller) AckPending(ctx context.Context) (int, error) {
	info, err := p.consumer.Info(ctx)
	if err != nil {
		return 0, err
	}
	return info.NumAckPending, nil
}

// Delivery is a notification handed to this process, which ends it with one of Ack, NakAfter, Wait and Abandon. The
// broker delivers a message again that is neither settled nor kept with Hold within the consumer's ack wait.
type Delivery struct {
	notification.Notification

	Lane         notification.Lane
	NumDelivered int       // counts from 1
	Again        bool      // it may have been handled before: NumDelivered is not 1, the broker forgot, or it waited for a newer version
	StoredAt     time.Time // when the broker stored this message
	Sequence     uint64    // in its stream

	msg  jetstream.Msg
	meta *jetstream.MsgMetadata
	held *bus.Held
	bus  *bus.Bus

	cameAt time.Time
}

// heldUp is how long a first attempt takes at most until it is sent, unless this process was cut off.
const heldUp = time.Second

// Waited reports whether a later event can have been delivered meanwhile: the lane kept the notification back, another
// process had it before, or this one has had it for more than a second.
func (d *Delivery) Waited() bool {
	return d.Notification.Waited(d.Lane) || d.Again || time.Since(d.cameAt) > heldUp
}

// Hold keeps the notification, which has just come, for this process until it is ended, however long that takes. It
// reports false, and the delivery must then be left alone, when this process holds the message already.
func (d *Delivery) Hold(ackWait time.Duration) bool {
	d.held = d.bus.Hold(d.msg, d.meta, ackWait)
	return d.held != nil
}

// Ours reports whether no other process can have got the notification while this one held it.
func (d *Delivery) Ours() bool { return d.held.Ours() }

// delivery decodes m; nil means that the message was set aside or waits for a newer version.
func delivery(ctx context.Context, b *bus.Bus, lane notification.Lane, m jetstream.Msg, again func(*jetstream.MsgMetadata) bool) *Delivery {
	meta, err := m.Metadata()
	if err != nil {
		b.Logger().Error("a message without JetStream metadata was ignored", zap.Error(err))
		return nil
	}
	d := &Delivery{Lane: lane, NumDelivered: int(meta.NumDelivered), StoredAt: meta.Timestamp, Sequence: meta.Sequence.Stream, msg: m, meta: meta, bus: b, cameAt: time.Now()} //nolint:gosec // a count
	d.Again = again(meta) || m.Headers().Get(notification.HeaderWaited) != ""
	d.Notification, err = notification.Decode(m.Headers(), m.Data())
	switch {
	case errors.Is(err, wireversion.ErrNewer):
		d.Wait(context.WithoutCancel(ctx)) // a stop settles all deliveries
		return nil
	case err != nil:
		if err := d.SetAside(ctx, "not_a_notification", err.Error()); err == nil {
			d.Ack()
		}
		return nil
	}
	return d
}

// Stream returns the stream that the delivery comes from.
func (d *Delivery) Stream() string {
	switch d.Lane {
	case notification.LaneRetry:
		return topology.Retries
	case notification.LaneParked:
		return topology.Parked
	case notification.LaneFirst:
	}
	return topology.Notifications
}

// Ack settles the delivery without waiting for the broker. After a lost ack the notification comes again, and the
// journal decides.
func (d *Delivery) Ack() {
	d.held.Release()
	if d.Lane == notification.LaneFirst { // its ack removes nothing, so it may wait for others
		d.bus.AckSoon(d.msg)
		return
	}
	if err := d.msg.Ack(); err != nil {
		d.bus.Logger().Debug("ack not sent; the message will come again", zap.Error(err))
	}
}

// NakAfter has the broker deliver the same message again after the delay, with NumDelivered one higher.
func (d *Delivery) NakAfter(delay time.Duration) {
	d.held.Release()
	if err := d.msg.NakWithDelay(max(delay, time.Millisecond)); err != nil {
		d.bus.Logger().Debug("nak not sent; the message will come again after the ack wait", zap.Error(err))
	}
}

// Abandon has the broker deliver the notification again after the ack wait: it could not be settled now.
func (d *Delivery) Abandon() { d.held.Release() }

// Wait moves a notification that only a newer version can handle to RETRIES as it is, to be delivered again after
// wireversion.Wait. It uses up no delivery, however often the notification comes to the wrong process. Every version
// keeps the headers that this needs: account, webhook and notification.
func (d *Delivery) Wait(ctx context.Context) {
	if err := d.wait(ctx); err != nil {
		d.Abandon()
		d.bus.Logger().Warn("a message for a newer version was not moved; it comes again", zap.String("stream", d.Stream()), zap.Error(err))
		return
	}
	d.bus.Newer(d.Stream())
	d.Ack()
}

func (d *Delivery) wait(ctx context.Context) error {
	h := d.msg.Headers()
	account, webhook, id := h.Get(notification.HeaderAccount), h.Get(notification.HeaderWebhookID), h.Get(notification.HeaderID)
	if !event.ValidAccount(account) || uuid.Validate(webhook) != nil || uuid.Validate(id) != nil {
		return errors.New("it does not say to which notification it belongs")
	}
	waited, _ := strconv.Atoi(h.Get(notification.HeaderWaited)) // 0 at first
	m := bus.NewMessage(topology.SubjectRetryAt(account, id), fmt.Sprintf("%s:%d:%d", d.Stream(), d.Sequence, d.StoredAt.UnixNano()), d.msg.Data())
	copyHeaders(m, h)
	m.Header[notification.HeaderWaited] = []string{strconv.Itoa(waited + 1)}
	deliverAt(m, time.Now().Add(wireversion.Wait(waited+1)), topology.SubjectRetryDue(account, webhook, id))
	_, err := d.bus.Publish(ctx, topology.Retries, m)
	return err
}

// SetAside copies the delivery to QUARANTINE with the reason; the caller settles it. A message that fills the broker's
// max_payload is cut, and loses its headers.
func (d *Delivery) SetAside(ctx context.Context, reason, detail string) error {
	copied := func(headers nats.Header, body []byte) *nats.Msg {
		m := bus.NewMessage("gancho.quarantine."+d.Stream()+"."+reason, fmt.Sprintf("%s:%d", d.Stream(), d.Sequence), body)
		copyHeaders(m, headers)
		m.Header[topology.HeaderReason] = []string{reason}
		m.Header["Gancho-Detail"] = []string{detail}
		m.Header[topology.HeaderSubject] = []string{d.msg.Subject()}
		return m
	}
	m := copied(d.msg.Headers(), d.msg.Data())
	if int64(m.Size()) > d.bus.MaxPayload() { // a notification leaves room for these headers
		m = copied(nil, d.msg.Data()[:min(len(d.msg.Data()), topology.BrokerHeadroom)])
	}
	if _, err := d.bus.Publish(ctx, topology.Quarantine, m); err != nil {
		return err
	}
	d.bus.Logger().Error("a message was set aside in QUARANTINE", zap.String("stream", d.Stream()), zap.String("reason", reason),
		zap.Uint64("stream_seq", d.Sequence), zap.String("detail", detail))
	return nil
}

// copyHeaders copies all headers but the broker's own.
func copyHeaders(m *nats.Msg, from nats.Header) {
	for k, v := range from {
		if !strings.HasPrefix(k, "Nats-") {
			m.Header[k] = v
		}
	}
}
