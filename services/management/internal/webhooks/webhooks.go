// Package webhooks is what owners do with their webhooks: register, change, list, delete, suspend, resume,
// rotate the secret. It knows no HTTP; its errors are those of package problem.
//
// The bucket WEBHOOKS is the system of record. Writes are compare-and-set on its revisions, which are also
// the webhooks' ETags. An answer is given when this process has seen its own change; the other processes see
// it within milliseconds (0.3 ms at the median on one machine), so a new or changed webhook counts for events
// that are published after the answer, give or take those milliseconds.
package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/condition"
	"gancho/pkg/delivery"
	"gancho/pkg/egress"
	"gancho/pkg/event"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/command"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/webhook"
	"gancho/services/management/internal/broadcast"
	"gancho/services/management/internal/problem"
)

// maxNameRunes limits a webhook's name.
const maxNameRunes = 255

// rotationOverlap is how long an old signing secret signs along after it was replaced.
const rotationOverlap = 24 * time.Hour

// seenWithin is how long a writer waits to see its change in its own copy of the registry.
const seenWithin = time.Second

// effectWithin is how long a suspend or resume waits for the suspension-monitor.
const effectWithin = 2 * time.Second

// Options of a Service; all are required.
type Options struct {
	Bus         *bus.Bus
	Registry    *registry.Registry
	Claims      *bus.Bucket // topology.BucketClaims
	Suspensions *mirror.Mirror
	Keys        *seal.Keyring
	Policy      *egress.Policy
	Names       event.Names
	// PerAccount returns how many webhooks the account may have.
	PerAccount func(account string) int
	Log        *zap.Logger
}

// Service is safe for concurrent use.
type Service struct {
	bus         *bus.Bus
	registry    *registry.Registry
	claims      *bus.Bucket
	suspensions *mirror.Mirror
	keys        *seal.Keyring
	policy      *egress.Policy
	names       event.Names
	most        func(account string) int
	log         *zap.Logger
	changes     broadcast.Signal
	byName      roster
}

// New returns a service. The caller must pass every change of the registry to Changed.
func New(o Options) *Service {
	return &Service{
		bus: o.Bus, registry: o.Registry, claims: o.Claims, suspensions: o.Suspensions, keys: o.Keys, policy: o.Policy, names: o.Names, most: o.PerAccount,
		log: o.Log.Named("webhooks"),
	}
}

// Changed is called after each change of the registry.
func (s *Service) Changed(before, after *webhook.Webhook) {
	shown := func(w *webhook.Webhook) *webhook.Webhook {
		if w != nil && w.Kind != "" {
			return nil
		}
		return w
	}
	if before, after := shown(before), shown(after); before != nil || after != nil {
		s.byName.changed(before, after)
	}
	s.changes.Send()
}

// CheckEvents reports the problem of a name or pattern of events, nil if there is none.
func (s *Service) CheckEvents(p webhook.Pattern) *webhook.Problem {
	return webhook.CheckPattern(p, s.names)
}

// PerMinute returns how many requests the webhook's URL gets in a minute at most, 0 where it has no limit.
func (s *Service) PerMinute(w *webhook.Webhook) int {
	return s.registry.MaxPerMinute(w.Account, w.URLKey)
}

// Named returns the account's webhooks for events of that name, oldest first and at most n.
func (s *Service) Named(account, eventName string, n int) (found []*webhook.Webhook) {
	for _, w := range s.registry.Account(account) {
		if len(found) < n && w.EventName.Matches(eventName) {
			found = append(found, w)
		}
	}
	return found
}

// Names returns the event names that a webhook may name exactly, in alphabetical order.
func (s *Service) Names() []string { return s.names.All() }

