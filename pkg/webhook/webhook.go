// Package webhook holds the registrations: the record of a webhook, the rules of registration, and which webhooks
// an event matches.
package webhook

import (
	"cmp"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/condition"
	"gancho/pkg/seal"
	"gancho/pkg/wireversion"
)

// Status is the owner's setting. Suspension is not part of it: it belongs to the URL, not to the webhook.
type Status string

// The states an owner can choose.
const (
	Active   Status = "active"
	Disabled Status = "disabled"
)

// Signature is how the requests of a webhook are signed. Its zero value stands for HMAC.
type Signature string

// The signatures an owner can choose: a secret that both sides hold, or a key pair of which the receiver has the
// public half.
const (
	HMAC    Signature = "hmac"
	Ed25519 Signature = "ed25519"
)

// Gone is the reason of a webhook that was disabled because its receiver answered 410 to all attempts of one send.
const Gone = "gone"

// Send and Skip say of a webhook what becomes of a notification that waited until a later event of the same document
// was delivered to it. Send is the default.
const (
	Send = "send"
	Skip = "skip"
)

// MostPerMinute is the highest MaxPerMinute.
const MostPerMinute = 60_000

// Webhook is one registration as it is stored: account, event, destination. A value is immutable once
// it is shared; a change is a new value.
type Webhook struct {
	Schema    int     `json:"schema,omitempty"` // see gancho/pkg/wireversion
	ID        string  `json:"id"`               // UUID
	Account   string  `json:"account_id"`
	Name      string  `json:"name"`
	EventName Pattern `json:"event_name"`
	Method    string  `json:"http_method"`
	URL       string  `json:"url"` // normalised
	// URLGiven is the URL as its owner wrote it, when that differs from URL.
	URLGiven   string    `json:"url_given,omitempty"`
	AuthHeader string    `json:"auth_header,omitempty"`
	AuthKey    string    `json:"auth_key,omitempty"` // sealed, see SealContext
	Auth       *Auth     `json:"auth,omitempty"`
	Signature  Signature `json:"signature,omitempty"` // of the first secret
	Secrets    []Secret  `json:"secrets"`             // newest first; the first always signs
	Status     Status    `json:"status"`
	// DisabledAt is when Status became Disabled; zero for an active webhook, and for one that was disabled by a version
	// that did not store it.
	DisabledAt time.Time `json:"disabled_at,omitzero"`
	// DisabledReason is Gone, or "" where the owner disabled it.
	DisabledReason string    `json:"disabled_reason,omitempty"`
	Notify         *Notify   `json:"notify,omitempty"`
	Kind           string    `json:"kind,omitempty"` // "" or KindNotice
	CreatedAt      time.Time `json:"created_at"`
	UpdatedAt      time.Time `json:"updated_at"`
	// Conditions must all hold for an event to be matched.
	Conditions []condition.Condition `json:"conditions,omitempty"`
	// Stale is Skip, or "" where notifications are sent although they are stale.
	Stale string `json:"stale,omitempty"`
	// MaxPerMinute is how many requests its URL gets in a minute at most; 0: as many as it answers well. Of several
	// webhooks with one URL the lowest counts.
	MaxPerMinute int `json:"max_per_minute,omitempty"`
	// Version counts the changes, from 1 for the registration. 0: stored before records were authenticated.
	Version uint64 `json:"version,omitempty"`

	// Revision is that of the registry's entry it was read from.
	Revision uint64 `json:"-"`
	// URLKey is the suspension key of URL. It is derived when a webhook is decoded.
	URLKey string `json:"-"`
	// UUID is ID in binary. It is derived when a webhook is decoded.
	UUID uuid.UUID `json:"-"`
	// conditions are Conditions, compiled. They are derived when a webhook is decoded.
	conditions condition.Set
}

// The schemas of webhooks. One with members that an older version must not ignore has the schema that brought them:
// services of that version leave it alone, and its account's events wait for a newer publisher.
const (
	schemaConditions = 2
	schemaAuth       = 3
	newestSchema     = wireversion.Newest + 2
)

