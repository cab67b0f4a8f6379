// Package monitor decides which URLs are suspended. It folds the journal of attempts into the error
// windows in Redis, mirrors each suspended flag to the bucket SUSPENSIONS, which everyone else watches, and
// tells every step on WEBHOOK_STATUS.
//
// The order of each step is: Redis decides, the flag is mirrored, the step is told, and only then the
// records it came from are acknowledged. A monitor that dies in between leaves them to be read again, and
// nothing of it counts or is told twice. Several monitors share the work.
//
// The mirror is written by compare-and-set with what Redis holds at that moment, so whichever monitor
// writes last, the mirror ends as Redis is. While Redis is away the journal waits, known flags stand, and
// nothing new is suspended. When Redis has forgotten the flags they are put back from the mirror.
//
// Beside that the monitors keep the books (see gancho/pkg/books), one of them at a time, and show them and
// the broker's state as metrics.
package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/books"
	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/service"
	"gancho/pkg/suspension"
	"gancho/pkg/webhook"
)

const (
	// batch is how many records are folded at once; linger how long a batch waits to fill.
	batch  = 1000
	linger = 100 * time.Millisecond
	// beat is how often Redis is asked whether it still knows the flags, and URLs that were watched are decided.
	beat = time.Second
	// redisPause is how long a failed exchange with Redis waits to be repeated.
	redisPause = 500 * time.Millisecond
)

// Monitor decides suspensions. Its methods are safe for concurrent use.
type Monitor struct {
	log         *zap.Logger
	bus         *bus.Bus
	registry    *bus.Registry
	store       *suspension.Store
	suspensions *bus.Bucket
	metrics     metrics
	exporter    *exporter
	keeper      *books.Keeper
	redis       atomic.Pointer[string] // what is wrong with it

	mu     sync.Mutex
	mirror map[suspension.Key]mirrored // the bucket as this process has seen it
}

type mirrored struct {
	flag     *suspension.Flag // nil: deleted
	revision uint64
}

type metrics struct {
	transitions *prometheus.CounterVec
	suspended   prometheus.Gauge
	candidates  prometheus.Gauge
	holding     prometheus.Gauge
	redis       prometheus.Histogram
	redisErrors prometheus.Counter
	repaired    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		transitions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_suspension_transitions_total", Help: "Steps of suspensions, by event.",
		}, []string{"event"}),
		suspended: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_suspended_urls", Help: "URLs that are suspended now, by hand or automatically.",
		}),
		candidates: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_suspension_candidates", Help: "URLs that failed all the time in the last 15 minutes, suspended or not.",
		}),
		holding: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_suspension_holding", Help: "1 while nothing is suspended automatically because too many URLs fail at once: the fault is probably on our side.",
		}),
		redis: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "gancho_redis_seconds", Help: "Time of one exchange with Redis.", Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
		}),
		redisErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_redis_errors_total", Help: "Exchanges with Redis that failed.",
		}),
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_repairs_total", Help: "Notifications put right after a crash, by kind.",
		}, []string{"kind"}),
	}
	for _, e := range []suspension.Event{suspension.EventAtRisk, suspension.EventSuspended, suspension.EventProbing, suspension.EventResumed} {
		m.transitions.WithLabelValues(string(e))
	}
	for _, k := range books.Kinds() {
		m.repaired.WithLabelValues(k)
	}
	reg.MustRegister(m.transitions, m.suspended, m.candidates, m.holding, m.redis, m.redisErrors, m.repaired)
	return m
}

