package management

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/audit"
	"gancho/pkg/bus"
	"gancho/pkg/egress"
	"gancho/pkg/notification"
	"gancho/pkg/numbers"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/share"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/tokens"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/accounts"
	"gancho/services/management/internal/api"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/catalogue"
	"gancho/services/management/internal/console"
	"gancho/services/management/internal/dryrun"
	"gancho/services/management/internal/erasures"
	"gancho/services/management/internal/idempotency"
	"gancho/services/management/internal/index"
	"gancho/services/management/internal/ingest"
	"gancho/services/management/internal/notices"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/proxy"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/revocation"
	"gancho/services/management/internal/tail"
	"gancho/services/management/internal/webhooks"
)

// Run serves until ctx ends; requests under way are then finished first.
func Run(ctx context.Context, cfg Config, proc *service.Process) error {
	keys, warnings, err := seal.Load(cfg.EncryptionKeyFile)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		proc.Log.Warn(w)
	}
	policy, err := egress.New(cfg.Egress)
	if err != nil {
		return err
	}
	types, err := catalogue.New(cfg.EventNames, cfg.EventTypesDir)
	if err != nil {
		return fmt.Errorf("EVENT_NAMES, EVENT_TYPES_DIR: %w", err)
	}
	known, err := auth.OpenTokens(keys.Derive(tokens.Purpose), cfg.APITokens, cfg.APITokensFile)
	if err != nil {
		return err
	}
	if n := known.Short(); n > 0 {
		proc.Log.Warn("API tokens have fewer than 16 characters and may be guessed; use random ones, as from: openssl rand -hex 24", zap.Int("tokens", n))
	}
	proxies, err := proxy.Parse(cfg.TrustedProxies)
	if err != nil {
		return fmt.Errorf("TRUSTED_PROXIES: %w", err)
	}
	gate, err := auth.New(ctx, auth.Config{
		Tokens: known, JWT: cfg.jwt(), PerSecond: cfg.APIRateLimit, BadPerMinute: cfg.APIBadTokensPerMinute,
	}, proc.Log, proc.Metrics)
	if err != nil {
		return err
	}
	listener := cfg.Listener
	if listener == nil {
		if listener, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.HTTPAddr); err != nil {
			return fmt.Errorf("HTTP_ADDR: %w", err)
		}
	}
	b, err := bus.Connect(cfg.Bus, proc.Name, proc.Log, proc.Metrics)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer b.Close()
	proc.Health.Require("nats", b.State)
	proc.Health.Want("nats", b.Degraded)

	redis, err := suspension.Open(cfg.RedisURL)
	if err != nil {
		return err
	}
	defer redis.Close()
	if err := suspension.RefuseCluster(ctx, redis); err != nil {
		return err
	}
	lists := index.New(index.Config{MaxEntries: cfg.IndexMaxEntries, MaxAge: cfg.Limits.LogMaxAge}, redis, b, proc.Log)
	proc.Health.Want("redis", func() string {
		if why := lists.State(); why != "" {
			return suspension.Hosts(cfg.RedisURL) + ": " + why
		}
		return ""
	})

	// The address answers from the start, so that a client learns that the service still waits for the broker.
	front := &startup{state: proc.Health.State}
	handler, err := compress(front)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	hangUps := make(chan os.Signal, 1)
	signal.Notify(hangUps, syscall.SIGHUP)
	defer signal.Stop(hangUps)
	proc.Health.Want("tokens", known.State)
	group.Go(func() error { known.Watch(ctx, hangUps, proc.Log); return nil })
	group.Go(func() error { known.KeepUse(ctx, redis); return nil })
	// The copies are kept up to date until the last request has ended.
	watch, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error {
		defer stopWatch()
		return serve(ctx, listener, proxies.Handler(handler), cfg.Service.ShutdownTimeout, proc.Log)
	})
	group.Go(func() error {
		if err := b.Own(ctx, topology.Management, cfg.Limits); err != nil {
			return ended(ctx, err)
		}
		registered, err := registry.Open(ctx, b, registry.Options{Keys: keys, Log: proc.Log, Metrics: proc.Metrics})
		if err != nil {
			return ended(ctx, err)
		}
		registered.Restores()
		if err := registered.Authenticate(ctx); err != nil {
			return ended(ctx, err)
		}
		claims, err := b.Bucket(ctx, topology.BucketClaims)
		if err != nil {
			return ended(ctx, err)
		}
		proc.Health.Require("webhooks", registered.State)
		proc.Health.Want("webhooks", registered.Degraded)
		suspended := mirror.New(proc.Log)
		proc.Health.Want("suspensions", suspended.State)
		limits, err := share.LimitsOf(ctx, b, cfg.Limits)
		if err != nil {
			return ended(ctx, err)
		}
		meter := share.New(cfg.Share, limits, registered.HasOthers)
		group.Go(func() error { return ended(ctx, meter.Watch(ctx, b, proc.Log, nil)) })
		perAccount := func(account string) int { return cmp.Or(meter.Settings(account).Webhooks, cfg.WebhooksPerAccount) }
		hooks := webhooks.New(webhooks.Options{
			Bus: b, Registry: registered, Claims: claims, Suspensions: suspended, Keys: keys, Policy: policy, Names: types.Names(), PerAccount: perAccount, Log: proc.Log,
		})
		sends := notifications.New(b, hooks, lists, types, meter, cfg.Limits.EventMaxBytes, limits.Retries)
		lasting := service.Lasting(proc.Log)
		lists.Owners = func() map[string]string {
			owners := map[string]string{}
			for _, w := range registered.All() {
				owners[w.ID] = w.Account
			}
			return owners
		}
		lists.Exhausted = func(ctx context.Context, r *notification.Summary) { sends.Gone(ctx, r, lasting) }
		replayBucket, err := b.Bucket(ctx, topology.BucketReplays)
		if err != nil {
			return ended(ctx, err)
		}
		answers, err := b.Bucket(ctx, topology.BucketIdempotency)
		if err != nil {
			return ended(ctx, err)
		}
		erasureBucket, err := b.Bucket(ctx, topology.BucketErasures)
		if err != nil {
			return ended(ctx, err)
		}
		settings, err := b.Bucket(ctx, topology.BucketAccounts)
		if err != nil {
			return ended(ctx, err)
		}
		sessions, err := b.Bucket(ctx, topology.BucketEndedSessions)
		if err != nil {
			return ended(ctx, err)
		}
		revoked := revocation.New(sessions)
		group.Go(func() error { return revoked.Run(watch) })
		light, dark, err := console.Palettes()
		if err != nil {
			return err
		}
		links := portal.New(keys, revoked, hooks, light, dark)
		counted := numbers.New(b, proc.Log)
		jobs := replays.New(b, replayBucket, hooks, sends, proc.Log)
		erased := erasures.New(b, erasureBucket, keys, proc.Log)
		tails := tail.New(b)
		changes := audit.New(b, proc.Log, proc.Metrics)
		dry := dryrun.New(b, hooks, sends, cfg.Limits.EventMaxBytes)
		handler, err := api.New(api.Options{
			Gate: gate, Webhooks: hooks, Notifications: sends, Ingest: ingest.New(b, meter, cfg.Limits.EventMaxBytes), Tail: tails, Replays: jobs, Erasures: erased, Stopping: ctx.Done(),
			Accounts: accounts.New(b, settings, hooks, cfg.Limits.LogMaxAge), Idempotency: idempotency.New(answers, keys, proc.Log), Catalogue: types, DryRun: dry, PublicURL: cfg.PublicURL, EgressAddresses: cfg.EgressPublished,
			Portal: links, Audit: changes, Numbers: counted, EventMaxBytes: cfg.Limits.EventMaxBytes, Log: proc.Log, Metrics: proc.Metrics,
		})
		if err != nil {
			return err
		}
		noticeBucket, err := b.Bucket(ctx, topology.BucketNotices)
		if err != nil {
			return ended(ctx, err)
		}
		var mailServer *notices.Server
		if cfg.SMTPURL != "" {
			if mailServer, err = notices.ParseServer(cfg.SMTPURL); err != nil {
				return err
			}
		}
		ownerNotices := notices.New(notices.Options{
			Bus: b, Bucket: noticeBucket, Webhooks: hooks, Meter: meter, Keys: keys, Server: mailServer, PublicURL: strings.TrimSuffix(cfg.PublicURL, "/"), Log: proc.Log, Metrics: proc.Metrics,
		})
		group.Go(func() error { return ended(ctx, ownerNotices.Run(ctx)) })
		pages, err := console.New(console.Options{
			Gate: gate, Webhooks: hooks, Notifications: sends, Replays: jobs, Tail: tails, Catalogue: types, DryRun: dry, Keys: keys, Ended: revoked, Portal: links, Notices: ownerNotices, Audit: changes, Numbers: counted, FrameAncestors: cfg.ConsoleFrameAncestors,
			PlainHTTP: cfg.ConsolePlainHTTP, Stopping: ctx.Done(), Log: proc.Log, Metrics: proc.Metrics,
		})
		if err != nil {
			return err
		}
		group.Go(func() error {
			if err := suspended.Open(watch, b); err != nil {
				return ended(watch, err)
			}
			return suspended.Run(watch, mirror.Options{})
		})
		group.Go(func() error { return lists.Run(ctx) })
		group.Go(func() error { return counted.Run(ctx) })
		group.Go(func() error { return jobs.Run(ctx) })
		group.Go(func() error { return erased.Run(ctx) })
		select { // no page is shown before it is known which sessions have ended
		case <-revoked.Loaded():
		case <-ctx.Done():
			return nil
		}
		return registered.Run(watch, func() { front.open(&router{api: handler, console: pages}); proc.Up() }, func(before, after *webhook.Webhook) {
			hooks.Changed(before, after)
			if after == nil && before != nil {
				group.Go(func() error { _ = lists.Forget(ctx, before.ID); return nil }) // else it ages out
			}
		})
	})
	return group.Wait()
}

