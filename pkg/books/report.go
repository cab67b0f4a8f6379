package books

import (
	"time"

	"gancho/pkg/notification"
)

// Report is the finding of one audit.
type Report struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"` // who keeps the books
	Counts Counts    `json:"counts"`
	// Open are the sends on their way, by state; Unaccounted ones are not among them.
	Open map[notification.State]uint64 `json:"open"`
	// Unaccounted is how many sends neither ended nor are carried by a message: 0 when the books balance.
	Unaccounted uint64 `json:"unaccounted"`
	// Accounts are those with unaccounted sends, most first, at most maxAccounts.
	Accounts []Account `json:"accounts,omitempty"`
	// Stuck names unaccounted sends, at most maxStuck.
	Stuck []Stuck `json:"stuck,omitempty"`
	// Since when the longest-waiting send is in its state; zero when none is.
	OldestPending time.Time `json:"oldest_pending,omitzero"`
	OldestParked  time.Time `json:"oldest_parked,omitzero"`
	// MostOverdue is when the most overdue retry should have been made; zero when none is overdue.
	MostOverdue time.Time `json:"most_overdue,omitzero"`
	// Orphans are messages scheduled on RETRIES for sends that ended.
	Orphans uint64 `json:"orphans"`
	// Repairs counts the repairs of this process, by kind.
	Repairs map[string]uint64 `json:"repairs,omitempty"`
}

// Account is one with unaccounted sends.
type Account struct {
	ID          string `json:"account_id"`
	Unaccounted uint64 `json:"unaccounted"`
}

// Stuck is an unaccounted send.
type Stuck struct {
	Account        string             `json:"account_id"`
	WebhookID      string             `json:"webhook_id"`
	NotificationID string             `json:"notification_id"`
	Send           int                `json:"send"`
	State          notification.State `json:"state"` // the last one known
	Since          time.Time          `json:"since"`
}

const (
	maxAccounts = 20
	maxStuck    = 100
)

// Balanced reports whether every send ended or is on its way.
func (r *Report) Balanced() bool {
	c := r.Counts
	return r.Unaccounted == 0 &&
		c.Matched == c.Delivered+c.PermanentlyFailed+c.Cancelled+r.Open[notification.Pending]+r.Open[notification.Retrying]+r.Open[notification.Parked]
}
