package webhooks

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/condition"
	"gancho/pkg/delivery"
	"gancho/pkg/lane"
	"gancho/pkg/suspension"
	"gancho/pkg/webhook"
)

// View is a webhook as its owner sees it. Keys and secrets are never part of it.
type View struct {
	ID             string                `json:"id" format:"uuid"`
	Name           string                `json:"name"`
	EventName      string                `json:"event_name"`
	Method         string                `json:"http_method"`
	URL            string                `json:"url" format:"uri" doc:"as its owner wrote it; its normalised form is called, suspended and compared"`
	AuthHeader     *string               `json:"auth_header" nullable:"true" doc:"name of the header that carries auth_key, which is never returned"`
	Auth           *Auth                 `json:"auth" doc:"how its requests prove who sends them, beyond auth_header; null: not at all. Its secret is never returned"`
	Status         string                `json:"status" enum:"active,suspended,disabled"`
	DisabledReason *string               `json:"disabled_reason" nullable:"true" enum:"gone" doc:"gone: its receiver answered 410 to all six attempts of a notification; null where its owner disabled it, or it is not disabled"`
	Conditions     []condition.Condition `json:"conditions" nullable:"false" doc:"all must hold for an event to be sent"`
	Stale          string                `json:"stale" enum:"send,skip" doc:"skip: a notification that waited is left out when a later event of the same document was delivered meanwhile"`
	MaxPerMinute   *int                  `json:"max_per_minute" nullable:"true" minimum:"1" maximum:"60000" doc:"requests to the URL in any minute, over all dispatchers; more wait (parked, saturated) and are sent oldest first. Of several webhooks with one URL the lowest counts; null: as many as it answers well"`
	Signature      string                `json:"signature" enum:"hmac,ed25519"`
	PublicKey      string                `json:"public_key,omitempty" doc:"whpk_...; verifies the signatures, where signature is ed25519"`
	Notify         *Notify               `json:"notify" doc:"who gets notices about its troubles; null: the account's recipients"`
	Suspension     *Suspension           `json:"suspension" doc:"why its URL is set aside; null when it is not"`
	CreatedAt      time.Time             `json:"created_at"`
	UpdatedAt      time.Time             `json:"updated_at"`
	// SigningSecret is set only in the answer that made it.
	SigningSecret string `json:"signing_secret,omitempty" doc:"whsec_...; only in the answer that made it"`

	// NotifySecret is set only in the answer that made it.
	NotifySecret string `json:"notify_secret,omitempty" doc:"whsec_..., signs the requests to notify.url; only in the answer that made it"`

	// Revision is the webhook's ETag.
	Revision uint64 `json:"-"`
}

// The states of a webhook in the API.
const (
	StatusActive    = "active"
	StatusSuspended = "suspended"
	StatusDisabled  = "disabled"
)

// Suspension is why the URL of a webhook is set aside, and for how long.
type Suspension struct {
	Since    time.Time  `json:"since"`
	Until    *time.Time `json:"until" doc:"when the next probe is due; null: only a resume or a changed URL ends it"`
	Reason   string     `json:"reason" doc:"always_failing or by_hand"`
	Evidence Evidence   `json:"evidence"`
	// Parked is null when the number is not known at the moment.
	Parked         *uint64    `json:"parked" doc:"notifications of this webhook that wait; null when that is not known at the moment"`
	OldestParkedAt *time.Time `json:"oldest_parked_at"`
}

// Evidence is the basis of a suspension's decision. One by hand has none.
type Evidence struct {
	Failures int        `json:"failures" doc:"within the window when it was suspended, and one more for each failed probe since"`
	FirstAt  *time.Time `json:"first_at"`
	LastAt   *time.Time `json:"last_at"`
	Statuses []string   `json:"statuses" doc:"the last few different outcomes, oldest first: a status of HTTP, or a reason where there was none"`
}