// compress wraps h: text answers of 1 KiB or more are compressed for clients that accept it. Streams of events are not.
func compress(h http.Handler) (http.Handler, error) {
	wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(1<<10), gzhttp.EnableZstd(false), gzhttp.ContentTypeFilter(func(kind string) bool {
		kind, _, _ = strings.Cut(kind, ";")
		switch kind {
		case "application/json", "image/svg+xml", "text/html", "text/css", "text/javascript", "text/plain":
			return true
		}
		return false
	}))
	if err != nil {
		return nil, fmt.Errorf("compress answers: %w", err)
	}
	return wrap(h), nil
}

// ended turns the error of a start that a stop cut off into none.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// serve runs the HTTP server until ctx ends, then lets requests under way finish.
func serve(ctx context.Context, l net.Listener, h http.Handler, shutdown time.Duration, log *zap.Logger) error {
	stdlog, err := zap.NewStdLogAt(log.Named("http"), zap.DebugLevel)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: h, ErrorLog: stdlog, MaxHeaderBytes: 64 << 10,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 40 * time.Second, IdleTimeout: 75 * time.Second,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	log.Info("serving", zap.String("http_addr", l.Addr().String()))
	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(l) }()
	select {
	case err := <-stopped:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(shutdown-2*time.Second, time.Second))
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		_ = server.Close()
		log.Warn("requests were cut off by the stop", zap.Error(err))
	}
	if err := <-stopped; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// router serves the API and the console at one address.
type router struct {
	api, console http.Handler
}

func (s *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if console.Serves(r.URL.Path) || asksForPage(r) {
		s.console.ServeHTTP(w, r)
		return
	}
	s.api.ServeHTTP(w, r)
}

// asksForPage reports whether a browser asks for a page outside the API: it gets the console's "not found" page and
// not the API's JSON.
func asksForPage(r *http.Request) bool {
	for _, prefix := range []string{"/crm/", "/api/", "/docs"} {
		if strings.HasPrefix(r.URL.Path, prefix) {
			return false
		}
	}
	return r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html")
}

// startup answers 503 until its handler is set.
type startup struct {
	handler atomic.Pointer[http.Handler]
	state   func() service.State
}

func (s *startup) open(h http.Handler) { s.handler.Store(&h) }

func (s *startup) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := s.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	api.WriteProblem(w, problem.Down("starting", "the service is starting and waits: "+strings.Join(s.state().Reasons, "; "), nil))
}
