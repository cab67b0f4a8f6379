// Package accounts keeps what operators set for single accounts: their share of the stores, how many webhooks they may
// have, how fast they may send events over HTTP, and how long their history is kept.
package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/share"
	"gancho/pkg/topology"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/webhooks"
)

// The states of an account.
const (
	Active = "active"
	// Deferred: the account holds its share of a store, and its newer events wait in CRM_EVENTS.
	Deferred = "deferred"
)

// View is an account as operators see it. A setting that is null is the default.
type View struct {
	ID         string    `json:"id"`
	Status     string    `json:"status" enum:"active,deferred"`
	Share      *float64  `json:"share" nullable:"true" doc:"the part of each shared store that the account may hold, above 0 up to 1; null: ACCOUNT_SHARE"`
	Webhooks   *int      `json:"webhooks" nullable:"true" doc:"how many webhooks it may have, then 422 too_many_webhooks; null: WEBHOOKS_PER_ACCOUNT"`
	IngestRate *float64  `json:"ingest_rate" nullable:"true" doc:"events a second over HTTP, then 429 account_rate; null: no limit of its own"`
	Retention  Retention `json:"retention"`

	Notify       *webhooks.Notify `json:"notify" doc:"who gets notices about the troubles of webhooks that name no recipient"`
	NotifySecret string           `json:"notify_secret,omitempty" doc:"whsec_..., signs the requests to notify.url; only in the answer that made it"`
}

// Retention is how long an account's history is kept, in seconds; null: LOG_MAX_AGE.
type Retention struct {
	LogMaxAge    *int64 `json:"log_max_age" nullable:"true" doc:"attempts, in seconds"`
	FailedMaxAge *int64 `json:"failed_max_age" nullable:"true" doc:"payloads of permanent failures, in seconds"`
}

// Input holds the settings an operator may change. A member that is absent stays as it is; null removes the setting.
type Input struct {
	Share      webhooks.Field[float64]              `json:"share"`
	Webhooks   webhooks.Field[int]                  `json:"webhooks"`
	IngestRate webhooks.Field[float64]              `json:"ingest_rate"`
	Retention  webhooks.Field[Retaining]            `json:"retention"`
	Notify     webhooks.Field[webhooks.NotifyInput] `json:"notify"`

	// The members that only the service sets. They may be given as they are.
	ID     webhooks.Field[string] `json:"id"`
	Status webhooks.Field[string] `json:"status"`
}

// Retaining is the retention in an Input.
type Retaining struct {
	LogMaxAge    webhooks.Field[int64] `json:"log_max_age"`
	FailedMaxAge webhooks.Field[int64] `json:"failed_max_age"`
}

// The largest values that are accepted.
const (
	maxWebhooks   = 1_000_000
	maxIngestRate = 1_000_000
	minAge        = 60 // seconds
)

// Service is safe for concurrent use.
type Service struct {
	bus       *bus.Bus
	bucket    *bus.Bucket
	hooks     *webhooks.Service
	logMaxAge time.Duration
}

// New returns a service on the bucket ACCOUNTS. logMaxAge is LOG_MAX_AGE, the longest retention.
func New(b *bus.Bus, bucket *bus.Bucket, hooks *webhooks.Service, logMaxAge time.Duration) *Service {
	return &Service{b, bucket, hooks, logMaxAge}
}

// Get returns the account. An account without settings has the defaults.
func (s *Service) Get(ctx context.Context, account string) (View, error) {
	settings, _, err := s.fetch(ctx, account)
	if err != nil {
		return View{}, err
	}
	return s.view(ctx, account, settings), nil
}

// Set changes the account's settings. Changes at the same time are merged.
func (s *Service) Set(ctx context.Context, account string, in Input) (View, error) {
	v, err := s.set(ctx, account, in)
	if err != nil || !in.Notify.Present {
		return v, err
	}
	secret, err := s.hooks.SetAccountNotify(ctx, account, in.Notify)
	if err != nil {
		return View{}, err
	}
	v.Notify, v.NotifySecret = s.hooks.AccountNotify(account), secret
	return v, nil
}

