package monitor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/service"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/command"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// rig is a monitor on a real broker and an embedded Redis.
type rig struct {
	t       *testing.T
	bus     *bus.Bus
	redis   *miniredis.Miniredis
	records *mirror.Mirror // the bucket, seen from outside
	log     *observer.ObservedLogs
	stop    func()
	start   func()
}

var key = suspension.Key{Account: "acme", URLKey: "0123456789abcdef0123456789abcdef"}

func newRig(t *testing.T) *rig {
	t.Helper()
	broker := bustest.Start(t)
	core, log := observer.New(zapcore.DebugLevel)
	r := &rig{t: t, bus: broker.Topology(bustest.Limits()), redis: miniredis.RunT(t), log: log}
	r.records = mirror.New(bustest.Logger(t))
	if err := r.records.Open(t.Context(), r.bus); err != nil {
		t.Fatal(err)
	}
	r.run(func(ctx context.Context) error { return r.records.Run(ctx, mirror.Options{}) })
	rules := suspension.DefaultRules()
	rules.MinFailures, rules.MinSpan = 2, 0
	cfg := Config{
		Service: service.Config{ShutdownTimeout: 20 * time.Second}, Bus: bus.Config{URL: broker.URL()}, Limits: bustest.Limits(),
		Rules: rules, RedisURL: "redis://" + r.redis.Addr() + "/0",
	}
	r.start = func() {
		proc := &service.Process{Name: "suspension-monitor", Log: zap.New(core), Metrics: prometheus.NewRegistry(), Health: service.NewHealth()}
		r.stop = r.run(func(ctx context.Context) error { return Run(ctx, cfg, proc) })
	}
	r.start()
	return r
}

// run runs f until the test ends or the returned function is called.
func (r *rig) run(f func(context.Context) error) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			r.t.Errorf("it ended: %v", err)
		}
	}()
	stop := func() { cancel(); <-done }
	r.t.Cleanup(stop)
	return stop
}

// until waits for a change of the bucket after which done holds.
func (r *rig) until(what string, done func(f suspension.Flag, suspended bool) bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	ok := r.records.Wait(ctx, func() bool {
		record, suspended := r.records.Get(key)
		return done(record.Flag, suspended)
	})
	if !ok {
		r.t.Fatalf("waited 30 s until %s", what)
	}
}

func (r *rig) command(verb string) {
	r.t.Helper()
	err := command.Send(r.t.Context(), r.bus, command.Command{
		Verb: verb, Account: key.Account, URLKey: key.URLKey, URLHost: "example.com", WebhookID: "w", At: time.Now().UTC(),
	}, verb+time.Now().String())
	if err != nil {
		r.t.Fatal(err)
	}
}

func byHand(f suspension.Flag, suspended bool) bool { return suspended && f.ByHand }
func active(_ suspension.Flag, suspended bool) bool { return !suspended }

const stored = "gancho:suspension:{acme:0123456789abcdef0123456789abcdef}"

// TestFirstStartIsQuiet: an empty Redis is nothing to warn of.
func TestFirstStartIsQuiet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.command(command.Suspend)
	r.until("it is suspended", byHand)
	if n := r.log.FilterLevelExact(zapcore.WarnLevel).Len(); n > 0 {
		t.Errorf("a first start warns %d times: %v", n, r.log.FilterLevelExact(zapcore.WarnLevel).All())
	}
}

// TestStaleRedis: Redis comes back with an older state. A resume and a suspension by hand of its lost second stand.
func TestStaleRedis(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.command(command.Suspend)
	r.until("it is suspended", byHand)
	before, err := r.redis.Get(stored)
	if err != nil {
		t.Fatal(err)
	}
	window, _ := r.redis.Get("gancho:window:{acme:0123456789abcdef0123456789abcdef}")
	r.command(command.Resume)
	r.until("it is resumed", active)

	// Redis has the suspension again, and an older mark.
	must(t, r.redis.Set(stored, before))
	must(t, r.redis.Set("gancho:window:{acme:0123456789abcdef0123456789abcdef}", window))
	must(t, r.redis.Set("gancho:epoch", "2000-01-01T00:00:00.000Z"))
	wait(t, "Redis follows the resume", func() bool { return !r.redis.Exists(stored) })
	if _, suspended := r.records.Get(key); suspended {
		t.Error("the URL is suspended again")
	}

	r.command(command.Suspend)
	r.until("it is suspended again", byHand)
	r.stop()
	r.redis.Del(stored)
	r.start()
	wait(t, "Redis has the suspension again", func() bool { return r.redis.Exists(stored) })
	if _, suspended := r.records.Get(key); !suspended {
		t.Error("a suspension that is only missing in Redis is resumed")
	}

	r.redis.FlushAll()
	wait(t, "Redis has the suspension after it was flushed", func() bool { return r.redis.Exists(stored) })
}

// TestBrokenEntryIsWrittenAgain: a broker's answer stored under the key of a suspension changes nothing for long.
func TestBrokenEntryIsWrittenAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.command(command.Suspend)
	r.until("it is suspended", byHand)
	bucket, err := r.bus.Bucket(t.Context(), topology.BucketSuspensions)
	must(t, err)
	revision, err := bucket.Put(t.Context(), key.String(), []byte(`{"stream":"CRM_EVENTS","seq":12}`))
	must(t, err)
	wait(t, "the entry is a suspension again", func() bool {
		record, at, err := r.records.Read(t.Context(), key)
		return err == nil && at > revision && record != nil && record.ByHand
	})
}

// TestOutageIsLoggedOnceAMinute, and again when its cause changes.
func TestOutageIsLoggedOnceAMinute(t *testing.T) {
	t.Parallel()
	core, log := observer.New(zapcore.DebugLevel)
	o := outage{log: zap.New(core), host: "redis:6379"}
	now := time.Unix(1_700_000_000, 0)
	for i := range 130 {
		o.failed(context.DeadlineExceeded, now.Add(time.Duration(i)*time.Second))
	}
	if n := log.Len(); n != 3 {
		t.Errorf("130 s of the same trouble are logged %d times, want 3", n)
	}
	o.failed(errors.New("WRONGPASS invalid username-password pair"), now.Add(131*time.Second))
	if n := log.Len(); n != 4 {
		t.Errorf("another cause is not logged: %d lines, want 4", n)
	}
	if s := o.state(); s == "" || s == o.host {
		t.Errorf("the state is %q, want host and cause", s)
	}
	if !o.ended() || o.ended() || o.state() != "" {
		t.Error("the trouble does not end once")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	waittest.Until(t, what, done)
}
