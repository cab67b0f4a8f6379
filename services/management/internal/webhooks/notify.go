package webhooks

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/language"
	"gancho/services/management/internal/problem"
)

// NotifyInput is who should get notices, as an owner sets it. It replaces the previous setting.
type NotifyInput struct {
	Emails   []string      `json:"emails"`
	URL      Field[string] `json:"url"`
	Language Field[string] `json:"language"`
}

// Notify is whom notices go to, as owners see it.
type Notify struct {
	Emails   []string `json:"emails" nullable:"false" doc:"at most 10"`
	URL      *string  `json:"url" format:"uri" nullable:"true" doc:"gets a signed request for each notice"`
	Language string   `json:"language" enum:"en,pt-BR"`
}

func notifyView(n *webhook.Notify) *Notify {
	if n == nil {
		return nil
	}
	v := &Notify{Emails: n.Emails, Language: n.Language}
	if v.Emails == nil {
		v.Emails = []string{}
	}
	if url := n.ShownURL(); url != "" {
		v.URL = &url
	}
	return v
}

// maxEmail is the length of an address (RFC 5321).
const maxEmail = 254

// applyNotify sets whom notices about w go to; null and an empty one remove it.
func (s *Service) applyNotify(w *webhook.Webhook, f Field[NotifyInput], problems *problem.List) {
	defer func() {
		if w.Notify != nil && w.Notify.URL != "" && w.Notify.URL == w.URL {
			problems.Add("/data/notify/url", "same_url",
				"notify.url is the webhook's own: when that fails, no notice would arrive; give another one")
		}
	}()
	if f.Null {
		w.Notify = nil
	}
	if !f.Present || f.Null {
		return
	}
	n := &webhook.Notify{Language: string(language.English)}
	for i, email := range f.Value.Emails {
		a, err := mail.ParseAddress(email)
		if err != nil || a.Address != email || len(email) > maxEmail || strings.ContainsAny(email, "\r\n\" ") {
			problems.Add(fmt.Sprintf("/data/notify/emails/%d", i), "bad_email",
				"this is not an e-mail address such as ana@example.com")
			continue
		}
		if !slices.Contains(n.Emails, email) {
			n.Emails = append(n.Emails, email)
		}
	}
	if len(f.Value.Emails) > webhook.MaxNotifyEmails {
		problems.Add("/data/notify/emails", "too_many", fmt.Sprintf("at most %d addresses", webhook.MaxNotifyEmails))
	}
	if l := f.Value.Language; l.Present {
		if n.Language = l.Value; n.Language != string(language.English) && n.Language != string(language.Portuguese) {
			problems.Add("/data/notify/language", "bad_language", "language can be en or pt-BR")
		}
	}
	if u := f.Value.URL; u.Present && !u.Null {
		normal, p := webhook.NormalizeURL(u.Value, s.policy)
		if p != nil {
			problems.Add("/data/notify/url", p.Code, p.Detail)
		}
		if n.URL = normal; u.Value != normal {
			n.URLGiven = u.Value
		}
		if old := w.Notify; old != nil && old.URL == n.URL {
			n.Secret = old.Secret
		}
	}
	w.Notify = n
	if len(n.Emails) == 0 && n.URL == "" {
		w.Notify = nil
	}
}

// notifySecret gives w a secret for a URL of notices that has none yet, and returns it; "" when there is nothing to do.
func (s *Service) notifySecret(before *webhook.Notify, w *webhook.Webhook) string {
	n := w.Notify
	if n == nil || n.URL == "" || before != nil && before.URL == n.URL {
		return ""
	}
	if w.UUID == uuid.Nil {
		w.UUID = uuid.MustParse(w.ID)
	}
	shown, raw := delivery.NewSecret()
	n.Secret = w.Notice().SealSecret(s.keys, raw, webhook.HMAC)
	return shown
}

// AccountNotify returns who gets the account's notices where a webhook says nothing, nil if there are none.
func (s *Service) AccountNotify(account string) *Notify {
	if w := s.registry.Get(account, webhook.AccountNotices(account)); w != nil {
		return notifyView(w.Notify)
	}
	return nil
}

// SetAccountNotify sets who gets the account's notices where a webhook says nothing. secret is a new URL's, shown this
// once.
func (s *Service) SetAccountNotify(
	ctx context.Context, account string, f Field[NotifyInput],
) (secret string, err error) {
	id := webhook.AccountNotices(account)
	for {
		now := time.Now().UTC().Truncate(time.Millisecond)
		w := &webhook.Webhook{
			ID: id, UUID: uuid.MustParse(id), Account: account, Kind: webhook.KindNotice,
			EventName: webhook.NoticeEvent, CreatedAt: now, UpdatedAt: now, Version: 1,
		}
		before, err := s.registry.Fetch(ctx, account, id)
		switch {
		case err == nil:
			*w = *before
			w.UpdatedAt = now
		case !errors.Is(err, bus.ErrNotFound):
			return "", problem.Broker(err)
		}
		was := w.Notify
		var problems problem.List
		s.applyNotify(w, f, &problems)
		if err := problems.Err(); err != nil {
			return "", err
		}
		secret = s.notifySecret(was, w)
		switch { // it is never deleted, only emptied: its id is the account's for good
		case before != nil && webhook.SameNotify(before, w), before == nil && w.Notify == nil:
			return "", nil
		case before == nil:
			err = s.registry.Create(ctx, w)
		default:
			err = s.registry.Update(ctx, before, w)
		}
		switch {
		case err == nil:
			s.seen(ctx, w)
			return secret, nil
		case !errors.Is(err, bus.ErrConflict):
			return "", problem.Broker(err)
		}
	}
}

// Recipients returns whom notices about a webhook go to, and what carries those for their URL (nil without one). Both
// are nil when there are no recipients.
func (s *Service) Recipients(w *webhook.Webhook) (*webhook.Notify, *webhook.Webhook) {
	if w.Notify != nil {
		return w.Notify, w.Notice()
	}
	if all := s.registry.Get(w.Account, webhook.AccountNotices(w.Account)); all != nil && all.Notify != nil {
		return all.Notify, all.Notice()
	}
	return nil, nil
}

// TellNoMore takes an e-mail address off the list of a webhook, or with no webhook off that of the account. An address
// that is on none is no error.
func (s *Service) TellNoMore(ctx context.Context, account, webhookID, email string) error {
	without := func(n *webhook.Notify) Field[NotifyInput] {
		in := NotifyInput{Language: Set(n.Language)}
		if url := n.ShownURL(); url != "" {
			in.URL = Set(url)
		}
		for _, e := range n.Emails {
			if e != email {
				in.Emails = append(in.Emails, e)
			}
		}
		return Set(in)
	}
	if webhookID == "" {
		w := s.registry.Get(account, webhook.AccountNotices(account))
		if w == nil || w.Notify == nil {
			return nil
		}
		_, err := s.SetAccountNotify(ctx, account, without(w.Notify))
		return err
	}
	_, _, err := s.update(ctx, account, webhookID, nil, func(w *webhook.Webhook) error {
		if w.Notify == nil {
			return nil
		}
		var problems problem.List
		s.applyNotify(w, without(w.Notify), &problems)
		return problems.Err()
	})
	return err
}
