package notices

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/seal"
	"gancho/pkg/share"
	"gancho/pkg/suspension/status"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
	"gancho/pkg/wireversion"
	"gancho/services/management/internal/language"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/shares"
	"gancho/services/management/internal/webhooks"
)

const (
	// lookEvery is how often the records are searched for due notices.
	lookEvery = time.Second
	// claimFor is how long a replica has for a try before another one may take over. It is longer than ten letters
	// take.
	claimFor = 6 * time.Minute
	// atOnce is how many notices a replica sends at the same time.
	atOnce = 4
)

// retryDelays are those of the mail server, as those of receivers by default.
func retryDelays() []time.Duration {
	return []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour}
}

// Options of a Service; all are required but Server and PublicURL.
type Options struct {
	Bus      *bus.Bus
	Bucket   *bus.Bucket // topology.BucketNotices
	Webhooks *webhooks.Service
	Meter    *share.Meter
	Keys     *seal.Keyring
	// Server takes e-mails; without it notices go to URLs only.
	Server *Server
	// PublicURL is the console's address, for the links in notices; "" for none.
	PublicURL string
	Log       *zap.Logger
	Metrics   prometheus.Registerer
}

// Service sends notices. It is safe for concurrent use.
type Service struct {
	Options

	sent    *prometheus.CounterVec
	delays  []time.Duration
	window  time.Duration
	trouble trouble

	mu      sync.Mutex
	records map[string]*record // as the bucket has them
	busy    map[string]bool    // keys in this process's hands
}

// New returns a service. Run must run.
func New(o Options) *Service {
	s := &Service{
		Options: o, delays: retryDelays(), window: window, records: map[string]*record{}, busy: map[string]bool{},
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_notices_total", Help: "Notices to owners, by channel (mail, url) and result (accepted, refused, retried, given_up).",
		}, []string{"channel", "result"}),
	}
	s.Log = o.Log.Named("notices")
	o.Metrics.MustRegister(s.sent)
	for _, r := range []string{"accepted", "refused", "retried", "given_up"} {
		s.sent.WithLabelValues("mail", r)
	}
	for _, r := range []string{"accepted", "retried"} {
		s.sent.WithLabelValues("url", r)
	}
	return s
}

// Run counts changes and sends notices until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	loaded := make(chan struct{})
	group.Go(func() error { return s.Bucket.Watch(ctx, s.apply, func() { close(loaded) }) })
	group.Go(func() error { return s.follow(ctx) })
	group.Go(func() error {
		select {
		case <-loaded:
		case <-ctx.Done():
			return nil
		}
		return s.send(ctx)
	})
	return group.Wait()
}

// apply keeps the copy of the records.
func (s *Service) apply(e bus.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.records[e.Key]; have != nil && have.revision > e.Revision {
		return
	}
	delete(s.records, e.Key)
	if e.Value == nil {
		return
	}
	r, err := decode(e.Value, e.Revision)
	switch {
	case errors.Is(err, wireversion.ErrNewer): // a newer replica sends it
	case err != nil:
		s.Log.Error("a record of notices is unreadable and ignored", zap.String("key", e.Key), zap.Error(err))
	default:
		s.records[e.Key] = r
	}
}

// Recent is the newest change of a kind that owners get notices of.
type Recent struct {
	Kind, Text string
	At         time.Time
}

// Recent returns the newest change of each kind of a webhook, newest first, whether or not there was a notice.
func (s *Service) Recent(ctx context.Context, w *webhook.Webhook, lang string) ([]Recent, error) {
	var all []Recent
	for _, kind := range kinds() {
		m, err := s.Bus.Last(ctx, topology.WebhookStatus, "gancho.webhooks."+w.Account+"."+w.ID+"."+kind)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, problem.Broker(err)
		}
		var c change
		if json.Unmarshal(m.Data, &c) == nil {
			a := about{batch: batch{Newest: c}, Kind: kind, Name: w.Name}
			all = append(all, Recent{kind, a.say(language.Language(lang)).Subject, c.At})
		}
	}
	slices.SortFunc(all, func(a, b Recent) int { return b.At.Compare(a.At) })
	return all, nil
}