// Secret is a signing secret at rest. During a rotation the old one signs along until it expires. One with a public
// key is the seed of an Ed25519 key pair, any other one an HMAC key.
type Secret struct {
	Sealed    string    `json:"sealed"`
	Public    string    `json:"public,omitempty"`    // base64
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: does not expire
}

func (s Secret) expired(now time.Time) bool { return !s.ExpiresAt.IsZero() && !now.Before(s.ExpiresAt) }

// Decode reads a stored webhook and derives its keys. One that a newer version wrote is wireversion.ErrNewer.
func Decode(b []byte) (*Webhook, error) {
	var w Webhook
	err := json.Unmarshal(b, &w)
	if w.Schema > newestSchema { // regardless of the rest
		return nil, fmt.Errorf("webhook %s: %w", w.ID, wireversion.ErrNewer)
	}
	if err != nil {
		return nil, fmt.Errorf("decode webhook: %w", err)
	}
	id, err := uuid.Parse(w.ID)
	if err != nil {
		return nil, fmt.Errorf("decode webhook %q: its id is not a UUID", w.ID)
	}
	if w.Account == "" || w.URL == "" && w.Kind == "" {
		return nil, fmt.Errorf("decode webhook %s: it has no account or no URL", w.ID)
	}
	if w.Auth != nil && w.Auth.Type != OAuth2 && w.Auth.Type != MTLS {
		return nil, fmt.Errorf("webhook %s: auth of an unknown type: %w", w.ID, wireversion.ErrNewer)
	}
	conditions, problems := condition.Compile(w.Conditions)
	if problems != nil { // this version refuses to store such a webhook: only a newer one understands them
		return nil, fmt.Errorf("webhook %s: condition %s: %w", w.ID, problems[0].Pointer, wireversion.ErrNewer)
	}
	w.UUID, w.URLKey, w.conditions = id, URLKey(w.URL), conditions
	return &w, nil
}

// Encode returns the stored form.
func (w *Webhook) Encode() ([]byte, error) {
	stored := *w
	switch {
	case w.Auth != nil:
		stored.Schema = schemaAuth
	case len(w.Conditions) > 0, w.Stale != "", w.MaxPerMinute > 0:
		stored.Schema = schemaConditions
	}
	return json.Marshal(&stored)
}

// ShownURL is the URL as its owner wrote it. Owners compare it with their own; everything else uses URL.
func (w *Webhook) ShownURL() string { return cmp.Or(w.URLGiven, w.URL) }

// Signs is how its requests are signed.
func (w *Webhook) Signs() Signature { return cmp.Or(w.Signature, HMAC) }

// Key is the webhook's key in the registry: <account_id>.<webhook_id>.
func (w *Webhook) Key() string { return w.Account + "." + w.ID }

// SealContext binds a sealed value to its webhook, its field and the origin of the webhook's URL: a value that is
// copied to another webhook, or whose webhook points elsewhere, does not open. Values of version 0 are not bound to an
// origin.
func (w *Webhook) SealContext(field string) []byte {
	context := w.Account + "/" + w.ID + "/" + field
	if w.Version > 0 {
		context += "/" + Origin(w.URL)
	}
	return []byte(context)
}

// Rebind seals for the origin of w's URL the signing secrets that w shares with before. Secrets that expired before now
// are left out.
func (w *Webhook) Rebind(before *Webhook, keys *seal.Keyring, now time.Time) error {
	var secrets []Secret
	for _, s := range w.Secrets {
		if s.expired(now) {
			continue
		}
		if slices.ContainsFunc(before.Secrets, func(old Secret) bool { return old.Sealed == s.Sealed }) {
			raw, err := keys.Open(s.Sealed, before.SealContext("secret"))
			if err != nil {
				return fmt.Errorf("open a signing secret of webhook %s: %w", w.ID, err)
			}
			s.Sealed = keys.Seal(raw, w.SealContext("secret"))
		}
		secrets = append(secrets, s)
	}
	w.Secrets = secrets
	return nil
}

// Credentials are the opened secrets of a request to the webhook. They are never logged.
type Credentials struct {
	AuthHeader, AuthKey string
	Secrets             [][]byte // raw HMAC keys, newest first
	Ed25519             []ed25519.PrivateKey
	Auth                []byte // the secret of the webhook's Auth, nil without one
}

