package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/topology"
)

// fetchWait is how long one pull request stays open. A stop waits at most this long for messages that may
// still come on it, so that none is counted as delivered without having been handled.
const fetchWait = time.Second

// Consumer pulls one durable consumer. It recreates the consumer when somebody deleted it, and sets it back when
// somebody edited it.
//
// A consumer that is created anew has forgotten what was acknowledged. It therefore begins after the last
// acknowledged sequence that this process has seen (at most lookEvery old), and what it hands out is known
// to be doubtful: see again. It is used by one goroutine; others may ask for its info.
type Consumer struct {
	b      *Bus
	stream string
	cfg    jetstream.ConsumerConfig

	mu      sync.Mutex
	c       jetstream.Consumer
	born    time.Time // when the broker's consumer was created
	origin  time.Time // when its stream was created
	floor   uint64    // all up to this stream sequence was acknowledged, as far as known
	looked  time.Time
	highest uint64 // stream sequence of the latest first delivery

	size int // bytes of the largest message lately; of the one goroutine that fetches
}

// firstSize is how large messages are taken to be before any came.
const firstSize = 256 << 10

// Consumer returns the durable, created if missing and updated when its limits changed (which keeps its
// state), waiting for stream and broker.
func (b *Bus) Consumer(ctx context.Context, stream string, cfg jetstream.ConsumerConfig) (*Consumer, error) {
	if _, err := b.Stream(ctx, stream); err != nil {
		return nil, err
	}
	cfg.AckPolicy = jetstream.AckExplicitPolicy
	c := &Consumer{b: b, stream: stream, cfg: cfg}
	return c, c.open(ctx)
}

func (c *Consumer) open(ctx context.Context) error {
	return c.b.Insist(ctx, "consumer "+c.cfg.Durable, c.create)
}

// create opens the broker's consumer, or makes it.
func (c *Consumer) create(ctx context.Context) error {
	s, err := c.b.js.Stream(ctx, c.stream)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if made := s.CachedInfo().Created; !made.Equal(c.origin) {
		c.origin, c.floor, c.highest = made, 0, 0 // another stream, with sequences of its own
	}
	cfg := c.cfg
	there, err := s.Consumer(ctx, cfg.Durable)
	switch {
	case err == nil: // where it began cannot be changed
		have := there.CachedInfo().Config
		cfg.DeliverPolicy, cfg.OptStartSeq = have.DeliverPolicy, have.OptStartSeq
	case !errors.Is(err, jetstream.ErrConsumerNotFound):
		return err
	case c.floor > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, c.floor+1
	}
	made, err := c.b.stamped(ctx, s, cfg)
	if err != nil {
		return err
	}
	if there == nil && c.c != nil {
		c.b.metrics.recreated.WithLabelValues("consumer").Inc()
		c.b.log.Error("a consumer was deleted by somebody; it is created anew",
			zap.String("consumer", cfg.Durable), zap.String("stream", c.stream), zap.Uint64("after_seq", c.floor))
	}
	c.c = made
	c.note(made.CachedInfo())
	return nil
}

// note takes over what the broker says of the consumer. The caller holds mu.
func (c *Consumer) note(info *jetstream.ConsumerInfo) {
	c.born, c.looked = info.Created, time.Now()
	c.floor = max(c.floor, info.AckFloor.Stream)
}

// look reads the consumer's state when the last look is old, and sets the consumer back when it was edited.
func (c *Consumer) look(ctx context.Context) {
	if time.Since(c.looked) < c.b.lookEvery {
		return
	}
	asking, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	info, err := c.c.Info(asking)
	if err != nil { // the next look tells
		return
	}
	c.mu.Lock()
	c.note(info)
	c.mu.Unlock()
	c.setBack(ctx, info.Config)
	paused := ""
	if until := info.Config.PauseUntil; info.Paused && until != nil { // on purpose: it is not undone
		paused = "paused by somebody until " + until.UTC().Format(time.RFC3339)
	}
	problems := c.b.problems
	if c.cfg.Durable == topology.ConsumerIndex || c.cfg.Durable == topology.ConsumerIndexPending { // only lists grow old
		problems = c.b.degraded
	}
	c.b.noteProblem(problems, "consumer "+c.cfg.Durable, paused)
}

