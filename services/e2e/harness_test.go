package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/redistest"
	"gancho/services/internal/testsystem"
)

// binaries builds every program once for all tests, with the race detector when the tests have it, and
// returns their directory.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "gancho-e2e-")
	if err != nil {
		return "", err
	}
	built = dir
	return dir, testsystem.Build(dir, raceEnabled)
})

// newestBinaries builds the services once more, as the version yet to come (build tag rehearsal), without the race
// detector: the code is the same. So is the broker next to them.
var newestBinaries = sync.OnceValues(func() (string, error) {
	old, err := binaries()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "gancho-e2e-newest-")
	if err != nil {
		return "", err
	}
	builtNewest = dir
	if err := os.Symlink(filepath.Join(old, "nats-server"), filepath.Join(dir, "nats-server")); err != nil {
		return "", err
	}
	return dir, testsystem.BuildWith(dir, false, "rehearsal", "publisher", "dispatcher", "suspension-monitor", "management")
})

// Each is set once, by binaries and newestBinaries.
var built, builtNewest string

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range []string{built, builtNewest} {
		if dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

// system is the whole of Gancho as real processes, with a CRM (the test) and receivers.
type system struct {
	*testsystem.System

	t     *testing.T
	turn  *turn // t as the test system has it
	redis *redistest.Server
	js    jetstream.JetStream

	registered atomic.Int64 // when the latest webhook was, in nanoseconds since 1970
	token      string
	others     map[string]*system // as the owner of a notification that is not the account's, by its id
}

const (
	account = testsystem.Account
	token   = testsystem.Token
)

// newSystem starts broker, Redis and every service, with extra environment for all.
func newSystem(t *testing.T, env ...string) *system {
	t.Helper()
	return newSystemWith(t, testsystem.Options{}, env...)
}

// newSystemWith is newSystem with a broker of its own kind or other programs: Store, MaxStore, Sync and Bin of the
// options count.
func newSystemWith(t *testing.T, o testsystem.Options, env ...string) *system {
	t.Helper()
	if o.Bin == "" {
		var err error
		if o.Bin, err = binaries(); err != nil {
			t.Fatal(err)
		}
	}
	s := &system{t: t, turn: &turn{t}, redis: redistest.Start(t), token: token}
	o.Dir, o.RedisURL = t.TempDir(), s.redis.URL()
	o.Env = append([]string{"RETRY_DELAYS=400ms,400ms,400ms,400ms,400ms", "RETRY_JITTER=0", "SUSPENSION_MIN_FAILURES=1000000"}, env...)
	s.System = testsystem.New(s.turn, o)
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range s.Services() {
				t.Logf("last lines of %s:\n%s", p.Name, p.Output())
			}
		}
		s.Stop()
	})
	nc, err := nats.Connect(s.NATSURL, nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if s.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	return s
}

// stopCleanly asks a process to stop and fails the test unless it exits with 0.
func (s *system) stopCleanly(p *testsystem.Process) {
	s.t.Helper()
	if code, _ := p.Term(); code != 0 {
		s.t.Errorf("%s stopped with exit code %d:\n%s", p.Name, code, p.Output())
	}
}

// call makes an API request and decodes the data of its answer into out, if out is not nil.
func (s *system) call(method, path string, body, out any) int {
	s.t.Helper()
	status, err := s.try(method, path, body, out)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return status
}

func (s *system) try(method, path string, body, out any) (int, error) {
	var payload io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		payload = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(map[string]any{"data": b})
		if err != nil {
			return 0, err
		}
		payload = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, s.APIURL+path, payload)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	if payload != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if out != nil && resp.StatusCode < 300 {
		document := any(&struct{ Data any }{out})
		if _, whole := out.(*list); whole {
			document = out
		}
		if err := json.Unmarshal(raw, document); err != nil {
			return resp.StatusCode, fmt.Errorf("decode %s: %w", raw, err)
		}
	}
	if resp.StatusCode >= 300 {
		return resp.StatusCode, nil
	}
	return resp.StatusCode, nil
}

// hook is a webhook as the API answers it.
type hook struct {
	ID         string `json:"id"`
	Status     string `json:"status"`
	URL        string `json:"url"`
	Suspension *struct {
		Reason string    `json:"reason"`
		Until  time.Time `json:"until"`
		Parked int       `json:"parked"`
	} `json:"suspension"`
}

// register creates a webhook for the event name (or pattern).
func (s *system) register(eventName, url string) hook {
	s.t.Helper()
	var h hook
	status := s.call(http.MethodPost, "/crm/v2/webhooks", map[string]any{
		"name": "test", "event_name": eventName, "http_method": "POST", "url": url,
	}, &h)
	if status != http.StatusCreated {
		s.t.Fatalf("register a webhook: status %d", status)
	}
	s.registered.Store(time.Now().UnixNano())
	return h
}

