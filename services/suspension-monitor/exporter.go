package monitor

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/books"
	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

// lookEvery is how often the exporter looks at the books and the broker.
const lookEvery = 5 * time.Second

// exporter shows the books and the broker's state as metrics. Each replica of the monitor shows the same
// numbers, those that the one that keeps the books has stored: alerts take the largest, not the sum. Ages
// are counted when they are read, so they grow between reads too. Its methods are safe for
// concurrent use.
type exporter struct {
	log *zap.Logger
	bus *bus.Bus

	notifications *prometheus.Desc
	matched       *prometheus.Desc
	unaccounted   *prometheus.Desc
	byAccount     *prometheus.Desc
	duplicates    *prometheus.Desc
	unread        *prometheus.Desc
	orphans       *prometheus.Desc
	booksAge      *prometheus.Desc
	oldest        *prometheus.Desc
	overdue       *prometheus.Desc

	messages    *prometheus.Desc
	bytes       *prometheus.Desc
	maxBytes    *prometheus.Desc
	streamAge   *prometheus.Desc
	pending     *prometheus.Desc
	ackPending  *prometheus.Desc
	redelivered *prometheus.Desc
	storage     *prometheus.Desc
	maxStorage  *prometheus.Desc

	started time.Time

	mu         sync.Mutex
	report     *books.Report // nil: none yet
	streams    map[string]bus.StreamState
	consumers  map[topology.Durable]bus.ConsumerState
	used       uint64
	limit      int64
	lastFailed bool
}

func newExporter(log *zap.Logger, b *bus.Bus, reg prometheus.Registerer) *exporter {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("gancho_"+name, help, labels, nil)
	}
	x := &exporter{
		log: log, bus: b, started: time.Now(), streams: map[string]bus.StreamState{},
		consumers: map[topology.Durable]bus.ConsumerState{},
		notifications: desc("notifications", "Sends of notifications by state: those on their way now, those that "+
			"ended since the books began.", "state"),
		matched: desc("notifications_opened", "Sends of notifications that were opened since the books began."),
		unaccounted: desc("unaccounted_notifications",
			"Sends that neither ended nor are on their way: 0 when the books balance."),
		byAccount: desc("unaccounted_notifications_by_account",
			"The same for the accounts that have any, at most 20.", "account_id"),
		duplicates: desc("notifications_duplicate",
			"Sends that were opened again after they had ended, since the books began."),
		unread: desc("books_unread_notifications",
			"Messages that were removed before the books read them and left no record."),
		orphans:  desc("books_orphaned_schedules", "Retries that are scheduled for notifications that ended."),
		booksAge: desc("books_age_seconds", "Time since the books were last audited."),
		oldest: desc("oldest_notification_age_seconds",
			"How long the longest-waiting notification is in its state: pending or parked.", "state"),
		overdue:  desc("retry_overdue_seconds", "By how much the most overdue retry is late."),
		messages: desc("stream_messages", "Messages on a stream.", "stream"),
		bytes:    desc("stream_bytes", "Bytes on a stream.", "stream"),
		maxBytes: desc("stream_max_bytes", "Limit of a stream's bytes; 0: none of its own.", "stream"),
		streamAge: desc("stream_oldest_age_seconds", "Age of a stream's oldest message; 0 when it is empty.",
			"stream"),
		pending: desc("consumer_pending", "Messages that a consumer has not been sent yet.", "stream",
			"consumer"),
		ackPending: desc("consumer_ack_pending",
			"Messages that a consumer was sent and has not settled, waiting retries included.", "stream", "consumer"),
		redelivered: desc("consumer_redelivered", "Messages of those that were sent more than once.", "stream",
			"consumer"),
		storage:    desc("broker_storage_bytes", "Disk that the streams use."),
		maxStorage: desc("broker_max_storage_bytes", "Disk that the streams may use; 0: the broker names no limit."),
	}
	reg.MustRegister(x)
	return x
}

