package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/egress"
	"gancho/pkg/notification"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/topology"
	"gancho/pkg/tracing"
	"gancho/pkg/webhook"
)

// crowdedAt is how many retries may wait as delayed NAKs before further ones are scheduled instead. Up to
// 100,000 on a consumer cost nothing measurable, 1,000,000 cost a core; scheduled ones cost 0.6 KB each.
const crowdedAt = 50_000

// Dispatcher decides and sends. Its methods are safe for concurrent use.
type Dispatcher struct {
	cfg         Config
	name        string // of this process, unique
	log         *zap.Logger
	bus         *bus.Bus
	registry    *registry.Registry
	keys        *seal.Keyring
	sender      *delivery.Sender
	schedule    schedule
	shares      *shares
	suspensions *mirror.Mirror
	drains      *drains
	metrics     metrics
	receivers   *certificates
	credentials credentials
	crowded     atomic.Bool // too many delayed NAKs on RETRIES
	brake       brake
	trace       *tracing.Tracer
}

type metrics struct {
	attempts    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	latency     prometheus.Histogram
	inFlight    prometheus.Gauge
	ended       *prometheus.CounterVec
	parked      *prometheus.CounterVec
	conflicts   prometheus.Counter
	repaired    *prometheus.CounterVec
	panics      prometheus.Counter
	quarantined prometheus.Counter
	paused      prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_attempts_total", Help: "HTTP requests to receivers, by outcome and reason of the failure.",
		}, []string{"outcome", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gancho_attempt_duration_seconds", Help: "Duration of an attempt, by outcome.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 7.5},
		}, []string{"outcome"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "gancho_first_attempt_latency_seconds", Help: "Time from the broker storing an event to the start of a notification's first attempt.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_attempts_in_flight", Help: "Requests open now.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_notifications_ended_total", Help: "Notifications that reached a terminal state.",
		}, []string{"state"}),
		parked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_notifications_parked_total", Help: "Notifications moved to PARKED, by reason.",
		}, []string{"reason"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_journal_conflicts_total", Help: "Records that came second, after a crash, a stall or a duplicate.",
		}),
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_repairs_total", Help: "Notifications put right after a crash, by kind.",
		}, []string{"kind"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_handler_panics_total", Help: "Panics while handling a notification.",
		}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_notifications_quarantined_total", Help: "Notifications set aside because they could not be handled.",
		}),
		paused: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_first_attempts_paused", Help: "1 while no first attempts are made because RETRIES holds more than RETRIES_MAX_BYTES.",
		}),
	}
	m.attempts.WithLabelValues(notification.OutcomeDelivered, "")
	for _, o := range []string{notification.OutcomeDelivered, notification.OutcomeFailed} {
		m.duration.WithLabelValues(o)
	}
	for _, r := range delivery.Reasons() {
		m.attempts.WithLabelValues(notification.OutcomeFailed, string(r))
	}
	for _, s := range notification.States() {
		if s.Terminal() {
			m.ended.WithLabelValues(string(s))
		}
	}
	for _, r := range []string{notification.Suspended, notification.Disabled, notification.Saturated} {
		m.parked.WithLabelValues(r)
	}
	for _, k := range []string{"burnt_delivery", "exhausted", "stuck"} {
		m.repaired.WithLabelValues(k)
	}
	reg.MustRegister(m.attempts, m.duration, m.latency, m.inFlight, m.ended, m.parked, m.conflicts, m.repaired, m.panics, m.quarantined, m.paused)
	return m
}

// Run runs a dispatcher until ctx ends; it then pulls nothing new, and attempts in flight finish.
func Run(ctx context.Context, cfg Config, proc *service.Process) error {
	policy, err := egress.New(cfg.Egress)
	if err != nil {
		return err
	}
	sender, err := delivery.New(cfg.Delivery, policy, "Gancho/"+service.Version)
	if err != nil {
		return err
	}
	defer sender.Close()
	return run(ctx, cfg, proc, sender)
}

