package gancho

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/address"
	"gancho/pkg/bus"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/topology"
	"gancho/services/dispatcher"
	"gancho/services/management"
	"gancho/services/publisher"
	monitor "gancho/services/suspension-monitor"
)

// Config of gancho serve. Every variable of the services applies too, except those that say where the
// embedded broker and Redis are.
type Config struct {
	Service service.Config
	// DataDir holds everything that must survive a restart: the broker's files, the encryption key and the first token.
	// One process at a time uses it.
	DataDir string `env:"DATA_DIR" envDefault:"./data"`
	// NATSListen is where the embedded broker listens, so that a CRM or the nats command can publish.
	NATSListen string `env:"NATS_LISTEN" envDefault:"127.0.0.1:4222"`
	// NATSSyncInterval is when the embedded broker flushes to disk: always (before it acknowledges) or a duration.
	NATSSyncInterval string `env:"NATS_SYNC_INTERVAL" envDefault:"always"`
	// RedisURL is a Redis to use instead of the embedded one.
	RedisURL string `env:"REDIS_URL" secret:"true"`
}

// Validate reports addresses and intervals that cannot be used.
func (c *Config) Validate() error {
	_, err := bus.ParseSyncInterval(c.NATSSyncInterval)
	return errors.Join(service.CheckAddr("NATS_LISTEN", c.NATSListen), err)
}

// firstAccount owns the token that serve makes when none is given.
const firstAccount = "demo"

// Serve runs all four services on an embedded broker and, unless REDIS_URL is set, an embedded Redis, until
// a signal stops it. environ is the environment of the process. It returns the exit code.
func Serve(environ []string, stdout, stderr io.Writer) int {
	var cfg Config
	problems := service.Load(&cfg, environ)
	shell, err := service.NewShell(cfg.Service.LogLevel, os.Stdout)
	if err != nil || len(problems) > 0 {
		return refuse(stderr, problems)
	}
	defer shell.Close()
	lock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return service.ExitError
	}
	defer lock.Close()
	all, problems, err := prepare(&cfg, environ)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return service.ExitError
	}
	if len(problems) > 0 {
		return refuse(stderr, problems)
	}
	if host, _, err := net.SplitHostPort(cfg.NATSListen); err == nil && !address.Loopback(host) {
		shell.Log.Warn("the embedded broker has no passwords and can be reached from other machines: whoever connects may read and write everything; "+
			"listen on a loopback address, or run a broker of its own", zap.String("nats_listen", cfg.NATSListen))
	}
	err = shell.Run(cfg.Service, func(ctx context.Context) error {
		return all.run(ctx, shell, func(addresses) {
			if all.firstToken != "" {
				fmt.Fprintf(stdout, "First API token, of account %q (kept in %s, not shown again):\n\n    export GANCHO_TOKEN=%s\n\n",
					firstAccount, all.tokenFile, all.firstToken)
			}
		})
	})
	return shell.ExitCode("gancho", err, stderr)
}

func refuse(stderr io.Writer, problems []string) int {
	for _, p := range problems {
		fmt.Fprintln(stderr, p)
	}
	return service.ExitConfig
}

// stack is everything serve runs, with the services' environment.
type stack struct {
	cfg        Config
	environ    []string // of the services, without the addresses known only when broker and Redis listen
	limits     topology.Limits
	httpAddr   string // management's
	tokenFile  string // of the first API token
	firstToken string // to be written there; "" when it exists, or others are given
}

// prepare makes the encryption key and checks every service's configuration. The folder is this process's.
func prepare(cfg *Config, environ []string) (*stack, []string, error) {
	vars := map[string]string{}
	for _, e := range environ {
		k, v, _ := strings.Cut(e, "=")
		vars[k] = v
	}
	if vars["ENCRYPTION_KEY_FILE"] == "" {
		path := filepath.Join(cfg.DataDir, "encryption.key")
		if err := makeKey(path); err != nil {
			return nil, nil, err
		}
		vars["ENCRYPTION_KEY_FILE"] = path
	}
	s := &stack{cfg: *cfg}
	if vars["API_TOKENS"] == "" && vars["API_TOKENS_FILE"] == "" {
		s.tokenFile = filepath.Join(cfg.DataDir, "api_tokens")
		if _, err := os.Stat(s.tokenFile); err == nil {
			vars["API_TOKENS_FILE"] = s.tokenFile
		} else {
			s.firstToken = newToken()
			vars["API_TOKENS"] = firstAccount + ":" + s.firstToken
		}
	}
	vars["NATS_SYNC_INTERVAL"] = cfg.NATSSyncInterval
	vars["NATS_URL"], vars["REDIS_URL"] = "nats://127.0.0.1:4222", cmp.Or(cfg.RedisURL, "redis://127.0.0.1:6379") // replaced when they listen
	vars["NATS_URL_FILE"], vars["REDIS_URL_FILE"] = "", ""                                                        // RedisURL holds the file's content
	for k, v := range vars {
		s.environ = append(s.environ, k+"="+v)
	}
	var problems []string
	seen := map[string]bool{}
	for _, p := range s.check() {
		if !seen[p] {
			seen[p] = true
			problems = append(problems, p)
		}
	}
	return s, problems, nil
}

// check loads every service's configuration, notes the limits, and returns the problems.
func (s *stack) check() []string {
	var (
		p publisher.Config
		d dispatcher.Config
		m monitor.Config
		g management.Config
	)
	problems := service.Load(&p, s.environ)
	s.limits = p.Limits
	problems = append(problems, service.Load(&d, s.environ)...)
	problems = append(problems, service.Load(&m, s.environ)...)
	problems = append(problems, service.Load(&g, s.environ)...)
	s.httpAddr = g.HTTPAddr
	return problems
}

