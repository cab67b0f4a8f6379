package delivery

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// message is a request, ready for either protocol. Its fields are those of the receiver's documentation, without Host
// and Content-Length.
type message struct {
	method string
	url    *url.URL
	body   []byte
	origin origin
	fields []field
	store  [12]field // behind fields
}

// field is one header. Secret values are shown as ***.
type field struct {
	name, value string
	secret      bool
}

func (m *message) set(name, value string) {
	m.fields = append(m.fields, field{name: name, value: value})
}

func (m *message) setSecret(name, value string) {
	m.fields = append(m.fields, field{name: name, value: value, secret: true})
}

// compose checks r and makes the message. The errors hold no value of r.
func (s *Sender) compose(r *Request, now time.Time) (*message, error) {
	switch {
	case len(r.Body) == 0:
		return nil, errors.New("the event has no bytes")
	case len(r.Secrets) == 0 && len(r.Ed25519) == 0:
		return nil, errors.New("there is no signing key")
	case !fits(r.EventName) || !fits(r.NotificationID) || strings.Contains(r.NotificationID, "."):
		return nil, errors.New("the event name or notification id does not fit into a header")
	case r.Replay != "" && !fits(r.Replay):
		return nil, errors.New("the replay id does not fit into a header")
	case r.AuthHeader != "" && (!httpguts.ValidHeaderFieldName(r.AuthHeader) || !fits(r.AuthKey)):
		return nil, errors.New("the auth header or key does not fit into a header")
	case strings.EqualFold(r.AuthHeader, "Idempotency-Key"), strings.EqualFold(r.AuthHeader, "X-Idempotency-Key"):
		return nil, errors.New("the auth header is a reserved one")
	case r.OAuth2 != nil && strings.EqualFold(r.AuthHeader, "Authorization"):
		return nil, errors.New("the auth header is that of the token")
	case !httpguts.ValidHeaderFieldName(r.Method): // a token, as header names are
		return nil, errors.New("the method is not usable")
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		return nil, errors.New("the URL is not usable") // err repeats the URL
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, errors.New("the URL is not absolute, or neither https nor http")
	}
	if !httpguts.ValidHostHeader(u.Host) || strings.ContainsAny(u.RequestURI(), " \r\n\t") {
		return nil, errors.New("the URL does not fit into a request")
	}
	m := &message{method: r.Method, url: u, body: r.Body, origin: origin{u.Scheme, u.Host, r.Identity}}
	m.fields = m.store[:0]

	ts := strconv.FormatInt(now.Unix(), 10)
	m.set("User-Agent", s.userAgent)
	m.set("Content-Type", "application/json")
	m.set("Gancho-Event", r.EventName)
	m.set("Gancho-Attempt", strconv.Itoa(r.Attempt))
	if !r.EventTime.IsZero() {
		m.set("Gancho-Event-Time", r.EventTime.UTC().Format(EventTimeFormat))
	}
	if r.Replay != "" {
		m.set("Gancho-Replay", r.Replay)
	}
	m.set("Webhook-Id", r.NotificationID)
	m.set("Webhook-Timestamp", ts)
	signature := sign(r.NotificationID, ts, r.Body, r.Secrets)
	if len(r.Ed25519) > 0 {
		signature = strings.TrimPrefix(signature+" "+signEd25519(r.NotificationID, ts, r.Body, r.Ed25519), " ")
	}
	m.setSecret("Webhook-Signature", signature)
	if r.AuthHeader != "" {
		m.setSecret(r.AuthHeader, r.AuthKey) // spelled as its owner did
	}
	return m, nil
}

// EventTimeFormat is that of the header Gancho-Event-Time: RFC 3339 with all nine digits, so that values sort as text.
const EventTimeFormat = "2006-01-02T15:04:05.000000000Z07:00"

func fits(value string) bool { return value != "" && httpguts.ValidHeaderFieldValue(value) }

const mask = "***"

// shown are the headers as the log keeps them.
func (m *message) shown() http.Header {
	values := make([]string, len(m.fields)) // one allocation behind all of them
	h := make(http.Header, len(m.fields))
	for i, f := range m.fields {
		values[i] = f.value
		if f.secret {
			values[i] = mask
		}
		h[f.name] = values[i : i+1 : i+1]
	}
	return h
}

// appendHead writes the head of an HTTP/1.1 request. target is the path, or the whole URL for a proxy; extra is for
// the proxy.
func (m *message) appendHead(b []byte, target string, extra ...field) []byte {
	b = append(b, m.method...)
	b = append(b, ' ')
	b = append(b, target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, m.url.Host...)
	for _, f := range m.fields {
		b = appendField(b, f)
	}
	for _, f := range extra {
		b = appendField(b, f)
	}
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(m.body)), 10)
	return append(b, "\r\n\r\n"...)
}

func appendField(b []byte, f field) []byte {
	b = append(b, "\r\n"...)
	b = append(b, f.name...)
	b = append(b, ": "...)
	return append(b, f.value...)
}

// request is the message for net/http.
func (m *message) request(ctx context.Context) *http.Request {
	values := make([]string, len(m.fields))
	h := make(http.Header, len(m.fields))
	for i, f := range m.fields {
		values[i] = f.value
		h[f.name] = values[i : i+1 : i+1]
	}
	req := &http.Request{
		Method: m.method, URL: m.url, Host: m.url.Host, Header: h, ContentLength: int64(len(m.body)),
		Proto: "HTTP/2.0", ProtoMajor: 2, Body: io.NopCloser(bytes.NewReader(m.body)),
	}
	return req.WithContext(ctx)
}
