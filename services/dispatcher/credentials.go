package dispatcher

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"weak"

	"gancho/pkg/delivery"
	"gancho/pkg/seal"
	"gancho/pkg/webhook"
)

// credentials keeps the opened secrets of each webhook, so that a request does not pay for opening them again:
// 5 % of the dispatcher's time. It is safe for concurrent use.
type credentials struct {
	opened sync.Map // webhook key -> opened

	mu     sync.Mutex
	sealed map[string]string // why the credentials of a webhook do not open, by its key

	clients    shared[client, delivery.OAuth2]
	identities shared[identity, delivery.Identity]
}

// client and identity are what webhooks of one account have in common whose requests use the same tokens, or the same
// connections.
type (
	client   struct{ account, tokenURL, id, secret, scope, audience string }
	identity struct{ account, certificate, key string }
)

type opened struct {
	webhook *webhook.Webhook // this very value; a change is a new one
	webhook.Credentials
	oauth2   *delivery.OAuth2   // nil: none
	identity *delivery.Identity // nil: none
	until    time.Time          // the soonest end of a secret; zero: none ends
}

func (c *credentials) of(w *webhook.Webhook, keys *seal.Keyring) (*opened, error) {
	now := time.Now()
	if v, ok := c.opened.Load(w.Key()); ok {
		if o, ok := v.(*opened); ok && o.webhook == w && (o.until.IsZero() || now.Before(o.until)) {
			return o, nil
		}
	}
	open, err := w.Open(keys, now)
	if err != nil {
		err = c.check(w, keys)
		if err == nil {
			err = errChanged
			c.note(w, err)
		}
		return nil, err
	}
	o := &opened{webhook: w, Credentials: open}
	if err := c.prove(o); err != nil {
		c.note(w, err)
		return nil, err
	}
	c.note(w, nil)
	for _, s := range w.Secrets {
		if now.Before(s.ExpiresAt) && (o.until.IsZero() || s.ExpiresAt.Before(o.until)) {
			o.until = s.ExpiresAt
		}
	}
	c.opened.Store(w.Key(), o)
	return o, nil
}

// prove sets the parts of o that come of its webhook's Auth.
func (c *credentials) prove(o *opened) error {
	a := o.webhook.Auth
	if a == nil {
		return nil
	}
	var err error
	switch a.Type {
	case webhook.OAuth2:
		k := client{o.webhook.Account, a.TokenURL, a.ClientID, string(o.Auth), a.Scope, a.Audience}
		o.oauth2, err = c.clients.get(k, func() (*delivery.OAuth2, error) {
			return &delivery.OAuth2{TokenURL: k.tokenURL, ClientID: k.id, ClientSecret: k.secret, Scope: k.scope, Audience: k.audience}, nil
		})
	case webhook.MTLS:
		k := identity{o.webhook.Account, a.Certificate, string(o.Auth)}
		o.identity, err = c.identities.get(k, func() (*delivery.Identity, error) {
			return delivery.NewIdentity([]byte(k.certificate), []byte(k.key))
		})
	}
	return err
}

// shared holds one value for each key, for as long as one is in use. It is safe for concurrent use.
type shared[K comparable, V any] struct {
	mu sync.Mutex
	of map[K]weak.Pointer[V]
}

func (s *shared[K, V]) get(k K, build func() (*V, error)) (*V, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.of[k].Value(); v != nil {
		return v, nil
	}
	v, err := build()
	if err != nil {
		return nil, err
	}
	if s.of == nil {
		s.of = map[K]weak.Pointer[V]{}
	}
	s.of[k] = weak.Make(v)
	runtime.AddCleanup(v, s.clean, k)
	return v, nil
}

// clean removes a key whose value is not in use any more.
func (s *shared[K, V]) clean(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[k].Value() == nil {
		delete(s.of, k)
	}
}

// errChanged says that credentials do not open although their keys are there.
var errChanged = errors.New("they were changed, or ENCRYPTION_KEY_FILE has another key of that name")

// check notes whether the keys of a webhook's credentials are there, before there is anything to send.
func (c *credentials) check(w *webhook.Webhook, keys *seal.Keyring) error {
	ids, err := w.KeyIDs(time.Now())
	if err == nil {
		err = keys.Missing(ids)
	}
	c.note(w, err)
	return err
}

// note keeps why a webhook's credentials do not open; nil: they do.
func (c *credentials) note(w *webhook.Webhook, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.sealed, w.Key())
		return
	}
	if c.sealed == nil {
		c.sealed = map[string]string{}
	}
	c.sealed[w.Key()] = err.Error()
}

// State says how many webhooks' credentials do not open, and why; "" when all do.
func (c *credentials) State() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	count := map[string]int{}
	for _, why := range c.sealed {
		count[why]++
	}
	lines := make([]string, 0, len(count))
	for _, why := range slices.Sorted(maps.Keys(count)) {
		lines = append(lines, fmt.Sprintf("the credentials of %d webhooks do not open: %s", count[why], why))
	}
	return strings.Join(lines, "; ")
}

// forget drops the opened secrets of a webhook that is gone.
func (c *credentials) forget(w *webhook.Webhook) {
	c.opened.Delete(w.Key())
	c.note(w, nil)
}
