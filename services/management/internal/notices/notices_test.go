package notices

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/mail"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/egress"
	"gancho/pkg/event"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/share"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/suspension/status"
	"gancho/pkg/tlstest"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
	"gancho/services/management/internal/language"
	"gancho/services/management/internal/webhooks"
)

// post is a mail server that does as the test wants.
type post struct {
	url  string
	addr string

	mu      sync.Mutex
	took    []received
	answers func(to string, try int) error // of the n-th try for an address, from 1
	tries   map[string]int
	after   func(io.Closer) // called with the connection once a letter was taken
}

type received struct {
	to     string
	header mail.Header
	body   string
	tls    bool
}

func newPost(t *testing.T, secure *tls.Config) *post {
	t.Helper()
	p := &post{tries: map[string]int{}, answers: func(string, int) error { return nil }}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &session{p: p, c: c}, nil }))
	s.Domain, s.TLSConfig, s.AllowInsecureAuth = "post.example", secure, true
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	p.addr = l.Addr().String()
	p.url = "smtp://" + p.addr + "?from=Gancho+%3Cgancho@crm.example.com%3E"
	return p
}

type session struct {
	p  *post
	c  *smtp.Conn
	to string
}

func (s *session) Reset()                               {}
func (s *session) Logout() error                        { return nil }
func (s *session) Mail(string, *smtp.MailOptions) error { return nil }
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.to = to
	s.p.mu.Lock()
	s.p.tries[to]++
	try, answers := s.p.tries[to], s.p.answers
	s.p.mu.Unlock()
	return answers(to, try)
}

func (s *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	body, err := io.ReadAll(m.Body)
	if err != nil {
		return err
	}
	_, secure := s.c.TLSConnectionState()
	s.p.mu.Lock()
	s.p.took = append(s.p.took, received{s.to, m.Header, string(body), secure})
	after := s.p.after
	s.p.mu.Unlock()
	if after != nil {
		after(s.c.Conn())
	}
	return nil
}

// letters are those that were taken for an address.
func (p *post) letters(to string) []received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.took), func(r received) bool { return r.to != to })
}

// desk is a service with its surroundings, on a broker of its own.
type desk struct {
	t     *testing.T
	bus   *bus.Bus
	hooks *webhooks.Service
	hook  webhooks.View
	meter *share.Meter
	keys  *seal.Keyring
	step  int
}