// follow counts the changes of webhooks, each before it is acknowledged.
func (s *Service) follow(ctx context.Context) error {
	return status.Follow(ctx, s.Bus, topology.ConsumerNotices, func(raw []byte, sequence uint64) error {
		err := s.note(ctx, raw, sequence)
		if err != nil && ctx.Err() == nil {
			s.trouble.say(s.Log, "a change of a webhook was not counted; it comes again", err)
		}
		return err
	})
}

// note counts one change, if it has recipients.
func (s *Service) note(ctx context.Context, raw []byte, sequence uint64) error {
	var c change
	if err := json.Unmarshal(raw, &c); err != nil || !slices.Contains(kinds(), c.Event) {
		return nil //nolint:nilerr // not one of ours
	}
	w := s.Webhooks.Known(c.Account, c.WebhookID)
	if w == nil { // it is gone, or carries notices itself
		return nil
	}
	if who, _ := s.Webhooks.Recipients(w); who == nil {
		return nil
	}
	key := c.Account + "." + c.WebhookID + "." + c.Event
	for {
		r := &record{Account: c.Account, WebhookID: c.WebhookID, Kind: c.Event}
		e, err := s.Bucket.Get(ctx, key)
		switch {
		case err == nil:
			if r, err = decode(e.Value, e.Revision); err != nil {
				return err
			}
		case !errors.Is(err, bus.ErrNotFound):
			return err
		}
		if !r.count(c, sequence) {
			return nil
		}
		if err := s.store(ctx, r); !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

// store writes r on top of the revision it was read at, and takes over the new one.
func (s *Service) store(ctx context.Context, r *record) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if r.revision == 0 {
		r.revision, err = s.Bucket.Create(ctx, r.key(), value)
	} else {
		r.revision, err = s.Bucket.Update(ctx, r.key(), value, r.revision)
	}
	return err
}

// send works on due notices until ctx ends. A notice that is under way then ends first.
func (s *Service) send(ctx context.Context) error {
	var work errgroup.Group
	work.SetLimit(atOnce)
	defer func() { _ = work.Wait() }()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, r := range s.due(time.Now()) {
			work.Go(func() error {
				defer s.release(r.key())
				if err := s.handle(ctx, r); err != nil && !errors.Is(err, bus.ErrConflict) && ctx.Err() == nil {
					s.trouble.say(s.Log, "a notice waits", err)
				}
				return nil
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// due takes the records that something is to be done with into this process's hands.
func (s *Service) due(now time.Time) []*record {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*record
	for key, r := range s.records {
		if r.due(now, s.window) && !s.busy[key] {
			s.busy[key] = true
			mine := *r
			if r.Sending != nil {
				on := *r.Sending
				on.Mail = slices.Clone(on.Mail)
				mine.Sending = &on
			}
			all = append(all, &mine)
		}
	}
	return all
}

func (s *Service) release(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, key)
}

// handle begins a notice, goes on with one, or forgets a record that holds nothing. ErrConflict says that another
// replica was first.
func (s *Service) handle(ctx context.Context, r *record) error {
	w := s.Webhooks.Known(r.Account, r.WebhookID)
	var who *webhook.Notify
	var to *webhook.Webhook
	if w != nil {
		who, to = s.Webhooks.Recipients(w)
	}
	now := time.Now().UTC()
	switch {
	case who == nil, r.Sending == nil && r.Waiting == nil: // no recipients any more, or nothing happened for an hour
		return s.Bucket.Delete(ctx, r.key(), r.revision)
	case r.Sending == nil:
		mail := who.Emails
		if s.Server == nil {
			mail = nil
		}
		r.begin(uuid.NewString(), now, mail, to != nil)
	}
	r.Sending.Next = now.Add(claimFor)
	if err := s.store(ctx, r); err != nil {
		return err
	}
	a := s.about(ctx, r, w)
	failed := s.toURL(ctx, r, a, to)
	if err := s.toMail(ctx, r, a, who); err != nil {
		failed = err
	}
	if len(r.Sending.Mail) == 0 && !r.Sending.URL {
		r.Sending = nil
		return s.store(context.WithoutCancel(ctx), r)
	}
	if ctx.Err() != nil { // it goes on at once after the start
		r.Sending.Next = time.Now().UTC()
		return s.store(context.WithoutCancel(ctx), r)
	}
	log := s.Log.With(zap.String("account_id", r.Account), zap.String("webhook_id", r.WebhookID), zap.String("kind", r.Kind), zap.Int("tries", r.Sending.Tries+1), zap.Error(failed))
	if r.Sending.Tries >= len(s.delays) {
		log.Error("a notice was given up", zap.Int("addresses", len(r.Sending.Mail)))
		s.sent.WithLabelValues("mail", "given_up").Add(float64(len(r.Sending.Mail)))
		r.Sending = nil
		return s.store(ctx, r)
	}
	log.Warn("a notice is tried again later")
	r.Sending.Next = time.Now().UTC().Add(s.delays[r.Sending.Tries])
	r.Sending.Tries++
	return s.store(ctx, r)
}

// about gathers the content of a notice.
func (s *Service) about(ctx context.Context, r *record, w *webhook.Webhook) *about {
	a := &about{batch: r.Sending.batch, Kind: r.Kind, Name: w.Name, EventName: string(w.EventName)}
	if s.PublicURL != "" {
		a.Link = s.PublicURL + "/webhooks/" + w.ID
	}
	if r.Kind == "suspended" || r.Kind == "resumed" {
		if v, err := s.Webhooks.Show(ctx, r.Account, w.ID); err == nil && v.Suspension != nil {
			a.Parked = v.Suspension.Parked
		}
	}
	return a
}

// body is the request to a URL, in the form that Standard Webhooks recommends.
type body struct {
	Type      string    `json:"type"` // webhook.<kind>
	Timestamp time.Time `json:"timestamp"`
	Data      data      `json:"data"`
}

type data struct {
	change

	Name   string  `json:"webhook_name"`
	Count  int     `json:"count"` // changes of this kind that it is about
	First  string  `json:"first_at"`
	Parked *uint64 `json:"parked"` // null where it is not known
	Text   string  `json:"text"`
	Link   string  `json:"link,omitempty"`
}

// toURL hands the notice to the dispatchers, once.
func (s *Service) toURL(ctx context.Context, r *record, a *about, to *webhook.Webhook) error {
	if !r.Sending.URL {
		return nil
	}
	if to != nil {
		l := language.English
		if who, _ := s.Webhooks.Recipients(s.Webhooks.Known(r.Account, r.WebhookID)); who != nil {
			l = language.Language(who.Language)
		}
		said := a.say(l)
		raw, err := json.Marshal(body{"webhook." + r.Kind, r.Began, data{
			change: a.Newest, Name: a.Name, Count: a.Count, First: a.First.UTC().Format(time.RFC3339Nano), Parked: a.Parked, Text: said.Subject + "\n\n" + said.plain(), Link: a.Link,
		}})
		if err != nil {
			return err
		}
		n := notification.First(&event.Event{
			ID: event.ID(r.Account, webhook.NoticeEvent, r.Sending.ID), Account: r.Account, Name: webhook.NoticeEvent, Body: raw,
		}, r.Began, to.UUID)
		if err := shares.Notify(ctx, s.Meter, s.Bus, &n); err != nil {
			s.sent.WithLabelValues("url", "retried").Inc()
			return err
		}
		s.sent.WithLabelValues("url", "accepted").Inc()
	}
	r.Sending.URL = false
	return s.store(context.WithoutCancel(ctx), r)
}

// toMail sends the notice to the addresses it has not reached, and notes each that it has. It returns the last failure
// that may pass.
func (s *Service) toMail(ctx context.Context, r *record, a *about, who *webhook.Notify) (failed error) {
	for _, address := range slices.Clone(r.Sending.Mail) {
		if ctx.Err() != nil || s.Server == nil {
			break
		}
		became := refused // who was taken off the list since
		if slices.Contains(who.Emails, address) {
			l, err := s.letter(r, a, who, address)
			if err != nil {
				return err
			}
			if became, err = s.Server.send(ctx, l); err != nil {
				failed = err
			}
			s.sent.WithLabelValues("mail", [...]string{accepted: "accepted", later: "retried", refused: "refused"}[became]).Inc()
			if became == refused {
				s.Log.Warn("the mail server refuses an address of a notice for good; it is left out",
					zap.String("account_id", r.Account), zap.String("webhook_id", r.WebhookID), zap.String("kind", r.Kind), zap.Error(err))
			}
		}
		if became == later {
			continue
		}
		r.Sending.Mail = slices.DeleteFunc(r.Sending.Mail, func(m string) bool { return m == address })
		if err := s.store(context.WithoutCancel(ctx), r); err != nil {
			return err
		}
	}
	return failed
}

// letter is a notice as an e-mail. All letters about a webhook are one thread.
func (s *Service) letter(r *record, a *about, who *webhook.Notify, address string) (letter, error) {
	mine := *a
	host := "gancho.invalid"
	if u, err := url.Parse(s.PublicURL); err == nil && u.Hostname() != "" {
		host = u.Hostname()
		mine.Unsubscribe = s.PublicURL + "/unsubscribe?from=" + url.QueryEscape(s.leave(r, who, address))
	}
	said := mine.say(language.Language(cmp.Or(who.Language, string(language.English))))
	html, err := said.html()
	return letter{
		to: address, id: r.Sending.ID + "." + uuid.NewSHA1(uuid.NameSpaceURL, []byte(address)).String()[:8] + "@" + host, thread: r.WebhookID + "@" + host,
		unsubscribe: mine.Unsubscribe, subject: said.Subject, text: said.plain(), html: html,
	}, err
}

// Departure is the content of a link to unsubscribe, sealed.
type Departure struct {
	Account string `json:"a"`
	Webhook string `json:"w"` // "": of the account's list
	Email   string `json:"e"`
}

const sealedAs = "gancho notices unsubscribe"

func (s *Service) leave(r *record, who *webhook.Notify, address string) string {
	d := Departure{Account: r.Account, Email: address}
	if w := s.Webhooks.Known(r.Account, r.WebhookID); w != nil && w.Notify == who {
		d.Webhook = w.ID
	}
	plain, err := json.Marshal(d)
	if err != nil {
		panic(err) // strings
	}
	return s.Keys.Seal(plain, []byte(sealedAs))
}

// Leaving returns what a link to unsubscribe is for; without an address when it is none.
func (s *Service) Leaving(sealed string) Departure {
	var d Departure
	plain, err := s.Keys.Open(sealed, []byte(sealedAs))
	if err != nil || json.Unmarshal(plain, &d) != nil {
		return Departure{}
	}
	return d
}

// Leave takes the address off the list that it is on. One that is on none is no error.
func (s *Service) Leave(ctx context.Context, d Departure) error {
	return s.Webhooks.TellNoMore(ctx, d.Account, d.Webhook, d.Email)
}

// trouble says a lasting failure when it begins, when its cause changes, and once a minute.
type trouble struct {
	mu   sync.Mutex
	text string
	at   time.Time
}

func (t *trouble) say(log *zap.Logger, what string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text := what + err.Error(); text != t.text || time.Since(t.at) >= time.Minute {
		t.text, t.at = text, time.Now()
		log.Warn(what, zap.Error(err))
	}
}
