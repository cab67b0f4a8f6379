package registry_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
	"gancho/pkg/webhook"
)

// TestDeletedBucket: row 72 of the bad inputs, for buckets. The owner creates it again and writes back what it
// knows; who watches is not ready meanwhile, keeps its copy, and follows the new one.
func TestDeletedBucket(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	s.Topology(bustest.Limits()).Close() // else that one would create it again
	owner, other := s.Connect("management"), s.Connect("publisher")
	if err := owner.Own(t.Context(), topology.Management, bustest.Limits()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var runs sync.WaitGroup
	defer runs.Wait()
	defer stop()
	keys := seal.New()
	follow := func(b *bus.Bus, restores bool) *registry.Registry {
		t.Helper()
		r, err := registry.Open(ctx, b, registry.Options{Keys: keys, Log: bustest.Logger(t), Metrics: prometheus.NewRegistry()})
		if err != nil {
			t.Fatal(err)
		}
		if restores {
			r.Restores()
		}
		loaded := make(chan bool, 2)
		runs.Go(func() {
			_ = r.Run(ctx, func() { loaded <- true }, nil)
			loaded <- false
		})
		if !<-loaded {
			t.Fatal("an empty bucket is not loaded")
		}
		return r
	}
	mine, theirs := follow(owner, true), follow(other, false)
	await := func(what string, done func() bool) {
		t.Helper()
		waittest.Until(t, what, func() bool {
			if theirs.Len() < min(mine.Len(), 20) {
				t.Fatalf("webhooks are forgotten while waiting: %s", what)
			}
			return done()
		})
	}
	const count = 20
	var last uint64
	hooks := make([]*webhook.Webhook, count)
	for i := range count {
		hooks[i] = &webhook.Webhook{ID: uuid.NewString(), Account: "acme", URL: fmt.Sprintf("https://ok.example/%d", i), EventName: "*", Status: webhook.Active, Version: 1}
		if err := mine.Create(ctx, hooks[i]); err != nil {
			t.Fatal(err)
		}
		last = hooks[i].Revision
	}
	waittest.Until(t, "both know the webhooks", func() bool { return mine.Len() == count && theirs.Len() == count })
	if err := s.JetStream().DeleteStream(ctx, "KV_"+topology.BucketWebhooks); err != nil {
		t.Fatal(err)
	}
	await("who watches says so", func() bool {
		return strings.Contains(other.State(), "bucket WEBHOOKS: deleted") || revision(ctx, mine, hooks[0]) > last
	})
	await("they are written back", func() bool {
		return !slices.ContainsFunc(hooks, func(w *webhook.Webhook) bool { return revision(ctx, theirs, w) <= last })
	})
	await("both are ready", func() bool { return owner.State() == "" && other.State() == "" })
	if mine.Len() != count || theirs.Len() != count {
		t.Errorf("%d and %d webhooks known, want %d", mine.Len(), theirs.Len(), count)
	}
	w, before := *hooks[0], hooks[0]
	w.Name = "changed"
	if err := mine.Update(ctx, before, &w); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("an old revision holds in the new bucket: %v", err)
	}
	before, err := mine.Fetch(ctx, "acme", w.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := mine.Update(ctx, before, &w); err != nil {
		t.Fatal(err)
	}
	await("changes are followed", func() bool {
		return theirs.Get("acme", w.ID).Name == "changed" && mine.Get("acme", w.ID).Name == "changed"
	})
}

// revision is that of the webhook in the bucket, 0 when it is not there.
func revision(ctx context.Context, r *registry.Registry, w *webhook.Webhook) uint64 {
	w, err := r.Fetch(ctx, w.Account, w.ID)
	if err != nil {
		return 0
	}
	return w.Revision
}

// rig is a broker with the bucket, and a raw connection to forge with.
type rig struct {
	t    *testing.T
	s    *bustest.Server
	js   jetstream.JetStream
	nc   *nats.Conn
	keys *seal.Keyring
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, s: bustest.Start(t), keys: seal.New()}
	r.js = r.s.JetStream()
	r.nc = r.js.Conn()
	if err := r.s.Connect("test").Create(t.Context(), bustest.Limits()); err != nil { // an owner would set back what tests edit
		t.Fatal(err)
	}
	return r
}

