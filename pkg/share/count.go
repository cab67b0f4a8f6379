package share

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gancho/pkg/wireversion"
)

// MaxListed is how many accounts a count names, those that hold the most.
const MaxListed = 256

// Open is an account's open work in bytes, by where its notifications are.
type Open struct {
	Pending  int64 `json:"pending,omitzero"`
	Retrying int64 `json:"retrying,omitzero"`
	Parked   int64 `json:"parked,omitzero"`
}

// Sum is all of it.
func (o Open) Sum() int64 { return o.Pending + o.Retrying + o.Parked }

// Work is the open work of the accounts that hold the most.
type Work struct {
	Schema   int             `json:"schema,omitempty"`
	At       time.Time       `json:"at"`
	Position uint64          `json:"position"` // of NOTIFICATIONS: everything up to here is counted
	Accounts map[string]Open `json:"accounts"`
}

// NewWork returns the count at that time and position, with the accounts that hold the most.
func NewWork(at time.Time, position uint64, all map[string]Open) Work {
	return Work{
		At: at, Position: position,
		Accounts: largest(all, func(a, b Open) int { return cmp.Compare(a.Sum(), b.Sum()) }),
	}
}

// Kept is the bytes on CRM_EVENTS of the accounts that hold the most.
type Kept struct {
	Schema   int              `json:"schema,omitempty"`
	At       time.Time        `json:"at"`
	Position uint64           `json:"position"` // of CRM_EVENTS: everything up to here is counted
	Total    int64            `json:"total"`
	Exact    bool             `json:"exact"` // Accounts is counted; without it only Total is known
	Accounts map[string]int64 `json:"accounts,omitempty"`
}

// Largest returns the accounts that hold the most.
func Largest(all map[string]int64) map[string]int64 { return largest(all, cmp.Compare[int64]) }

func largest[V any](all map[string]V, compare func(a, b V) int) map[string]V {
	if len(all) <= MaxListed {
		return maps.Clone(all)
	}
	accounts := slices.Collect(maps.Keys(all))
	slices.SortFunc(accounts, func(a, b string) int { return cmp.Or(compare(all[b], all[a]), strings.Compare(a, b)) })
	out := make(map[string]V, MaxListed)
	for _, a := range accounts[:MaxListed] {
		out[a] = all[a]
	}
	return out
}

// Deferral is where an account stands whose events wait in CRM_EVENTS.
type Deferral struct {
	Schema int       `json:"schema,omitempty"`
	Since  time.Time `json:"since"`
	Store  string    `json:"store"` // the store whose share it had reached
	// From is the lowest sequence that After ever had: the deferral covers no event at or below it.
	From uint64 `json:"from"`
	// After is the sequence up to which the account's events are handled; the one behind it may be handled in part.
	After uint64 `json:"after"`
	// Last is the highest sequence of an event that was acknowledged for the deferral's sake.
	Last uint64 `json:"last"`
	// Tried is the highest sequence of an event that may have been handled in part or whole: what exists of it is
	// looked for first.
	Tried uint64 `json:"tried"`
	// OldestAt is when the oldest waiting event was stored.
	OldestAt time.Time `json:"oldest_at"`
}

// Settings are an operator's settings for an account; zero values are the defaults.
type Settings struct {
	Schema     int     `json:"schema,omitempty"`
	Share      float64 `json:"share,omitzero"`       // instead of ACCOUNT_SHARE, above 0 up to 1
	Webhooks   int     `json:"webhooks,omitzero"`    // instead of WEBHOOKS_PER_ACCOUNT
	IngestRate float64 `json:"ingest_rate,omitzero"` // events a second over HTTP
	// Ages in seconds, not above LOG_MAX_AGE.
	LogMaxAge    int64 `json:"log_max_age,omitzero"`
	FailedMaxAge int64 `json:"failed_max_age,omitzero"`
}

func decode[T any](value []byte, version func(*T) int) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(value, v); err != nil {
		return nil, fmt.Errorf("decode %T: %w", *v, err)
	}
	return v, wireversion.Check(version(v))
}