// Run runs a monitor until ctx ends.
func Run(ctx context.Context, cfg Config, proc *service.Process) error {
	client, err := suspension.Open(cfg.RedisURL)
	if err != nil {
		return err
	}
	defer client.Close()
	store, err := suspension.NewStore(client, cfg.Rules)
	if err != nil {
		return err
	}
	b, err := bus.Connect(cfg.Bus, proc.Name, proc.Log, proc.Metrics)
	if err != nil {
		return err
	}
	defer b.Close()
	m := &Monitor{log: proc.Log, bus: b, store: store, metrics: newMetrics(proc.Metrics), mirror: map[suspension.Key]mirrored{}}
	m.exporter = newExporter(proc.Log, b, proc.Metrics)
	proc.Health.Require("nats", b.State)
	proc.Health.Want("redis", m.redisState)
	if err := b.Own(ctx, bus.Monitor, cfg.Limits); err != nil {
		return err
	}
	if err := b.Await(ctx, bus.Attempts); err != nil {
		return err
	}
	if m.registry, err = b.Registry(ctx); err != nil {
		return err
	}
	if m.suspensions, err = b.Bucket(ctx, bus.BucketSuspensions); err != nil {
		return err
	}
	leases, err := b.Bucket(ctx, bus.BucketLeases)
	if err != nil {
		return err
	}
	accounts, err := b.Bucket(ctx, bus.BucketBooks)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	m.keeper = &books.Keeper{
		Log: proc.Log, Bus: b, Leases: leases, Bucket: accounts, Name: host + "-" + uuid.NewString()[:8],
		Repaired: func(kind string) { m.metrics.repaired.WithLabelValues(kind).Inc() },
	}
	return m.run(ctx, proc.Up)
}

func (m *Monitor) redisState() string {
	if p := m.redis.Load(); p != nil {
		return *p
	}
	return ""
}

