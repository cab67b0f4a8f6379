// Package erasures erases events: the payload and the recorded answers of one event, or of all events of a document or
// a transaction, from every stream.
//
// An erasure is a job in the bucket ERASURES, see package jobs. Every step can be repeated, so a job that is
// interrupted begins its pass again.
//
// # A pass
//
// A pass looks for what the job is about in CRM_EVENTS, BODIES, NOTIFICATIONS, RETRIES, PARKED, FAILED, REJECTED_EVENTS
// and QUARANTINE, and by the ids of the events it found in ATTEMPTS. For each notification it first writes a journal
// record: a notification on its way is cancelled, one that has ended keeps its state. Then it erases the messages, and
// the journal's earlier records. Who still holds a message in memory finds that record before it writes its own, so at
// most one more request is made, and nothing is recorded of it.
//
// Passes go on until nothing was found for settle, and until no publisher holds an event that was erased: it may have
// been about to make notifications of it. Then the files of NOTIFICATIONS, RETRIES and PARKED are dropped where these
// streams are empty: the broker does not overwrite a message that was acknowledged or purged there. Where they are not
// empty, View.NotReached names them. It names a cluster's servers, too, that were away: they may learn only which
// messages are gone, and then do not overwrite them.
//
// # What a job remembers
//
// The id that it was asked for, and those of the events, are sealed while it runs and removed when it ends. What stays
// is a keyed hash. With ENCRYPTION_KEY_FILE and the id, an operator can prove that the erasure was about it.
package erasures

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/seal"
	"gancho/services/management/internal/jobs"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

// State of an erasure.
type State = jobs.State

// The states.
const (
	Running       = jobs.Running
	Done    State = "done"
	Failed  State = "failed"
)

// The kinds of ids that an erasure may be about.
const (
	byDocument    = "document_id"
	byTransaction = "transaction_uuid"
	byEvent       = "event_id"
)

// maxOpen is how many erasures an account may have that run or wait for others.
const maxOpen = 100

// job is an erasure as it is stored.
type job struct {
	jobs.Record
	Kind    string            `json:"kind"`
	Hash    string            `json:"hash"`
	Sealed  string            `json:"sealed,omitempty"` // a target; only while it runs
	Matched int               `json:"matched"`
	Erased  map[string]uint64 `json:"erased,omitempty"`
	Left    []string          `json:"left,omitempty"` // streams whose files were not dropped
	Away    []string          `json:"away,omitempty"` // servers that were away while messages were erased
}

// Valid reports whether j is an erasure.
func (j *job) Valid() bool { return j.Kind != "" }

// Adopt does nothing: only the runner changes an erasure.
func (j *job) Adopt(*job) {}

// sealing binds what a job seals to the job.
func (j *job) sealing() []byte { return []byte("erasure/" + j.Key()) }

// target is what a job looks for.
type target struct {
	Value string `json:"value"`
	// Events are the ids of the events found, and Last is the sequence of the newest of them, so that the next runner
	// knows them after their bytes are gone.
	Events []string `json:"events,omitempty"`
	Last   uint64   `json:"last,omitempty"`
}

// View is an erasure as operators see it.
type View struct {
	ID         string            `json:"id" format:"uuid"`
	State      State             `json:"state" enum:"running,done,failed"`
	Kind       string            `json:"kind" enum:"document_id,transaction_uuid,event_id" doc:"the kind of id that it is about"`
	Hash       string            `json:"hash" doc:"a keyed hash of the id, in place of the id"`
	Matched    int               `json:"matched" doc:"events"`
	Erased     map[string]uint64 `json:"erased" nullable:"false" doc:"messages by stream"`
	NotReached []NotReached      `json:"not_reached" nullable:"false" doc:"places that may hold some of it still"`
	Problem    *string           `json:"problem" nullable:"true" doc:"why it failed, or what it waits for"`
	CreatedAt  time.Time         `json:"created_at"`
	UpdatedAt  time.Time         `json:"updated_at"`
}

// NotReached is a place that an erasure cannot reach.
type NotReached struct {
	Place string `json:"place"`
	Why   string `json:"why"`
}

