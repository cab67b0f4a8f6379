// Package publisher turns each event of the CRM into one notification for every webhook that matches it.
//
// An event is acknowledged only after all that follows from it is stored: its notifications on
// NOTIFICATIONS, or its bytes on REJECTED_EVENTS when it cannot be an event. A crash anywhere before makes
// the broker deliver the event again, and the deterministic message ids keep the notifications that were stored
// already from being stored twice.
//
// The broker's memory of message ids is short. An event that may have been handled longer ago (it comes
// again, or the consumer was deleted and begins again) is therefore compared with the streams: a webhook is
// notified only when neither NOTIFICATIONS nor the journal has the notification, and when it was registered
// before the event, give or take clockGap.
package publisher

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/eventstream"
	"gancho/pkg/history"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/registry"
	"gancho/pkg/service"
	"gancho/pkg/share"
	"gancho/pkg/topology"
	"gancho/pkg/tracing"
	"gancho/pkg/webhook"
)

const (
	// maxEvents is how many events are worked on at once: enough to keep the broker busy, few enough to
	// finish within the shutdown timeout.
	maxEvents = 512
	// maxBytes is how many bytes of events are worked on at once.
	maxBytes = 128 << 20
	// page is how many notifications of one event are under way at once. An event that matches more is
	// published page by page, so it cannot take the whole publish window from other events.
	page = 512
	// handleWithin is how long the broker may take for the look-ups or for the rejection of one event.
	handleWithin = 30 * time.Second
)

// Publisher matches events and fans them out. Its methods are safe for concurrent use.
type Publisher struct {
	log      *zap.Logger
	lasting  *zap.Logger // of troubles that are met with every event
	bus      *bus.Bus
	registry *registry.Registry
	metrics  metrics
	trace    *tracing.Tracer
	meter    *share.Meter
	deferred *deferrals
	room     *room
	bodies   *bodies.Store

	mostBytes    int // of one event with its headers
	maxBodyBytes int
}

type metrics struct {
	events  *prometheus.CounterVec
	matched prometheus.Counter
	held    prometheus.Counter
	bodies  *prometheus.CounterVec
}

// large counts a large event whose body was stored, or why it was not.
func (m *metrics) large(err error) {
	stored := storedOnce
	switch {
	case errors.Is(err, bodies.ErrShare):
		stored = storedShare
	case errors.Is(err, bus.ErrFull):
		stored = storedFull
	case err != nil:
		stored = storedNot
	}
	m.bodies.WithLabelValues(stored).Inc()
}

// how the bodies of large events are stored.
const (
	storedOnce  = "once"
	storedShare = "copied_share"
	storedFull  = "copied_full"
	storedNot   = "copied_no_answer"
)

// results of an event, in addition to the reasons of a rejection.
const (
	resultMatched   = "matched"
	resultUnmatched = "no_webhooks"
	resultHeldBack  = "held_back"
)

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_events_total", Help: "Events taken in, by result: matched, no_webhooks, held_back by the conditions of all webhooks of that name, or the reason of a rejection.",
		}, []string{"result"}),
		matched: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_notifications_matched_total", Help: "Notifications created by matching events with webhooks.",
		}),
		held: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_notifications_held_back_total", Help: "Notifications that were not created because a condition of the webhook did not hold.",
		}),
		bodies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_large_bodies_total", Help: "Bodies of large events for several webhooks, by how they are stored: once, or copied into each notification because the account has its share of BODIES (copied_share), it is full (copied_full), or it gave no answer (copied_no_answer).",
		}, []string{"stored"}),
	}
	for _, how := range []string{storedOnce, storedShare, storedFull, storedNot} {
		m.bodies.WithLabelValues(how)
	}
	for _, r := range append([]event.Reason{resultMatched, resultUnmatched, resultHeldBack}, event.Reasons()...) {
		m.events.WithLabelValues(string(r))
	}
	reg.MustRegister(m.events, m.matched, m.held, m.bodies)
	return m
}

