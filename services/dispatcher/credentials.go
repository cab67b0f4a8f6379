package dispatcher

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"gancho/pkg/seal"
	"gancho/pkg/webhook"
)

// credentials keeps the opened secrets of each webhook, so that a request does not pay for opening them again:
// 5 % of the dispatcher's time. It is safe for concurrent use.
type credentials struct {
	opened sync.Map // webhook key -> opened

	mu     sync.Mutex
	sealed map[string]string // why the credentials of a webhook do not open, by its key
}

type opened struct {
	webhook *webhook.Webhook // this very value; a change is a new one
	webhook.Credentials
	until time.Time // the soonest end of a secret; zero: none ends
}

func (c *credentials) of(w *webhook.Webhook, keys *seal.Keyring) (webhook.Credentials, error) {
	now := time.Now()
	if v, ok := c.opened.Load(w.Key()); ok {
		if o, ok := v.(opened); ok && o.webhook == w && (o.until.IsZero() || now.Before(o.until)) {
			return o.Credentials, nil
		}
	}
	open, err := w.Open(keys, now)
	if err != nil {
		err = c.check(w, keys)
		if err == nil {
			err = errChanged
			c.note(w, err)
		}
		return webhook.Credentials{}, err
	}
	c.note(w, nil)
	o := opened{webhook: w, Credentials: open}
	for _, s := range w.Secrets {
		if now.Before(s.ExpiresAt) && (o.until.IsZero() || s.ExpiresAt.Before(o.until)) {
			o.until = s.ExpiresAt
		}
	}
	c.opened.Store(w.Key(), o)
	return open, nil
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
