package webhook

import (
	"cmp"
	"slices"

	"github.com/google/uuid"

	"gancho/pkg/seal"
)

// KindNotice is the kind of what only carries notices to owners: no event matches it, and no list shows it.
const KindNotice = "notice"

// NoticeEvent is the event name of notices. It is no name that a CRM's event has.
const NoticeEvent = "crm_webhook_notice"

// MaxNotifyEmails limits the addresses of a Notify.
const MaxNotifyEmails = 10

// Notify is who gets notices of a webhook's troubles, and how.
type Notify struct {
	Emails   []string `json:"emails,omitempty"`
	Language string   `json:"language"` // en or pt-BR
	// URL gets a signed request for each notice; "" for none.
	URL      string `json:"url,omitempty"` // normalised
	URLGiven string `json:"url_given,omitempty"`
	Secret   Secret `json:"secret,omitzero"`
}

// ShownURL is the URL as its owner wrote it.
func (n *Notify) ShownURL() string { return cmp.Or(n.URLGiven, n.URL) }

func (n *Notify) equal(o *Notify) bool {
	if n == nil || o == nil {
		return n == o
	}
	return slices.Equal(n.Emails, o.Emails) && n.Language == o.Language && n.URL == o.URL && n.URLGiven == o.URLGiven &&
		n.Secret == o.Secret
}

// SameNotify reports whether two webhooks notify the same people in the same way.
func SameNotify(a, b *Webhook) bool { return a.Notify.equal(b.Notify) }

// AccountNotices is the id of the registry's entry that holds the recipients of the whole account.
func AccountNotices(account string) string {
	return uuid.NewSHA1(noticeSpace, []byte(account)).String()
}

// noticeSpace is the namespace of AccountNotices.
var noticeSpace = uuid.MustParse("0d3f5c6e-8a54-5b6e-9d0f-3b1c2a7e4f10")

// Notice returns what notices about w are sent to: a webhook of kind notice that is a part of w and has a URL and a
// suspension key of its own, so that a URL is never kept from notices by what happens to another. It is nil when w has
// no URL for them.
func (w *Webhook) Notice() *Webhook {
	if w.Notify == nil || w.Notify.URL == "" {
		return nil
	}
	id := uuid.NewSHA1(w.UUID, []byte(KindNotice))
	return &Webhook{
		ID: id.String(), UUID: id, Kind: KindNotice, Account: w.Account, Name: w.Name, EventName: NoticeEvent,
		Method: "POST", Status: Active,
		URL: w.Notify.URL, URLKey: URLKey(KindNotice + " " + w.Notify.URL), Secrets: []Secret{w.Notify.Secret},
		CreatedAt: w.CreatedAt, UpdatedAt: w.UpdatedAt, Revision: w.Revision,
		Version: 1, // its secret is bound to the origin of its URL
	}
}

// reseal returns n with its secret sealed under the first key of keys.
func (n *Notify) reseal(w *Webhook, keys *seal.Keyring) (*Notify, error) {
	if n == nil || n.URL == "" {
		return n, nil
	}
	to := w.Notice()
	raw, err := keys.Open(n.Secret.Sealed, to.SealContext("secret"))
	if err != nil {
		return nil, err
	}
	out := *n
	out.Secret = to.SealSecret(keys, raw, HMAC)
	return &out, nil
}
