package service

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Health tells whether the process can do its job. It is safe for concurrent use.
type Health struct {
	stopping atomic.Bool
	mu       sync.RWMutex
	checks   []check
}

type check struct {
	name string
	soft bool // a failure degrades instead of making the process unready
	ask  func() string
}

// NewHealth returns a Health without checks: not ready, since nothing has started that could be.
func NewHealth() *Health { return &Health{} }

// Require adds a dependency without which the process cannot do its job. ask returns what is wrong, ""
// when nothing is; it must not block.
func (h *Health) Require(name string, ask func() string) { h.add(check{name, false, ask}) }

// Want adds a dependency whose loss degrades the process but leaves it ready.
func (h *Health) Want(name string, ask func() string) { h.add(check{name, true, ask}) }

func (h *Health) add(c check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = append(h.checks, c)
}

// Stopping makes the process unready for good.
func (h *Health) Stopping() { h.stopping.Store(true) }

// State is the answer of /readyz.
type State struct {
	Ready    bool     `json:"ready"`
	Reasons  []string `json:"reasons,omitempty"`  // why it is not ready, one per dependency
	Degraded []string `json:"degraded,omitempty"` // what is missing but can be done without
}

// State asks every check.
func (h *Health) State() State {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var s State
	if h.stopping.Load() {
		s.Reasons = append(s.Reasons, "stopping")
	}
	if len(h.checks) == 0 {
		s.Reasons = append(s.Reasons, "starting")
	}
	for _, c := range h.checks {
		if why := c.ask(); why == "" {
			continue
		} else if c.soft {
			s.Degraded = append(s.Degraded, c.name+": "+why)
		} else {
			s.Reasons = append(s.Reasons, c.name+": "+why)
		}
	}
	s.Reasons, s.Degraded = slices.Compact(s.Reasons), slices.Compact(s.Degraded)
	s.Ready = len(s.Reasons) == 0
	return s
}

func (h *Health) serveReady(w http.ResponseWriter, _ *http.Request) {
	s := h.State()
	w.Header().Set("Content-Type", "application/json")
	if !s.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(s)
}

// opsServer is the listener and server of the ops address.
type opsServer struct {
	listener net.Listener
	server   *http.Server
}

func (o opsServer) Addr() net.Addr { return o.listener.Addr() }
func (o opsServer) Close() error   { return o.server.Close() }

func (s *Shell) serveOps(addr string) (opsServer, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return opsServer{}, fmt.Errorf("OPS_ADDR: listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.Health.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Registry, promhttp.HandlerOpts{}))
	mux.Handle("/debug/loglevel", s.Level)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	o := opsServer{l, &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}}
	go func() { _ = o.server.Serve(l) }() // ends with Close
	return o, nil
}

// Healthcheck asks the /readyz of the process that listens on addr (OPS_ADDR) on this machine or in this
// container. It returns an exit code and says on stderr what is wrong.
func Healthcheck(addr string, stderr io.Writer) int {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		fmt.Fprintln(stderr, "OPS_ADDR:", err)
		return ExitConfig
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		fmt.Fprintln(stderr, "OPS_ADDR:", err)
		return ExitConfig
	}
	client := http.Client{Timeout: 3 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		fmt.Fprintln(stderr, "not reachable:", err)
		return ExitError
	}
	defer resp.Body.Close()
	var s State
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil || !s.Ready {
		fmt.Fprintln(stderr, "not ready:", strings.Join(s.Reasons, "; "))
		return ExitError
	}
	return ExitOK
}
