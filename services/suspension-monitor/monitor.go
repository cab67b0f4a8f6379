// Package monitor decides which URLs are suspended. It folds the journal of attempts into the error windows in Redis,
// copies each suspension to the bucket SUSPENSIONS, which the other services watch, and publishes every step on
// WEBHOOK_STATUS.
//
// A step is stored in Redis, then in the bucket, then published, and only then the journal's records that led to it are
// acknowledged. A monitor that dies in between leaves the records to be read again, and nothing counts or is published
// twice. Several monitors share the work.
//
// Where Redis and the bucket differ, the newer record wins. The bucket is written by compare-and-set, so it ends as
// Redis is, no matter which monitor writes last. While Redis is down the journal waits, known suspensions stand, and no
// new ones are decided. Suspensions that Redis has forgotten come back from the bucket; after its return, or when it
// has lost its last writes, all are compared.
//
// The monitors also keep the books (see gancho/pkg/books), one of them at a time, and show them and the broker's state
// as metrics.
package monitor

import (
	"context"
	"errors"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/books"
	"gancho/pkg/bus"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/registry"
	"gancho/pkg/service"
	"gancho/pkg/sleep"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/command"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/topology"
)

const (
	// batch is how many records are folded at once; linger how long they gather before.
	batch  = 1000
	linger = 250 * time.Millisecond
	// beat is how often Redis is asked whether it still knows the flags, and URLs that were watched are decided.
	beat = time.Second
	// redisPause is how long a failed exchange with Redis waits to be repeated.
	redisPause = 500 * time.Millisecond
)

// Monitor decides suspensions. Its methods are safe for concurrent use.
type Monitor struct {
	log         *zap.Logger
	lasting     *zap.Logger // of troubles that are met again and again
	bus         *bus.Bus
	registry    *registry.Registry
	store       *suspension.Store
	suspensions *mirror.Mirror
	metrics     metrics
	exporter    *exporter
	keeper      *books.Keeper
	disabled    *disabled
	redis       outage
	broken      sync.Map    // keys whose entry in the bucket is broken, until they were compared
	compareDue  atomic.Bool // Redis and the bucket are to be compared at the next beat
}

// Run runs a monitor until ctx ends.
func Run(ctx context.Context, cfg Config, proc *service.Process) error {
	client, err := suspension.Open(cfg.RedisURL)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := suspension.RefuseCluster(ctx, client); err != nil {
		return err
	}
	store, err := suspension.NewStore(client, cfg.Rules)
	if err != nil {
		return err
	}
	b, err := bus.Connect(cfg.Bus, proc.Name, proc.Log, proc.Metrics)
	if err != nil {
		return err
	}
	defer b.Close()
	m := &Monitor{
		log: proc.Log, lasting: service.Lasting(proc.Log), bus: b, store: store, metrics: newMetrics(proc.Metrics),
		suspensions: mirror.New(proc.Log), disabled: newDisabled(),
	}
	store.Revision = m.suspensions.Revision
	m.redis = outage{log: proc.Log, host: suspension.Hosts(cfg.RedisURL)}
	m.exporter = newExporter(proc.Log, b, proc.Metrics)
	proc.Health.Require("nats", b.State)
	proc.Health.Want("redis", m.redis.state)
	if err := b.Own(ctx, topology.Monitor, cfg.Limits); err != nil {
		return err
	}
	if err := b.Await(ctx, topology.Attempts); err != nil {
		return err
	}
	if m.registry, err = registry.Open(ctx, b, registry.Options{Log: proc.Log, Metrics: proc.Metrics}); err != nil {
		return err
	}
	if err := m.suspensions.Open(ctx, b); err != nil {
		return err
	}
	leases, err := b.Bucket(ctx, topology.BucketLeases)
	if err != nil {
		return err
	}
	accounts, err := b.Bucket(ctx, topology.BucketBooks)
	if err != nil {
		return err
	}
	shares, err := b.Bucket(ctx, topology.BucketShares)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	m.keeper = &books.Keeper{
		Log: proc.Log, Bus: b, Leases: leases, Bucket: accounts, Shares: shares,
		Name:     host + "-" + uuid.NewString()[:8],
		Repaired: func(kind string) { m.metrics.repaired.WithLabelValues(kind).Inc() },
	}
	return m.run(ctx, proc.Up)
}