// process is one process that follows the bucket.
type process struct {
	*registry.Registry

	r       *rig
	metrics *prometheus.Registry
	stop    func()

	mu      sync.Mutex
	changes []string
}

// start runs a process; management heals, one without keys trusts.
func (r *rig) start(name string, keys *seal.Keyring, heals bool) *process {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{r: r, metrics: prometheus.NewRegistry()}
	var err error
	p.Registry, err = registry.Open(ctx, r.s.Connect(name), registry.Options{Keys: keys, Log: zap.NewNop(), Metrics: p.metrics})
	if err != nil {
		r.t.Fatal(err)
	}
	if heals {
		p.Restores()
		if err := p.Authenticate(ctx); err != nil {
			r.t.Fatal(err)
		}
	}
	loaded, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = p.Run(ctx, func() { close(loaded) }, func(before, after *webhook.Webhook) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.changes = append(p.changes, fmt.Sprint(before != nil, " ", after != nil))
		})
	}()
	p.stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(p.stop)
	select {
	case <-loaded:
	case <-done:
		r.t.Fatal("the registry is not loaded")
	}
	return p
}

// forged is the metric, over all causes.
func (p *process) forged() (n float64) {
	p.r.t.Helper()
	families, err := p.metrics.Gather()
	if err != nil {
		p.r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "gancho_registry_forged_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			n += m.GetCounter().GetValue()
		}
	}
	return n
}

func (r *rig) until(what string, done func() bool) {
	r.t.Helper()
	waittest.Until(r.t, what, done)
}

// create registers a webhook by management.
func (r *rig) create(m *process, account string) *webhook.Webhook {
	r.t.Helper()
	w := &webhook.Webhook{ID: uuid.NewString(), Account: account, URL: "https://good.example/", EventName: "*", Status: webhook.Active, Version: 1}
	if err := m.Create(r.t.Context(), w); err != nil {
		r.t.Fatal(err)
	}
	return w
}

// value is the newest in the bucket.
func (r *rig) value(key string) []byte {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), "KV_WEBHOOKS")
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(r.t.Context(), "$KV.WEBHOOKS."+key)
	if err != nil {
		r.t.Fatal(err)
	}
	return m.Data
}

// write puts an entry into the bucket, past the registry.
func (r *rig) write(key string, value []byte, header nats.Header) error {
	_, err := r.js.PublishMsg(r.t.Context(), &nats.Msg{Subject: "$KV.WEBHOOKS." + key, Header: header, Data: value})
	return err
}