func (s *Service) set(ctx context.Context, account string, in Input) (View, error) {
	for {
		settings, revision, err := s.fetch(ctx, account)
		if err != nil {
			return View{}, err
		}
		if err := s.apply(ctx, account, &settings, in); err != nil {
			return View{}, err
		}
		value, err := json.Marshal(settings)
		if err != nil {
			return View{}, fmt.Errorf("encode an account's settings: %w", err)
		}
		if revision == 0 {
			_, err = s.bucket.Create(ctx, account, value)
		} else {
			_, err = s.bucket.Update(ctx, account, value, revision)
		}
		switch {
		case err == nil:
			return s.view(ctx, account, settings), nil
		case !errors.Is(err, bus.ErrConflict):
			return View{}, problem.Broker(err)
		}
	}
}

func (s *Service) fetch(ctx context.Context, account string) (share.Settings, uint64, error) {
	e, err := s.bucket.Get(ctx, account)
	if errors.Is(err, bus.ErrNotFound) {
		return share.Settings{}, 0, nil
	}
	if err != nil {
		return share.Settings{}, 0, problem.Broker(err)
	}
	settings, err := share.DecodeSettings(e.Value)
	if err != nil {
		return share.Settings{}, 0, problem.Broker(err)
	}
	return *settings, e.Revision, nil
}

func (s *Service) apply(ctx context.Context, account string, to *share.Settings, in Input) error {
	var problems problem.List
	if in.ID.Present && (in.ID.Null || in.ID.Value != account) {
		problems.Add("/data/id", "read_only", "id cannot be changed")
	}
	if in.Status.Present && (in.Status.Null || in.Status.Value != s.status(ctx, account)) {
		problems.Add("/data/status", "read_only", "status cannot be set: an account is deferred while it holds its share of a store")
	}
	set(&problems, "share", in.Share, &to.Share, func(v float64) bool { return v > 0 && v <= 1 }, "a number above 0 up to 1")
	set(&problems, "webhooks", in.Webhooks, &to.Webhooks, func(v int) bool { return v >= 1 && v <= maxWebhooks }, "a whole number from 1 to 1,000,000")
	set(&problems, "ingest_rate", in.IngestRate, &to.IngestRate, func(v float64) bool { return v > 0 && v <= maxIngestRate }, "a number above 0 up to 1,000,000")
	age := func(v int64) bool { return v >= minAge && v <= int64(s.logMaxAge/time.Second) }
	bounds := fmt.Sprintf("whole seconds from %d to %d (LOG_MAX_AGE)", minAge, int64(s.logMaxAge/time.Second))
	if in.Retention.Null {
		to.LogMaxAge, to.FailedMaxAge = 0, 0
	}
	set(&problems, "retention/log_max_age", in.Retention.Value.LogMaxAge, &to.LogMaxAge, age, bounds)
	set(&problems, "retention/failed_max_age", in.Retention.Value.FailedMaxAge, &to.FailedMaxAge, age, bounds)
	return problems.Err()
}

// set takes over one member; the zero value stands for the default.
func set[T any](problems *problem.List, name string, f webhooks.Field[T], to *T, good func(T) bool, bounds string) {
	switch {
	case !f.Present:
	case f.Null:
		var none T
		*to = none
	case !good(f.Value):
		problems.Add("/data/"+name, "out_of_range", name+" must be "+bounds+", or null for the default")
	default:
		*to = f.Value
	}
}

func (s *Service) view(ctx context.Context, account string, settings share.Settings) View {
	return View{
		ID: account, Status: s.status(ctx, account), Share: given(settings.Share), Webhooks: given(settings.Webhooks), IngestRate: given(settings.IngestRate),
		Retention: Retention{given(settings.LogMaxAge), given(settings.FailedMaxAge)},
		Notify:    s.hooks.AccountNotify(account),
	}
}

func given[T comparable](v T) *T {
	var none T
	if v == none {
		return nil
	}
	return &v
}

// statusWithin bounds how long the state of an account is looked for; one that is not found is active.
const statusWithin = time.Second

func (s *Service) status(ctx context.Context, account string) string {
	ctx, cancel := context.WithTimeout(ctx, statusWithin)
	defer cancel()
	bucket, err := s.bus.Bucket(ctx, topology.BucketShares)
	if err != nil {
		return Active
	}
	if _, err := bucket.Get(ctx, "deferred."+account); err != nil {
		return Active
	}
	return Deferred
}