// makeKey writes a new encryption key unless the file exists.
func makeKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := seal.New().Write(path); err != nil {
		return fmt.Errorf("make an encryption key: %w", err)
	}
	return nil
}

// keepToken writes the first API token, if there is one to write, and has the services read it from there.
func (s *stack) keepToken() error {
	if s.firstToken == "" {
		return nil
	}
	if err := os.WriteFile(s.tokenFile, []byte(firstAccount+":"+s.firstToken+"\n"), 0o600); err != nil {
		return fmt.Errorf("make a first API token: %w", err)
	}
	s.environ = append(s.environ, "API_TOKENS=", "API_TOKENS_FILE="+s.tokenFile)
	return nil
}

// free reports an address that cannot be listened on.
func free(ctx context.Context, variable, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	return l.Close()
}

// newToken returns a random API token.
func newToken() string {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // it never fails
	return "gancho_" + base64.RawURLEncoding.EncodeToString(b)
}

// addresses are where the embedded servers listen.
type addresses struct{ nats, redis string }

// run starts broker and Redis, then the services, and stops them in the reverse order. It returns at once when an
// address is taken. started, if not nil, is called once broker and Redis listen.
func (s *stack) run(ctx context.Context, shell *service.Shell, started func(addresses)) error {
	if err := errors.Join(free(ctx, "NATS_LISTEN", s.cfg.NATSListen), free(ctx, "HTTP_ADDR", s.httpAddr)); err != nil {
		return err
	}
	broker, err := s.startBroker(ctx)
	if err != nil {
		return err
	}
	defer func() { broker.Shutdown(); broker.WaitForShutdown() }()
	at := addresses{nats: broker.ClientURL(), redis: s.cfg.RedisURL}
	if at.redis == "" {
		redis, err := startRedis()
		if err != nil {
			return err
		}
		defer redis.stop()
		at.redis = "redis://" + redis.Addr()
	}
	if err := s.keepToken(); err != nil {
		return err
	}
	environ := append(s.environ, "NATS_URL="+at.nats, "REDIS_URL="+at.redis, "NATS_URL_FILE=", "REDIS_URL_FILE=")
	if started != nil {
		started(at)
	}
	group, ctx := errgroup.WithContext(ctx)
	runService(ctx, group, shell, environ, "publisher", publisher.Run)
	runService(ctx, group, shell, environ, "dispatcher", dispatcher.Run)
	runService(ctx, group, shell, environ, "suspension-monitor", monitor.Run)
	runService(ctx, group, shell, environ, "management", management.Run)
	return group.Wait()
}

func runService[C any](ctx context.Context, group *errgroup.Group, shell *service.Shell, environ []string, name string, run func(context.Context, C, *service.Process) error) {
	proc := shell.Process(name) // now: the process is ready when all of its services are
	group.Go(func() error {
		var cfg C
		if problems := service.Load(&cfg, environ); len(problems) > 0 {
			return errors.New(strings.Join(problems, "\n"))
		}
		if err := run(ctx, cfg, proc); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}

// startBroker returns the broker once it takes connections. Until then it reads its files, which may take long; the
// end of ctx ends that.
func (s *stack) startBroker(ctx context.Context) (*server.Server, error) {
	host, port, err := net.SplitHostPort(s.cfg.NATSListen)
	if err != nil {
		return nil, fmt.Errorf("NATS_LISTEN: %w", err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("NATS_LISTEN: %w", err)
	}
	if n == 0 {
		n = server.RANDOM_PORT
	}
	every, err := bus.ParseSyncInterval(s.cfg.NATSSyncInterval)
	if err != nil {
		return nil, err
	}
	payload := int32(max(2<<20, s.limits.EventMaxBytes+topology.BrokerHeadroom)) //nolint:gosec // EVENT_MAX_BYTES is at most 64 MiB
	broker, err := server.NewServer(&server.Options{
		Host: host, Port: n, JetStream: true, StoreDir: filepath.Join(s.cfg.DataDir, "nats"),
		MaxPayload: payload, MaxPending: max(server.MAX_PENDING_SIZE, 2*int64(payload)),
		SyncInterval: every, SyncAlways: every == 0, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	started := make(chan struct{})
	go func() { broker.Start(); close(started) }()
	select {
	case <-ctx.Done(): // nothing was published yet, and the files stay whole
		go func() { <-started; broker.Shutdown() }()
		return nil, ctx.Err()
	case <-started:
	}
	for deadline := time.Now().Add(30 * time.Second); !broker.ReadyForConnections(100 * time.Millisecond); {
		if err := ctx.Err(); err != nil || time.Now().After(deadline) {
			broker.Shutdown()
			return nil, cmp.Or(err, fmt.Errorf("embedded broker: it does not listen on %s; set NATS_LISTEN to another address", s.cfg.NATSListen))
		}
	}
	return broker, nil
}

// embeddedRedis is a Redis in memory. Its contents are rebuilt from the streams after a restart.
type embeddedRedis struct {
	*miniredis.Miniredis

	done chan struct{}
}

func startRedis() (*embeddedRedis, error) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("embedded Redis: %w", err)
	}
	r := &embeddedRedis{m, make(chan struct{})}
	go func() { // its clock moves only by these calls
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-r.done:
				return
			case <-tick.C:
				m.FastForward(time.Second)
			}
		}
	}()
	return r, nil
}

func (r *embeddedRedis) stop() {
	close(r.done)
	r.Close()
}
