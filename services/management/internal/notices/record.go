package notices

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"gancho/pkg/wireversion"
)

// change is a message of WEBHOOK_STATUS as far as a notice needs it, see status.Change.
type change struct {
	Event     string     `json:"event"`
	Account   string     `json:"account_id"`
	WebhookID string     `json:"webhook_id"`
	URLHost   string     `json:"url_host"`
	At        time.Time  `json:"at"`
	Until     *time.Time `json:"until"`
	Reason    string     `json:"reason"`
	Evidence  evidence   `json:"evidence"`
}

type evidence struct {
	Failures int      `json:"failures"`
	Statuses []string `json:"statuses"`
}

// kinds are the changes that owners get notices of.
func kinds() []string {
	return []string{"at_risk", "suspended", "resumed", "disabled", "permanent_failure"}
}

// window is how long at most one notice is sent for a webhook and kind.
const window = time.Hour

// record is what happens to the notices of one webhook and kind.
type record struct {
	Schema    int    `json:"schema,omitempty"`
	Account   string `json:"account_id"`
	WebhookID string `json:"webhook_id"`
	Kind      string `json:"kind"`
	// Counted is the sequence of the newest change in it; an older one was delivered again.
	Counted uint64 `json:"counted"`
	// Began is when the last notice did.
	Began   time.Time `json:"began,omitzero"`
	Waiting *batch    `json:"waiting,omitempty"`
	Sending *sending  `json:"sending,omitempty"`

	revision uint64
}

// batch are changes that are reported together.
type batch struct {
	Count  int       `json:"count"`
	First  time.Time `json:"first"`
	Newest change    `json:"newest"`
}

// sending is a notice on its way.
type sending struct {
	batch

	ID    string    `json:"id"`
	Mail  []string  `json:"mail,omitempty"` // addresses it has not reached
	URL   bool      `json:"url,omitempty"`  // it has not been handed to the dispatchers
	Tries int       `json:"tries"`
	Next  time.Time `json:"next"`
}

func (r *record) key() string { return r.Account + "." + r.WebhookID + "." + r.Kind }

func decode(value []byte, revision uint64) (*record, error) {
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, fmt.Errorf("decode a record of notices: %w", err)
	}
	r.revision = revision
	return &r, wireversion.Check(r.Schema)
}

// count adds a change. It reports false for one that is in already.
func (r *record) count(c change, sequence uint64) bool {
	if sequence <= r.Counted {
		return false
	}
	r.Counted = sequence
	if r.Waiting == nil {
		r.Waiting = &batch{First: c.At}
	}
	r.Waiting.Count++
	r.Waiting.Newest = c
	return true
}

// due reports whether there is something to do now: a notice to begin or to go on with, or a record to forget.
func (r *record) due(now time.Time, window time.Duration) bool {
	if r.Sending != nil {
		return !now.Before(r.Sending.Next)
	}
	return !now.Before(r.Began.Add(window))
}

// begin makes a notice of the waiting changes. It takes over the rest of an unfinished one.
func (r *record) begin(id string, now time.Time, mail []string, url bool) {
	r.Sending = &sending{batch: *r.Waiting, ID: id, Mail: slices.Clone(mail), URL: url, Next: now}
	r.Waiting, r.Began = nil, now
}
