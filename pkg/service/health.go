package service

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// Health knows whether the process can do its job. It is safe for concurrent use.
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

// Require adds a dependency without which the process cannot do its job. ask returns the fault, "" when there
// is none; it must not block.
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
	Degraded []string `json:"degraded,omitempty"` // faults that leave it ready
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