// Again reports whether a message may have been handled before although the broker delivers it for the
// first time: it is older than the consumer, or the consumer went back, as after a broker's crash.
func (c *Consumer) Again(meta *jetstream.MsgMetadata) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if meta.NumDelivered != 1 {
		return true
	}
	back := meta.Sequence.Stream <= c.highest
	c.highest = max(c.highest, meta.Sequence.Stream)
	return back || meta.Timestamp.Before(c.born)
}

// Info asks the broker for the consumer's state.
func (c *Consumer) Info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	c.mu.Lock()
	consumer := c.c
	c.mu.Unlock()
	info, err := consumer.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", c.cfg.Durable, err)
	}
	return info, nil
}

// Fetch asks for at most n messages and hands each to handle as it comes. It returns when n came or fetchWait
// passed, with how many came. It asks for fewer where those that came lately say that n would take more than room
// bytes. (A pull request's own limit of bytes ends with a status that nats.go's Fetch may read before the message
// it follows: that delivery is then lost until its ack wait.) An error means that the broker or the consumer is in
// trouble; fetch has then paused a little, and logged it when it is time to.
func (c *Consumer) Fetch(ctx context.Context, n, room int, handle func(jetstream.Msg)) (int, error) {
	c.look(ctx)
	batch, err := c.c.Fetch(min(n, max(room/cmp.Or(c.size, firstSize), 1)), jetstream.FetchMaxWait(fetchWait))
	got := 0
	if err == nil {
		for m := range batch.Messages() {
			got++
			c.size = max(len(m.Data()), c.size-c.size/64, 1)
			handle(m)
		}
		err = batch.Error()
	}
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		return got, nil
	}
	if ctx.Err() == nil {
		c.b.trouble("pull from "+c.stream, err)
	}
	pause := newBackoff(200*time.Millisecond, time.Second)
	switch {
	case errors.Is(err, jetstream.ErrConsumerDeleted), errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrNoHeartbeat),
		errors.Is(err, nats.ErrNoResponders): // the consumer was deleted between two pulls
		if openErr := c.open(ctx); openErr != nil {
			return got, openErr
		}
	default:
		_ = pause.wait(ctx)
	}
	return got, fmt.Errorf("fetch from %s: %w", c.stream, err)
}

// Gather hands at most n messages to add; it waits for the first like fetch, and for more at most linger.
func (c *Consumer) Gather(ctx context.Context, n int, linger time.Duration, add func(jetstream.Msg)) error {
	got, err := c.Fetch(ctx, 1, Unbounded, add)
	if err != nil || got == 0 || n == 1 {
		return err
	}
	rest, err := c.c.Fetch(n-1, jetstream.FetchMaxWait(max(linger, 10*time.Millisecond)))
	if err != nil {
		return nil //nolint:nilerr // what came first is worth handling; the next call meets the error again
	}
	for m := range rest.Messages() {
		add(m)
	}
	return nil
}

// Ack acknowledges messages that were handled together. A message whose ack is lost comes again.
func Ack(msgs []jetstream.Msg) {
	for _, m := range msgs {
		_ = m.Ack()
	}
}

// Delivery is a notification handed to this process, and the duty to settle it with exactly one of Ack or
// NakAfter. Leaving it alone has it delivered again after the consumer's ack wait.
type Delivery struct {
	notification.Notification

	Lane         notification.Lane
	NumDelivered int       // counts from 1
	Again        bool      // it may have been handled before: NumDelivered is not 1, the broker forgot, or it waited for a newer version
	StoredAt     time.Time // when the broker stored this message
	Sequence     uint64    // in its stream

	msg jetstream.Msg
	b   *Bus
}