func newDesk(t *testing.T, notify webhooks.NotifyInput) *desk {
	t.Helper()
	server := bustest.Start(t)
	server.Topology(bustest.Limits())
	d := &desk{t: t, bus: server.Connect("management"), keys: seal.New()}
	ctx := t.Context()
	reg, err := registry.Open(ctx, d.bus, registry.Options{Keys: d.keys, Log: bustest.Logger(t), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := d.bus.Bucket(ctx, topology.BucketClaims)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := egress.New(egress.Config{AllowPorts: []string{"443"}})
	if err != nil {
		t.Fatal(err)
	}
	names, err := event.KnownNames()
	if err != nil {
		t.Fatal(err)
	}
	limits, err := share.LimitsOf(ctx, d.bus, bustest.Limits())
	if err != nil {
		t.Fatal(err)
	}
	d.meter = share.New(share.Config{Share: 1}, limits, reg.HasOthers)
	d.hooks = webhooks.New(webhooks.Options{
		Bus: d.bus, Registry: reg, Claims: claims, Suspensions: mirror.New(bustest.Logger(t)), Keys: d.keys, Policy: policy, Names: names, PerAccount: func(string) int { return 10 }, Log: bustest.Logger(t),
	})
	loaded := make(chan struct{})
	go func() { _ = reg.Run(ctx, func() { close(loaded) }, d.hooks.Changed) }()
	<-loaded
	if d.hook, _, err = d.hooks.Create(ctx, "acme", webhooks.Input{
		Name: webhooks.Set("Negócios <b>"), EventName: webhooks.Set("crm_deal_created"), URL: webhooks.Set("https://hooks.example.com/in"), Notify: webhooks.Set(notify),
	}); err != nil {
		t.Fatal(err)
	}
	return d
}

// open starts a service until the test or stop ends it.
func (d *desk) open(p *post, change func(*Service)) (s *Service, stop func()) {
	d.t.Helper()
	bucket, err := d.bus.Bucket(d.t.Context(), topology.BucketNotices)
	if err != nil {
		d.t.Fatal(err)
	}
	o := Options{
		Bus: d.bus, Bucket: bucket, Webhooks: d.hooks, Meter: d.meter, Keys: d.keys, PublicURL: "https://gancho.example.com", Log: bustest.Logger(d.t), Metrics: prometheus.NewRegistry(),
	}
	if p != nil {
		if o.Server, err = ParseServer(p.url); err != nil {
			d.t.Fatal(err)
		}
		o.Server.timeout = time.Second
	}
	s = New(o)
	s.delays = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond}
	if change != nil {
		change(s)
	}
	ctx, cancel := context.WithCancel(d.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	stop = func() { cancel(); <-done }
	d.t.Cleanup(stop)
	d.until("it follows", func() bool {
		_, err := d.bus.ConsumerState(d.t.Context(), topology.Durable{Stream: topology.WebhookStatus, Name: topology.ConsumerNotices})
		return err == nil
	})
	return s, stop
}

func (d *desk) until(what string, condition func() bool) {
	d.t.Helper()
	waittest.Until(d.t, what, condition)
}

// happens publishes a change of the webhook.
func (d *desk) happens(kind string) {
	d.t.Helper()
	d.step++
	until := time.Date(2026, 11, 27, 15, 30, 0, 0, time.UTC)
	err := status.Publish(d.t.Context(), d.bus, status.Change{
		Event: kind, Account: "acme", WebhookID: d.hook.ID, URLHost: "hooks.example.com", At: time.Now(), Until: &until, Reason: "always_failing",
		Evidence: evidence{Failures: 20, Statuses: []string{"500", "timeout"}},
	}, fmt.Sprint(d.step))
	if err != nil {
		d.t.Fatal(err)
	}
}

// quiet waits until every change was counted and no notice is on its way.
func (d *desk) quiet() {
	d.t.Helper()
	bucket, err := d.bus.Bucket(d.t.Context(), topology.BucketNotices)
	if err != nil {
		d.t.Fatal(err)
	}
	d.until("all is told", func() bool {
		state, err := d.bus.ConsumerState(d.t.Context(), topology.Durable{Stream: topology.WebhookStatus, Name: topology.ConsumerNotices})
		if err != nil || state.Pending > 0 || state.AckPending > 0 {
			return false
		}
		keys, err := bucket.Keys(d.t.Context())
		if err != nil {
			d.t.Fatal(err)
		}
		for _, k := range keys {
			e, err := bucket.Get(d.t.Context(), k)
			if errors.Is(err, bus.ErrNotFound) {
				continue
			}
			if r, err := decode(e.Value, e.Revision); err != nil || r.Sending != nil || r.Began.IsZero() {
				return false
			}
		}
		return true
	})
}

const ana, bia = "ana@example.com", "bia@example.com"

func TestLetter(t *testing.T) {
	t.Parallel()
	p := newPost(t, nil)
	d := newDesk(t, webhooks.NotifyInput{Emails: []string{ana, bia}, Language: webhooks.Set("pt-BR")})
	s, _ := d.open(p, nil)
	d.happens("suspended")
	d.happens("resumed")
	d.until("both kinds reach both", func() bool { return len(p.letters(ana)) == 2 && len(p.letters(bia)) == 2 })
	d.quiet()
	var threads []string
	for _, l := range p.letters(ana) {
		threads = append(threads, l.header.Get("References"))
		subject, err := new(mime.WordDecoder).DecodeHeader(l.header.Get("Subject"))
		if err != nil || !strings.Contains(subject, "Negócios") || l.header.Get("Bcc") != "" {
			t.Errorf("subject %q, %v", subject, err)
		}
		if l.header.Get("Message-Id") == "" || l.header.Get("List-Unsubscribe-Post") != "List-Unsubscribe=One-Click" || l.header.Get("Auto-Submitted") != "auto-generated" {
			t.Errorf("header = %v", l.header)
		}
		if !strings.Contains(l.body, "text/html") || !strings.Contains(l.body, "text/plain") || strings.Contains(l.body, "<img") || strings.Contains(l.body, "<b>") {
			t.Errorf("body = %s", l.body)
		}
	}
	if threads[0] != threads[1] || threads[0] == "" {
		t.Errorf("threads = %q", threads)
	}
	if first := p.letters(ana)[0]; !strings.Contains(first.header.Get("List-Unsubscribe"), "https://gancho.example.com/unsubscribe?from=") {
		t.Errorf("List-Unsubscribe = %q", first.header.Get("List-Unsubscribe"))
	}

	// One click, and ana gets no more notices.
	link := strings.Trim(strings.TrimPrefix(p.letters(ana)[0].header.Get("List-Unsubscribe"), "<https://gancho.example.com/unsubscribe?from="), ">")
	departure := s.Leaving(link)
	if departure.Email != ana || departure.Account != "acme" || departure.Webhook != d.hook.ID {
		t.Fatalf("the link is for %+v", departure)
	}
	if err := s.Leave(t.Context(), departure); err != nil {
		t.Fatal(err)
	}
	if broken := s.Leaving(link + "x"); broken.Email != "" {
		t.Errorf("a broken link is good: %+v", broken)
	}
	d.until("she is off the list", func() bool {
		v, err := d.hooks.Show(t.Context(), "acme", d.hook.ID)
		return err == nil && slices.Equal(v.Notify.Emails, []string{bia})
	})
	d.happens("permanent_failure")
	d.until("bia is told", func() bool { return len(p.letters(bia)) == 3 })
	if n := len(p.letters(ana)); n != 2 {
		t.Errorf("ana got %d letters, want 2", n)
	}
}

// TestOneNoticeAnHour: repetitions within the window come in one notice when it is over.
func TestOneNoticeAnHour(t *testing.T) {
	t.Parallel()
	p := newPost(t, nil)
	d := newDesk(t, webhooks.NotifyInput{Emails: []string{ana}})
	_, stop := d.open(p, nil)
	d.happens("permanent_failure")
	d.until("the first is told at once", func() bool { return len(p.letters(ana)) == 1 })
	for range 5 {
		d.happens("permanent_failure")
		d.happens("probing") // no owner gets a notice of it
	}
	d.quiet()
	stop()
	if n := len(p.letters(ana)); n != 1 {
		t.Fatalf("%d letters within the hour, want 1", n)
	}
	d.open(p, func(s *Service) { s.window = 0 }) // the hour is over, and another replica is there
	d.until("the others are told together", func() bool { return len(p.letters(ana)) == 2 })
	d.quiet()
	if l := p.letters(ana); len(l) != 2 || !strings.Contains(l[1].body, ": 5") {
		t.Errorf("%d letters, the digest says %s", len(l), l[len(l)-1].body)
	}
}

func TestMailServerSaysLater(t *testing.T) {
	t.Parallel()
	p := newPost(t, nil)
	p.answers = func(to string, try int) error {
		switch {
		case to == ana && try == 1: // greylisting
			return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "come back later"}
		case to == bia:
			return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
		}
		return nil
	}
	d := newDesk(t, webhooks.NotifyInput{Emails: []string{ana, bia}})
	d.open(p, nil)
	d.happens("suspended")
	d.until("the second try is taken", func() bool { return len(p.letters(ana)) == 1 })
	d.quiet()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tries[ana] != 2 || p.tries[bia] != 1 || len(p.took) != 1 {
		t.Errorf("tries = %v, %d taken; want 2 for ana, 1 for bia, who is refused for good", p.tries, len(p.took))
	}
}

// TestMailServerNeverTakesIt: after six tries a notice is given up, and the next one is not held up by it.
func TestMailServerNeverTakesIt(t *testing.T) {
	t.Parallel()
	p := newPost(t, nil)
	p.answers = func(string, int) error { return &smtp.SMTPError{Code: 421, Message: "too busy"} }
	d := newDesk(t, webhooks.NotifyInput{Emails: []string{ana}})
	d.open(p, nil)
	d.happens("suspended")
	d.until("it was tried six times", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.tries[ana] == 6 })
	d.quiet()
	p.mu.Lock()
	p.answers = func(string, int) error { return nil }
	p.mu.Unlock()
	d.happens("resumed")
	d.until("the next is told", func() bool { return len(p.letters(ana)) == 1 })
}