// Run runs a publisher until ctx ends; events under way are then finished first.
func Run(ctx context.Context, cfg Config, proc *service.Process) error {
	b, err := bus.Connect(cfg.Bus, proc.Name, proc.Log, proc.Metrics)
	if err != nil {
		return err
	}
	defer b.Close()
	proc.Health.Require("nats", b.State)
	if err := b.Own(ctx, topology.Publisher, cfg.Limits); err != nil {
		return err
	}
	if err := b.RequirePayload(ctx, int64(cfg.Limits.EventMaxBytes)+topology.BrokerHeadroom); err != nil {
		return err
	}
	registered, err := registry.Open(ctx, b, registry.Options{Log: proc.Log, Metrics: proc.Metrics})
	if err != nil {
		return err
	}
	proc.Health.Require("webhooks", registered.State)
	events, err := eventstream.Consume(ctx, b)
	if err != nil {
		return err
	}
	limits, err := share.LimitsOf(ctx, b, cfg.Limits)
	if err != nil {
		return err
	}
	shares, err := b.Bucket(ctx, topology.BucketShares)
	if err != nil {
		return err
	}
	p := &Publisher{
		log: proc.Log, lasting: service.Lasting(proc.Log), bus: b, registry: registered, metrics: newMetrics(proc.Metrics), trace: proc.Trace,
		meter:     share.New(cfg.Share, limits, registered.HasOthers),
		mostBytes: topology.MaxMessage(cfg.Limits.EventMaxBytes), maxBodyBytes: cfg.Limits.EventMaxBytes,
	}
	p.deferred = newDeferrals(p, shares, cfg.Limits.EventsMaxAge, proc.Metrics)
	p.deferred.kept = &keptCounter{log: p.log, bus: b, shares: shares, share: cfg.Share.Share, limit: limits.Events}
	p.deferred.histories = history.New(b, p.meter, p.log, proc.Metrics)
	p.deferred.bodies = bodies.NewSweeper(b, p.log, cfg.Limits.LogMaxAge)
	granted, err := b.Granted(ctx, cfg.Limits)
	if err != nil {
		return err
	}
	p.bodies = bodies.NewStore(b, p.meter, granted.MaxBytes(topology.Bodies))
	p.room = &room{p: p, limit: limits.Notifications, window: cfg.Limits.DuplicateWindow, replicas: cfg.Limits.Replicas, shares: shares}
	proc.Health.Want("shares", p.deferred.state)
	group, ctx := errgroup.WithContext(ctx)
	loaded, known := make(chan struct{}), make(chan struct{})
	group.Go(func() error { return registered.Run(ctx, func() { close(loaded) }, nil) })
	group.Go(func() error { return p.meter.Watch(ctx, b, p.log, func() { close(known) }) })
	group.Go(func() error { trim(ctx, p.lasting, b, cfg.Limits.DuplicateWindow); return nil })
	group.Go(func() error {
		for _, ready := range []chan struct{}{loaded, known} { // matching before would miss webhooks, and deferred accounts
			select {
			case <-ctx.Done():
				return nil
			case <-ready:
			}
		}
		proc.Up()
		var beside sync.WaitGroup
		defer beside.Wait()
		beside.Go(func() { p.room.keep(ctx) })
		beside.Go(func() { p.deferred.keep(ctx) })
		p.consume(ctx, events)
		p.deferred.work.Wait()
		return nil
	})
	return group.Wait()
}

// consume pulls events while there are free places and returns when ctx ended and the last one is done.
func (p *Publisher) consume(ctx context.Context, events *eventstream.Consumer) {
	places := bus.NewPlaces(maxEvents, maxBytes, p.mostBytes)
	var inFlight sync.WaitGroup
	defer inFlight.Wait()
	work := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		n, room := places.Take(ctx)
		if n == 0 {
			return
		}
		got, used := 0, 0
		err := events.Pull(ctx, n, room, func(m *eventstream.Delivery) {
			size := len(m.Body)
			got, used = got+1, used+size
			free := func() { places.Give(1, size) }
			started := p.start(m, free)
			if started.deferred { // it stays in CRM_EVENTS, and its place is free once it is settled
				return
			}
			inFlight.Go(func() {
				defer free()
				p.finish(work, m, started)
			})
		})
		places.Give(n-got, room-used)
		if err != nil && ctx.Err() == nil {
			p.log.Debug("events cannot be pulled; trying again", zap.Error(err))
		}
	}
}

// job is what one event leads to, with its first page of notifications already on the way. Starting in
// the order of arrival keeps an account's events in order on NOTIFICATIONS.
type job struct {
	event    event.Event
	rejected *event.Rejected
	webhooks []*webhook.Webhook // those after the first page
	held     []*webhook.Webhook // those whose conditions do not hold
	started  []*bus.Started
	hold     *share.Hold             // room for the started ones
	unsure   bool                    // some of webhooks may have been notified already
	deferred bool                    // the account's events wait; the event is settled elsewhere
	newer    bool                    // the account has webhooks that only a newer version can match
	large    bool                    // its body is to be stored once, and has no notifications yet that carry it
	ref      *notification.Reference // to the body, once it is stored
	storedAt time.Time               // when it was
	span     *tracing.Processing
}