// Describe implements prometheus.Collector.
func (x *exporter) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		x.notifications, x.matched, x.unaccounted, x.byAccount, x.duplicates, x.unread, x.orphans, x.booksAge, x.oldest,
		x.overdue,
		x.messages, x.bytes, x.maxBytes, x.streamAge, x.pending, x.ackPending, x.redelivered, x.storage, x.maxStorage,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (x *exporter) Collect(out chan<- prometheus.Metric) {
	x.mu.Lock()
	defer x.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	age := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return max(0, time.Since(t).Seconds())
	}
	r := x.report
	if r == nil {
		r = &books.Report{At: x.started}
	}
	c := r.Counts
	for state, n := range map[notification.State]uint64{
		notification.Pending: r.Open[notification.Pending], notification.Retrying: r.Open[notification.Retrying],
		notification.Parked:    r.Open[notification.Parked],
		notification.Delivered: c.Delivered, notification.PermanentlyFailed: c.PermanentlyFailed,
		notification.Cancelled: c.Cancelled,
	} {
		gauge(x.notifications, float64(n), string(state))
	}
	gauge(x.matched, float64(c.Matched))
	gauge(x.unaccounted, float64(r.Unaccounted))
	for _, a := range r.Accounts {
		gauge(x.byAccount, float64(a.Unaccounted), a.ID)
	}
	gauge(x.duplicates, float64(c.Duplicates))
	gauge(x.unread, float64(c.Unread))
	gauge(x.orphans, float64(r.Orphans))
	gauge(x.booksAge, age(r.At))
	gauge(x.oldest, age(r.OldestPending), string(notification.Pending))
	gauge(x.oldest, age(r.OldestParked), string(notification.Parked))
	gauge(x.overdue, age(r.MostOverdue))
	for _, name := range topology.Streams() {
		s := x.streams[name]
		gauge(x.messages, float64(s.Messages), name)
		gauge(x.bytes, float64(s.Bytes), name)
		gauge(x.maxBytes, float64(s.MaxBytes), name)
		gauge(x.streamAge, age(s.Oldest), name)
	}
	for _, d := range topology.Durables() {
		s := x.consumers[d]
		gauge(x.pending, float64(s.Pending), d.Stream, d.Name)
		gauge(x.ackPending, float64(s.AckPending), d.Stream, d.Name)
		gauge(x.redelivered, float64(s.Redelivered), d.Stream, d.Name)
	}
	gauge(x.storage, float64(x.used))
	gauge(x.maxStorage, float64(x.limit))
}

// run looks until ctx ends.
func (x *exporter) run(ctx context.Context, bucket *bus.Bucket) {
	for ctx.Err() == nil {
		err := x.look(ctx, bucket)
		x.mu.Lock()
		if err != nil && !x.lastFailed && ctx.Err() == nil {
			x.log.Warn("the numbers of the books and the broker are not up to date; trying again", zap.Error(err))
		}
		x.lastFailed = err != nil
		x.mu.Unlock()
		sleep.For(ctx, lookEvery)
	}
}

func (x *exporter) look(ctx context.Context, bucket *bus.Bucket) error {
	ctx, cancel := context.WithTimeout(ctx, 2*lookEvery)
	defer cancel()
	report, err := books.ReadReport(ctx, bucket)
	if errors.Is(err, bus.ErrNotFound) {
		report, err = nil, nil
	}
	if err != nil {
		return err
	}
	streams := map[string]bus.StreamState{}
	for _, name := range topology.Streams() {
		s, err := x.bus.StreamState(ctx, name)
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return err
		}
		streams[name] = s
	}
	consumers := map[topology.Durable]bus.ConsumerState{}
	for _, d := range topology.Durables() {
		s, err := x.bus.ConsumerState(ctx, d)
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return err
		}
		consumers[d] = s
	}
	used, limit, err := x.bus.Storage(ctx)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.report, x.streams, x.consumers, x.used, x.limit = report, streams, consumers, used, limit
	return nil
}
