package bus

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/address"
	"gancho/pkg/ca"
	"gancho/pkg/sleep"
	"gancho/pkg/topology"
)

// Config says where the broker is.
type Config struct {
	// URL of the NATS servers (2.12 or newer), separated by commas: nats://user:password@host:4222 or tls://...
	URL string `env:"NATS_URL" envDefault:"nats://127.0.0.1:4222" secret:"true"`
	// CredsFile is a NATS credentials file (JWT and seed), for brokers that use them.
	CredsFile string `env:"NATS_CREDS_FILE"`
	// CAFile adds the authority that signed the broker's certificate, for tls:// addresses.
	CAFile string `env:"NATS_CA_FILE"`
	// SyncInterval is the broker's sync_interval: always (each message is on disk before it is acknowledged; waiting
	// messages are then sent in batches) or a duration up to 10m. It changes speed only.
	SyncInterval string `env:"NATS_SYNC_INTERVAL" envDefault:"2m"`
}

// servers returns the address of each server.
func (c Config) servers() []string {
	all := strings.Split(c.URL, ",")
	for i, s := range all {
		all[i] = strings.TrimSpace(s)
	}
	return all
}

// urls is the form of each address in NATS_URL.
var urls = address.Form{Schemes: []string{"nats", "tls"}}

// Validate reports an address that cannot be one.
func (c Config) Validate() error {
	var errs []error
	for i, s := range c.servers() {
		if _, err := urls.Parse(s); err != nil {
			errs = append(errs, fmt.Errorf("NATS_URL: address %d cannot be used: %w; give nats://[user:password@]host[:port] or tls://..., several separated by commas", i+1, err))
		}
	}
	if c.CredsFile != "" {
		text, err := os.ReadFile(c.CredsFile)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("NATS_CREDS_FILE: %w; give a readable file", err))
		case !strings.Contains(string(text), "NATS USER JWT"):
			errs = append(errs, fmt.Errorf("NATS_CREDS_FILE: %s is not a credentials file; give one with a user's JWT and seed, as nsc writes it", c.CredsFile))
		}
	}
	if _, err := c.roots(); err != nil {
		errs = append(errs, err)
	}
	if c.SyncInterval != "" { // as the zero Config has it: not always
		if _, err := ParseSyncInterval(c.SyncInterval); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ParseSyncInterval reads a sync_interval of the broker; 0 is always.
func ParseSyncInterval(s string) (time.Duration, error) {
	if s == "always" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 || d > 10*time.Minute {
		return 0, fmt.Errorf("NATS_SYNC_INTERVAL: %q is neither always nor a duration up to 10m", s)
	}
	return d, nil
}

// roots returns the system's authorities and that of CAFile; nil when there is no CAFile.
func (c Config) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return nil, nil
	}
	roots, err := ca.Pool(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("NATS_CA_FILE: %w; give a readable PEM file with at least one certificate", err)
	}
	return roots, nil
}

// Bus is one service's connection to the broker. It is safe for concurrent use.
type Bus struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	link    link
	login   []nats.Option // how every connection identifies itself
	log     *zap.Logger
	metrics metrics

	mu       sync.Mutex
	logged   map[string]time.Time // when trouble was logged last, by its subject
	streams  map[string]jetstream.Stream
	problems map[string]string // reasons of not being ready besides the connection, by their subject
	degraded map[string]string // problems that the service can work with, by their subject

	synced    bool // the broker syncs each message before it acknowledges it
	writersMu sync.RWMutex
	writers   map[string]*writer // by stream

	holder    holder
	acks      acks
	lookEvery time.Duration // how often streams, buckets and consumers are looked at
	keepers   sync.WaitGroup
	closing   context.Context //nolint:containedctx // of the keepers, which end with Close
	end       context.CancelFunc
	hangUp    context.CancelFunc // ends the dialling and the connection
}

type metrics struct {
	publish    *prometheus.HistogramVec
	retried    *prometheus.CounterVec
	batched    *prometheus.CounterVec
	reconnects prometheus.Counter
	recreated  *prometheus.CounterVec
	restored   *prometheus.CounterVec
	newer      *prometheus.CounterVec
}

