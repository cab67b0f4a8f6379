package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

// fetchWait is how long one pull request stays open. A stop waits at most this long for messages that may
// still come on it, so that none is counted as delivered without having been handled.
const fetchWait = time.Second

// Consumer pulls one durable consumer. It creates the consumer again after a deletion, and restores its settings after
// an edit.
//
// A consumer that was created again has forgotten the acknowledgements. It therefore begins behind the last
// acknowledged sequence that this process has seen (at most lookEvery old), and its deliveries are doubtful: see Again.
// One goroutine uses it; others may ask for its info.
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

	// Weigh returns how many bytes a message leads to beyond its own; nil: none.
	Weigh func(jetstream.Msg) int

	// Of the one goroutine that fetches:
	size     int // bytes of the largest message lately
	gathered int // messages of the last batch
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
	cfg.Description = topology.Description(cfg.Durable)
	c := &Consumer{b: b, stream: stream, cfg: cfg}
	return c, c.open(ctx)
}

// OpenConsumer creates or updates a durable once, without waiting for stream or broker, and neither watches nor
// restores it. It is for consumers that come and go.
func (b *Bus) OpenConsumer(ctx context.Context, stream string, cfg jetstream.ConsumerConfig) (*Consumer, error) {
	cfg.AckPolicy = jetstream.AckExplicitPolicy
	cfg.Description = topology.Description(cfg.Durable)
	c, err := b.js.CreateOrUpdateConsumer(ctx, stream, cfg)
	if err == nil {
		err = b.answer(ignored(cfg, c.CachedInfo().Config))
	}
	return &Consumer{b: b, stream: stream, cfg: cfg, c: c}, err
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
		c.b.log.Error("a consumer was deleted while services ran; it is created again",
			zap.String("consumer", cfg.Durable), zap.String("stream", c.stream), zap.Uint64("after_seq", c.floor))
	}
	c.c = made
	c.note(made.CachedInfo())
	return nil
}

// note takes over the consumer's state. The caller holds mu.
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
	if err != nil { // the next look finds out
		return
	}
	c.mu.Lock()
	c.note(info)
	c.mu.Unlock()
	c.setBack(ctx, info.Config)
	paused := ""
	if until := info.Config.PauseUntil; info.Paused && until != nil { // on purpose: it is not undone
		paused = "paused until " + until.UTC().Format(time.RFC3339)
	}
	problems := c.b.problems
	// only lists grow old
	if c.cfg.Durable == topology.ConsumerIndex || c.cfg.Durable == topology.ConsumerIndexPending {
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
			c.came(m)
			handle(handedOut(c.stream, m))
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
	case errors.Is(err, jetstream.ErrConsumerDeleted), errors.Is(err, jetstream.ErrConsumerNotFound),
		errors.Is(err, jetstream.ErrNoHeartbeat),
		errors.Is(err, nats.ErrNoResponders): // the consumer was deleted between two pulls
		if openErr := c.open(ctx); openErr != nil {
			return got, openErr
		}
	default:
		_ = pause.wait(ctx)
	}
	return got, fmt.Errorf("fetch from %s: %w", c.stream, err)
}

// came notes the size of a message.
func (c *Consumer) came(m jetstream.Msg) {
	size := len(m.Data())
	if c.Weigh != nil {
		size += c.Weigh(m)
	}
	c.size = max(size, c.size-c.size/64, 1)
}

// Take hands at most n messages that are there now to handle, without waiting for more, and returns how many came.
func (c *Consumer) Take(n int, handle func(jetstream.Msg)) (int, error) {
	batch, err := c.c.FetchNoWait(n)
	if err != nil {
		return 0, err //nolint:wrapcheck // the caller says from where
	}
	got := 0
	for m := range batch.Messages() {
		got++
		c.came(m)
		handle(handedOut(c.stream, m))
	}
	return got, batch.Error()
}

// Delete removes the broker's consumer. Messages that it delivered and that are not settled stay in the stream.
func (c *Consumer) Delete(ctx context.Context) error {
	if err := c.b.js.DeleteConsumer(ctx, c.stream, c.cfg.Durable); err != nil &&
		!errors.Is(err, jetstream.ErrConsumerNotFound) {
		return err //nolint:wrapcheck // the caller says which
	}
	return nil
}

// Gather hands at most n messages to add. It waits for the first like Fetch. Then it takes, once in a linger, those
// that have come since: a reader that wakes for each message costs itself and the broker several system calls for each.
// While the batches are full it does not wait.
func (c *Consumer) Gather(ctx context.Context, n int, linger time.Duration, add func(jetstream.Msg)) (err error) {
	if c.gathered > 0 {
		if c.gathered < n && !sleep.For(ctx, linger) {
			return nil
		}
		c.look(ctx)
		if c.gathered, _ = c.Take(n, add); c.gathered > 0 { // the next call meets an error again
			return nil
		}
	}
	c.gathered, err = c.Fetch(ctx, 1, Unbounded, add)
	return err
}

// Ack acknowledges messages that were handled together. A message whose ack is lost comes again.
func Ack(msgs []jetstream.Msg) {
	for _, m := range msgs {
		_ = m.Ack()
	}
}

// Unbounded is the room of a pull that its number of messages bounds well enough.
const Unbounded = math.MaxInt32
