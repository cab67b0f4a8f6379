// Package service is the process shell: it reads the configuration, starts the program's services, shows their health
// on the ops address, and stops them. It knows nothing of their work.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"gancho/pkg/address"
	"gancho/pkg/tracing"
)

// Version is the release, set by the linker; "dev" otherwise.
var Version = "dev"

// Exit codes of every program.
const (
	ExitOK     = 0
	ExitError  = 1
	ExitConfig = 2 // the configuration makes no sense; nothing was started
)

// Config holds the settings of every process.
type Config struct {
	// OpsAddr is where /healthz, /readyz, /metrics, /debug/pprof and /debug/loglevel are served; :9090 in containers.
	// Keep it off public networks.
	OpsAddr string `env:"OPS_ADDR" envDefault:"127.0.0.1:9090"`
	// OpsDebug opens /debug/pprof and /debug/loglevel to other addresses than loopback ones.
	OpsDebug bool `env:"OPS_DEBUG" envDefault:"false"`
	// LogLevel is debug, info, warn or error. It can be changed while the process runs: PUT /debug/loglevel.
	LogLevel string `env:"LOG_LEVEL" envDefault:"info" oneof:"debug info warn error"`
	// ShutdownTimeout is how long a stop may take: attempts in flight finish, then the process exits. It must exceed
	// ATTEMPT_TIMEOUT.
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"25s" range:"1s..10m"`
	// OTLPEndpoint is where OpenTelemetry traces are sent (OTLP over HTTP), such as http://collector:4318; none are
	// recorded without it. The standard's other OTEL_ variables work too.
	OTLPEndpoint string `env:"OTEL_EXPORTER_OTLP_ENDPOINT"`
}

// Validate reports an address that nothing can listen on.
func (c Config) Validate() error {
	var bad error
	if u, err := url.Parse(c.OTLPEndpoint); c.OTLPEndpoint != "" &&
		(err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		bad = errors.New("OTEL_EXPORTER_OTLP_ENDPOINT: it is not the address of a collector; " +
			"give one such as http://collector:4318")
	}
	return errors.Join(CheckAddr("OPS_ADDR", c.OpsAddr), bad)
}

// Process is a service's part of the shell: its logger, metrics, health and tracer.
type Process struct {
	Name    string
	Log     *zap.Logger
	Metrics prometheus.Registerer // adds the label service
	Health  *Health
	Trace   *tracing.Tracer // nil: off

	up atomic.Bool
}

// Up says that the service has started all it consists of. Until then it is not ready.
func (p *Process) Up() { p.up.Store(true) }

// Shell is one operating-system process: a logger, a metrics registry and the health of all it runs.
type Shell struct {
	Log      *zap.Logger
	Level    zap.AtomicLevel
	Registry *prometheus.Registry
	Health   *Health

	stopLog func() error
	mu      sync.Mutex
	tracers []*tracing.Tracer
}

// traceTimeout is how long a stop waits for the last spans to be sent.
const traceTimeout = 3 * time.Second

// logDelay is how late a log line may be written.
const logDelay = 100 * time.Millisecond

// Close sends the last spans and writes the last lines of the log.
func (s *Shell) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), traceTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tracers {
		if err := t.Close(ctx); err != nil {
			s.Log.Warn("the last spans were not sent", zap.Error(err))
		}
	}
	_ = s.stopLog()
}

// NewShell returns a shell that logs JSON lines on out from level up. What libraries write with package log
// is discarded from then on: net/http repeats bytes of receivers there, and a line break in them would be a
// line of its own among ours.
func NewShell(level string, out zapcore.WriteSyncer) (*Shell, error) {
	atom, err := zap.ParseAtomicLevel(level)
	if err != nil {
		return nil, fmt.Errorf("LOG_LEVEL: %w", err)
	}
	log.SetOutput(io.Discard)
	enc := zap.NewProductionEncoderConfig()
	enc.TimeKey, enc.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	enc.EncodeDuration = zapcore.MillisDurationEncoder
	// Lines are written together, at most logDelay late: a system call for each costs more than making it.
	buffered := &zapcore.BufferedWriteSyncer{WS: out, Size: 64 << 10, FlushInterval: logDelay}
	core := zapcore.NewCore(zapcore.NewJSONEncoder(enc), buffered, atom)
	s := &Shell{
		Log: zap.New(core), stopLog: buffered.Stop, Level: atom, Registry: prometheus.NewRegistry(),
		Health: NewHealth(),
	}
	// Of the Go runtime and the process, named like all others: gancho_go_goroutines, gancho_process_cpu_seconds_total.
	prometheus.WrapRegistererWithPrefix("gancho_", s.Registry).MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "gancho_build_info", Help: "1, with the version as a label.",
		ConstLabels: prometheus.Labels{"version": Version, "go": goVersion()},
	})
	info.Set(1)
	s.Registry.MustRegister(info)
	return s, nil
}

func goVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		return b.GoVersion
	}
	return "unknown"
}

// Process returns the part of the shell for one service.
func (s *Shell) Process(name string) *Process {
	p := &Process{
		Name: name, Log: s.Log.With(zap.String("service", name)), Health: s.Health,
		Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"service": name}, s.Registry),
	}
	var err error
	lasting := Lasting(s.Log)
	if p.Trace, err = tracing.Open(name, Version, func(err error) { spansNotSent(lasting, err) }); err != nil {
		p.Log.Warn("no traces are recorded", zap.Error(err))
	} else if p.Trace != nil {
		s.mu.Lock()
		s.tracers = append(s.tracers, p.Trace)
		s.mu.Unlock()
	}
	s.Health.Require(name, func() string {
		if p.up.Load() {
			return ""
		}
		return "starting"
	})
	return p
}

// spansNotSent logs that the collector of traces cannot be used. The library's text for one cause differs from time to
// time.
func spansNotSent(log *zap.Logger, err error) {
	if cause := address.Cause(err); cause != "" {
		err = errors.New(cause)
	}
	log.Warn("spans not sent to OTEL_EXPORTER_OTLP_ENDPOINT", zap.Error(err))
}

// gcPercent trades memory for processor time: the services' live heaps are small, and collecting them half
// as often as usual saves a tenth of the dispatcher's time. GOGC overrides it.
const gcPercent = 300

// Main runs one service as a program and returns its exit code. Arguments: none to run, healthcheck [-v] to ask
// a running one (for images without a shell), version. C is the service's Config struct; common points at
// the part that every process has.
func Main[C any](name string, common func(*C) *Config, run func(context.Context, C, *Process) error) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	var cfg C
	problems := Load(&cfg, os.Environ())
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "healthcheck":
			return Healthcheck(common(&cfg).OpsAddr, slices.Contains(os.Args[2:], "-v"), os.Stderr)
		case "version":
			fmt.Fprintln(os.Stdout, name, Version)
			return ExitOK
		default:
			fmt.Fprintf(os.Stderr, "%s: unknown argument %q; use none, healthcheck or version\n", name, os.Args[1])
			return ExitConfig
		}
	}
	if len(problems) > 0 {
		for _, p := range problems {
			fmt.Fprintln(os.Stderr, p)
		}
		return ExitConfig
	}
	shell, err := NewShell(common(&cfg).LogLevel, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return ExitConfig
	}
	defer shell.Close()
	warnUnknown(shell.Log, &cfg, os.Environ())
	err = shell.Run(*common(&cfg), func(ctx context.Context) error { return run(ctx, cfg, shell.Process(name)) })
	return shell.ExitCode(name, err, os.Stderr)
}

// ExitCode returns the exit code of a process whose Run returned err, and logs the error. An address that cannot be
// listened on counts as configuration: it is printed on stderr.
func (s *Shell) ExitCode(name string, err error, stderr io.Writer) int {
	if listen, ok := errors.AsType[*net.OpError](err); ok && listen.Op == "listen" {
		fmt.Fprintln(stderr, err)
		return ExitConfig
	}
	if err != nil {
		s.Log.Error("stopped", zap.String("service", name), zap.Error(err))
		return ExitError
	}
	return ExitOK
}

// Run serves the ops address and runs f until it returns or SIGINT or SIGTERM asks it to stop. When the
// shutdown timeout passes after the signal, Run returns an error without waiting for f any longer. A second
// signal ends the process at once.
func (s *Shell) Run(cfg Config, f func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ops, err := s.serveOps(cfg)
	if err != nil {
		return err
	}
	defer ops.Close()
	s.Log.Info("started", zap.String("version", Version), zap.String("ops_addr", ops.Addr().String()))
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		stop() // the next signal has its default effect
		s.Health.Stopping()
		s.Log.Info("stopping", zap.String("cause", context.Cause(ctx).Error()))
		select {
		case err = <-done:
		case <-time.After(cfg.ShutdownTimeout):
			return fmt.Errorf("SHUTDOWN_TIMEOUT of %v passed before the work in flight ended", cfg.ShutdownTimeout)
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	s.Log.Info("stopped")
	return nil
}