// Input holds the settings that an owner may change. A member that is absent stays as it is.
type Input struct {
	Name       Field[string]      `json:"name"`
	EventName  Field[string]      `json:"event_name"`
	Method     Field[string]      `json:"http_method"`
	URL        Field[string]      `json:"url"`
	AuthHeader Field[string]      `json:"auth_header"`
	AuthKey    Field[string]      `json:"auth_key"`
	Status     Field[string]      `json:"status"`
	Signature  Field[string]      `json:"signature"`
	Notify     Field[NotifyInput] `json:"notify"`
	Auth       Field[AuthInput]   `json:"auth"`
	// Conditions replace those the webhook has; null removes them.
	Conditions Field[[]condition.Condition] `json:"conditions"`
	Stale      Field[string]                `json:"stale"`
	// MaxPerMinute limits the requests to the URL; null removes the limit.
	MaxPerMinute Field[int] `json:"max_per_minute"`

	// The members that only the service sets. They may be given as they are, so that an answer can be sent back.
	ID         Field[jsontext.Value] `json:"id"`
	CreatedAt  Field[jsontext.Value] `json:"created_at"`
	UpdatedAt  Field[jsontext.Value] `json:"updated_at"`
	Suspension Field[jsontext.Value] `json:"suspension"`
	PublicKey  Field[jsontext.Value] `json:"public_key"`

	DisabledReason Field[jsontext.Value] `json:"disabled_reason"`
}

// readOnly are the members of in that only the service sets.
func (in *Input) readOnly() map[string]Field[jsontext.Value] {
	return map[string]Field[jsontext.Value]{
		"id": in.ID, "created_at": in.CreatedAt, "updated_at": in.UpdatedAt, "suspension": in.Suspension, "public_key": in.PublicKey, "disabled_reason": in.DisabledReason,
	}
}

// Create registers a webhook and returns it with its signing secret, which is shown this once; "" when it signs with a
// key pair.
func (s *Service) Create(ctx context.Context, account string, in Input) (View, string, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	w := &webhook.Webhook{
		ID: uuid.NewString(), Account: account, Method: webhook.Methods()[0], Status: webhook.Active, Signature: webhook.HMAC, CreatedAt: now, UpdatedAt: now, Version: 1,
	}
	var missing problem.List
	for name, f := range map[string]Field[string]{"event_name": in.EventName, "url": in.URL} {
		if !f.Present {
			missing.Add("/data/"+name, "required", name+" is missing")
		}
	}
	for name, f := range in.readOnly() {
		if f.Present {
			missing.Add("/data/"+name, "read_only", name+" is set by the service; leave it out")
		}
	}
	slices.SortFunc(missing, func(a, b problem.Problem) int { return cmp.Compare(a.Pointer, b.Pointer) })
	if err := s.apply(w, in, missing); err != nil {
		return View{}, "", err
	}
	if !in.Name.Present {
		w.Name = string(w.EventName)
	}
	// Registrations at the same moment may exceed it by a few.
	if has, may := s.registry.Count(account), s.most(account); has >= may {
		return View{}, "", problem.New(problem.Invalid, "too_many_webhooks",
			fmt.Sprintf("this account has %d webhooks and may have %d; delete some, or ask the operator for more", has, may))
	}
	shown := s.rotate(w, now, false)
	notifySecret := s.notifySecret(nil, w)
	if err := s.take(ctx, w); err != nil {
		return View{}, "", err
	}
	if err := s.registry.Create(ctx, w); err != nil {
		s.releaseClaim(ctx, w)
		return View{}, "", problem.Broker(err)
	}
	switch held, err := s.holds(ctx, w); {
	case err != nil:
		return View{}, "", err
	case !held:
		if err := s.registry.Delete(ctx, w); err != nil {
			return View{}, "", problem.Broker(err)
		}
		return View{}, "", taken("it was registered at the same time")
	}
	s.seen(ctx, w)
	v := s.view(ctx, w)
	v.NotifySecret = notifySecret
	return v, shown, nil
}