func run(ctx context.Context, cfg Config, proc *service.Process, sender *delivery.Sender) error {
	keys, warnings, err := seal.Load(cfg.EncryptionKeyFile)
	if err != nil {
		return fmt.Errorf("ENCRYPTION_KEY_FILE: %w", err)
	}
	for _, w := range warnings {
		proc.Log.Warn(w)
	}
	b, err := bus.Connect(cfg.Bus, proc.Name, proc.Log, proc.Metrics)
	if err != nil {
		return err
	}
	defer b.Close()
	proc.Health.Require("nats", b.State)
	if err := b.Own(ctx, topology.Dispatcher, cfg.Limits); err != nil {
		return err
	}
	if err := b.Await(ctx, topology.Notifications, topology.Quarantine); err != nil {
		return err
	}
	registered, err := registry.Open(ctx, b, proc.Log)
	if err != nil {
		return err
	}
	proc.Health.Require("webhooks", registered.State)
	suspensions := mirror.New(proc.Log)
	if err := suspensions.Open(ctx, b); err != nil {
		return err
	}
	host, _ := os.Hostname()
	proc.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "gancho_receivers_needing_legacy_tls",
		Help: "Hosts of receivers that speak TLS 1.2 with RSA key exchange only, seen in the last day (at most 4,096 are remembered).",
	}, func() float64 { return float64(sender.LegacyHosts()) }))
	d := &Dispatcher{
		cfg: cfg, name: host + "-" + uuid.NewString()[:8], log: proc.Log, bus: b, registry: registered, keys: keys, sender: sender,
		schedule: schedule{cfg.RetryDelays, cfg.RetryJitter, cfg.MaxRetryAfter},
		shares:   newShares(cfg.MaxInFlightPerURL, cfg.MaxInFlight), suspensions: suspensions, metrics: newMetrics(proc.Metrics), receivers: newCertificates(proc.Log, proc.Metrics), trace: proc.Trace,
	}
	leases, err := b.Bucket(ctx, topology.BucketLeases)
	if err != nil {
		return err
	}
	d.drains = newDrains(d, leases)
	return d.run(ctx, proc.Up)
}

func (d *Dispatcher) run(ctx context.Context, up func()) error {
	first, err := d.bus.First(ctx, d.cfg.ackWait())
	if err != nil {
		return err
	}
	retries, err := d.bus.Retries(ctx, d.cfg.ackWait())
	if err != nil {
		return err
	}
	exhausted, err := d.bus.Exhausted(ctx)
	if err != nil {
		return err
	}
	if d.brake.limit, err = d.bus.RetriesLimit(ctx, d.cfg.Limits); err != nil {
		return err
	}
	if err := d.brake.look(ctx, d); err != nil {
		d.log.Debug("the size of RETRIES is not known yet", zap.Error(err))
	}
	group, ctx := errgroup.WithContext(ctx)
	// The copies are kept up to date until the last attempt in flight has ended.
	watch, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stopWatch()
	webhooks, flags := make(chan struct{}), make(chan struct{})
	watchers.Go(func() { _ = d.registry.Run(watch, func() { close(webhooks) }, d.webhookChanged) })
	watchers.Go(func() {
		_ = d.suspensions.Run(watch, mirror.Options{Changed: d.suspensionChanged, Loaded: func() { close(flags) }})
	})
	for _, known := range []chan struct{}{webhooks, flags} {
		select {
		case <-ctx.Done():
			return nil
		case <-known:
		}
	}
	up()
	group.Go(func() error { d.pull(ctx, first, 2, d.brake.wait); return nil })
	group.Go(func() error { d.pull(ctx, retries, 4, func(context.Context) {}); return nil })
	group.Go(func() error { d.drains.run(ctx); return nil })
	group.Go(func() error { d.repair(ctx, exhausted, retries); return nil })
	return group.Wait()
}

// pull keeps at most one in part of MAX_IN_FLIGHT, and about that of MAX_IN_FLIGHT_BYTES, in hand of the lane: it
// asks the broker for as many as there are free places and room for, after wait returned. It returns when ctx
// ended and the last one is settled.
func (d *Dispatcher) pull(ctx context.Context, lane *bus.Puller, part int, wait func(context.Context)) {
	places := bus.NewPlaces(max(d.cfg.MaxInFlight/part, 1), int(d.cfg.MaxInFlightBytes)/part, d.mostBytes())
	var inFlight sync.WaitGroup
	defer inFlight.Wait()
	work := context.WithoutCancel(ctx)
	for {
		wait(ctx)
		n, room := places.Take(ctx)
		if n == 0 {
			return
		}
		used := 0
		handed, err := lane.Pull(ctx, n, room, func(m *bus.Delivery) {
			size := len(m.Body)
			used += size
			rest := d.arrive(work, m)
			inFlight.Go(func() {
				defer places.Give(1, size)
				rest()
			})
		})
		places.Give(n-handed, room-used)
		if err != nil && !errors.Is(err, context.Canceled) {
			d.log.Debug("notifications cannot be pulled; trying again", zap.Error(err))
		}
	}
}

// mostBytes is how many bytes one message may take.
func (d *Dispatcher) mostBytes() int { return topology.MaxMessage(d.cfg.Limits.EventMaxBytes) }

// sleep waits for d, or returns the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// webhookChanged lets the drains look at once when something parked may move.
func (d *Dispatcher) webhookChanged(before, after *webhook.Webhook) {
	if after == nil && before != nil {
		d.credentials.forget(before.Key())
	}
	if before != nil && (after == nil || before.URLKey != after.URLKey || before.Status != after.Status) {
		d.drains.look()
	}
}

// suspensionChanged reacts to a change of a URL's suspension. A URL that was resumed starts slowly.
func (d *Dispatcher) suspensionChanged(c mirror.Change) {
	k := urlKey{c.Key.Account, c.Key.URLKey}
	if c.Resumed() {
		d.shares.restart(k)
	}
	if d.drains != nil {
		d.drains.changed(k)
	}
}
