package service

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// opsServer is the listener and server of the ops address.
type opsServer struct {
	listener net.Listener
	server   *http.Server
}

func (o opsServer) Addr() net.Addr { return o.listener.Addr() }
func (o opsServer) Close() error   { return o.server.Close() }

func (s *Shell) serveOps(cfg Config) (opsServer, error) {
	l, err := net.Listen("tcp", cfg.OpsAddr)
	if err != nil {
		return opsServer{}, fmt.Errorf("OPS_ADDR: listen: %w", err)
	}
	debug := http.NewServeMux()
	debug.HandleFunc("GET /debug/loglevel", s.showLogLevel)
	debug.HandleFunc("PUT /debug/loglevel", s.setLogLevel)
	debug.HandleFunc("/debug/pprof/", pprof.Index)
	debug.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	debug.HandleFunc("/debug/pprof/profile", pprof.Profile)
	debug.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	debug.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.Health.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Registry, promhttp.HandlerOpts{}))
	if cfg.OpsDebug {
		mux.Handle("/debug/", debug)
	} else {
		mux.Handle("/debug/", loopbackOnly(debug))
	}
	o := opsServer{l, &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}}
	go func() { _ = o.server.Serve(l) }() // ends with Close
	return o, nil
}

// loopbackOnly refuses requests that come from another machine or container, and those that a proxy on this
// machine passes on for one.
func loopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() || r.Header.Get("X-Forwarded-For") != "" ||
			r.Header.Get("Forwarded") != "" {
			http.Error(w, "/debug/ answers loopback addresses only; set OPS_DEBUG=true to open it",
				http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// maxLevelBody limits the body of a change of the log level, in bytes.
const maxLevelBody = 1 << 10

type levelBody struct {
	Level string `json:"level"`
}

func (s *Shell) showLogLevel(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(levelBody{s.Level.String()})
}

// setLogLevel takes {"level":"debug"} or a form with level=debug. Levels above error are refused: they would
// silence the log.
func (s *Shell) setLogLevel(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxLevelBody)
	var body levelBody
	if r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" {
		body.Level = r.FormValue("level")
	} else if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		body.Level = ""
	}
	level, err := zapcore.ParseLevel(body.Level)
	if body.Level == "" || err != nil || level > zapcore.ErrorLevel {
		http.Error(w, `give {"level":"debug"}, or info, warn or error`, http.StatusBadRequest)
		return
	}
	before := s.Level.Level()
	s.Level.SetLevel(level)
	s.Log.Info("log level changed", zap.Stringer("from", before), zap.Stringer("to", level))
	s.showLogLevel(w, r)
}

// Healthcheck asks the process that listens on addr (OPS_ADDR) on this machine or in this container whether it is
// ready, and returns an exit code. It prints faults on stderr, also those that leave the process ready; with verbose
// it prints "ready" when there are none.
func Healthcheck(addr string, verbose bool, stderr io.Writer) int {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		fmt.Fprintln(stderr, "OPS_ADDR:", err)
		return ExitConfig
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	s, err := Ask(context.Background(), net.JoinHostPort(host, port))
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "not reachable:", err)
		return ExitError
	case !s.Ready:
		fmt.Fprintln(stderr, "not ready:", strings.Join(s.Reasons, "; "))
		return ExitError
	case len(s.Degraded) > 0:
		fmt.Fprintln(stderr, "ready, degraded:", strings.Join(s.Degraded, "; "))
	case verbose:
		fmt.Fprintln(stderr, "ready")
	}
	return ExitOK
}

// askWithin bounds Ask, below the time that containers give a health check.
const askWithin = 3 * time.Second

// Ask returns the state of the process that listens on addr, host:port, from its /readyz.
func Ask(ctx context.Context, addr string) (s State, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz", nil)
	if err != nil {
		return s, err
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s); err != nil {
		return s, fmt.Errorf("%s answers HTTP %d, and not as a service of Gancho: %w", addr, resp.StatusCode, err)
	}
	return s, nil
}