// Ack settles the delivery. It is sent without waiting for the broker: a lost ack means that the
// notification comes again and the journal tells what has been done.
func (d *Delivery) Ack() {
	if unacknowledged(d) {
		return
	}
	if err := d.msg.Ack(); err != nil {
		d.b.log.Debug("ack not sent; the message will come again", zap.Error(err))
	}
}

// NakAfter has the same message delivered again after the delay, with NumDelivered one higher.
func (d *Delivery) NakAfter(delay time.Duration) {
	if err := d.msg.NakWithDelay(max(delay, time.Millisecond)); err != nil {
		d.b.log.Debug("nak not sent; the message will come again after the ack wait", zap.Error(err))
	}
}

// Wait leaves a notification that only a newer version can handle to one: it is moved to RETRIES as it is, with
// whatever it carries, to be handed out again after a second, and after twice as long each time, up to
// waitAtMost. Nothing of it is used up by that, however often it comes to the wrong process. Every version
// keeps what this needs: the names and forms of the headers for account, webhook and notification.
func (d *Delivery) Wait(ctx context.Context) {
	if err := d.wait(ctx); err != nil {
		d.b.log.Warn("a message for a newer version was not moved; it comes again", zap.String("stream", d.Stream()), zap.Error(err))
		return
	}
	d.b.Newer(d.Stream())
	d.Ack()
}

func (d *Delivery) wait(ctx context.Context) error {
	h := d.msg.Headers()
	account, webhook, id := h.Get(notification.HeaderAccount), h.Get(notification.HeaderWebhookID), h.Get(notification.HeaderID)
	if !event.ValidAccount(account) || uuid.Validate(webhook) != nil || uuid.Validate(id) != nil {
		return errors.New("it does not say what it belongs to")
	}
	waited, _ := strconv.Atoi(h.Get(notification.HeaderWaited)) // 0 at first
	q := NewMessage(topology.SubjectRetryAt(account, id), fmt.Sprintf("%s:%d:%d", d.Stream(), d.Sequence, d.StoredAt.UnixNano()), d.msg.Data())
	for k, v := range h {
		if !strings.HasPrefix(k, "Nats-") {
			q.Header[k] = v
		}
	}
	q.Header[notification.HeaderWaited] = []string{strconv.Itoa(waited + 1)}
	q.Header["Nats-Schedule"] = []string{"@at " + time.Now().Add(schema.Wait(waited+1)).UTC().Format(time.RFC3339Nano)}
	q.Header["Nats-Schedule-Target"] = []string{topology.SubjectRetryDue(account, webhook, id)}
	_, err := d.b.Publish(ctx, topology.Retries, q)
	return err
}

// Puller hands out the deliveries of one lane.
type Puller struct {
	*Consumer
	lane notification.Lane
}

// First returns the puller of first attempts. ackWait must be well above the duration of one attempt.
func (b *Bus) First(ctx context.Context, ackWait time.Duration) (*Puller, error) {
	c, err := b.Consumer(ctx, topology.Notifications, jetstream.ConsumerConfig{
		Durable: topology.ConsumerFirst, AckWait: ackWait, MaxAckPending: 50_000, MaxDeliver: -1,
	})
	return &Puller{c, notification.LaneFirst}, err
}

// Retries returns the puller of due retries. MaxDeliver 5 is the limit of retries, enforced by the broker.
func (b *Bus) Retries(ctx context.Context, ackWait time.Duration) (*Puller, error) {
	c, err := b.Consumer(ctx, topology.Retries, jetstream.ConsumerConfig{
		Durable: topology.ConsumerRetries, AckWait: ackWait, MaxAckPending: 500_000, MaxDeliver: notification.MaxAttempts - 1,
		FilterSubject: "gancho.retries.due.>",
	})
	return &Puller{c, notification.LaneRetry}, err
}