// TestMailServerIsSilent: a server that takes the connection and says nothing costs a try, and no one else's notice
// waits for it.
func TestMailServerIsSilent(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := ParseServer("smtp://" + l.Addr().String() + "?from=a@example.com")
	if err != nil {
		t.Fatal(err)
	}
	s.timeout = 100 * time.Millisecond
	if became, err := s.send(t.Context(), letter{to: ana, id: "1@x", thread: "2@x", subject: "s", text: "t", html: "h"}); became != later || err == nil {
		t.Errorf("became %d, %v; want a try for later", became, err)
	}
}

// TestMailNeedsTLS: beyond the loopback a letter goes over TLS with a certificate that is verified, or not at all.
func TestMailNeedsTLS(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	pem, err := os.ReadFile(ca.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for name, c := range map[string]struct {
		server   *tls.Config
		roots    *tls.Config
		loopback bool
		want     verdict
		secure   bool
	}{
		"no STARTTLS":             {nil, nil, false, later, false},
		"no STARTTLS on loopback": {nil, nil, true, accepted, false},
		"a stranger's":            {ca.Server(t), &tls.Config{ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}, false, later, false},
		"STARTTLS":                {ca.Server(t), &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}, false, accepted, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPost(t, c.server)
			s, err := ParseServer(p.url)
			if err != nil {
				t.Fatal(err)
			}
			s.loopback, s.tls = c.loopback, c.roots
			became, err := s.send(t.Context(), letter{to: ana, id: "1@x", thread: "2@x", subject: "s", text: "t", html: "h"})
			if became != c.want {
				t.Fatalf("became %d, %v; want %d", became, err, c.want)
			}
			if l := p.letters(ana); c.want == accepted && (len(l) != 1 || l[0].tls != c.secure) || c.want != accepted && len(l) > 0 {
				t.Errorf("taken: %+v", l)
			}
		})
	}
}