// settle waits until every webhook counts for the next events: a second after its registration at the
// latest, in practice milliseconds, on a busy machine more.
func (s *system) settle() {
	<-time.After(time.Until(time.Unix(0, s.registered.Load()).Add(time.Second)))
}

// publish publishes an event as the CRM does and returns its transaction_uuid once the broker acknowledged
// it, repeating with the same id while the broker is away.
func (s *system) publish(eventName string) string {
	s.t.Helper()
	s.settle()
	id := uuid.NewString()
	body := eventBody(eventName, id)
	s.Until("the broker acknowledged an event", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := s.js.Publish(ctx, "crm.events."+account+"."+eventName, []byte(body), jetstream.WithMsgID(account+":"+eventName+":"+id))
		return err == nil
	})
	return id
}

// documentID is that of every event whose notification ids are looked for by [ids].
const documentID = "67900a6e0000000000000001"

// eventBody is the event that publish publishes.
func eventBody(eventName, transaction string) string {
	return fmt.Sprintf(`{"event_name":%q,"document":{"id":"`+documentID+`","amount_total":1200.50},"event_timestamp":"2026-01-21T20:58:22.000Z","transaction_uuid":%q}`, eventName, transaction)
}

// note is a notification as the API answers it.
type note struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Reason   string `json:"reason"`
	Attempts []struct {
		Number  int    `json:"number"`
		Send    int    `json:"send"`
		Outcome string `json:"outcome"`
		Reason  string `json:"reason"`
	} `json:"attempts"`
}

// notification asks the API for a notification's state; a 404 is a state of its own.
func (s *system) notification(id string) note {
	s.t.Helper()
	var n note
	if owner := s.others[id]; owner != nil {
		s = owner
	}
	if status, err := s.try(http.MethodGet, "/crm/v2/notifications/"+id, nil, &n); err != nil || status != http.StatusOK {
		n.State = fmt.Sprint("HTTP ", status, err)
	}
	return n
}

// seenID is the header in which a receiver hands its answer the webhook-id.
const seenID = "X-Seen"

// receiver is an endpoint that counts its requests.
type receiver struct {
	*httptest.Server

	mu       sync.Mutex
	requests map[string][]string // Gancho-Attempt, by webhook-id, in order of arrival
	bodies   map[string][]string // likewise
	order    []string            // webhook-ids, in order of arrival
	answer   func(w http.ResponseWriter, attempt string)
}

func newReceiver(t *testing.T, answer func(w http.ResponseWriter, attempt string)) *receiver {
	t.Helper()
	r := &receiver{requests: map[string][]string{}, bodies: map[string][]string{}, answer: answer}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		id, attempt := req.Header.Get("webhook-id"), req.Header.Get("Gancho-Attempt")
		r.mu.Lock()
		r.requests[id] = append(r.requests[id], attempt)
		r.bodies[id] = append(r.bodies[id], string(body))
		r.order = append(r.order, id)
		answer := r.answer
		r.mu.Unlock()
		w.Header().Set(seenID, id)
		answer(w, attempt)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) become(answer func(w http.ResponseWriter, attempt string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *receiver) snapshot() map[string][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string][]string, len(r.requests))
	for id, a := range r.requests {
		out[id] = slices.Clone(a)
	}
	return out
}

func (r *receiver) total() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.order)
}

func succeed(http.ResponseWriter, string) {}

func fail(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusInternalServerError) }

// waitAll waits until each of the notifications that the receiver has seen, and as many as want, has that
// state, and returns them.
func (s *system) waitAll(ids []string, state string) []note {
	s.t.Helper()
	var out []note
	for _, id := range ids {
		var n note
		s.Until(fmt.Sprintf("notification %s is %s", id, state), func() bool {
			n = s.notification(id)
			return n.State == state
		})
		out = append(out, n)
	}
	return out
}

// list is a page of a webhook's notifications.
type list struct {
	Data  []note `json:"data"`
	Links struct {
		Next string `json:"next"`
	} `json:"links"`
}

// waitListed waits until the webhook's notifications in that state are those with the ids, and no others. It is for
// many: a page has 200, where waitAll asks for each.
func (s *system) waitListed(h hook, ids []string, state string) {
	s.t.Helper()
	want := slices.Sorted(slices.Values(ids))
	s.Until(fmt.Sprintf("%d notifications of webhook %s are %s", len(ids), h.ID, state), func() bool {
		var got []string
		for path := "/crm/v2/webhooks/" + h.ID + "/notifications?page[size]=200&state=" + state; path != ""; {
			var page list
			if status, err := s.try(http.MethodGet, path, nil, &page); err != nil || status != http.StatusOK {
				return false
			}
			for _, n := range page.Data {
				got = append(got, n.ID)
			}
			path = strings.TrimPrefix(page.Links.Next, s.APIURL)
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// slowly answers after a while, as slow receivers do.
func slowly(d time.Duration, answer func(w http.ResponseWriter, attempt string)) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, attempt string) {
		<-time.After(d)
		answer(w, attempt)
	}
}