func (m *Monitor) run(ctx context.Context, up func()) error {
	summaries, err := journal.Consume(ctx, m.bus, topology.ConsumerMonitor)
	if err != nil {
		return err
	}
	commands, err := command.Consume(ctx, m.bus)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	webhooks, flags := make(chan struct{}), make(chan struct{})
	probes := make(chan suspension.Flag, 1024)
	group.Go(func() error { return m.registry.Run(ctx, func() { close(webhooks) }, m.disabled.changed) })
	group.Go(func() error {
		return m.suspensions.Run(ctx, mirror.Options{
			Changed: func(c mirror.Change) { m.changed(ctx, c, probes) }, Loaded: func() { close(flags) }, Owner: true,
		})
	})
	group.Go(func() error {
		for _, known := range []chan struct{}{webhooks, flags} {
			select {
			case <-ctx.Done():
				return nil
			case <-known:
			}
		}
		up()
		group.Go(func() error { m.readJournal(ctx, summaries); return nil })
		group.Go(func() error { m.obey(ctx, commands); return nil })
		group.Go(func() error { m.watchProbes(ctx, probes); return nil })
		group.Go(func() error { m.publishDisabled(ctx); return nil })
		group.Go(func() error { m.keep(ctx); return nil })
		group.Go(func() error { m.keeper.Run(ctx); return nil })
		group.Go(func() error { m.exporter.run(ctx, m.keeper.Bucket); return nil })
		return nil
	})
	return group.Wait()
}

// repeat repeats f until it succeeds or ctx ends; while it fails the monitor is degraded. Flags that Redis forgot are
// put back first.
func (m *Monitor) repeat(ctx context.Context, f func() error) bool {
	for ctx.Err() == nil {
		began := time.Now()
		err := f()
		m.metrics.redis.Observe(time.Since(began).Seconds())
		if errors.Is(err, suspension.ErrLost) {
			if err = m.restore(ctx); err == nil {
				continue
			}
		}
		if err == nil {
			if m.redis.ended() {
				m.compareSoon()
			}
			return true
		}
		m.metrics.redisErrors.Inc()
		if ctx.Err() == nil {
			m.redis.failed(err, time.Now())
		}
		sleep.For(ctx, redisPause)
	}
	return false
}

// readJournal folds the journal until ctx ends.
func (m *Monitor) readJournal(ctx context.Context, summaries *journal.Consumer) {
	for ctx.Err() == nil {
		records, err := summaries.Pull(ctx, batch, linger)
		if err != nil && ctx.Err() == nil {
			m.log.Debug("the journal cannot be read; trying again", zap.Error(err))
		}
		if len(records.Summaries) == 0 {
			continue
		}
		// A batch that was begun is finished: after a stop between decision and publishing, a restart would have to do
		// it.
		if m.fold(context.WithoutCancel(ctx), ctx, records.Summaries) {
			records.Ack()
		}
	}
}

// fold takes in records, mirrors and publishes the changes, and reports whether all of them are stored.
func (m *Monitor) fold(ctx, stop context.Context, records []notification.Summary) bool {
	observations := make([]suspension.Observation, 0, len(records))
	for _, r := range records {
		if r.Outcome == "" || r.URLKey == "" {
			continue
		}
		observations = append(observations, suspension.Observation{
			Key: suspension.Key{Account: r.Account, URLKey: r.URLKey}, URLHost: r.URLHost, Seq: r.Sequence,
			Result: suspension.Result{
				At: r.At, Delivered: r.Outcome == notification.OutcomeDelivered, Reason: string(r.FailureReason),
				Status: r.HTTPStatus, Probe: r.Probe, Trip: r.Trip,
				ID: r.NotificationID + ":" + strconv.Itoa(r.Send) + ":" + strconv.Itoa(r.AttemptsDone),
			},
		})
	}
	var decisions []suspension.Decision
	if !m.repeat(stop, func() (err error) { decisions, err = m.store.Observe(ctx, observations); return err }) {
		return false
	}
	for _, d := range decisions {
		if err := m.carryOut(ctx, d); err != nil {
			m.lasting.Error("a suspension's step is not stored; its records come again", zap.Stringer("key", d.Key),
				zap.Error(err))
			return false
		}
	}
	return m.publishFailures(ctx, records) == nil
}