// apply checks in and sets the present members in w; problems are those found before.
func (s *Service) apply(w *webhook.Webhook, in Input, problems problem.List) error {
	use := func(field string, f Field[string], set func(string)) {
		switch {
		case f.Null:
			problems.Add("/data/"+field, "wrong_type", field+" cannot be null; leave it out, or give a string")
		case f.Present:
			set(f.Value)
		}
	}
	found := func(p *webhook.Problem) {
		if p != nil {
			problems.Add("/data/"+p.Field, p.Code, p.Detail)
		}
	}
	use("name", in.Name, func(v string) { found(checkName(v)); w.Name = v })
	use("event_name", in.EventName, func(v string) {
		w.EventName = webhook.Pattern(v)
		found(webhook.CheckPattern(w.EventName, s.names))
	})
	use("http_method", in.Method, func(v string) {
		w.Method = strings.ToUpper(v)
		found(webhook.CheckMethod(w.Method))
	})
	moved := false
	use("url", in.URL, func(v string) {
		normal, p := webhook.NormalizeURL(v, s.policy)
		found(p)
		moved = w.URL != "" && p == nil && webhook.Origin(w.URL) != webhook.Origin(normal)
		if moved && w.AuthKey != "" && !in.AuthHeader.Null && (!in.AuthKey.Present || in.AuthKey.Null) {
			problems.Add("/data/auth_key", "auth_key_required",
				"the url has another origin: give auth_key for it, or take it away with auth_header null")
		}
		w.URL, w.URLKey, w.URLGiven = normal, webhook.URLKey(normal), v
		if v == normal {
			w.URLGiven = ""
		}
	})
	use("status", in.Status, func(v string) {
		if v == StatusSuspended && !w.CreatedAt.IsZero() && w.Status == webhook.Active && s.suspended(w) {
			return // as it is
		}
		if w.Status = webhook.Status(v); w.Status != webhook.Active && w.Status != webhook.Disabled {
			problems.Add("/data/status", "bad_status", "status can be set to active or disabled; POST .../suspend and .../resume are for suspensions")
		}
	})
	use("signature", in.Signature, func(v string) {
		if w.Signature = webhook.Signature(v); w.Signature != webhook.HMAC && w.Signature != webhook.Ed25519 {
			problems.Add("/data/signature", "bad_signature", "signature can be hmac or ed25519")
		}
	})
	use("stale", in.Stale, func(v string) {
		switch v {
		case webhook.Send:
			w.Stale = ""
		case webhook.Skip:
			w.Stale = v
		default:
			problems.Add("/data/stale", "bad_stale", "stale can be send or skip")
		}
	})
	if f := in.MaxPerMinute; f.Present {
		w.MaxPerMinute = f.Value // 0 with null
		if !f.Null && (f.Value < 1 || f.Value > webhook.MostPerMinute) {
			problems.Add("/data/max_per_minute", "bad_max_per_minute",
				fmt.Sprintf("max_per_minute can be 1 to %d, or null for no limit", webhook.MostPerMinute))
		}
	}
	if in.Conditions.Present {
		w.Conditions = in.Conditions.Value
		_, wrong := condition.Compile(w.Conditions)
		for _, p := range wrong {
			problems.Add("/data/conditions"+p.Pointer, p.Code, p.Detail)
		}
	}
	s.applyAuth(w, in, found)
	s.applyProof(w, in.Auth, moved, &problems)
	s.applyNotify(w, in.Notify, &problems)
	return problems.Err()
}

// applyAuth sets the auth header and its value. null removes; both or neither must be left.
func (s *Service) applyAuth(w *webhook.Webhook, in Input, found func(*webhook.Problem)) {
	if in.AuthHeader.Null {
		w.AuthHeader, w.AuthKey = "", ""
	} else if in.AuthHeader.Present {
		if p := webhook.CheckAuthHeader(in.AuthHeader.Value); p != nil {
			found(p)
			return
		}
		w.AuthHeader = in.AuthHeader.Value
	}
	if in.AuthKey.Null {
		w.AuthKey = ""
	} else if in.AuthKey.Present {
		if p := webhook.CheckAuthKey(in.AuthKey.Value); p != nil {
			found(p)
			return
		}
		same := false
		if w.AuthKey != "" {
			old, err := s.keys.Open(w.AuthKey, w.SealContext("auth_key"))
			same = err == nil && string(old) == in.AuthKey.Value
		}
		if !same {
			w.AuthKey = s.keys.Seal([]byte(in.AuthKey.Value), w.SealContext("auth_key"))
		}
	}
	found(webhook.CheckAuthPair(w.AuthHeader, w.AuthKey))
}

