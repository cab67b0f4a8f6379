package client

import (
	"encoding/json"
	"time"
)

// Webhook is one registration.
type Webhook struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	EventName  string `json:"event_name"`
	Method     string `json:"http_method"`
	URL        string `json:"url"`
	AuthHeader string `json:"auth_header"`
	Signature  string `json:"signature"`  // hmac or ed25519
	PublicKey  string `json:"public_key"` // whpk_..., with ed25519
	// DisabledReason is "gone" after six answers of 410, nil where the owner disabled it.
	DisabledReason *string     `json:"disabled_reason"`
	Status         string      `json:"status"`         // active, suspended or disabled
	Conditions     []Condition `json:"conditions"`     // all must hold for an event to be sent
	Stale          string      `json:"stale"`          // send or skip
	MaxPerMinute   *int        `json:"max_per_minute"` // requests to the URL; nil: no limit
	Suspension     *Suspension `json:"suspension"`
	CreatedAt      time.Time   `json:"created_at"`
	UpdatedAt      time.Time   `json:"updated_at"`
	Auth           *Auth       `json:"auth"`           // nil: none; without its secret
	Notify         *Notify     `json:"notify"`         // nil: whom the account says
	SigningSecret  string      `json:"signing_secret"` // only in the answer that made it
	NotifySecret   string      `json:"notify_secret"`  // of Notify.URL; only in the answer that made it
}

// Auth is how requests prove who sends them, beyond an auth header. Answers have no ClientSecret, Certificate or
// PrivateKey, and only they have Subject and ExpiresAt.
type Auth struct {
	Type string `json:"type"` // oauth2 or mtls

	TokenURL     string `json:"token_url,omitempty"`
	ClientID     string `json:"client_id,omitempty"`
	ClientSecret string `json:"client_secret,omitempty"`
	Scope        string `json:"scope,omitempty"`
	Audience     string `json:"audience,omitempty"`

	Certificate string     `json:"certificate,omitempty"` // PEM
	PrivateKey  string     `json:"private_key,omitempty"` // PEM
	Subject     string     `json:"subject,omitempty"`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"`
}

// Notify is whom notices of a webhook's troubles go to.
type Notify struct {
	Emails   []string `json:"emails"`
	URL      string   `json:"url,omitempty"`
	Language string   `json:"language,omitempty"` // en, the default, or pt-BR
}

// Condition is one of those that must hold for an event to be sent. Value is JSON.
type Condition struct {
	Path  string          `json:"path"`
	Op    string          `json:"op"`
	Value json.RawMessage `json:"value"`
}

// Trial is an event to hold conditions against: one of the account's by its id, or a body with the values that the
// CRM's headers would have.
type Trial struct {
	EventID string          `json:"event_id,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`
	Changed []string        `json:"changed,omitempty"`
	Origin  string          `json:"origin,omitempty"`
}

// Verdict is how a webhook's conditions fared.
type Verdict struct {
	Held       bool `json:"held"` // all did: the event would be sent
	Conditions []struct {
		Condition

		Held  bool            `json:"held"`
		Found json.RawMessage `json:"found"` // the value at the path, nil when nothing is there
	} `json:"conditions"`
}

// Suspension is why a webhook's URL is set aside.
type Suspension struct {
	Since    time.Time  `json:"since"`
	Until    *time.Time `json:"until"` // when the next probe is due; nil: by hand
	Reason   string     `json:"reason"`
	Evidence struct {
		Failures int       `json:"failures"`
		FirstAt  time.Time `json:"first_at"`
		LastAt   time.Time `json:"last_at"`
		Statuses []string  `json:"statuses"`
	} `json:"evidence"`
	Parked         *uint64    `json:"parked"` // nil: not known at the moment
	OldestParkedAt *time.Time `json:"oldest_parked_at"`
}

// Change holds the settable members of a webhook. A nil member stays as it is. RemoveAuth removes those of AuthHeader,
// AuthKey and Auth that are nil, RemoveNotify removes Notify.
type Change struct {
	Name, EventName, Method, URL, AuthHeader, AuthKey, Status, Signature, Stale *string
	RemoveAuth, RemoveNotify                                                    bool
	Auth                                                                        *Auth
	Notify                                                                      *Notify
	Conditions                                                                  *[]Condition // in place of those it has
	MaxPerMinute                                                                *int         // 0 removes it
}

