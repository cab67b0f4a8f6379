package notices

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"gancho/pkg/address"
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

// form is that of SMTP_URL.
var form = address.Form{Schemes: []string{"smtp", "smtps"}, Parameters: []string{"from"}, At: true}

// ParseServer reads smtp(s)://user:password@host:port?from=address. No error repeats the text, which holds a secret.
func ParseServer(text string) (*Server, error) {
	a, err := form.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("SMTP_URL: %w; write smtp://user:password@host:port?from=gancho@example.com (STARTTLS), or smtps://", err)
	}
	s := &Server{host: strings.Trim(a.Hosts[0], "[]"), port: 587, user: a.User, password: a.Password, implicit: a.Scheme == "smtps", timeout: mailTimeout}
	if s.implicit {
		s.port = 465
	}
	if host, port, err := net.SplitHostPort(a.Hosts[0]); err == nil {
		s.host = host
		s.port, _ = strconv.Atoi(port) // the form is checked
	}
	s.loopback = address.Loopback(s.host)
	if s.from, err = mail.ParseAddress(a.Parameters.Get("from")); err != nil {
		return nil, errors.New("SMTP_URL: its parameter from must be an e-mail address, such as from=gancho@example.com")
	}
	return s, nil
}

// dial connects, with TLS where it is implicit.
func (s *Server) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: s.timeout}
	if !s.implicit {
		return d.DialContext(ctx, network, addr)
	}
	config := s.tls
	if config == nil {
		config = &tls.Config{ServerName: s.host, MinVersion: tls.VersionTLS12}
	}
	return (&tls.Dialer{NetDialer: d, Config: config}).DialContext(ctx, network, addr)
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