func checkName(name string) *webhook.Problem {
	bad := func(detail string) *webhook.Problem {
		return &webhook.Problem{Field: "name", Code: "bad_name", Detail: detail}
	}
	visible := false
	for _, r := range name {
		if unicode.IsControl(r) {
			return bad("name has a control character, such as a line break; remove it")
		}
		visible = visible || !unicode.IsSpace(r)
	}
	switch {
	case !visible:
		return bad("name is empty; give 1 to 255 characters")
	case utf8.RuneCountInString(name) > maxNameRunes:
		return bad("name is too long; give 1 to 255 characters")
	}
	return nil
}

// Match is the condition of If-Match: whether a webhook with that revision may be changed. Nil: always.
type Match func(revision uint64) bool

func (m Match) check(w *webhook.Webhook) error {
	if m != nil && !m(w.Revision) {
		return problem.New(problem.Changed, "changed_meanwhile",
			"the webhook is not as If-Match says any more; read it again and repeat the change")
	}
	return nil
}

// Update changes a webhook. Without a condition it merges into the newest state, however many others change
// it at the same time. A change lifts the suspension of the URL it had; settled is false when that has been
// asked for but had no effect yet. Another signature is a rotation: v carries the new secret.
func (s *Service) Update(ctx context.Context, account, id string, in Input, match Match, by string) (v View, settled bool, err error) {
	var shown, notifySecret string
	before, after, err := s.update(ctx, account, id, match, func(w *webhook.Webhook) error {
		signature, was := w.Signs(), w.Notify
		if err := s.apply(w, in, s.changedReadOnly(ctx, w, in)); err != nil {
			return err
		}
		if shown = ""; w.Signs() != signature {
			shown = s.rotate(w, time.Now(), false)
		}
		notifySecret = s.notifySecret(was, w)
		return nil
	})
	if err != nil {
		return View{}, false, err
	}
	settled = true
	if after.Revision != before.Revision {
		if _, suspended := s.suspensions.Get(suspension.Key{Account: account, URLKey: before.URLKey}); suspended {
			if settled, err = s.command(ctx, before, command.Resume, by); err != nil {
				// The change itself is stored; the answer shows that the suspension stands.
				s.log.Warn("suspension not lifted after a change", zap.String("webhook_id", id), zap.Error(err))
				settled = false
			}
		}
	}
	v = s.view(ctx, after)
	v.SigningSecret, v.NotifySecret = shown, notifySecret
	return v, settled, nil
}

// update stores what change makes of the webhook, on top of its newest revision.
func (s *Service) update(ctx context.Context, account, id string, match Match, change func(*webhook.Webhook) error) (before, after *webhook.Webhook, err error) {
	for {
		before, err = s.fetch(ctx, account, id)
		if err != nil {
			return nil, nil, err
		}
		if err := match.check(before); err != nil {
			return nil, nil, err
		}
		w := *before
		w.Secrets = slices.Clone(before.Secrets)
		if err := change(&w); err != nil {
			return nil, nil, err
		}
		if equal(before, &w) {
			return before, before, nil
		}
		switch {
		case w.Status != webhook.Disabled:
			w.DisabledAt, w.DisabledReason = time.Time{}, ""
		case before.Status != webhook.Disabled:
			w.DisabledAt = time.Now().UTC()
		}
		if webhook.Origin(w.URL) != webhook.Origin(before.URL) {
			if err := w.Rebind(before, s.keys, time.Now()); err != nil {
				return nil, nil, err
			}
		}
		w.UpdatedAt = time.Now().UTC().Truncate(time.Millisecond)
		moved := claimKey(before) != claimKey(&w)
		if moved {
			if err := s.take(ctx, &w); err != nil {
				return nil, nil, err
			}
		}
		err = s.registry.Update(ctx, before, &w)
		if err == nil {
			if moved {
				s.releaseClaim(ctx, before)
			}
			s.seen(ctx, &w)
			return before, &w, nil
		}
		if moved {
			s.releaseClaim(ctx, &w)
		}
		if !errors.Is(err, bus.ErrConflict) {
			return nil, nil, problem.Broker(err)
		}
	}
}