// TestNoticesSurviveARestart: who has the notice does not get it again, and who has not gets it.
func TestNoticesSurviveARestart(t *testing.T) {
	t.Parallel()
	p := newPost(t, nil)
	p.answers = func(to string, _ int) error {
		if to == bia {
			return &smtp.SMTPError{Code: 451, Message: "not now"}
		}
		return nil
	}
	d := newDesk(t, webhooks.NotifyInput{Emails: []string{ana, bia}})
	slow := func(s *Service) { s.delays = []time.Duration{0, time.Hour} }
	first, stop := d.open(p, slow)
	d.happens("suspended")
	d.until("ana has it, bia not", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.tries[bia] == 2 && len(p.took) == 1 })
	d.until("it is stored that bia's next try is an hour away", func() bool {
		first.mu.Lock()
		defer first.mu.Unlock()
		r := first.records["acme."+d.hook.ID+".suspended"]
		return r != nil && r.Sending != nil && r.Sending.Tries == 2 && slices.Equal(r.Sending.Mail, []string{bia})
	})
	stop()
	d.happens("resumed") // while no one follows
	p.mu.Lock()
	p.answers = func(string, int) error { return nil }
	p.mu.Unlock()
	one, _ := d.open(p, nil)
	two, _ := d.open(p, nil) // of all replicas one sends
	_ = two
	d.until("the one that came meanwhile is told", func() bool { return len(p.letters(ana)) == 2 && len(p.letters(bia)) >= 1 })
	one.mu.Lock()
	r := one.records["acme."+d.hook.ID+".suspended"]
	one.mu.Unlock()
	if r == nil || r.Sending == nil || !slices.Equal(r.Sending.Mail, []string{bia}) {
		t.Fatalf("after the restart the notice is %+v", r)
	}
	next := *r
	sending := *r.Sending
	sending.Next = time.Now()
	next.Sending = &sending
	if err := one.store(t.Context(), &next); err != nil { // its hour has come
		t.Fatal(err)
	}
	d.until("bia has both", func() bool { return len(p.letters(bia)) == 2 })
	d.quiet()
	if a, b := len(p.letters(ana)), len(p.letters(bia)); a != 2 || b != 2 {
		t.Errorf("ana has %d letters and bia %d, want 2 each", a, b)
	}
}