func (c Change) data() map[string]any {
	d := map[string]any{}
	for name, v := range map[string]*string{
		"name": c.Name, "event_name": c.EventName, "http_method": c.Method, "url": c.URL,
		"auth_header": c.AuthHeader, "auth_key": c.AuthKey, "status": c.Status, "signature": c.Signature, "stale": c.Stale,
	} {
		if v != nil {
			d[name] = *v
		}
	}
	if c.Conditions != nil {
		d["conditions"] = *c.Conditions
	}
	if c.MaxPerMinute != nil {
		d["max_per_minute"] = nil
		if *c.MaxPerMinute != 0 {
			d["max_per_minute"] = *c.MaxPerMinute
		}
	}
	if c.Auth != nil {
		d["auth"] = *c.Auth
	}
	if c.Notify != nil {
		d["notify"] = *c.Notify
	}
	if c.RemoveAuth {
		for name, given := range map[string]bool{"auth_header": c.AuthHeader != nil, "auth_key": c.AuthKey != nil, "auth": c.Auth != nil} {
			if !given {
				d[name] = nil
			}
		}
	}
	if c.RemoveNotify {
		d["notify"] = nil
	}
	return d
}

// Notification is the duty to notify one webhook of one event, with its state and history.
type Notification struct {
	ID            string      `json:"id"`
	WebhookID     string      `json:"webhook_id"`
	EventID       string      `json:"event_id"`
	EventName     string      `json:"event_name"`
	State         string      `json:"state"`
	Reason        string      `json:"reason"`
	Sends         int         `json:"sends"`
	AttemptsMade  int         `json:"attempts_made"` // of the current send
	NextAttemptAt *time.Time  `json:"next_attempt_at"`
	ReplayID      string      `json:"replay_id"`
	CreatedAt     time.Time   `json:"created_at"`
	UpdatedAt     time.Time   `json:"updated_at"`
	Attempts      []Attempt   `json:"attempts"`
	Explain       Explanation `json:"explain"`
	Partial       bool        `json:"partial"` // older attempts are not shown
	// LastAttempt is set in lists, instead of Attempts.
	LastAttempt *Attempt `json:"last_attempt"`
}

// Ended reports whether nothing more happens by itself.
func (n *Notification) Ended() bool {
	return n.State == "delivered" || n.State == "permanently_failed" || n.State == "cancelled"
}

// Event is an event, its notifications, and the webhooks without one.
type Event struct {
	ID              string         `json:"id"`
	EventName       string         `json:"event_name"`
	StoredAt        time.Time      `json:"stored_at"`
	Bytes           int            `json:"bytes"`
	TransactionUUID string         `json:"transaction_uuid"`
	DocumentID      string         `json:"document_id"`
	Origin          string         `json:"origin"`
	Changed         []string       `json:"changed"`
	Notifications   []Notification `json:"notifications"`
	Unmatched       []Unmatched    `json:"unmatched"`
	Explain         *Explanation   `json:"explain"` // while it waits for its notifications
	Partial         bool           `json:"partial"` // some notifications or webhooks are not shown
}

// Unmatched is a webhook that an event led to no notification for.
type Unmatched struct {
	WebhookID string          `json:"webhook_id"`
	Why       string          `json:"why"`       // other_name, condition, registered_later or disabled
	Condition json.RawMessage `json:"condition"` // the first one that does not hold
	Found     json.RawMessage `json:"found"`     // the value that the condition found
}

// Usage is an account's usage in some time.
type Usage struct {
	AccountID     string    `json:"account_id"`
	From          time.Time `json:"from"`
	To            time.Time `json:"to"`
	Events        uint64    `json:"events"`
	EventBytes    uint64    `json:"event_bytes"`
	Notifications uint64    `json:"notifications"`
	Attempts      uint64    `json:"attempts"`
	Delivered     uint64    `json:"delivered"` // attempts
	Failed        uint64    `json:"failed"`    // attempts
}

// Stats are the numbers of a webhook in one step.
type Stats struct {
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Attempts struct {
		Delivered uint64 `json:"delivered"`
		Failed    uint64 `json:"failed"`
	} `json:"attempts"`
	Reasons      map[string]uint64 `json:"reasons"`
	SuccessShare *float64          `json:"success_share"` // nil without attempts
	Duration     struct {
		P50 *float64 `json:"p50"`
		P95 *float64 `json:"p95"`
		P99 *float64 `json:"p99"`
	} `json:"duration_ms"`
	Notifications map[string]uint64 `json:"notifications"`
	HeldBack      uint64            `json:"held_back"` // events, by its conditions
}

// Explanation says why a notification is in its state and what happens when.
type Explanation struct {
	Reason string `json:"reason"`
	Text   string `json:"text"`
	Next   string `json:"next"`
}