// Gone disables a webhook whose receiver answered 410 to all attempts of a send that began at that time. A webhook that
// was changed since, deleted or disabled stays as it is.
func (s *Service) Gone(ctx context.Context, account, id string, began time.Time) error {
	_, _, err := s.update(ctx, account, id, nil, func(w *webhook.Webhook) error {
		if w.Status != webhook.Disabled && began.Sub(w.UpdatedAt) >= time.Millisecond { // UpdatedAt is cut to milliseconds
			w.Status, w.DisabledReason = webhook.Disabled, webhook.Gone
		}
		return nil
	})
	if err != nil && problem.Of(err).Kind == problem.Missing {
		return nil
	}
	return err
}

func equal(a, b *webhook.Webhook) bool {
	return a.Name == b.Name && a.EventName == b.EventName && a.Method == b.Method && a.URL == b.URL && a.URLGiven == b.URLGiven && a.Status == b.Status &&
		a.AuthHeader == b.AuthHeader && a.AuthKey == b.AuthKey && a.Signs() == b.Signs() && webhook.SameNotify(a, b) && webhook.SameAuth(a, b) && a.Stale == b.Stale && a.MaxPerMinute == b.MaxPerMinute && slices.Equal(a.Secrets, b.Secrets) &&
		slices.EqualFunc(a.Conditions, b.Conditions, condition.Condition.Equal)
}

// Delete removes a webhook. The dispatchers cancel its waiting notifications; an attempt in flight ends. With
// the last webhook of a URL its suspension ends too, or it would hold for the next owner of the URL.
func (s *Service) Delete(ctx context.Context, account, id string, match Match, by string) error {
	for {
		w, err := s.fetch(ctx, account, id)
		if err != nil {
			return err
		}
		if err := match.check(w); err != nil {
			return err
		}
		err = s.registry.Delete(ctx, w)
		if errors.Is(err, bus.ErrConflict) {
			continue
		}
		if err != nil {
			return problem.Broker(err)
		}
		s.releaseClaim(ctx, w)
		wait, cancel := context.WithTimeout(ctx, seenWithin)
		defer cancel()
		s.changes.Wait(wait, func() bool { return s.registry.Get(account, id) == nil })
		if _, suspended := s.suspensions.Get(suspension.Key{Account: account, URLKey: w.URLKey}); suspended && !s.registry.UsesURL(account, w.URLKey) {
			if _, err := s.command(ctx, w, command.Resume, by); err != nil { // the webhook is gone all the same
				s.log.Warn("suspension not lifted after the last webhook of its URL was deleted", zap.String("webhook_id", id), zap.Error(err))
			}
		}
		return nil
	}
}

// maxOldSecrets is how many replaced signing secrets sign along at most.
const maxOldSecrets = 3

// RotateSecret makes a new signing secret and returns it, this once; "" when it is a key pair. Each of the newest
// maxOldSecrets old ones signs along until rotationOverlap after it was replaced. With immediately the old ones stop
// signing at once.
func (s *Service) RotateSecret(ctx context.Context, account, id string, immediately bool) (View, string, error) {
	var shown string
	_, w, err := s.update(ctx, account, id, nil, func(w *webhook.Webhook) error {
		shown = s.rotate(w, time.Now(), immediately)
		return nil
	})
	if err != nil {
		return View{}, "", err
	}
	return s.view(ctx, w), shown, nil
}