func (m *Monitor) run(ctx context.Context, up func()) error {
	journal, err := m.bus.Summaries(ctx, bus.ConsumerMonitor)
	if err != nil {
		return err
	}
	commands, err := m.bus.Commands(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	webhooks, flags := make(chan struct{}), make(chan struct{})
	probes := make(chan suspension.Flag, 1024)
	group.Go(func() error { return m.registry.Run(ctx, func() { close(webhooks) }, nil) })
	m.suspensions.Refill(m.refill)
	group.Go(func() error {
		return m.suspensions.Watch(ctx, func(e bus.Entry) { m.seen(ctx, e, probes) }, func() { close(flags) })
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
		group.Go(func() error { m.readJournal(ctx, journal); return nil })
		group.Go(func() error { m.obey(ctx, commands); return nil })
		group.Go(func() error { m.watchProbes(ctx, probes); return nil })
		group.Go(func() error { m.keep(ctx); return nil })
		group.Go(func() error { m.keeper.Run(ctx); return nil })
		group.Go(func() error { m.exporter.run(ctx, m.keeper.Bucket); return nil })
		return nil
	})
	return group.Wait()
}

// seen keeps the copy of the bucket and passes on probes that a dispatcher began.
func (m *Monitor) seen(ctx context.Context, e bus.Entry, probes chan<- suspension.Flag) {
	key, ok := suspension.ParseKey(e.Key)
	if !ok {
		return
	}
	var flag *suspension.Flag
	if e.Value != nil {
		flag = new(suspension.Flag)
		if err := json.Unmarshal(e.Value, flag); err != nil {
			m.log.Error("an unreadable suspension is ignored", zap.String("key", e.Key), zap.Error(err))
			return
		}
	}
	m.mu.Lock()
	if m.mirror[key].revision < e.Revision {
		m.mirror[key] = mirrored{flag, e.Revision}
	}
	suspended := 0
	for k, x := range m.mirror {
		if x.flag != nil {
			suspended++
		} else if k != key {
			delete(m.mirror, k)
		}
	}
	m.mu.Unlock()
	m.metrics.suspended.Set(float64(suspended))
	if flag != nil && flag.State == suspension.Probing && flag.Probe != nil {
		select {
		case probes <- *flag:
		case <-ctx.Done():
		}
	}
}

// insist repeats f until it succeeds or ctx ends; meanwhile the monitor says that it is degraded. Flags
// that Redis forgot are put back first.
func (m *Monitor) insist(ctx context.Context, f func() error) bool {
	for ctx.Err() == nil {
		began := time.Now()
		err := f()
		m.metrics.redis.Observe(time.Since(began).Seconds())
		if errors.Is(err, suspension.ErrLost) {
			err = m.restore(ctx)
			if err == nil {
				continue
			}
		}
		if err == nil {
			if m.redis.Swap(nil) != nil {
				m.log.Info("Redis is back")
			}
			return true
		}
		m.metrics.redisErrors.Inc()
		why := err.Error()
		if m.redis.Swap(&why) == nil && ctx.Err() == nil {
			m.log.Warn("Redis is away: known suspensions stand, no new ones are decided", zap.Error(err))
		}
		pause(ctx, redisPause)
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// restore puts back the flags that Redis lost.
func (m *Monitor) restore(ctx context.Context) error {
	m.mu.Lock()
	var flags []suspension.Flag
	for _, x := range m.mirror {
		if x.flag != nil {
			flags = append(flags, *x.flag)
		}
	}
	m.mu.Unlock()
	n, err := m.store.Restore(ctx, flags)
	if err == nil {
		m.log.Warn("Redis had forgotten the suspensions; they were put back", zap.Int("flags", n))
	}
	return err
}

// refill writes the flags back that went with a deleted bucket.
func (m *Monitor) refill(ctx context.Context) error {
	m.mu.Lock()
	flags := map[suspension.Key]suspension.Flag{}
	for k, x := range m.mirror {
		if x.flag != nil {
			flags[k] = *x.flag
		}
	}
	m.mu.Unlock()
	for key, flag := range flags {
		body, err := json.Marshal(flag)
		if err != nil {
			return err
		}
		if _, err := m.suspensions.Create(ctx, key.String(), body); err != nil && !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
	return nil
}

// readJournal folds the journal until ctx ends.
func (m *Monitor) readJournal(ctx context.Context, journal *bus.SummaryConsumer) {
	for ctx.Err() == nil {
		records, err := journal.Pull(ctx, batch, linger)
		if err != nil && ctx.Err() == nil {
			m.log.Debug("the journal cannot be read; trying again", zap.Error(err))
		}
		if len(records.Summaries) == 0 {
			continue
		}
		// What was begun is finished: a stop between deciding and telling would leave it to a restart.
		if m.fold(context.WithoutCancel(ctx), ctx, records.Summaries) {
			records.Ack()
		}
	}
}

// fold takes in records, mirrors and tells what they change, and reports whether all of it is stored.
func (m *Monitor) fold(ctx, stop context.Context, records []bus.Summary) bool {
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
	if !m.insist(stop, func() (err error) { decisions, err = m.store.Observe(ctx, observations); return err }) {
		return false
	}
	for _, d := range decisions {
		if err := m.carryOut(ctx, d); err != nil {
			m.log.Error("a suspension's step is not stored; its records come again", zap.Stringer("key", d.Key), zap.Error(err))
			return false
		}
	}
	return m.tellFailures(ctx, records) == nil
}

// carryOut mirrors a decision and tells its steps.
func (m *Monitor) carryOut(ctx context.Context, d suspension.Decision) error {
	if err := m.mirrorFlag(ctx, d.Key); err != nil {
		return err
	}
	for _, t := range d.Transitions {
		m.metrics.transitions.WithLabelValues(string(t.Event)).Inc()
		m.log.Info("suspension", zap.String("event", string(t.Event)), zap.String("account_id", t.Flag.Account), zap.String("url_key", t.Flag.URLKey),
			zap.String("url_host", t.Flag.URLHost), zap.String("reason", t.Flag.Reason), zap.Time("until", t.Flag.Until),
			zap.Int("failures", t.Flag.Evidence.Failures), zap.Strings("statuses", t.Flag.Evidence.Statuses))
		if err := m.tell(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// mirrorFlag makes the bucket's entry what Redis holds. It reads the entry first and Redis second, so its
// compare-and-set fails when another monitor wrote in between, and it looks again.
func (m *Monitor) mirrorFlag(ctx context.Context, key suspension.Key) error {
	for {
		entry, err := m.suspensions.Get(ctx, key.String())
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return err
		}
		flag, err := m.store.Get(ctx, key)
		if err != nil {
			return err
		}
		switch {
		case flag == nil && entry.Value == nil:
			return nil
		case flag == nil:
			err = m.suspensions.Delete(ctx, key.String(), entry.Revision)
		default:
			var have suspension.Flag
			if entry.Value != nil && json.Unmarshal(entry.Value, &have) == nil && schema.Check(have.Schema) != nil {
				return nil // a newer version's
			}
			if entry.Value != nil && have.Trip == flag.Trip && have.ByHand == flag.ByHand && (have.State == suspension.Probing || have.State == flag.State) {
				return nil // the same stretch, perhaps with a dispatcher's claim on its probe
			}
			var body []byte
			if body, err = json.Marshal(flag); err != nil {
				return err
			}
			if entry.Value == nil {
				_, err = m.suspensions.Create(ctx, key.String(), body)
			} else {
				_, err = m.suspensions.Update(ctx, key.String(), body, entry.Revision)
			}
		}
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

// tell stores a step on WEBHOOK_STATUS, once for each webhook of the URL.
func (m *Monitor) tell(ctx context.Context, t suspension.Transition) error {
	for _, w := range m.webhooks(t.Flag.Key()) {
		if err := m.bus.Tell(ctx, status(t, w), stepName(t)); err != nil {
			return err
		}
	}
	return nil
}

func status(t suspension.Transition, w *webhook.Webhook) bus.Status {
	s := bus.Status{
		Event: string(t.Event), Account: w.Account, WebhookID: w.ID, URLHost: t.Flag.URLHost, At: t.At.UTC(),
		Reason: t.Flag.Reason, Evidence: t.Flag.Evidence,
	}
	if !t.Flag.Until.IsZero() {
		s.Until = &t.Flag.Until
	}
	return s
}

func stepName(t suspension.Transition) string {
	name := string(t.Event) + ":" + t.Flag.Trip
	if t.Event == suspension.EventProbing && t.Flag.Probe != nil {
		name += ":" + strconv.FormatInt(t.Flag.Probe.StartedAt.UnixMilli(), 10)
	}
	return name
}

func (m *Monitor) webhooks(key suspension.Key) []*webhook.Webhook {
	var out []*webhook.Webhook
	for _, w := range m.registry.Account(key.Account) {
		if w.URLKey == key.URLKey {
			out = append(out, w)
		}
	}
	return out
}

// tellFailures tells permanent failures, one event for each webhook and minute.
func (m *Monitor) tellFailures(ctx context.Context, records []bus.Summary) error {
	type minute struct {
		webhook string
		minute  int64
	}
	type evidence struct {
		Notifications []string `json:"notifications"` // the first few of this minute
		Failures      int      `json:"failures"`      // known when the event was told
	}
	first := map[minute]*bus.Status{}
	for _, r := range records {
		if r.State != notification.PermanentlyFailed {
			continue
		}
		k := minute{r.WebhookID, r.At.Unix() / 60}
		s := first[k]
		if s == nil {
			s = &bus.Status{Event: "permanent_failure", Account: r.Account, WebhookID: r.WebhookID, URLHost: r.URLHost, At: r.At, Reason: r.Reason, Evidence: &evidence{}}
			first[k] = s
		}
		if e, ok := s.Evidence.(*evidence); ok {
			if e.Failures++; len(e.Notifications) < 10 {
				e.Notifications = append(e.Notifications, r.NotificationID)
			}
		}
	}
	for k, s := range first {
		if err := m.bus.Tell(ctx, *s, strconv.FormatInt(k.minute, 10)); err != nil {
			m.log.Error("a permanent failure is not told; its records come again", zap.Error(err))
			return err
		}
	}
	return nil
}

// obey carries out the commands of management until ctx ends.
func (m *Monitor) obey(ctx context.Context, commands *bus.CommandConsumer) {
	work := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		err := commands.Pull(ctx, func(c bus.Command, seq uint64) error {
			cmd := suspension.Command{Key: suspension.Key{Account: c.Account, URLKey: c.URLKey}, URLHost: c.URLHost, Seq: seq, At: c.At}
			act := m.store.Resume
			if c.Verb == bus.CommandSuspend {
				act = m.store.SuspendByHand
			}
			var decision suspension.Decision
			if !m.insist(ctx, func() (err error) { decision, err = act(work, cmd); return err }) {
				return ctx.Err()
			}
			m.log.Info("suspension command", zap.String("command", c.Verb), zap.String("account_id", c.Account), zap.String("webhook_id", c.WebhookID), zap.String("by", c.By))
			return m.carryOut(work, decision)
		})
		if err != nil && ctx.Err() == nil {
			m.log.Debug("commands cannot be read; trying again", zap.Error(err))
		}
	}
}

// watchProbes tells of probes as they begin. A probe whose beginning was missed is known by its result.
func (m *Monitor) watchProbes(ctx context.Context, probes <-chan suspension.Flag) {
	for {
		select {
		case <-ctx.Done():
			return
		case flag := <-probes:
			var decision suspension.Decision
			m.insist(ctx, func() (err error) {
				decision, err = m.store.StartProbe(ctx, flag.Key(), flag.Trip, *flag.Probe)
				return err
			})
			for _, t := range decision.Transitions {
				m.metrics.transitions.WithLabelValues(string(t.Event)).Inc()
				if err := m.tell(ctx, t); err != nil && ctx.Err() == nil {
					m.log.Warn("the beginning of a probe is not told", zap.Error(err))
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
		m.insist(ctx, func() error {
			if lost, err := m.store.Lost(ctx); err != nil {
				return err
			} else if lost {
				return suspension.ErrLost
			}
			return nil
		})
		m.fold(ctx, ctx, nil)
		if mass, err := m.store.Mass(ctx); err == nil {
			m.metrics.candidates.Set(float64(mass.Candidates))
			m.metrics.holding.Set(map[bool]float64{true: 1}[mass.Holding])
		}
		if compare--; compare < 0 {
			compare = 30
			if err := m.compare(ctx); err != nil && ctx.Err() == nil {
				m.log.Debug("mirror and Redis not compared; trying again", zap.Error(err))
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

// compare finds steps that a monitor decided but died before it mirrored or told.
func (m *Monitor) compare(ctx context.Context) error {
	m.mu.Lock() // before Redis is read: what is in the mirror now and not in Redis then was resumed
	stale := make(map[suspension.Key]suspension.Flag, len(m.mirror))
	for k, x := range m.mirror {
		if x.flag != nil {
			stale[k] = *x.flag
		}
	}
	m.mu.Unlock()
	flags, err := m.store.All(ctx)
	if err != nil {
		return err
	}
	for _, f := range flags {
		if have, ok := stale[f.Key()]; !ok || have.Trip != f.Trip {
			if err := m.late(ctx, suspension.Transition{Event: suspension.EventSuspended, At: time.Now(), Flag: f}); err != nil {
				return err
			}
		}
		delete(stale, f.Key())
	}
	if lost, err := m.store.Lost(ctx); err != nil || lost {
		return err // the mirror is right, then
	}
	for _, f := range stale {
		if err := m.late(ctx, suspension.Transition{Event: suspension.EventResumed, At: time.Now(), Flag: f}); err != nil {
			return err
		}
	}
	return nil
}

// late mirrors and tells a step that was decided earlier, unless it was told.
func (m *Monitor) late(ctx context.Context, t suspension.Transition) error {
	if err := m.mirrorFlag(ctx, t.Flag.Key()); err != nil {
		return err
	}
	for _, w := range m.webhooks(t.Flag.Key()) {
		s := status(t, w)
		if told, err := m.bus.Told(ctx, s, stepName(t)); err != nil {
			return err
		} else if told {
			continue
		}
		if err := m.bus.Tell(ctx, s, stepName(t)); err != nil {
			return err
		}
	}
	return nil
}