// start begins with an event. free is called when an event that is deferred is settled.
func (p *Publisher) start(m *eventstream.Delivery, free func()) *job {
	m.MaxBytes = p.maxBodyBytes // the broker's limit counts headers too
	ev, rejected := event.Parse(m.Message)
	j := &job{event: ev, rejected: rejected, newer: rejected == nil && p.registry.Newer(ev.Account)}
	if rejected != nil || j.newer {
		return j
	}
	if !p.deferred.begin(ev.Account) {
		p.deferred.add(m, ev.Account, nil, free)
		j.deferred = true
		return j
	}
	j.span, ev.Traceparent = p.trace.Process(ev.Traceparent, tracing.Event{
		ID: ev.ID, Name: ev.Name, Account: ev.Account, Sequence: ev.Sequence, Deliveries: m.NumDelivered,
	})
	j.event = ev
	p.match(j)
	j.unsure = m.Again || p.room.doubtful()
	if j.unsure || j.large { // the rest waits for the broker
		return j
	}
	if over, full := p.next(m, j); full {
		j.span.End(0, nil)
		p.deferred.add(m, ev.Account, &over, free)
		p.deferred.leave(ev.Account)
		j.deferred = true
	}
	return j
}

// match finds the webhooks that the event is for.
func (p *Publisher) match(j *job) {
	j.webhooks = p.registry.Match(nil, &j.event, func(w *webhook.Webhook) { j.held = append(j.held, w) })
	j.large = len(j.event.Body) > bodies.Above && len(j.webhooks) > 1
}

// count counts an event that is settled.
func (p *Publisher) count(j *job, result string) {
	if result == resultUnmatched && len(j.held) > 0 {
		result = resultHeldBack
	}
	p.metrics.events.WithLabelValues(result).Inc()
	p.metrics.held.Add(float64(len(j.held)))
}

// nextPage is next for an event whose body may be stored once. Where it cannot be stored its notifications carry it.
func (p *Publisher) nextPage(ctx context.Context, m *eventstream.Delivery, j *job) (over share.Excess, full bool) {
	if j.large && len(j.webhooks) > 0 && time.Since(j.storedAt) > bodies.Lasts {
		ref, err := p.bodies.Put(ctx, &j.event)
		if err != nil {
			p.log.Debug("a large event's body is not stored once; its notifications carry it", append(j.fields(m), zap.Error(err))...)
		}
		j.ref, j.storedAt, j.large = ref, time.Now(), err == nil
		p.metrics.large(err)
	}
	return p.next(m, j)
}

// next starts the next page of an event's notifications, if its account has room for it.
func (p *Publisher) next(m *eventstream.Delivery, j *job) (over share.Excess, full bool) {
	j.started, j.hold = nil, nil
	if len(j.webhooks) == 0 {
		return over, false
	}
	each := int64(share.Overhead)
	if j.ref == nil {
		each += int64(len(j.event.Body))
	}
	n := min(page, len(j.webhooks))
	if most := p.meter.Page(j.event.Account); most > 0 {
		n = int(min(int64(n), max(1, most/each)))
	}
	if j.hold, over = p.meter.Admit(j.event.Account, int64(n)*each); j.hold == nil {
		return over, true
	}
	j.started, j.webhooks = p.notify(m.StoredAt, j, j.webhooks[:n]), j.webhooks[n:]
	return over, false
}

// wait returns once the page is stored.
func (j *job) wait(ctx context.Context) error {
	var last uint64
	for _, s := range j.started {
		ack, err := s.Receipt(ctx)
		if err != nil {
			j.hold.Release()
			return err
		}
		last = max(last, ack.Sequence)
	}
	j.hold.Stored(last)
	return nil
}

// notify starts one page of notifications.
func (p *Publisher) notify(storedAt time.Time, j *job, webhooks []*webhook.Webhook) []*bus.Started {
	started := make([]*bus.Started, 0, len(webhooks))
	for _, w := range webhooks {
		n := notification.First(&j.event, storedAt, w.UUID)
		n.Ref = j.ref
		started = append(started, lane.Notify(p.bus, &n))
	}
	return started
}

