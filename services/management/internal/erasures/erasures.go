// Package erasures erases events: the payload and the recorded answers of one event, or of all events of a document or
// a transaction, from every stream.
//
// An erasure is a job in the bucket ERASURES. One process runs it, field Runner; another takes it up within
// takeOverAfter when that process dies or stops. Every step can be repeated, so a job that is interrupted begins its
// pass again.
//
// # A pass
//
// A pass looks for what the job is about in CRM_EVENTS, NOTIFICATIONS, RETRIES, PARKED, FAILED, REJECTED_EVENTS and
// QUARANTINE, and by the ids of the events it found in ATTEMPTS. For each notification it first writes a journal
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
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/seal"
	"gancho/pkg/wireversion"
	"gancho/services/management/internal/broadcast"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

// State of an erasure.
type State string

// The states.
const (
	Running State = "running"
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
	Schema    int               `json:"schema,omitempty"` // see gancho/pkg/wireversion
	ID        string            `json:"id"`
	Account   string            `json:"account_id"`
	Kind      string            `json:"kind"`
	Hash      string            `json:"hash"`
	Sealed    string            `json:"sealed,omitempty"` // a target; only while it runs
	State     State             `json:"state"`
	Problem   string            `json:"problem,omitempty"`
	Matched   int               `json:"matched"`
	Erased    map[string]uint64 `json:"erased,omitempty"`
	Left      []string          `json:"left,omitempty"` // streams whose files were not dropped
	Away      []string          `json:"away,omitempty"` // servers that were away while messages were erased
	CreatedAt time.Time         `json:"created_at"`
	UpdatedAt time.Time         `json:"updated_at"`
	Runner    string            `json:"runner,omitempty"`
	BeatAt    time.Time         `json:"beat_at,omitzero"`

	revision uint64
}

func (j *job) key() string { return j.Account + "." + j.ID }

// sealing binds what a job seals to the job.
func (j *job) sealing() []byte { return []byte("erasure/" + j.key()) }

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
	bus     *bus.Bus
	bucket  *bus.Bucket
	keys    *seal.Keyring
	log     *zap.Logger
	name    string // of this process, as a runner
	settle  time.Duration
	changes broadcast.Signal

	mu   sync.Mutex
	jobs map[string]*job // by key, as the bucket has them; values are immutable
}

// New returns a service on the bucket ERASURES.
func New(b *bus.Bus, bucket *bus.Bucket, keys *seal.Keyring, log *zap.Logger) *Service {
	return &Service{bus: b, bucket: bucket, keys: keys, log: log.Named("erasures"), name: uuid.NewString(), settle: settle, jobs: map[string]*job{}}
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
	if s.open(account) >= maxOpen {
		return View{}, problem.New(problem.Conflict, "too_many_erasures", fmt.Sprintf("this account has %d erasures that have not ended; wait for them", maxOpen))
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	j := &job{
		ID: uuid.NewString(), Account: account, Kind: kind, State: Running, CreatedAt: now, UpdatedAt: now,
		Hash: s.keys.MAC("erasures", []byte(account+"\x00"+kind+"\x00"+value)),
	}
	if err := s.seal(j, &target{Value: value}); err != nil {
		return View{}, err
	}
	body, err := json.Marshal(j)
	if err != nil {
		return View{}, fmt.Errorf("encode erasure: %w", err)
	}
	if _, err := s.bucket.Create(ctx, j.key(), body); err != nil {
		return View{}, problem.Broker(err)
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
	j, err := s.fetch(ctx, account, id)
	if err != nil {
		return View{}, err
	}
	return j.view(), nil
}

// List returns the account's erasures, newest first. It may be behind a little.
func (s *Service) List(account string) []View {
	s.mu.Lock()
	defer s.mu.Unlock()
	views := []View{}
	for _, j := range s.jobs {
		if j.Account == account {
			views = append(views, j.view())
		}
	}
	slices.SortFunc(views, func(a, b View) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return views
}

func (s *Service) open(account string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, j := range s.jobs {
		if j.Account == account && j.State == Running {
			n++
		}
	}
	return n
}

func (s *Service) fetch(ctx context.Context, account, id string) (*job, error) {
	if uuid.Validate(id) != nil || len(id) != 36 || !event.ValidAccount(account) {
		return nil, problem.NotFound("erasure")
	}
	e, err := s.bucket.Get(ctx, account+"."+id)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, problem.NotFound("erasure")
	}
	if err != nil {
		return nil, problem.Broker(err)
	}
	return decode(e)
}

func decode(e bus.Entry) (*job, error) {
	j := &job{revision: e.Revision}
	if err := json.Unmarshal(e.Value, j); err != nil {
		return nil, fmt.Errorf("decode erasure %s: %w", e.Key, err)
	}
	if err := wireversion.Check(j.Schema); err != nil {
		return nil, problem.Broker(fmt.Errorf("erasure %s: %w", e.Key, err))
	}
	if j.key() != e.Key {
		return nil, fmt.Errorf("decode erasure %s: it is not one", e.Key)
	}
	return j, nil
}

// store writes j on top of the revision it was read with; bus.ErrConflict when another writer was faster.
func (s *Service) store(ctx context.Context, j *job) error {
	j.UpdatedAt = time.Now().UTC().Truncate(time.Millisecond)
	value, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("encode erasure: %w", err)
	}
	revision, err := s.bucket.Update(ctx, j.key(), value, j.revision)
	if err == nil {
		j.revision = revision
	}
	return err
}