// Connect returns at once; the connection comes up when the broker does. name is the service's, it shows
// in the broker's list of connections and makes the inbox prefix _INBOX_<name>. A wrong configuration is an
// error.
func Connect(cfg Config, name string, log *zap.Logger, reg prometheus.Registerer) (*Bus, error) {
	return connect(cfg, name, log, reg, new(net.Dialer).DialContext)
}

func connect(cfg Config, name string, log *zap.Logger, reg prometheus.Registerer, dial dialFunc) (*Bus, error) {
	b := &Bus{log: log.Named("bus"), logged: map[string]time.Time{}, streams: map[string]jetstream.Stream{}, problems: map[string]string{}, degraded: map[string]string{}, lookEvery: lookEvery, writers: map[string]*writer{}, synced: cfg.SyncInterval == "always", metrics: metrics{
		publish: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gancho_jetstream_publish_seconds", Help: "Time from publishing a message to the broker's acknowledgement.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"stream"}),
		retried: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_jetstream_publish_retries_total", Help: "Publishes that had to be repeated, by stream.",
		}, []string{"stream"}),
		batched: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_jetstream_batched_messages_total", Help: "Messages stored in atomic batches, by stream: with NATS_SYNC_INTERVAL=always, those that had to wait for the broker.",
		}, []string{"stream"}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_nats_reconnects_total", Help: "Reconnections to NATS.",
		}),
		recreated: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_jetstream_recreated_total", Help: "Streams, buckets and consumers that were deleted while the service ran, and that it created again.",
		}, []string{"kind"}),
		restored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_jetstream_restored_total", Help: "Streams, buckets and consumers whose settings were changed while the service ran, and that it set back; one that cannot be set back counts at each try.",
		}, []string{"kind"}),
		newer: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_newer_messages_total", Help: "Times that this service left a message to a newer version, by stream.",
		}, []string{"stream"}),
	}}
	for _, s := range []string{topology.Events, topology.Notifications, topology.Retries, topology.Parked, topology.Attempts} {
		b.metrics.newer.WithLabelValues(s)
	}
	for _, kind := range []string{KindStream, KindBucket, KindConsumer} {
		b.metrics.recreated.WithLabelValues(kind)
		b.metrics.restored.WithLabelValues(kind)
	}
	reg.MustRegister(b.metrics.publish, b.metrics.retried, b.metrics.batched, b.metrics.reconnects, b.metrics.recreated, b.metrics.restored, b.metrics.newer)
	b.holder = holder{b: b, again: make(chan struct{}, 1), held: map[place]*Held{}}
	b.closing, b.end = context.WithCancel(context.Background())
	b.link.refused = map[string]time.Time{}
	dialing, hangUp := context.WithCancel(context.Background())
	b.hangUp = hangUp
	opts := []nats.Option{
		nats.Name("gancho " + name),
		nats.SkipHostLookup(), // the dialer looks up
		nats.SetCustomDialer(&dialer{ctx: dialing, dial: dial, pending: map[string]chan dialed{}}),
		nats.CustomInboxPrefix("_INBOX_" + name),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(), // else a password that is wrong for a moment ends the connection for good
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(-1), // publishing fails at once without a connection; we repeat it ourselves
		nats.ConnectHandler(b.connected),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			b.link.set(false, "")
			if err != nil && b.ShouldLog("broker lost") {
				b.log.Warn("broker lost; reconnecting", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.connected(nc)
			b.metrics.reconnects.Inc()
			select {
			case b.holder.again <- struct{}{}:
			default:
			}
			if b.ShouldLog("broker is back") {
				b.log.Info("broker is back")
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) { b.reported(sub, err) }),
	}
	if cfg.CredsFile != "" {
		b.login = append(b.login, nats.UserCredentials(cfg.CredsFile))
	}
	roots, err := cfg.roots()
	if err != nil {
		return nil, err
	}
	if roots != nil {
		b.login = append(b.login, nats.Secure(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	}
	if b.nc, err = nats.Connect(cfg.URL, append(opts, b.login...)...); err != nil {
		hangUp()
		if _, ok := errors.AsType[*url.Error](err); ok { // it would quote the address
			err = errors.New("an address cannot be parsed")
		}
		return nil, fmt.Errorf("NATS_URL: %w", err)
	}
	b.js, err = jetstream.New(b.nc, jetstream.WithPublishAsyncMaxPending(16_384), jetstream.WithPublishAsyncTimeout(publishTimeout))
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	if b.nc.IsConnected() { // so that the first request need not wait for the handler
		b.connected(b.nc)
	}
	b.keepers.Go(func() { b.watchLink(cfg.servers()) })
	return b, nil
}

// Logger returns the logger of the bus, for the packages that read and write its streams.
func (b *Bus) Logger() *zap.Logger { return b.log }

// Close ends the connection after flushing acknowledgements. It does not wait for a broker without a connection.
func (b *Bus) Close() {
	up := b.link.isUp()
	if !up {
		b.hangUp() // the client library holds its lock while it dials
	}
	b.end()
	b.keepers.Wait()
	b.acks.send()
	if up {
		_ = b.nc.FlushTimeout(2 * time.Second)
	}
	b.nc.Close()
	b.hangUp()
}

// State returns why the bus does not work, "" when it does.
func (b *Bus) State() string {
	if why := b.link.unfit(); why != "" {
		return why
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Values(b.problems)), "; ")
}

// Degraded returns the problems with which the bus works all the same, "" when there are none.
func (b *Bus) Degraded() string {
	var all []string
	if rights := b.link.denied(); len(rights) > 0 {
		all = append(all, "the user of NATS_URL may not "+strings.Join(rights, ", ")+": give it the rights of deploy/nats/accounts.conf")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(append(all, slices.Sorted(maps.Values(b.degraded))...), "; ")
}

// reported notes and logs an error that the broker sent.
func (b *Bus) reported(sub *nats.Subscription, err error) {
	about := "report: " + err.Error()
	if denied := right(err); denied != "" {
		b.link.refuse(denied)
		about = "report: may not " + denied
	}
	if !b.ShouldLog(about) {
		return
	}
	fields := []zap.Field{zap.Error(err)}
	if sub != nil {
		fields = append(fields, zap.String("subject", sub.Subject))
	}
	b.log.Warn("broker reports an error", fields...)
}

// setProblem sets the problem of a subject, "" for none. A problem is logged when it changes.
func (b *Bus) setProblem(what, problem string) { b.noteProblem(b.problems, what, problem) }

func (b *Bus) noteProblem(problems map[string]string, what, problem string) {
	b.mu.Lock()
	before := problems[what]
	if problem == "" {
		delete(problems, what)
	} else {
		problems[what] = what + ": " + problem
	}
	after := problems[what]
	b.mu.Unlock()
	if after != "" && after != before {
		b.log.Warn("waiting", zap.String("for", after))
	}
}

// repeatAfter is how often the same trouble is logged while it lasts.
const repeatAfter = time.Minute

// ShouldLog reports whether trouble with something should be logged now, as if it then were.
func (b *Bus) ShouldLog(what string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.logged[what]) < repeatAfter {
		return false
	}
	if len(b.logged) > 1000 { // texts that are never the same
		clear(b.logged)
	}
	b.logged[what] = time.Now()
	return true
}

// trouble logs an error that lasts, when its cause changes and once in repeatAfter. The connection reports its own
// loss.
func (b *Bus) trouble(what string, err error) {
	if b.link.isUp() && b.ShouldLog(what+": "+err.Error()) {
		b.log.Warn("trouble with the broker; trying again", zap.String("with", what), zap.Error(err))
	}
}

// Newer counts and logs a message that waits for a newer version.
func (b *Bus) Newer(stream string) {
	b.metrics.newer.WithLabelValues(stream).Inc()
	if b.ShouldLog("newer messages on " + stream) {
		b.log.Warn("messages of a newer version wait for one: upgrade this service, or start the newer one again", zap.String("stream", stream))
	}
}

// Own creates the owner's streams and buckets that are missing, waiting for the broker as long as it takes; it does not
// change existing ones. Until Close it watches them. While one is missing, or edited so that it would lose or refuse
// our messages, the service is not ready; Own creates it again, empty, or restores its settings.
func (b *Bus) Own(ctx context.Context, o topology.Owner, l topology.Limits) error {
	err := b.Insist(ctx, "disk of the account", func(ctx context.Context) (err error) {
		l, err = b.granted(ctx, l)
		return err
	})
	if err != nil {
		return err
	}
	var all []*kept
	for _, cfg := range o.Streams(l) {
		b.metrics.publish.WithLabelValues(cfg.Name)
		b.metrics.retried.WithLabelValues(cfg.Name)
		if topology.InBatches(cfg.Name) {
			b.metrics.batched.WithLabelValues(cfg.Name)
		}
		all = append(all, &kept{kind: KindStream, name: cfg.Name, want: cfg})
	}
	for _, cfg := range o.Buckets(l) {
		all = append(all, &kept{kind: KindBucket, name: strings.TrimPrefix(cfg.Name, topology.BucketPrefix), want: cfg})
	}
	for _, k := range all {
		if err := b.ensure(ctx, k); err != nil {
			return err
		}
	}
	b.keepers.Go(func() { b.keep(all) })
	return nil
}

// kept is a stream or bucket that its owner looks after.
type kept struct {
	kind, name string
	want       jetstream.StreamConfig
	created    bool                  // by this process, at its start
	last       *jetstream.StreamInfo // as the owner saw it last
	left       map[string]bool       // settings that differed when the owner began: they stay
}

// ensure creates a stream or bucket that is missing, and has the first look at it. It waits while the broker does not
// do its part.
func (b *Bus) ensure(ctx context.Context, k *kept) error {
	return b.Insist(ctx, k.kind+" "+k.name, func(ctx context.Context) error {
		s, err := b.js.Stream(ctx, k.want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			s, err = b.js.CreateStream(ctx, k.want)
			k.created = err == nil
			if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another replica of this service was faster
				s, err = b.js.Stream(ctx, k.want.Name)
			}
		}
		if err != nil {
			return err
		}
		info := s.CachedInfo()
		if !k.created && len(lacking(k.kind, info.Config, k.want)) > 0 { // an older broker made it, or an older version of us
			cfg := info.Config
			for _, c := range lacking(k.kind, cfg, k.want) {
				set(&cfg, k.want, c.Field)
			}
			if s, err = b.js.UpdateStream(ctx, cfg); err != nil {
				return err
			}
			info = s.CachedInfo()
		}
		k.begin(info)
		if k.created { // all of it was asked for just now
			return b.answer(compare(k.kind, info.Config, k.want))
		}
		return b.answer(lacking(k.kind, info.Config, k.want))
	})
}

