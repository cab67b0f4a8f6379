package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/egress"
	"gancho/pkg/lane"
	"gancho/pkg/latest"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/share"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/topology"
	"gancho/pkg/tracing"
	"gancho/pkg/webhook"
)

// crowdedAt is how many retries may wait as delayed NAKs before further ones are scheduled instead. Up to
// 100,000 on a consumer cost nothing measurable, 1,000,000 cost a core; scheduled ones cost 0.6 KB each.
const crowdedAt = 50_000

// cachePart is the part of MAX_IN_FLIGHT_BYTES that bodies of large events may take up in addition to those in flight.
const cachePart = 8

// Dispatcher decides and sends. Its methods are safe for concurrent use.
type Dispatcher struct {
	cfg          Config
	name         string // of this process, unique
	log          *zap.Logger
	bus          *bus.Bus
	registry     *registry.Registry
	keys         *seal.Keyring
	sender       *delivery.Sender
	schedule     schedule
	limiter      *limiter
	unrecorded   unrecorded
	suspensions  *mirror.Mirror
	drains       *drains
	metrics      metrics
	receivers    *certificates
	clients      *certificates // those that webhooks show
	credentials  credentials
	crowded      atomic.Bool // too many delayed NAKs on RETRIES
	backpressure backpressure
	fullness     fullness
	latest       *latest.Store
	bodies       *bodies.Cache
	lasting      *zap.Logger // of troubles that are met with every notification
	trace        *tracing.Tracer
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
	registered, err := registry.Open(ctx, b, registry.Options{Keys: keys, Log: proc.Log, Metrics: proc.Metrics})
	if err != nil {
		return err
	}
	proc.Health.Require("webhooks", registered.State)
	proc.Health.Want("webhooks", registered.Degraded)
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
		cfg: cfg, name: host + "-" + uuid.NewString()[:8], log: proc.Log, lasting: service.Lasting(proc.Log), bus: b, registry: registered, keys: keys, sender: sender,
		schedule: schedule{cfg.RetryDelays, cfg.RetryJitter, cfg.MaxRetryAfter}, limiter: newLimiter(cfg.MaxInFlightPerURL, amount{cfg.MaxInFlight, int(cfg.MaxInFlightBytes)}),
		suspensions: suspensions, metrics: newMetrics(proc.Metrics), receivers: newReceiverCertificates(proc.Log, proc.Metrics), clients: newClientCertificates(proc.Log, proc.Metrics), trace: proc.Trace,
		fullness: fullness{log: proc.Log, bus: b}, bodies: bodies.NewCache(b, int(cfg.MaxInFlightBytes)/cachePart),
	}
	proc.Health.Want("retries", d.backpressure.State)
	proc.Health.Want("room", d.fullness.State)
	proc.Health.Want("keys", d.credentials.State)
	leases, err := b.Bucket(ctx, topology.BucketLeases)
	if err != nil {
		return err
	}
	paces, err := b.Bucket(ctx, topology.BucketPaces)
	if err != nil {
		return err
	}
	d.drains = newDrains(d, leases, paces)
	if d.latest, err = latest.Open(ctx, b); err != nil {
		return err
	}
	return d.run(ctx, proc.Up)
}

func (d *Dispatcher) run(ctx context.Context, up func()) error {
	first, err := lane.First(ctx, d.bus, d.cfg.ackWait())
	if err != nil {
		return err
	}
	retries, err := lane.Retries(ctx, d.bus, d.cfg.ackWait())
	if err != nil {
		return err
	}
	exhausted, err := lane.Exhausted(ctx, d.bus)
	if err != nil {
		return err
	}
	limits, err := d.bus.Granted(ctx, d.cfg.Limits)
	if err != nil {
		return err
	}
	d.backpressure.limit = limits.MaxBytes(topology.Retries)
	if err := d.backpressure.look(ctx, d); err != nil {
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
	watchers.Go(func() {
		_ = share.WatchWork(watch, d.bus, d.log, func(w share.Work) { d.backpressure.count(d, w) })
	})
	for _, known := range []chan struct{}{webhooks, flags} {
		select {
		case <-ctx.Done():
			return nil
		case <-known:
		}
	}
	up()
	group.Go(func() error { d.pull(ctx, first, 2, d.backpressure.wait); return nil })
	group.Go(func() error { d.pull(ctx, retries, 4, func(context.Context) {}); return nil })
	group.Go(func() error { d.drains.run(ctx); return nil })
	group.Go(func() error { d.repair(ctx, exhausted, retries); return nil })
	return group.Wait()
}

// pull consumes one lane with at most MAX_IN_FLIGHT/part messages and about MAX_IN_FLIGHT_BYTES/part bytes in flight.
// It calls wait before each pull. It returns once ctx is done and all of them are settled.
func (d *Dispatcher) pull(ctx context.Context, puller *lane.Puller, part int, wait func(context.Context)) {
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
		handed, err := puller.Pull(ctx, n, room, func(m *lane.Delivery) {
			size := m.Size()
			used += size
			if !m.Hold(d.cfg.ackWait()) {
				places.Give(1, size)
				return
			}
			rest := d.arrive(work, m)
			inFlight.Go(func() {
				defer places.Give(1, size)
				defer m.Abandon()
				rest()
			})
		})
		places.Give(n-handed, room-used)
		if err != nil && !errors.Is(err, context.Canceled) {
			d.log.Debug("notifications cannot be pulled; trying again", zap.Error(err))
		}
	}
}

// mostBytes is the largest size of a message.
func (d *Dispatcher) mostBytes() int { return topology.MaxMessage(d.cfg.Limits.EventMaxBytes) }

// webhookChanged lets the drains look at once when something parked may move.
func (d *Dispatcher) webhookChanged(before, after *webhook.Webhook) {
	if after == nil && before != nil {
		d.credentials.forget(before)
	}
	if after != nil {
		_ = d.credentials.check(after, d.keys) // the state says it
	}
	if was, is := limitOf(before), limitOf(after); was != is {
		for _, l := range []limited{was, is} {
			if l.perMinute > 0 {
				d.drains.changed(l.key)
			}
		}
	}
	if before != nil && (after == nil || before.URLKey != after.URLKey || before.Status != after.Status) {
		d.drains.look()
	}
}

// limited is the limit that a webhook sets for its URL, the zero value where it sets none.
type limited struct {
	key       urlKey
	perMinute int
}

func limitOf(w *webhook.Webhook) limited {
	if w == nil || w.MaxPerMinute == 0 {
		return limited{}
	}
	return limited{urlKey{w.Account, w.URLKey}, w.MaxPerMinute}
}

// suspensionChanged reacts to a change of a URL's suspension. A URL that was resumed starts slowly.
func (d *Dispatcher) suspensionChanged(c mirror.Change) {
	k := urlKey{c.Key.Account, c.Key.URLKey}
	if c.Resumed() {
		d.limiter.restart(k)
	}
	if d.drains != nil {
		d.drains.changed(k)
	}
}
