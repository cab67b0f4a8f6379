package gancho

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// demoReceiver is a webhook's endpoint that remembers its requests. It is safe for concurrent use.
type demoReceiver struct {
	name    string
	webhook uuid.UUID
	answer  func(attempt string, back bool) int // the status
	refuses int                                 // of its first notifications every attempt

	listener net.Listener
	server   *http.Server
	back     atomic.Bool // a dead one that came back

	mu      sync.Mutex
	seen    map[string][]demoRequest // by webhook-id
	bodies  map[string]string        // as published, by webhook-id
	warmUps map[string]bool          // of the events before the tour; true: it came
	refused map[string]bool          // by webhook-id
	mangled int
}

type demoRequest struct {
	attempt  string
	at       time.Time
	accepted bool
}

func alwaysAnswers(string, bool) int { return http.StatusOK }

func failsTwice(attempt string, _ bool) int {
	if attempt < "3" {
		return http.StatusServiceUnavailable
	}
	return http.StatusNoContent
}

func alwaysFails(_ string, back bool) int {
	if back {
		return http.StatusOK
	}
	return http.StatusInternalServerError
}

func (r *demoReceiver) describe() string {
	switch r.name {
	case "flaky":
		return fmt.Sprintf("refuses its first %d for good; fails twice, then accepts", r.refuses)
	case "dead":
		return "answers 500 until it is repaired"
	}
	return "accepts everything"
}

func (r *demoReceiver) start() error {
	r.seen, r.bodies, r.warmUps, r.refused = map[string][]demoRequest{}, map[string]string{}, map[string]bool{}, map[string]bool{}
	var err error
	if r.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	r.server = &http.Server{Handler: http.HandlerFunc(r.serve), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = r.server.Serve(r.listener) }() // ends with stop
	return nil
}

func (r *demoReceiver) stop() { _ = r.server.Close() }

func (r *demoReceiver) url() string { return "http://" + r.listener.Addr().String() + "/webhook" }

func (r *demoReceiver) comeBack() { r.back.Store(true) }

func (r *demoReceiver) serve(w http.ResponseWriter, req *http.Request) {
	at := time.Now()
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	id, attempt := req.Header.Get("webhook-id"), req.Header.Get("Gancho-Attempt")
	status := r.answer(attempt, r.back.Load())
	r.mu.Lock()
	if _, warmUp := r.warmUps[id]; warmUp {
		r.warmUps[id] = true
		r.mu.Unlock()
		w.WriteHeader(http.StatusOK)
		return
	}
	if r.refused[id] {
		status = http.StatusUnprocessableEntity
	}
	r.seen[id] = append(r.seen[id], demoRequest{attempt, at, status < 300})
	if published, known := r.bodies[id]; known && published != string(body) {
		r.mangled++
	}
	r.mu.Unlock()
	w.WriteHeader(status)
}

// expectWarmUp notes a notification from before the tour: the receiver accepts it in any mode, and it
// does not count.
func (r *demoReceiver) expectWarmUp(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warmUps[id] = false
}

// warm reports whether a notification from before the tour came.
func (r *demoReceiver) warm() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(slices.Collect(maps.Values(r.warmUps)), true)
}

// expect notes a notification that will come, with its body.
func (r *demoReceiver) expect(id string, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies[id] = string(body)
	if len(r.refused) < r.refuses {
		r.refused[id] = true
	}
}

func (r *demoReceiver) requests(id string) []demoRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen[id])
}

// strangers counts notifications that no published event leads to.
func (r *demoReceiver) strangers() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.seen {
		if _, known := r.bodies[id]; !known {
			n++
		}
	}
	return n
}

// changed counts requests whose body differs from the published one.
func (r *demoReceiver) changed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mangled
}
