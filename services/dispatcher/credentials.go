package dispatcher

import (
	"sync"
	"time"

	"gancho/pkg/seal"
	"gancho/pkg/webhook"
)

// credentials keeps what was opened of each webhook, so that a request does not pay for opening it again:
// 5 % of the dispatcher's time. It is safe for concurrent use.
type credentials struct{ opened sync.Map } // webhook key -> opened

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
		return webhook.Credentials{}, err
	}
	o := opened{webhook: w, Credentials: open}
	for _, s := range w.Secrets {
		if now.Before(s.ExpiresAt) && (o.until.IsZero() || s.ExpiresAt.Before(o.until)) {
			o.until = s.ExpiresAt
		}
	}
	c.opened.Store(w.Key(), o)
	return open, nil
}

// forget drops what was opened of a webhook that is gone.
func (c *credentials) forget(key string) { c.opened.Delete(key) }