// rotate gives w a new secret for its signature and returns it, "" for a key pair.
func (s *Service) rotate(w *webhook.Webhook, now time.Time, immediately bool) string {
	now = now.UTC().Truncate(time.Millisecond)
	shown, raw := delivery.NewSecret() // 32 bytes, the length of a seed too
	secrets := []webhook.Secret{w.SealSecret(s.keys, raw, w.Signature)}
	for i, old := range w.Secrets {
		if i == 0 {
			old.ExpiresAt = now.Add(rotationOverlap)
		}
		if !immediately && now.Before(old.ExpiresAt) && i < maxOldSecrets {
			secrets = append(secrets, old)
		}
	}
	w.Secrets = secrets
	if w.Signature == webhook.Ed25519 {
		return ""
	}
	return shown
}

// Suspend sets the webhook's URL aside until it is resumed by hand or changed. settled is false when the
// suspension-monitor has taken note but the effect is not seen yet.
func (s *Service) Suspend(ctx context.Context, account, id, by string) (v View, settled bool, err error) {
	return s.byHand(ctx, account, id, command.Suspend, by)
}

// Resume lifts the suspension of the webhook's URL. settled as in Suspend.
func (s *Service) Resume(ctx context.Context, account, id, by string) (v View, settled bool, err error) {
	return s.byHand(ctx, account, id, command.Resume, by)
}

func (s *Service) byHand(ctx context.Context, account, id, verb, by string) (View, bool, error) {
	w, err := s.fetch(ctx, account, id)
	if err != nil {
		return View{}, false, err
	}
	settled, err := s.command(ctx, w, verb, by)
	if err != nil {
		return View{}, false, err
	}
	return s.view(ctx, w), settled, nil
}

// command asks the suspension-monitor and waits a little for the effect.
func (s *Service) command(ctx context.Context, w *webhook.Webhook, verb, by string) (settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*effectWithin)
	defer cancel()
	err = command.Send(ctx, s.bus, command.Command{
		Verb: verb, Account: w.Account, URLKey: w.URLKey, URLHost: webhook.URLHost(w.URL), WebhookID: w.ID, By: by, At: time.Now().UTC(),
	}, uuid.NewString())
	if err != nil {
		return false, problem.Down("suspension_unavailable", "the command could not be stored; is the suspension-monitor running? Try again", err)
	}
	wait, stop := context.WithTimeout(ctx, effectWithin)
	defer stop()
	return s.suspensions.Wait(wait, func() bool {
		record, suspended := s.suspensions.Get(suspension.Key{Account: w.Account, URLKey: w.URLKey})
		if verb == command.Suspend {
			return suspended && record.ByHand
		}
		return !suspended
	}), nil
}

// fetch reads the webhook from its bucket: the newest state, even if this process has seen only an older one.
func (s *Service) fetch(ctx context.Context, account, id string) (*webhook.Webhook, error) {
	if uuid.Validate(id) != nil || len(id) != 36 || !event.ValidAccount(account) {
		return nil, problem.NotFound("webhook")
	}
	w, err := s.registry.Fetch(ctx, account, id)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, problem.NotFound("webhook")
	}
	if err != nil {
		return nil, problem.Broker(err)
	}
	if w.Kind != "" {
		return nil, problem.NotFound("webhook")
	}
	return w, nil
}

// Get returns the account's webhook as registered.
func (s *Service) Get(ctx context.Context, account, id string) (*webhook.Webhook, error) {
	if w := s.Known(account, id); w != nil {
		return w, nil
	}
	return s.fetch(ctx, account, id) // another replica may have created it a moment ago
}

// Known returns the account's webhook when this process knows it, else nil.
func (s *Service) Known(account, id string) *webhook.Webhook {
	if w := s.registry.Get(account, id); w != nil && w.Kind == "" {
		return w
	}
	return nil
}

// seen waits until this process's copy of the registry has the change, so that the next request does.
func (s *Service) seen(ctx context.Context, w *webhook.Webhook) {
	ctx, cancel := context.WithTimeout(ctx, seenWithin)
	defer cancel()
	s.changes.Wait(ctx, func() bool {
		current := s.registry.Get(w.Account, w.ID)
		return current != nil && current.Revision >= w.Revision
	})
}