// Unbounded is the room of a pull that its number of messages bounds well enough.
const Unbounded = math.MaxInt32

// Pull asks for at most n deliveries of together about room bytes at most (at least MaxMessage) and hands each to
// handle as it comes; it returns how many came after that or about a second passed. What is not one of our
// messages goes to QUARANTINE.
func (p *Puller) Pull(ctx context.Context, n, room int, handle func(*Delivery)) (int, error) {
	handled := 0
	_, err := p.Fetch(ctx, n, room, func(m jetstream.Msg) {
		if d := p.b.delivery(ctx, p.lane, m, p.Again); d != nil {
			handled++
			handle(d)
		}
	})
	return handled, err
}

// AckPending returns how many messages are delivered and not settled, waiting retries included.
func (p *Puller) AckPending(ctx context.Context) (int, error) {
	info, err := p.Info(ctx)
	if err != nil {
		return 0, err
	}
	return info.NumAckPending, nil
}

// delivery decodes m; nil means that it was set aside or waits for a newer version.
func (b *Bus) delivery(ctx context.Context, lane notification.Lane, m jetstream.Msg, again func(*jetstream.MsgMetadata) bool) *Delivery {
	meta, err := m.Metadata()
	if err != nil {
		b.log.Error("a message without JetStream metadata was ignored", zap.Error(err))
		return nil
	}
	d := &Delivery{Lane: lane, NumDelivered: int(meta.NumDelivered), Again: again(meta), StoredAt: meta.Timestamp, Sequence: meta.Sequence.Stream, msg: m, b: b} //nolint:gosec // a count
	d.Again = d.Again || m.Headers().Get(notification.HeaderWaited) != ""
	d.Notification, err = notification.Decode(m.Headers(), m.Data())
	switch {
	case errors.Is(err, schema.ErrNewer):
		d.Wait(context.WithoutCancel(ctx)) // a stop settles what came
		return nil
	case err != nil:
		if err := b.quarantine(ctx, meta.Stream, "not_a_notification", err.Error(), m); err == nil {
			d.Ack()
		}
		return nil
	}
	handedOut(d)
	return d
}

// quarantine copies m to QUARANTINE with the reason; of a message that fills the broker's max_payload only the first
// bytes. The caller acks m after a nil error.
func (b *Bus) quarantine(ctx context.Context, stream, reason, detail string, m jetstream.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	copied := func(headers nats.Header, body []byte) *nats.Msg {
		q := NewMessage("gancho.quarantine."+stream+"."+reason, fmt.Sprintf("%s:%d", stream, meta.Sequence.Stream), body)
		for k, v := range headers {
			if len(k) < 5 || k[:5] != "Nats-" {
				q.Header[k] = v
			}
		}
		q.Header[topology.HeaderReason] = []string{reason}
		q.Header["Gancho-Detail"] = []string{detail}
		q.Header[topology.HeaderSubject] = []string{m.Subject()}
		return q
	}
	q := copied(m.Headers(), m.Data())
	if q.Size() > int(b.nc.MaxPayload()) { // ours leave room for these headers; of what does not, the beginning is kept
		q = copied(nil, m.Data()[:min(len(m.Data()), topology.BrokerHeadroom)])
	}
	if _, err = b.Publish(ctx, topology.Quarantine, q); err != nil {
		return err
	}
	b.log.Error("a message was set aside in QUARANTINE", zap.String("stream", stream), zap.String("reason", reason),
		zap.Uint64("stream_seq", meta.Sequence.Stream), zap.String("detail", detail))
	return nil
}

// SetAside copies the delivery to QUARANTINE; the caller settles it.
func (d *Delivery) SetAside(ctx context.Context, reason, detail string) error {
	return d.b.quarantine(ctx, d.Stream(), reason, detail, d.msg)
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