// Open opens the sealed secrets of w; those that expired before now are omitted.
func (w *Webhook) Open(keys *seal.Keyring, now time.Time) (Credentials, error) {
	c := Credentials{AuthHeader: w.AuthHeader}
	if w.AuthKey != "" {
		key, err := keys.Open(w.AuthKey, w.SealContext("auth_key"))
		if err != nil {
			return Credentials{}, fmt.Errorf("open the auth key of webhook %s: %w", w.ID, err)
		}
		c.AuthKey = string(key)
	}
	if w.Auth != nil {
		var err error
		if c.Auth, err = w.OpenAuth(keys); err != nil {
			return Credentials{}, err
		}
	}
	for _, s := range w.Secrets {
		if s.expired(now) {
			continue
		}
		key, err := keys.Open(s.Sealed, w.SealContext("secret"))
		if err != nil {
			return Credentials{}, fmt.Errorf("open a signing secret of webhook %s: %w", w.ID, err)
		}
		switch {
		case s.Public == "":
			c.Secrets = append(c.Secrets, key)
		case len(key) != ed25519.SeedSize:
			return Credentials{}, fmt.Errorf("a signing key of webhook %s has %d bytes, not %d", w.ID, len(key), ed25519.SeedSize)
		default:
			c.Ed25519 = append(c.Ed25519, ed25519.NewKeyFromSeed(key))
		}
	}
	return c, nil
}

// SealSecret returns a signing secret of w at rest: an HMAC key, or with Ed25519 the seed of a key pair.
func (w *Webhook) SealSecret(keys *seal.Keyring, raw []byte, signature Signature) Secret {
	s := Secret{Sealed: keys.Seal(raw, w.SealContext("secret"))}
	if signature == Ed25519 {
		public, _ := ed25519.NewKeyFromSeed(raw).Public().(ed25519.PublicKey)
		s.Public = base64.StdEncoding.EncodeToString(public)
	}
	return s
}

// PublicKey returns the key that verifies the signatures of w, nil when they are HMACs.
func (w *Webhook) PublicKey() ed25519.PublicKey {
	if len(w.Secrets) == 0 || w.Secrets[0].Public == "" {
		return nil
	}
	key, err := base64.StdEncoding.DecodeString(w.Secrets[0].Public)
	if err != nil {
		return nil
	}
	return key
}

// KeyIDs returns the ids of the keys that w is sealed under, each once. Secrets that expired before now do
// not count.
func (w *Webhook) KeyIDs(now time.Time) ([]string, error) {
	var ids []string
	add := func(sealed string) error {
		id, err := seal.KeyID(sealed)
		if err != nil {
			return fmt.Errorf("webhook %s: %w", w.ID, err)
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
		return nil
	}
	if w.AuthKey != "" {
		if err := add(w.AuthKey); err != nil {
			return nil, err
		}
	}
	if w.Auth != nil {
		sealed, _ := w.Auth.secret()
		if err := add(*sealed); err != nil {
			return nil, err
		}
	}
	secrets := w.Secrets
	if w.Notify != nil && w.Notify.URL != "" {
		secrets = append(slices.Clone(secrets), w.Notify.Secret)
	}
	for _, s := range secrets {
		if s.expired(now) {
			continue
		}
		if err := add(s.Sealed); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// Reseal returns the next version of w with the same secrets sealed under the first key of keys. Secrets that
// expired before now are left out. Nothing else changes, not even UpdatedAt.
func (w *Webhook) Reseal(keys *seal.Keyring, now time.Time) (*Webhook, error) {
	open, err := w.Open(keys, now)
	if err != nil {
		return nil, err
	}
	out := *w
	out.Version++
	if w.AuthKey != "" {
		out.AuthKey = keys.Seal([]byte(open.AuthKey), out.SealContext("auth_key"))
	}
	if w.Auth != nil {
		auth := *w.Auth
		out.Auth = &auth
		out.SealAuth(keys, open.Auth)
	}
	if out.Notify, err = w.Notify.reseal(w, keys); err != nil {
		return nil, fmt.Errorf("open the secret for notices of webhook %s: %w", w.ID, err)
	}
	return &out, out.Rebind(w, keys, now)
}
