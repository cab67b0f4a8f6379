package notices

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// mailTimeout bounds each step of a conversation with the mail server, and sendTimeout the whole of one message.
const (
	mailTimeout = 10 * time.Second
	sendTimeout = 30 * time.Second
)

// Server is a mail server, read from SMTP_URL. It is immutable.
type Server struct {
	host           string
	port           int
	user, password string
	implicit       bool // TLS from the first byte
	loopback       bool
	from           *mail.Address

	tls     *tls.Config // of tests; nil: the system's roots
	timeout time.Duration
}

// ParseServer reads smtp(s)://user:password@host:port?from=address. No error repeats the text, which holds a secret.
func ParseServer(text string) (*Server, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Path != "" && u.Path != "/" || u.Fragment != "" {
		return nil, errors.New("SMTP_URL: not of the form smtp://user:password@host:port?from=gancho@example.com (write reserved characters as %XX)")
	}
	s := &Server{host: u.Hostname(), user: u.User.Username(), timeout: mailTimeout}
	s.password, _ = u.User.Password()
	switch u.Scheme {
	case "smtp":
		s.port = 587
	case "smtps":
		s.port, s.implicit = 465, true
	default:
		return nil, errors.New("SMTP_URL: its scheme must be smtp (STARTTLS) or smtps (TLS from the start)")
	}
	if p := u.Port(); p != "" {
		if s.port, err = strconv.Atoi(p); err != nil || s.port < 1 || s.port > 65535 {
			return nil, errors.New("SMTP_URL: its port must be 1 to 65535")
		}
	}
	a, err := netip.ParseAddr(s.host)
	s.loopback = s.host == "localhost" || err == nil && a.IsLoopback()
	query := u.Query()
	if s.from, err = mail.ParseAddress(query.Get("from")); err != nil {
		return nil, errors.New("SMTP_URL: its parameter from must be an e-mail address, such as from=gancho@example.com")
	}
	if query.Del("from"); len(query) > 0 {
		return nil, errors.New("SMTP_URL: it may have no other parameter than from")
	}
	return s, nil
}

// dial connects, with TLS where it is implicit.
func (s *Server) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{Timeout: s.timeout}
	if !s.implicit {
		return d.DialContext(ctx, network, address)
	}
	config := s.tls
	if config == nil {
		config = &tls.Config{ServerName: s.host, MinVersion: tls.VersionTLS12}
	}
	return (&tls.Dialer{NetDialer: d, Config: config}).DialContext(ctx, network, address)
}

// letter is one e-mail.
type letter struct {
	to, id, thread, unsubscribe string
	subject, text, html         string
}

// verdict is the fate of a letter.
type verdict int

const (
	accepted verdict = iota
	later            // it may be accepted another time
	refused          // it never will be
)

// send gives a letter to the mail server. The error is for the log and names no address.
func (s *Server) send(ctx context.Context, l letter) (verdict, error) {
	m := gomail.NewMsg()
	m.FromMailAddress(s.from)
	if err := m.To(l.to); err != nil {
		return refused, errors.New("the address cannot be used")
	}
	m.Subject(l.subject)
	m.SetDate()
	m.SetMessageIDWithValue(l.id)
	m.SetGenHeader(gomail.HeaderReferences, "<"+l.thread+">")
	m.SetGenHeader(gomail.HeaderInReplyTo, "<"+l.thread+">")
	m.SetGenHeader("Auto-Submitted", "auto-generated")
	if l.unsubscribe != "" {
		m.SetGenHeaderPreformatted(gomail.HeaderListUnsubscribe, "<"+l.unsubscribe+">")
		m.SetGenHeader(gomail.HeaderListUnsubscribePost, "List-Unsubscribe=One-Click")
	}
	m.SetBodyString(gomail.TypeTextPlain, l.text)
	m.AddAlternativeString(gomail.TypeTextHTML, l.html)

	options := []gomail.Option{gomail.WithPort(s.port), gomail.WithTimeout(s.timeout), gomail.WithTLSPolicy(gomail.TLSMandatory), gomail.WithoutNoop()}
	switch {
	case s.implicit:
		options = append(options, gomail.WithSSL())
	case s.loopback:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSOpportunistic))
	}
	if s.tls != nil {
		options = append(options, gomail.WithTLSConfig(s.tls))
	}
	if s.user != "" {
		options = append(options, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover), gomail.WithUsername(s.user), gomail.WithPassword(s.password))
	}
	ctx, cancel := context.WithTimeout(ctx, min(sendTimeout, 3*s.timeout))
	defer cancel()
	// The library waits for a server's greeting without a limit.
	options = append(options, gomail.WithDialContextFunc(func(_ context.Context, network, address string) (net.Conn, error) {
		conn, err := s.dial(ctx, network, address)
		if err == nil {
			context.AfterFunc(ctx, func() { _ = conn.Close() }) // at the latest when send returns
		}
		return conn, err
	}))
	c, err := gomail.NewClient(s.host, options...)
	if err != nil {
		return later, fmt.Errorf("set up the mail server: %w", err)
	}
	err = c.DialAndSendWithContext(ctx, m)
	var failed *gomail.SendError
	switch {
	case err == nil, m.IsDelivered(): // errors after the server took it, as at QUIT, change nothing
		return accepted, nil
	case errors.As(err, &failed) && failed.ErrorCode() >= 500 && !failed.IsTemp():
		return refused, fmt.Errorf("the mail server refuses the letter with %d", failed.ErrorCode())
	case errors.As(err, &failed) && failed.ErrorCode() > 0:
		return later, fmt.Errorf("the mail server answers %d", failed.ErrorCode())
	case ctx.Err() != nil:
		return later, errors.New("the mail server does not answer in time")
	}
	if network, ok := errors.AsType[*net.OpError](err); ok {
		return later, fmt.Errorf("the mail server cannot be reached: %w", network.Err)
	}
	return later, fmt.Errorf("the mail server: %w", err)
}