// Attempt is one HTTP request to a receiver. WebhookID, NotificationID and State are set in a tail.
type Attempt struct {
	WebhookID      string    `json:"webhook_id"`
	NotificationID string    `json:"notification_id"`
	State          string    `json:"state"` // of the notification, after the attempt
	Number         int       `json:"number"`
	Send           int       `json:"send"`
	StartedAt      time.Time `json:"started_at"`
	Outcome        string    `json:"outcome"` // delivered or failed
	Reason         string    `json:"reason"`
	HTTPStatus     int       `json:"http_status"`
	Detail         *string   `json:"detail"` // one sentence with the cause of a failure
	DurationMS     float64   `json:"duration_ms"`
	Phases         struct {
		DNS       float64 `json:"dns"`
		Connect   float64 `json:"connect"`
		TLS       float64 `json:"tls"`
		FirstByte float64 `json:"first_byte"`
	} `json:"phases_ms"`
	ResponseBody string `json:"response_body"`
}

// Replay is a job that sends a range of past events to one webhook again.
type Replay struct {
	ID               string    `json:"id"`
	WebhookID        string    `json:"webhook_id"`
	State            string    `json:"state"`   // preview, running, paused, done or cancelled
	Problem          string    `json:"problem"` // why it ended or paused by itself
	Only             string    `json:"notification_state"`
	From             time.Time `json:"from"`
	To               time.Time `json:"to"`
	Events           uint64    `json:"events"`
	Bytes            uint64    `json:"bytes"`
	EstimatedSeconds float64   `json:"estimated_seconds"`
	Rate             float64   `json:"rate"` // per second
	Sent             uint64    `json:"sent"`
	Skipped          uint64    `json:"skipped"` // still on their way, or not in the state asked for
	Total            uint64    `json:"total"`
}

// Erasure is a job that erases an account's events.
type Erasure struct {
	ID         string            `json:"id"`
	State      string            `json:"state"` // running, done or failed
	Kind       string            `json:"kind"`  // of the id that it is about: document_id, transaction_uuid or event_id
	Hash       string            `json:"hash"`  // a keyed hash of that id
	Matched    int               `json:"matched"`
	Erased     map[string]uint64 `json:"erased"` // messages by stream
	NotReached []struct {
		Place string `json:"place"`
		Why   string `json:"why"`
	} `json:"not_reached"`
	Problem   string    `json:"problem"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// EraseInput names what to erase. Exactly one member is set.
type EraseInput struct {
	DocumentID      string `json:"document_id,omitempty"`
	TransactionUUID string `json:"transaction_uuid,omitempty"`
	EventID         string `json:"event_id,omitempty"`
}

// AuditRecord is one change: who made it, and the object before and after, as the API shows it.
type AuditRecord struct {
	ID      string          `json:"id"`
	At      time.Time       `json:"at"`
	Account string          `json:"account_id"`
	Actor   AuditActor      `json:"actor"`
	Action  string          `json:"action"` // the operationId of the call
	Object  AuditObject     `json:"object"`
	Before  json.RawMessage `json:"before"` // null for a new object
	After   json.RawMessage `json:"after"`  // null for a deleted object
}

// AuditActor is who made a change.
type AuditActor struct {
	Kind    string `json:"kind"` // token, jwt, console or operator
	Name    string `json:"name"` // the subject of a JWT, or tok_<8 hex>
	Address string `json:"address"`
}

// AuditObject names the changed object.
type AuditObject struct {
	Kind string `json:"kind"` // webhook, notification, replay, account or portal_link
	ID   string `json:"id"`
}

// Accepted is where an event was stored.
type Accepted struct {
	EventID   string `json:"event_id"`
	Stream    string `json:"stream"`
	Sequence  uint64 `json:"sequence"`
	Duplicate bool   `json:"duplicate"`
}

// PortalLink describes a link into the console. Zero values stand for the API's defaults.
type PortalLink struct {
	TTL        int    `json:"ttl,omitempty"`         // seconds until which it can be used, 60 to 86,400; 900 by default
	SessionTTL int    `json:"session_ttl,omitempty"` // seconds that its session lasts, 60 to 86,400; 3,600 by default
	Scope      string `json:"scope,omitempty"`       // read (the default) or write
	WebhookID  string `json:"webhook_id,omitempty"`  // the session sees only this one
	Language   string `json:"language,omitempty"`    // en or pt-BR; as the browser asks by default
	Theme      *Theme `json:"theme,omitempty"`
}

// Theme is how the console looks in a session. Colours are #rrggbb and must be readable on its pages.
type Theme struct {
	Accent     string `json:"accent,omitempty"`
	AccentDark string `json:"accent_dark,omitempty"`
	LogoURL    string `json:"logo_url,omitempty"`
}

// CreatedLink is a link that opens the console once.
type CreatedLink struct {
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expires_at"`
}
