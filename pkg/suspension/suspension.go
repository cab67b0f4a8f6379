package suspension

import (
	"strconv"
	"strings"
	"time"

	"gancho/pkg/wireversion"
)

// A Key names the unit that is suspended: one account's notifications to one
// destination URL. It is comparable and safe to use as a map key.
type Key struct {
	// Account is the account's id, [A-Za-z0-9_-]{1,64}.
	Account string
	// URLKey is the first 128 bits of the SHA-256 of the normalised URL, as 32
	// hex digits.
	URLKey string
}

// String is "<account>.<url_key>": the flag's key in the bucket SUSPENSIONS.
func (k Key) String() string { return k.Account + "." + k.URLKey }

// ParseKey is the inverse of Key.String. It reports false for anything else.
func ParseKey(s string) (Key, bool) {
	account, urlKey, ok := strings.Cut(s, ".")
	if !ok || account == "" || urlKey == "" || strings.Contains(urlKey, ".") {
		return Key{}, false
	}
	return Key{Account: account, URLKey: urlKey}, true
}

// A Result is the outcome of one attempt, as the journal records it.
type Result struct {
	// At is when the attempt ended, by the dispatcher's clock. A time in the
	// future counts as now.
	At time.Time
	// Delivered says that the receiver answered with a timely 2xx.
	Delivered bool
	// Reason is the failure's word of the closed list (timeout, dns, ...);
	// empty when Delivered.
	Reason string
	// Status is the HTTP status, 0 when there was none.
	Status int
	// Probe says that the attempt was the probe of a suspension, Trip of which.
	Probe bool
	Trip  string
	// ID is <notification>:<send>:<attempt>, for logs only.
	ID string
}

// label is how a failure appears in Evidence.Statuses.
func (r Result) label() string {
	if r.Status > 0 {
		return strconv.Itoa(r.Status)
	}
	return r.Reason
}

// An Observation is one Result of one URL with its place in the journal.
type Observation struct {
	Key Key
	// URLHost is the URL's host, for people to read. It must be the same in
	// every observation of a key.
	URLHost string
	// Seq is the record's stream sequence in the journal: at least 1, growing.
	// It makes a record that is seen twice count once.
	Seq    uint64
	Result Result
}

// State of a (account, URL).
type State string

const (
	// Active URLs have no flag. The word appears only in the Flag of an AtRisk
	// transition.
	Active State = "active"
	// Suspended URLs get no request.
	Suspended State = "suspended"
	// Probing URLs get one request, which finds out.
	Probing State = "probing"
)

// Reasons of a suspension.
const (
	ReasonAlwaysFailing = "always_failing"
	ReasonByHand        = "by_hand"
)

// ReasonCredentialsRefused is a reason of an at_risk, as ReasonAlwaysFailing is: the last answers were 401 or 403.
const ReasonCredentialsRefused = "credentials_refused"

// Evidence is why a URL was suspended.
type Evidence struct {
	// Failures is the number of failures in the window at the moment of the
	// trip, plus one for each failed probe since.
	Failures int       `json:"failures"`
	FirstAt  time.Time `json:"first_at,omitzero"`
	LastAt   time.Time `json:"last_at,omitzero"`
	// Statuses are the last few different outcomes, oldest first, at most four:
	// an HTTP status ("500") or, where there was none, a reason ("timeout").
	Statuses []string `json:"statuses"`
}

// A Probe is the one attempt that finds out whether a suspended URL works.
type Probe struct {
	StartedAt time.Time `json:"started_at"`
	// By names the dispatcher that makes it.
	By string `json:"by"`
}

// A Flag says that a URL is suspended. Its JSON is the value in the bucket
// SUSPENSIONS; a URL without a flag is active.
type Flag struct {
	// Schema is 0 (the first) but for what only a newer version can read; see gancho/pkg/wireversion.
	Schema  int    `json:"schema,omitempty"`
	Account string `json:"account"`
	URLKey  string `json:"url_key"`
	URLHost string `json:"url_host"`
	State   State  `json:"state"`
	// Trip names this stretch of the suspension. A failed probe opens a new
	// stretch with a new name, so the steps of an older one can be
	// distinguished. It is made of journal positions, never of chance.
	Trip string `json:"trip"`
	// Since is when the suspension began; failed probes do not change it.
	Since time.Time `json:"since"`
	// Until is when the next probe is due. Zero: never, only a resume helps. In
	// an AtRisk transition: when the URL will be suspended at this rate.
	Until time.Time `json:"until,omitzero"`
	// Trips counts consecutive stretches: 1 at first, one more for each failed
	// probe, and not from 1 again if the URL was suspended a short while ago.
	Trips    int      `json:"trips"`
	ByHand   bool     `json:"by_hand"`
	Reason   string   `json:"reason"`
	Evidence Evidence `json:"evidence"`
	// Probe is set in state Probing.
	Probe *Probe `json:"probe,omitempty"`
}

// Key of the flag's URL.
func (f Flag) Key() Key { return Key{Account: f.Account, URLKey: f.URLKey} }

// ProbeDue reports whether a probe may start at now: Until has come, or the
// probe that was started has been silent for longer than patience, which is as
// long as one can take. A suspension by hand is never probed, nor one that a
// newer version wrote.
func (f Flag) ProbeDue(now time.Time, patience time.Duration) bool {
	switch {
	case f.ByHand || f.Until.IsZero() || wireversion.Check(f.Schema) != nil:
		return false
	case f.State == Probing && f.Probe != nil:
		return now.Sub(f.Probe.StartedAt) > patience
	}
	return !now.Before(f.Until)
}

// supersedes reports whether f is a later step than other, both of one URL: a
// later suspension, or a later stretch of the same one.
func (f Flag) supersedes(other Flag) bool {
	if !f.Since.Equal(other.Since) {
		return f.Since.After(other.Since)
	}
	return f.Trips > other.Trips || f.ByHand && !other.ByHand
}

// An Event is the name of a transition, as it appears in subjects.
type Event string

// The events.
const (
	EventAtRisk    Event = "at_risk"
	EventSuspended Event = "suspended"
	EventProbing   Event = "probing"
	EventResumed   Event = "resumed"
)

// A Transition is one step of a URL's state.
type Transition struct {
	Event Event
	At    time.Time
	// Flag is the flag after the step; for EventResumed the one that was
	// removed; for EventAtRisk one of state Active that carries the evidence.
	// Event and Flag.Trip together name the step: the same step published twice has
	// the same name.
	Flag Flag
}

// A Decision is what one call found out about one URL.
type Decision struct {
	Key Key
	// Flag is the store's present record; nil means that the URL is active.
	// Whatever mirrors flags should make its copy agree, unless the copy
	// differs only in being Probing under the same Trip.
	Flag *Flag
	// Transitions are the steps that this call made, in order. Of several
	// callers exactly one gets each step.
	Transitions []Transition
}

// A Command is a suspend or resume by hand (a changed webhook resumes too).
type Command struct {
	Key     Key
	URLHost string
	// Seq is the command's stream sequence. Commands of one key that are not
	// newer than the last one are redeliveries and do nothing. 0: not checked.
	Seq uint64
	// At is when the command was given.
	At time.Time
	// Since is that of the suspension which the bucket SUSPENSIONS holds, zero
	// when it holds none: a resume ends it also when Redis has lost it.
	Since time.Time
	// Revision is that of the URL's last entry in the bucket.
	Revision uint64
}