// TestLostAnswer: the mail server took the letter and its answer was lost: it is sent again, since neither side can
// know.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	p := newPost(t, nil)
	p.after = func(c io.Closer) {
		p.mu.Lock()
		p.after = nil
		p.mu.Unlock()
		_ = c.Close()
	}
	d := newDesk(t, webhooks.NotifyInput{Emails: []string{ana}})
	d.open(p, nil)
	d.happens("suspended")
	d.until("it came twice", func() bool { return len(p.letters(ana)) == 2 })
	d.quiet()
	l := p.letters(ana)
	if len(l) != 2 || l[0].header.Get("Message-Id") != l[1].header.Get("Message-Id") {
		t.Errorf("%d letters; the second must be recognisable as the first", len(l))
	}
}

// TestNoticeToURL: a URL gets its notice as a notification of its own webhook, once.
func TestNoticeToURL(t *testing.T) {
	t.Parallel()
	d := newDesk(t, webhooks.NotifyInput{URL: webhooks.Set("https://ops.example.com/notices")})
	if !strings.HasPrefix(d.hook.NotifySecret, "whsec_") {
		t.Errorf("notify_secret = %q", d.hook.NotifySecret)
	}
	d.open(nil, nil)
	d.open(nil, nil)
	d.happens("at_risk")
	d.quiet()
	stream, err := d.bus.Stream(t.Context(), topology.Notifications)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter("gancho.notifications.acme.*"))
	if err != nil || len(info.State.Subjects) != 1 || info.State.Msgs != 1 {
		t.Fatalf("notifications = %v, %v", info.State, err)
	}
	m, err := stream.GetMsg(t.Context(), 1)
	if err != nil || !strings.Contains(string(m.Data), `"type":"webhook.at_risk"`) || !strings.Contains(string(m.Data), "2026-11-27T15:30:00Z") {
		t.Fatalf("%s, %v", m.Data, err)
	}
	if views, total := d.hooks.List(t.Context(), "acme", webhooks.Filter{}, 0, 10); total != 1 || views[0].ID != d.hook.ID {
		t.Errorf("the list shows %d webhooks", total)
	}
}

// TestRefusedCredentialsInWords: a warning of 401 and 403 names the refused credentials; other warnings do not.
func TestRefusedCredentialsInWords(t *testing.T) {
	t.Parallel()
	for reason, words := range map[string][2]string{
		"credentials_refused": {"refuses our credentials", "recusa nossas credenciais"},
		"always_failing":      {"deliveries fail", "as entregas estão falhando"},
	} {
		a := about{Kind: "at_risk", Name: "Deals", batch: batch{Newest: change{Reason: reason, URLHost: "hooks.example.com"}}}
		for i, l := range []language.Language{language.English, language.Portuguese} {
			if s := a.say(l); !strings.Contains(s.Subject, words[i]) || (reason == "credentials_refused") != strings.Contains(s.plain(), "401") {
				t.Errorf("%s in %s: %s; %s", reason, l, s.Subject, s.plain())
			}
		}
	}
}

func TestParseServer(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"", "smtp://", "http://user:s3cret@mail.example.com?from=a@example.com", "smtp://user:s3cret@mail.example.com", "smtp://u:s3cret@mail.example.com:0?from=a@example.com",
		"smtp://u:s3@cret@mail.example.com?from=a@example.com", "smtp://u:25/s3cret@mail.example.com?from=a@example.com", "smtp://u:25?s3cret@mail.example.com?from=a@example.com",
		"smtp://u:25#s3cret@mail.example.com?from=a@example.com", "smtp://u:s3cret%@mail.example.com?from=a@example.com", "smtp://u:s3cret@a.example,b.example?from=a@example.com",
		"smtp://u:s3cret@mail.example.com?from=a@example.com&from=b@example.com", "smtp://u:s3cret@?from=a@example.com",
		"smtp://u:s3cret@mail.example.com?from=nobody", "smtp://u:s3cret@mail.example.com?from=a@example.com&tls=no", "smtp://u:s3cret@mail.example.com/x?from=a@example.com",
	} {
		if _, err := ParseServer(bad); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("ParseServer(%q): %v", bad, err)
		}
	}
	s, err := ParseServer("smtps://u%40x:p%2Fw@mail.example.com?from=Gancho+%3Cg@example.com%3E")
	if err != nil || s.port != 465 || !s.implicit || s.user != "u@x" || s.password != "p/w" || s.loopback || s.from.Address != "g@example.com" {
		t.Errorf("%+v, %v", s, err)
	}
}
