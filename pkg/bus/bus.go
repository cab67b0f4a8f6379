package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Config says where the broker is.
type Config struct {
	// URL of the NATS servers, separated by commas: nats://user:password@host:4222 or tls://...
	URL string `env:"NATS_URL" envDefault:"nats://127.0.0.1:4222"`
	// CredsFile is a NATS credentials file (JWT and seed), for brokers that use them.
	CredsFile string `env:"NATS_CREDS_FILE"`
	// CAFile adds the authority that signed the broker's certificate, for tls:// addresses.
	CAFile string `env:"NATS_CA_FILE"`
}

// Validate reports an address that cannot be one.
func (c Config) Validate() error {
	var errs []error
	for s := range strings.SplitSeq(c.URL, ",") {
		if scheme, _, ok := strings.Cut(strings.TrimSpace(s), "://"); !ok || (scheme != "nats" && scheme != "tls") {
			errs = append(errs, errors.New("NATS_URL: give addresses that begin with nats:// or tls://, separated by commas"))
		}
	}
	for name, file := range map[string]string{"NATS_CREDS_FILE": c.CredsFile, "NATS_CA_FILE": c.CAFile} {
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Bus is one service's connection to the broker. It is safe for concurrent use.
type Bus struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	log     *zap.Logger
	metrics metrics

	mu      sync.Mutex
	streams map[string]jetstream.Stream
	problem atomic.Pointer[string] // what is wrong besides the connection
}

type metrics struct {
	publish    *prometheus.HistogramVec
	retried    *prometheus.CounterVec
	reconnects prometheus.Counter
}

// Connect returns at once; the connection comes up when the broker does. name is the service's, it shows
// in the broker's list of connections and makes the inbox prefix _INBOX_<name>. A wrong configuration is an
// error.
func Connect(cfg Config, name string, log *zap.Logger, reg prometheus.Registerer) (*Bus, error) {
	b := &Bus{log: log.Named("bus"), streams: map[string]jetstream.Stream{}, metrics: metrics{
		publish: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gancho_jetstream_publish_seconds", Help: "Time from publishing a message to the broker's acknowledgement.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"stream"}),
		retried: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_jetstream_publish_retries_total", Help: "Publishes that had to be repeated, by stream.",
		}, []string{"stream"}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_nats_reconnects_total", Help: "Reconnections to NATS.",
		}),
	}}
	reg.MustRegister(b.metrics.publish, b.metrics.retried, b.metrics.reconnects)
	opts := []nats.Option{
		nats.Name("gancho " + name),
		nats.CustomInboxPrefix("_INBOX_" + name),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(-1), // publishing fails at once while the broker is away; we repeat it ourselves
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				b.log.Warn("broker lost; reconnecting", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			b.metrics.reconnects.Inc()
			b.log.Info("broker is back")
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			fields := []zap.Field{zap.Error(err)}
			if sub != nil {
				fields = append(fields, zap.String("subject", sub.Subject))
			}
			b.log.Warn("broker reports an error", fields...)
		}),
	}
	if cfg.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(cfg.CredsFile))
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("NATS_CA_FILE: %w", err)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, errors.New("NATS_CA_FILE: it holds no certificate in PEM form")
		}
		opts = append(opts, nats.Secure(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	}
	var err error
	if b.nc, err = nats.Connect(cfg.URL, opts...); err != nil {
		return nil, fmt.Errorf("NATS_URL: %w", err)
	}
	b.js, err = jetstream.New(b.nc, jetstream.WithPublishAsyncMaxPending(16_384), jetstream.WithPublishAsyncTimeout(publishTimeout))
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return b, nil
}

// Close ends the connection. What was acknowledged is flushed first.
func (b *Bus) Close() {
	_ = b.nc.FlushTimeout(2 * time.Second)
	b.nc.Close()
}

// State says what keeps the bus from working, "" if nothing does.
func (b *Bus) State() string {
	if !b.nc.IsConnected() {
		return "not connected to the broker"
	}
	if p := b.problem.Load(); p != nil {
		return *p
	}
	return ""
}

func (b *Bus) setProblem(p string) {
	if p == "" {
		b.problem.Store(nil)
		return
	}
	if old := b.problem.Swap(&p); old == nil || *old != p {
		b.log.Warn("waiting", zap.String("for", p))
	}
}

// Own creates the owner's streams and buckets that are missing, waiting for the broker as long as it
// takes. It leaves those that exist alone.
func (b *Bus) Own(ctx context.Context, o Owner, l Limits) error {
	for _, cfg := range o.Streams(l) {
		err := b.insist(ctx, "stream "+cfg.Name, func(ctx context.Context) error {
			_, err := b.js.Stream(ctx, cfg.Name)
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				_, err = b.js.CreateStream(ctx, cfg)
				if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another replica of this service was faster
					return nil
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, cfg := range o.Buckets(l) {
		err := b.insist(ctx, "bucket "+cfg.Bucket, func(ctx context.Context) error {
			_, err := b.js.KeyValue(ctx, cfg.Bucket)
			if errors.Is(err, jetstream.ErrBucketNotFound) {
				_, err = b.js.CreateKeyValue(ctx, cfg)
				if errors.Is(err, jetstream.ErrBucketExists) {
					return nil
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Await returns once the streams of other owners exist.
func (b *Bus) Await(ctx context.Context, streams ...string) error {
	for _, name := range streams {
		if _, err := b.stream(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// RequirePayload returns once the broker accepts messages of n bytes, waiting (not ready, with the
// reason) while it does not.
func (b *Bus) RequirePayload(ctx context.Context, n int64) error {
	return b.insist(ctx, "broker", func(context.Context) error {
		if have := b.nc.MaxPayload(); have < n {
			return fmt.Errorf("the broker's max_payload is %d bytes; set it to at least %d (EVENT_MAX_BYTES and 64 KiB for headers)", have, n)
		}
		return nil
	})
}

// insist repeats f until it succeeds or ctx ends, with the reason in State meanwhile. A reason is logged
// when it changes, not each time.
func (b *Bus) insist(ctx context.Context, what string, f func(context.Context) error) error {
	pause := newBackoff(100*time.Millisecond, 2*time.Second)
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := errors.New("not connected to the broker")
		if b.nc.IsConnected() {
			err = f(attempt)
		}
		cancel()
		if err == nil {
			b.setProblem("")
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.setProblem(what + ": " + err.Error())
		if err := pause.wait(ctx); err != nil {
			return err
		}
	}
}

// stream returns a handle, waiting until the stream exists.
func (b *Bus) stream(ctx context.Context, name string) (jetstream.Stream, error) {
	b.mu.Lock()
	s := b.streams[name]
	b.mu.Unlock()
	if s != nil {
		return s, nil
	}
	err := b.insist(ctx, "stream "+name, func(ctx context.Context) (err error) {
		s, err = b.js.Stream(ctx, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.streams[name] = s
	b.mu.Unlock()
	return s, nil
}

// backoff doubles a pause from low to high.
type backoff struct{ next, high time.Duration }

func newBackoff(low, high time.Duration) *backoff { return &backoff{low, high} }

func (p *backoff) wait(ctx context.Context) error {
	t := time.NewTimer(p.next)
	defer t.Stop()
	p.next = min(2*p.next, p.high)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