func (j *job) view() View {
	v := View{
		ID: j.ID, State: j.State, Kind: j.Kind, Hash: j.Hash, Matched: j.Matched, Erased: map[string]uint64{}, CreatedAt: j.CreatedAt, UpdatedAt: j.UpdatedAt,
		NotReached: []NotReached{
			{"backups", "copies made before it; restoring one brings the events back, so erase again afterwards"},
			{"receivers", "they have what was delivered to them"},
		},
	}
	maps.Copy(v.Erased, j.Erased)
	for _, stream := range j.Left {
		v.NotReached = append(v.NotReached, NotReached{stream, "messages that had left it before stay in its files until the broker writes these again, as others pass through it"})
	}
	for _, server := range j.Away {
		v.NotReached = append(v.NotReached, NotReached{"server " + server, "it was away while messages were erased, and does not overwrite what it missed; remove its store and start it while all others run: they give it what is left"})
	}
	if j.Problem != "" {
		v.Problem = &j.Problem
	}
	return v
}

// Service manages erasures and runs them. It is safe for concurrent use.
type Service struct {
	bus    *bus.Bus
	jobs   *jobs.Store[job, *job]
	keys   *seal.Keyring
	settle time.Duration
}

// New returns a service on the bucket ERASURES.
func New(b *bus.Bus, bucket *bus.Bucket, keys *seal.Keyring, log *zap.Logger) *Service {
	return &Service{bus: b, jobs: jobs.NewStore[job](bucket, rules, log.Named("erasures")), keys: keys, settle: settle}
}

// Input is a request to erase. Exactly one member is given.
type Input struct {
	DocumentID      webhooks.Field[string] `json:"document_id"`
	TransactionUUID webhooks.Field[string] `json:"transaction_uuid"`
	EventID         webhooks.Field[string] `json:"event_id"`
}

var transaction = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

func (in Input) parse() (kind, value string, err error) {
	var problems problem.List
	given := 0
	take := func(name string, f webhooks.Field[string], good func(string) bool, form string) {
		switch {
		case !f.Present || f.Null:
			return
		case !good(f.Value):
			problems.Add("/data/"+name, "bad_id", name+" must be "+form)
		}
		given++
		kind, value = name, f.Value
	}
	take(byDocument, in.DocumentID, func(s string) bool {
		n := utf8.RuneCountInString(s)
		return n >= 1 && n <= 128
	}, "a text of 1 to 128 characters, as document.id has it")
	take(byTransaction, in.TransactionUUID, transaction.MatchString, "1 to 128 characters of [A-Za-z0-9_-]")
	take(byEvent, in.EventID, func(s string) bool { return uuid.Validate(s) == nil && len(s) == 36 }, "a UUID")
	if given != 1 && len(problems) == 0 {
		problems.Add("/data", "required", "give exactly one of document_id, transaction_uuid and event_id")
	}
	if kind == byEvent && len(problems) == 0 {
		value = uuid.MustParse(value).String()
	}
	return kind, value, problems.Err()
}

// Create begins an erasure.
func (s *Service) Create(ctx context.Context, account string, in Input) (View, error) {
	kind, value, err := in.parse()
	if err != nil {
		return View{}, err
	}
	if len(s.jobs.List(account, func(j *job) bool { return j.State == Running })) >= maxOpen {
		return View{}, problem.New(problem.Conflict, "too_many_erasures", fmt.Sprintf("this account has %d erasures that have not ended; wait for them", maxOpen))
	}
	j := &job{Record: jobs.New(account, Running), Kind: kind, Hash: s.keys.MAC("erasures", []byte(account+"\x00"+kind+"\x00"+value))}
	if err := s.seal(j, &target{Value: value}); err != nil {
		return View{}, err
	}
	if err := s.jobs.Create(ctx, j); err != nil {
		return View{}, err
	}
	return j.view(), nil
}

func (s *Service) seal(j *job, t *target) error {
	text, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode erasure: %w", err)
	}
	j.Sealed = s.keys.Seal(text, j.sealing())
	return nil
}

func (s *Service) unseal(j *job) (*target, error) {
	text, err := s.keys.Open(j.Sealed, j.sealing())
	if err != nil {
		return nil, err
	}
	var t target
	if err := json.Unmarshal(text, &t); err != nil {
		return nil, fmt.Errorf("decode erasure: %w", err)
	}
	return &t, nil
}

// Get returns the account's erasure.
func (s *Service) Get(ctx context.Context, account, id string) (View, error) {
	j, err := s.jobs.Get(ctx, account, id)
	if err != nil {
		return View{}, err
	}
	return j.view(), nil
}

// List returns the account's erasures, newest first. It may be behind a little.
func (s *Service) List(account string) []View {
	views := []View{}
	for _, j := range s.jobs.List(account, func(*job) bool { return true }) {
		views = append(views, j.view())
	}
	return views
}