func evidence(e suspension.Evidence) Evidence {
	v := Evidence{Failures: e.Failures, Statuses: e.Statuses}
	if v.Statuses == nil {
		v.Statuses = []string{}
	}
	if !e.FirstAt.IsZero() {
		v.FirstAt = &e.FirstAt
	}
	if !e.LastAt.IsZero() {
		v.LastAt = &e.LastAt
	}
	return v
}

// Show returns the account's webhook.
func (s *Service) Show(ctx context.Context, account, id string) (View, error) {
	w, err := s.Get(ctx, account, id)
	if err != nil {
		return View{}, err
	}
	return s.view(ctx, w), nil
}

func (s *Service) view(ctx context.Context, w *webhook.Webhook) View {
	return s.views(ctx, w.Account, []*webhook.Webhook{w})[0]
}

// Status is the state of a webhook: what its owner set, else whether its URL is suspended.
func (s *Service) Status(w *webhook.Webhook) (string, *suspension.Flag) {
	record, suspended := s.suspensions.Get(suspension.Key{Account: w.Account, URLKey: w.URLKey})
	switch {
	case w.Status == webhook.Disabled && suspended:
		return StatusDisabled, &record.Flag
	case w.Status == webhook.Disabled:
		return StatusDisabled, nil
	case suspended:
		return StatusSuspended, &record.Flag
	}
	return StatusActive, nil
}

func (s *Service) views(ctx context.Context, account string, page []*webhook.Webhook) []View {
	views := make([]View, 0, len(page))
	suspended := false
	for _, w := range page {
		v := View{
			ID: w.ID, Name: w.Name, EventName: string(w.EventName), Method: w.Method, URL: w.ShownURL(),
			Stale: cmp.Or(w.Stale, webhook.Send), Signature: string(w.Signs()), CreatedAt: w.CreatedAt, UpdatedAt: w.UpdatedAt, Revision: w.Revision,
		}
		if w.MaxPerMinute > 0 {
			v.MaxPerMinute = &w.MaxPerMinute
		}
		if w.DisabledReason != "" {
			v.DisabledReason = &w.DisabledReason
		}
		if v.Conditions = w.Conditions; v.Conditions == nil {
			v.Conditions = []condition.Condition{}
		}
		if w.AuthHeader != "" {
			v.AuthHeader = &w.AuthHeader
		}
		v.Notify, v.Auth = notifyView(w.Notify), authView(w.Auth)
		if key := w.PublicKey(); key != nil {
			v.PublicKey = delivery.PublicKey(key)
		}
		status, flag := s.Status(w)
		v.Status = status
		if flag != nil {
			suspended = true
			v.Suspension = &Suspension{Since: flag.Since, Reason: flag.Reason, Evidence: evidence(flag.Evidence)}
			if !flag.Until.IsZero() {
				v.Suspension.Until = &flag.Until
			}
		}
		views = append(views, v)
	}
	if suspended {
		s.addParked(ctx, account, page, views)
	}
	return views
}

// addParked counts the notifications that wait for the suspended ones. A slow broker costs the numbers, not the answer.
func (s *Service) addParked(ctx context.Context, account string, page []*webhook.Webhook, views []View) {
	ctx, cancel := context.WithTimeout(ctx, effectWithin)
	defer cancel()
	backlogs, err := lane.Backlogs(ctx, s.bus, account)
	if err != nil {
		s.log.Warn("parked notifications not counted", zap.Error(err))
		return
	}
	for i, w := range page {
		if views[i].Suspension == nil {
			continue
		}
		n := uint64(0)
		if at := slices.IndexFunc(backlogs, func(b lane.Backlog) bool { return b.WebhookID == w.ID && b.Lane == w.URLKey }); at >= 0 {
			n = backlogs[at].Messages
		}
		views[i].Suspension.Parked = &n
		if n == 0 {
			continue
		}
		oldest, err := lane.OldestParked(ctx, s.bus, account, w.URLKey, w.ID)
		if err == nil {
			views[i].Suspension.OldestParkedAt = &oldest
		} else if !errors.Is(err, bus.ErrNotFound) {
			s.log.Warn("oldest parked notification not read", zap.Error(err))
		}
	}
}