// TestForgedRecords: entries that others write into the bucket are not used by a process with the keys, is counted
// there, and is put right by management, with which processes without the keys follow.
func TestForgedRecords(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	management, dispatcher, publisher := r.start("management", r.keys, true), r.start("dispatcher", r.keys, false), r.start("publisher", nil, false)
	w, other := r.create(management, "acme"), r.create(management, "umbrella")
	old := r.value(w.Key())
	for _, name := range []string{"two", "three"} {
		before, err := management.Fetch(t.Context(), "acme", w.ID)
		if err != nil {
			t.Fatal(err)
		}
		next := *before
		next.Name = name
		if err := management.Update(t.Context(), before, &next); err != nil {
			t.Fatal(err)
		}
	}
	r.until("all know version 3", func() bool {
		for _, p := range []*process{management, dispatcher, publisher} {
			if got := p.Get("acme", w.ID); got == nil || got.Name != "three" || p.Get("umbrella", other.ID) == nil {
				return false
			}
		}
		return true
	})
	good := r.value(w.Key())

	evil := *w
	evil.URL, evil.Version = "https://evil.example/", 99
	unsigned, err := evil.Encode()
	if err != nil {
		t.Fatal(err)
	}
	foreign := seal.New()
	ours := func(value []byte) []byte { // under the name of our key
		return []byte(strings.Replace(string(value), "v1."+foreign.Current(), "v1."+r.keys.Current(), 1))
	}
	elsewhere, err := registry.Sign(foreign, &evil)
	if err != nil {
		t.Fatal(err)
	}
	for name, forge := range map[string]func() error{
		"a broker's answer": func() error { return r.write(w.Key(), []byte(`{"stream":"CRM_EVENTS","seq":17}`), nil) },
		"unsigned":          func() error { return r.write(w.Key(), unsigned, nil) },
		"signed by another": func() error { return r.write(w.Key(), ours(elsewhere), nil) },
		"changed under its MAC": func() error {
			return r.write(w.Key(), []byte(strings.Replace(string(good), "good.example", "evil.example", 1)), nil)
		},
		"another account's, copied": func() error { return r.write(w.Key(), r.value(other.Key()), nil) },
		"an older one":              func() error { return r.write(w.Key(), old, nil) },
		"an empty one":              func() error { return r.write(w.Key(), nil, nil) },
		"a bare deletion":           func() error { return r.write(w.Key(), nil, nats.Header{"KV-Operation": {"DEL"}}) },
		"another's deletion":        func() error { return r.write(w.Key(), registry.SignDeletion(r.keys, other), nil) },
		"a deletion by another":     func() error { return r.write(w.Key(), ours(registry.SignDeletion(foreign, &evil)), nil) },
		"not JSON":                  func() error { return r.write(w.Key(), []byte("x"), nil) },
		"a member behind the MAC": func() error {
			return r.write(w.Key(), append(good[:len(good)-1:len(good)-1], []byte(`,"url":"https://evil.example/"}`)...), nil)
		},
		"a member before, twice": func() error {
			return r.write(w.Key(), append([]byte(`{"url":"https://evil.example/",`), good[1:]...), nil)
		},
		"the broker's answer as a mark": func() error { return r.write(w.Key(), []byte(`{"deleted":true,"version":100}`), nil) },
	} {
		before, revision := dispatcher.forged(), revisionOf(t, management.Registry, w)
		if err := forge(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r.until(name+": management puts it right", func() bool { return string(r.value(w.Key())) == string(good) && len(management.Forged()) == 0 })
		r.until(name+": dispatcher counted it", func() bool { return dispatcher.forged() > before && len(dispatcher.Forged()) == 0 })
		r.until(name+": publisher follows", func() bool {
			got := publisher.Get("acme", w.ID)
			return got != nil && got.Name == "three" && got.Revision > revision
		})
		for who, p := range map[string]*process{"management": management, "dispatcher": dispatcher} {
			if got := p.Get("acme", w.ID); got == nil || got.URL != "https://good.example/" || got.Name != "three" {
				t.Errorf("%s: %s has %+v", name, who, got)
			}
		}
	}
	// No change or deletion of a key was announced.
	dispatcher.mu.Lock()
	for _, c := range dispatcher.changes {
		if strings.HasSuffix(c, "false") {
			t.Errorf("a deletion was announced: %q", dispatcher.changes)
		}
	}
	dispatcher.mu.Unlock()
	// The history cannot be taken away.
	if err := r.write(w.Key(), nil, nats.Header{"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}}); err == nil {
		t.Error("the bucket takes a rollup")
	}
	// A key that never was becomes a deletion.
	fresh := evil
	fresh.ID = uuid.NewString()
	unsigned, err = fresh.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.write(fresh.Key(), unsigned, nil); err != nil {
		t.Fatal(err)
	}
	r.until("the unknown one is a deletion", func() bool { return strings.HasPrefix(string(r.value(fresh.Key())), `{"deleted":true`) })
	// Management's own deletion is one, and what was good before it does not come back.
	current, err := management.Fetch(t.Context(), "acme", w.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := management.Delete(t.Context(), current); err != nil {
		t.Fatal(err)
	}
	gone := func() bool {
		return management.Get("acme", w.ID) == nil && dispatcher.Get("acme", w.ID) == nil && publisher.Get("acme", w.ID) == nil
	}
	r.until("it is gone", gone)
	if err := r.write(w.Key(), good, nil); err != nil {
		t.Fatal(err)
	}
	r.until("the deletion is put back", func() bool { return strings.HasPrefix(string(r.value(w.Key())), `{"deleted":true`) })
	r.until("it stays gone", gone)
	if _, err := dispatcher.Fetch(t.Context(), "acme", w.ID); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("fetch after the deletion: %v", err)
	}
}

func revisionOf(t *testing.T, r *registry.Registry, w *webhook.Webhook) uint64 {
	t.Helper()
	return revision(t.Context(), r, w)
}

// TestStartFindsLastGood: with management away, a process that starts finds the last good record in the history, and
// management, when it comes, puts it right.
func TestStartFindsLastGood(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.start("management", r.keys, true)
	w, deleted := r.create(first, "acme"), r.create(first, "acme")
	old := r.value(w.Key())
	next := *w
	next.Name = "two"
	if err := first.Update(t.Context(), w, &next); err != nil {
		t.Fatal(err)
	}
	was := r.value(deleted.Key())
	if err := first.Delete(t.Context(), deleted); err != nil {
		t.Fatal(err)
	}
	first.stop()
	for range 10 {
		for key, value := range map[string][]byte{w.Key(): old, deleted.Key(): was} {
			if err := r.write(key, value, nil); err != nil {
				t.Fatal(err)
			}
			if err := r.write(key, nil, nats.Header{"KV-Operation": {"DEL"}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	late := r.start("dispatcher", r.keys, false)
	check := func(p *process) {
		t.Helper()
		if got := p.Get("acme", w.ID); got == nil || got.Name != "two" {
			t.Errorf("known is %+v, want version 2", got)
		}
		if p.Get("acme", deleted.ID) != nil {
			t.Error("a deleted webhook is back")
		}
		if got, err := p.Fetch(t.Context(), "acme", w.ID); err != nil || got.Name != "two" {
			t.Errorf("fetched %+v, %v; want version 2", got, err)
		}
		if _, err := p.Fetch(t.Context(), "acme", deleted.ID); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("fetched a deleted webhook: %v", err)
		}
	}
	check(late)
	if late.forged() != 2 { // once for each key, however many entries
		t.Errorf("forged: %v, want 2", late.forged())
	}
	second := r.start("management", r.keys, true)
	r.until("it is put right", func() bool { return len(second.Forged()) == 0 && len(late.Forged()) == 0 })
	check(second)
	check(late)
	if again := r.start("dispatcher", r.keys, false); again.forged() != 0 {
		t.Errorf("forged after it was put right: %v, want 0", again.forged())
	}
}

// TestAuthenticate: records of an earlier version are signed once, their secrets bound to the origin of the URL, and
// from then on one without a MAC is not used.
func TestAuthenticate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	js := r.js
	s, err := js.Stream(ctx, "KV_WEBHOOKS")
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config // as the earlier version made it
	cfg.Metadata, cfg.AllowRollup, cfg.MaxMsgsPerSubject = nil, true, 1
	if _, err := js.UpdateStream(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	legacy := func(name string) *webhook.Webhook {
		w := &webhook.Webhook{ID: uuid.NewString(), Account: "acme", Name: name, URL: "https://good.example:8443/x", EventName: "*", Status: webhook.Active, AuthHeader: "X-Key"}
		w.AuthKey = r.keys.Seal([]byte("key"), w.SealContext("auth_key"))
		w.Secrets = []webhook.Secret{{Sealed: r.keys.Seal([]byte("secret"), w.SealContext("secret"))}}
		value, err := w.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := r.write(w.Key(), value, nil); err != nil {
			t.Fatal(err)
		}
		return w
	}
	w, gone := legacy("one"), legacy("gone")
	if err := r.write(gone.Key(), nil, nats.Header{"KV-Operation": {"DEL"}}); err != nil {
		t.Fatal(err)
	}
	early := r.start("dispatcher", r.keys, false) // before management is upgraded
	if early.Get("acme", w.ID) == nil || early.Get("acme", gone.ID) != nil || early.forged() > 0 {
		t.Fatalf("before: %+v, %+v, forged %v", early.Get("acme", w.ID), early.Get("acme", gone.ID), early.forged())
	}
	management := r.start("management", r.keys, true)
	r.until("the dispatcher has the signed one", func() bool { return early.Get("acme", w.ID).Version == 1 })
	for _, p := range []*process{early, management} {
		got := p.Get("acme", w.ID)
		open, err := got.Open(r.keys, time.Now())
		if err != nil || open.AuthKey != "key" || len(open.Secrets) != 1 || string(open.Secrets[0]) != "secret" {
			t.Errorf("opened %+v, %v", open, err)
		}
		elsewhere := *got
		elsewhere.URL = "https://evil.example/"
		if _, err := elsewhere.Open(r.keys, time.Now()); err == nil {
			t.Error("its secrets open for another origin")
		}
		if p.Get("acme", gone.ID) != nil {
			t.Error("a webhook that was deleted is back")
		}
	}
	if s, err = js.Stream(ctx, "KV_WEBHOOKS"); err != nil {
		t.Fatal(err)
	}
	cfg = s.CachedInfo().Config
	if cfg.AllowRollup || cfg.MaxMsgsPerSubject != topology.WebhooksHistory || cfg.Metadata[topology.RecordsKey] != topology.RecordsAuthenticated {
		t.Errorf("the bucket is %+v", cfg)
	}
	late := legacy("late") // by an intruder who knows the earlier form
	r.until("it is not used", func() bool { return strings.HasPrefix(string(r.value(late.Key())), `{"deleted":true`) })
	if management.Get("acme", late.ID) != nil {
		t.Error("a record without a MAC is used")
	}
	// The early process may not have seen the bucket's mark yet; it follows the deletion.
	r.until("nor by the early process", func() bool { return early.Get("acme", late.ID) == nil })
	management.stop()
	again := r.start("management", r.keys, true)
	if got := again.Get("acme", w.ID); got == nil || got.Version != 1 || again.forged() > 0 {
		t.Errorf("the second start has %+v, forged %v", got, again.forged())
	}
}

// TestKeyFileOfAnother: a record under a key that is not in the file is not used and not written over: another
// management has it.
func TestKeyFileOfAnother(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	behind := r.start("management", r.keys, true)
	w := r.create(behind, "acme")
	newer := seal.New()
	next := *w
	next.Name, next.Version = "two", 2
	value, err := registry.Sign(newer, &next)
	if err != nil {
		t.Fatal(err)
	}
	value = []byte(strings.Replace(string(value), "v1."+newer.Current(), "v1.another", 1))
	if err := r.write(w.Key(), value, nil); err != nil {
		t.Fatal(err)
	}
	r.until("it is seen", func() bool { return errors.Is(behind.Forged()[w.Key()], seal.ErrUnknownKey) })
	if _, err := behind.Fetch(t.Context(), "acme", w.ID); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("fetched: %v, want an unknown key", err)
	}
	if got := behind.Get("acme", w.ID); got == nil || got.Version != 1 {
		t.Errorf("known is %+v, want version 1", got)
	}
	for range 2 { // twice what is forged is put right, and this passed over
		forged := r.create(behind, "acme")
		good := string(r.value(forged.Key()))
		if err := r.write(forged.Key(), []byte("forged"), nil); err != nil {
			t.Fatal(err)
		}
		r.until("another one is put right", func() bool { return string(r.value(forged.Key())) == good })
	}
	if string(r.value(w.Key())) != string(value) {
		t.Error("it was written over")
	}
}
