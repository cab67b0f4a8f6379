// Package portal makes links into the console for people without a token: the customers of a CRM that shows the
// console as a part of itself.
//
// A link is a sealed text that says for which account, webhook and rights it is good, and until when. Nothing is
// stored before its use. Its use is an entry in the bucket ENDED_SESSIONS, made only where there is none, so of all
// replicas one lets one browser in.
package portal

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"gancho/pkg/event"
	"gancho/pkg/seal"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/revocation"
	"gancho/services/management/internal/webhooks"
)

// Seconds that a link and its session may last, and do where nothing is said.
const (
	minTTL            = 60
	maxTTL            = 24 * 60 * 60
	defaultTTL        = 15 * 60
	defaultSessionTTL = 60 * 60
)

// Rights of a session.
const (
	ScopeRead  = "read"
	ScopeWrite = "write"
)

// Grant is the permissions and the look of a link's session.
type Grant struct {
	// Issuer is the public name of the configured token that made the link, "" for a JWT. The session ends with it.
	Issuer   string `json:"i,omitempty"`
	By       string `json:"b,omitempty"` // the name of who made it, for records of changes
	Webhook  string `json:"w,omitempty"` // "": all of the account's
	Write    bool   `json:"x,omitempty"`
	Language string `json:"l,omitempty"` // "": as the browser asks
	Theme    Theme  `json:"t,omitzero"`
}

// Link is an invitation into one account's console.
type Link struct {
	Grant

	ID         string    `json:"id"`
	Account    string    `json:"a"`
	SessionTTL int       `json:"s"` // seconds
	Ends       time.Time `json:"e"` // the time until which it can be used
}

// Input holds the settings that a caller may ask for.
type Input struct {
	TTL        webhooks.Field[int]    `json:"ttl"`
	SessionTTL webhooks.Field[int]    `json:"session_ttl"`
	Scope      webhooks.Field[string] `json:"scope"`
	WebhookID  webhooks.Field[string] `json:"webhook_id"`
	Language   webhooks.Field[string] `json:"language"`
	Theme      webhooks.Field[Theme]  `json:"theme"`
}

// Service is safe for concurrent use.
type Service struct {
	keys        *seal.Keyring
	used        *revocation.List
	hooks       *webhooks.Service
	light, dark Palette
}

// New returns a service. light and dark are the console's palettes, which themes are checked against.
func New(keys *seal.Keyring, used *revocation.List, hooks *webhooks.Service, light, dark Palette) *Service {
	return &Service{keys: keys, used: used, hooks: hooks, light: light, dark: dark}
}

const sealedAs = "gancho portal link"

// Create makes a link into an account and returns its sealed form. issuer and by are as in Grant.
func (s *Service) Create(ctx context.Context, account, issuer, by string, in Input) (string, Link, error) {
	l := Link{
		Grant: Grant{Issuer: issuer, By: by, Webhook: in.WebhookID.Value, Write: in.Scope.Value == ScopeWrite, Language: in.Language.Value, Theme: in.Theme.Value},
		ID:    rand.Text(), Account: account,
	}
	var problems problem.List
	seconds := func(name string, f webhooks.Field[int], fallback int) int {
		switch {
		case !f.Present:
			return fallback
		case f.Null || f.Value < minTTL || f.Value > maxTTL:
			problems.Add("/data/"+name, "bad_ttl", fmt.Sprintf("%s must be a whole number of seconds from %d to %d", name, minTTL, maxTTL))
		}
		return f.Value
	}
	l.Ends = time.Now().Add(time.Duration(seconds("ttl", in.TTL, defaultTTL)) * time.Second).UTC().Truncate(time.Second)
	l.SessionTTL = seconds("session_ttl", in.SessionTTL, defaultSessionTTL)
	if v := in.Scope; v.Present && v.Value != ScopeRead && v.Value != ScopeWrite {
		problems.Add("/data/scope", "bad_scope", "scope can be read or write")
	}
	if v := in.Language; v.Present && !v.Null && v.Value != "en" && v.Value != "pt-BR" {
		problems.Add("/data/language", "bad_language", "language can be en or pt-BR")
	}
	if v := in.WebhookID; v.Present && !v.Null {
		_, err := s.hooks.Get(ctx, account, v.Value)
		if err != nil && problem.Of(err).Kind != problem.Missing {
			return "", Link{}, err
		}
		if err != nil {
			problems.Add("/data/webhook_id", "unknown_webhook", "this account has no webhook with that id")
		}
	}
	l.Theme.check(s.light, s.dark, &problems)
	if err := problems.Err(); err != nil {
		return "", Link{}, err
	}
	plain, err := json.Marshal(l)
	if err != nil {
		return "", Link{}, fmt.Errorf("encode a portal link: %w", err)
	}
	return s.keys.Seal(plain, []byte(sealedAs)), l, nil
}

// The errors of a link that opens no session.
var (
	ErrBad     = errors.New("the text is not a portal link of this installation")
	ErrExpired = errors.New("the portal link has expired")
	ErrUsed    = errors.New("the portal link was used before")
)

// Open returns a link that can still be used, as far as this process knows. It does not use it up. With ErrExpired and
// ErrUsed it returns the link too, for the look and the language of the answer.
func (s *Service) Open(sealed string) (Link, error) {
	plain, err := s.keys.Open(sealed, []byte(sealedAs))
	if err != nil {
		return Link{}, ErrBad
	}
	var l Link
	switch err := json.Unmarshal(plain, &l); {
	case err != nil || l.ID == "" || !event.ValidAccount(l.Account):
		return Link{}, ErrBad
	case !time.Now().Before(l.Ends):
		return l, ErrExpired
	case s.used.Ended(l.ID):
		return l, ErrUsed
	}
	return l, nil
}

// Use uses a link up for the session with that id. ErrUsed says that another one was first. Any other error says that
// the link may be used up and no session is open. It returns the link with ErrExpired and ErrUsed as Open does.
func (s *Service) Use(ctx context.Context, sealed, session string) (Link, error) {
	l, err := s.Open(sealed)
	if err != nil {
		return l, err
	}
	switch first, err := s.used.Take(ctx, l.ID, session); {
	case err != nil:
		return Link{}, err
	case !first:
		return l, ErrUsed
	}
	return l, nil
}