// answer returns an error that names the settings which the broker did not take over from a request, nil when there
// are none.
func (b *Bus) answer(differ []Change) error {
	if len(differ) == 0 {
		return nil
	}
	all := make([]string, 0, len(differ))
	for _, c := range differ {
		all = append(all, fmt.Sprintf("%s is %s, asked for was %s", c.Field, cmp.Or(c.Have, "none"), c.Want))
	}
	return fmt.Errorf("nats-server %s does not support all that is asked of it: %s; %s or newer is needed", b.link.serverVersion(), strings.Join(all, ", "), oldest)
}

// lookEvery is how often an owner looks at its streams and buckets, and a consumer's user at the consumer.
const lookEvery = 5 * time.Second

// revisionGap is added to the last known revision when a bucket is created again: no copy takes a new entry for an old
// one, and no condition on an old revision holds by chance.
const revisionGap = 1 << 20

// keep looks after streams and buckets until Close.
func (b *Bus) keep(all []*kept) {
	tick := time.NewTicker(b.lookEvery)
	defer tick.Stop()
	for {
		for _, k := range all {
			b.keepOne(k)
		}
		select {
		case <-b.closing.Done():
			return
		case <-tick.C:
		}
	}
}

// keepOne creates a stream or bucket again that is missing, and restores one that was edited.
func (b *Bus) keepOne(k *kept) {
	if b.link.unfit() != "" {
		return
	}
	ctx, cancel := context.WithTimeout(b.closing, lookEvery)
	defer cancel()
	what := k.kind + " " + k.name
	s, err := b.js.Stream(ctx, k.want.Name)
	switch {
	case err == nil:
		k.last = s.CachedInfo()
		b.setProblem(what, "")
		b.setBackStream(ctx, k)
	case errors.Is(err, jetstream.ErrStreamNotFound):
		b.metrics.recreated.WithLabelValues(k.kind).Inc()
		b.log.Error("a "+k.kind+" was deleted while services ran; it is created again, empty", zap.String(k.kind, k.name))
		b.setProblem(what, "deleted while services ran")
		again := k.again()
		s, err = b.js.CreateStream(ctx, again)
		if err == nil {
			err = b.answer(compare(k.kind, s.CachedInfo().Config, again))
		}
		if err == nil || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			b.setProblem(what, "")
		}
	}
}