// finish waits until all that follows from the event is stored, then settles it. Without that the event
// is left alone and comes again.
func (p *Publisher) finish(ctx context.Context, m *eventstream.Delivery, j *job) {
	if j.rejected != nil {
		p.reject(ctx, m, j.rejected)
		return
	}
	if j.newer {
		m.Wait()
		return
	}
	defer p.deferred.leave(j.event.Account)
	if j.unsure {
		var err error
		if j.webhooks, err = p.unnotified(ctx, j, m.StoredAt); err != nil {
			j.span.End(0, err)
			p.lasting.Warn("event not handled; it comes again", append(j.fields(m), zap.Error(err))...)
			m.Abandon()
			return
		}
	}
	if j.unsure || j.large {
		if over, full := p.nextPage(ctx, m, j); full {
			j.span.End(0, nil)
			p.deferred.add(m, j.event.Account, &over, nil)
			return
		}
	}
	result, total := resultUnmatched, 0
	for len(j.started) > 0 {
		result, total = resultMatched, total+len(j.started)
		if err := j.wait(ctx); err != nil {
			j.span.End(total, err)
			p.lasting.Error("notification not stored; its event comes again", append(j.fields(m), zap.Error(err))...)
			m.Abandon()
			return
		}
		if over, full := p.nextPage(ctx, m, j); full {
			p.metrics.matched.Add(float64(total))
			j.span.End(total, nil)
			p.deferred.add(m, j.event.Account, &over, nil)
			return
		}
	}
	if err := p.noteHeld(ctx, j, m.StoredAt); err != nil {
		j.span.End(total, err)
		p.lasting.Warn("what conditions held back is not noted; the event comes again", append(j.fields(m), zap.Error(err))...)
		m.Abandon()
		return
	}
	p.count(j, result)
	p.metrics.matched.Add(float64(total))
	if total == 0 {
		p.log.Debug("event matched by no webhook", j.fields(m)...)
	} else {
		p.log.Debug("event matched", append(j.fields(m), zap.Int("notifications", total))...)
	}
	j.span.End(total, nil)
	m.Ack()
}

// fields name the event in a line of the log.
func (j *job) fields(m *eventstream.Delivery) []zap.Field {
	e := &j.event
	return []zap.Field{
		zap.String("account_id", e.Account), zap.String("event_name", e.Name), zap.String("event_id", e.ID),
		zap.String("transaction_uuid", e.Transaction), zap.Uint64("stream_seq", m.Sequence),
	}
}

// clockGap is how far the clocks of broker and management may be apart.
const clockGap = time.Minute

// unnotified returns the event's webhooks that have no notification of it yet.
func (p *Publisher) unnotified(ctx context.Context, j *job, storedAt time.Time) ([]*webhook.Webhook, error) {
	ctx, cancel := context.WithTimeout(ctx, handleWithin)
	defer cancel()
	var out []*webhook.Webhook
	for _, w := range j.webhooks {
		if w.CreatedAt.After(storedAt.Add(clockGap)) {
			continue
		}
		notified := false
		for _, id := range j.event.IDs() {
			known, err := p.notified(ctx, j.event.Account, event.NotificationID(id, w.UUID))
			if err != nil {
				return nil, err
			}
			notified = notified || known
		}
		if !notified {
			out = append(out, w)
		}
	}
	return out, nil
}

// notified reports whether a notification exists: its message is on NOTIFICATIONS, or the journal has a record of it.
func (p *Publisher) notified(ctx context.Context, account, id string) (bool, error) {
	known, err := p.bus.Has(ctx, topology.Notifications, topology.SubjectNotification(account, id))
	if known || err != nil {
		return known, err
	}
	return p.bus.Has(ctx, topology.Attempts, topology.SubjectAttempts(account, id))
}

// reject stores a message that cannot be an event on REJECTED_EVENTS, its bytes unchanged, and settles it.
func (p *Publisher) reject(ctx context.Context, m *eventstream.Delivery, why *event.Rejected) {
	ctx, cancel := context.WithTimeout(ctx, handleWithin)
	defer cancel()
	r := bus.NewMessage("gancho.rejected."+string(why.Reason), topology.Events+":"+strconv.FormatUint(m.Sequence, 10), m.Body)
	r.Header[topology.HeaderReason] = []string{string(why.Reason)}
	r.Header[topology.HeaderSubject] = []string{m.Subject}
	if _, err := p.bus.Publish(ctx, topology.Rejected, r); err != nil && !errors.Is(err, bus.ErrTooLarge) {
		p.lasting.Error("rejected event not stored; it comes again", zap.Error(err))
		m.Abandon()
		return
	}
	p.metrics.events.WithLabelValues(string(why.Reason)).Inc()
	p.log.Warn("event rejected", zap.String("reason", string(why.Reason)), zap.String("detail", why.Detail),
		zap.Uint64("stream_seq", m.Sequence), zap.Duration("age", time.Since(m.StoredAt)))
	m.Ack()
}