// carryOut mirrors a decision and publishes its steps.
func (m *Monitor) carryOut(ctx context.Context, d suspension.Decision) error {
	if _, _, err := m.agree(ctx, d.Key); err != nil {
		return err
	}
	for _, t := range d.Transitions {
		m.metrics.transitions.WithLabelValues(string(t.Event)).Inc()
		until := zap.Skip()
		if !t.Flag.Until.IsZero() {
			until = zap.Time("until", t.Flag.Until)
		}
		m.log.Info("suspension", zap.String("event", string(t.Event)), zap.String("account_id", t.Flag.Account),
			zap.String("url_key", t.Flag.URLKey), zap.String("url_host", t.Flag.URLHost),
			zap.String("reason", t.Flag.Reason),
			until, zap.Int("failures", t.Flag.Evidence.Failures), zap.Strings("statuses", t.Flag.Evidence.Statuses))
		if err := m.publish(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// obey carries out the commands of management until ctx ends.
func (m *Monitor) obey(ctx context.Context, commands *command.Consumer) {
	work := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		err := commands.Pull(ctx, func(c command.Command, seq uint64) error {
			cmd := suspension.Command{
				Key: suspension.Key{Account: c.Account, URLKey: c.URLKey}, URLHost: c.URLHost, Seq: seq, At: c.At,
			}
			act := m.store.Resume
			if c.Verb == command.Suspend {
				act = m.store.SuspendByHand
			}
			// The bucket's entry as it is now: the command is later than it, even where Redis disagrees.
			record, revision, err := m.suspensions.Read(work, cmd.Key)
			if err != nil && !errors.Is(err, mirror.ErrBroken) {
				return err
			}
			if cmd.Revision = revision; record != nil {
				cmd.Since = record.Since
			}
			var decision suspension.Decision
			if !m.repeat(ctx, func() (err error) { decision, err = act(work, cmd); return err }) {
				return ctx.Err()
			}
			m.log.Info("suspension command", zap.String("command", c.Verb), zap.String("account_id", c.Account),
				zap.String("webhook_id", c.WebhookID), zap.String("by", c.By))
			return m.carryOut(work, decision)
		})
		if err != nil && ctx.Err() == nil {
			m.log.Debug("commands cannot be read; trying again", zap.Error(err))
		}
	}
}

// watchProbes publishes probes as they begin. A probe whose beginning was missed is known by its result.
func (m *Monitor) watchProbes(ctx context.Context, probes <-chan suspension.Flag) {
	for {
		select {
		case <-ctx.Done():
			return
		case flag := <-probes:
			var decision suspension.Decision
			m.repeat(ctx, func() (err error) {
				decision, err = m.store.StartProbe(ctx, flag.Key(), flag.Trip, *flag.Probe)
				return err
			})
			for _, t := range decision.Transitions {
				m.metrics.transitions.WithLabelValues(string(t.Event)).Inc()
				if err := m.publish(ctx, t); err != nil && ctx.Err() == nil {
					m.lasting.Warn("probe status not published", zap.Error(err))
				}
			}
		}
	}
}

// keep decides URLs that were watched long enough, restores what Redis forgot, and now and then compares
// mirror and Redis, until ctx ends.
func (m *Monitor) keep(ctx context.Context) {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	compare := 0
	for {
		m.repeat(ctx, func() error {
			err := m.store.Beat(ctx)
			if errors.Is(err, suspension.ErrStale) {
				m.log.Warn("Redis has lost its last writes; suspensions are compared with their copies")
				m.compareSoon()
				return nil
			}
			return err
		})
		m.fold(ctx, ctx, nil)
		if mass, err := m.store.Mass(ctx); err == nil {
			m.metrics.candidates.Set(float64(mass.Candidates))
			m.metrics.holding.Set(map[bool]float64{true: 1}[mass.Holding])
		}
		if compare--; compare < 0 || m.compareDue.Swap(false) {
			compare = 30
			if err := m.compare(ctx); err != nil && ctx.Err() == nil {
				m.log.Debug("suspensions not compared with their copies; trying again", zap.Error(err))
				compare = 0
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