// again returns the configuration with which a deleted stream or bucket is created.
func (k *kept) again() jetstream.StreamConfig {
	cfg := k.want
	if k.kind == KindBucket { // as it was before it was edited
		cfg = k.last.Config
		for _, c := range k.edits() {
			set(&cfg, k.want, c.Field)
		}
		cfg.FirstSeq = k.last.State.LastSeq + revisionGap
	}
	return cfg
}

// Await returns once the streams of other owners exist.
func (b *Bus) Await(ctx context.Context, streams ...string) error {
	for _, name := range streams {
		if _, err := b.Stream(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// RequirePayload returns once the broker accepts messages of n bytes, waiting (not ready, with the
// reason) while it does not.
func (b *Bus) RequirePayload(ctx context.Context, n int64) error {
	return b.Insist(ctx, "broker", func(context.Context) error {
		if have := b.nc.MaxPayload(); have < n {
			return fmt.Errorf("the broker's max_payload is %d bytes; set it to at least %d (EVENT_MAX_BYTES and 64 KiB for headers)", have, n)
		}
		return nil
	})
}

// Insist repeats f until it succeeds or ctx ends. State returns the reason until then. A reason is logged when it
// changes, not each time.
func (b *Bus) Insist(ctx context.Context, what string, f func(context.Context) error) error {
	pause := newBackoff(100*time.Millisecond, 2*time.Second)
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := b.fit()
		if err == nil {
			err = f(attempt)
		}
		cancel()
		if err == nil {
			b.setProblem(what, "")
			return nil
		}
		if ctx.Err() != nil {
			b.setProblem(what, "")
			return ctx.Err()
		}
		if _, unfit := errors.AsType[*unfitError](err); !unfit { // State says it once
			b.setProblem(what, err.Error())
		}
		if err := pause.wait(ctx); err != nil {
			b.setProblem(what, "")
			return err
		}
	}
}

// Stream returns a handle, waiting until the stream exists.
func (b *Bus) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	b.mu.Lock()
	s := b.streams[name]
	b.mu.Unlock()
	if s != nil {
		return s, nil
	}
	err := b.Insist(ctx, "stream "+name, func(ctx context.Context) (err error) {
		s, err = b.known(ctx, name)
		return err
	})
	return s, err
}

// known returns a handle, ErrStreamNotFound when the stream does not exist.
func (b *Bus) known(ctx context.Context, name string) (jetstream.Stream, error) {
	b.mu.Lock()
	s := b.streams[name]
	b.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := b.js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.streams[name] = s
	b.mu.Unlock()
	return s, nil
}

// forget drops the handle of a stream: how it is read may have changed with its replicas.
func (b *Bus) forget(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.streams, name)
}

// backoff doubles a pause from low to high.
type backoff struct{ next, high time.Duration }

func newBackoff(low, high time.Duration) *backoff { return &backoff{low, high} }

func (p *backoff) wait(ctx context.Context) error {
	d := p.next
	p.next = min(2*p.next, p.high)
	if !sleep.For(ctx, d) {
		return ctx.Err()
	}
	return nil
}
