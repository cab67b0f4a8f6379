package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gancho/pkg/sleep"
)

// The limits of a call.
const (
	connectWithin = 5 * time.Second
	headersWithin = 30 * time.Second
	callWithin    = 60 * time.Second
	maxAnswer     = 32 << 20 // bytes

	maxTries = 6 // of a call that is refused with 429
	maxWait  = time.Minute
	minWait  = time.Second // also when 429 comes without Retry-After
)

// DefaultURL is where gancho serve listens.
const DefaultURL = "http://127.0.0.1:8080"

// Config says where the API is and who asks.
type Config struct {
	// URL is the API's address without /crm/v2, such as https://gancho.example; DefaultURL when empty.
	URL string
	// Token is sent as Bearer token. Required.
	Token string
	// Account is sent as X-Account-Id when it is set: operators say with it for which account they act.
	Account string
	// Language is sent as Accept-Language when it is set: explanations are in English or in Portuguese ("pt-BR").
	Language string
	// UserAgent is sent as it is.
	UserAgent string
	// Waiting, if not nil, is called before a call waits because the API asked to slow down.
	Waiting func(time.Duration)
}

// Client makes calls. It is safe for concurrent use.
type Client struct {
	cfg  Config
	base *url.URL
	http *http.Client
}

// New returns a client, or an error that names the invalid part of the configuration.
func New(cfg Config) (*Client, error) {
	cfg.URL = cmp.Or(cfg.URL, DefaultURL)
	base, err := url.Parse(strings.TrimRight(cfg.URL, "/"))
	switch {
	case err != nil, base.Scheme != "http" && base.Scheme != "https", base.Host == "", base.User != nil,
		base.RawQuery != "", base.Fragment != "":
		return nil, errors.New("the API's address is not of the form https://host[:port]")
	case cfg.Token == "":
		return nil, errors.New("there is no API token")
	case strings.ContainsFunc(cfg.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return nil, errors.New("the API token has a character that cannot be sent, such as a space or a line break")
	}
	base.Path = strings.TrimSuffix(strings.TrimRight(base.Path, "/"), "/crm/v2")
	return &Client{cfg: cfg, base: base, http: &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: connectWithin}).DialContext,
			TLSHandshakeTimeout:   connectWithin,
			ResponseHeaderTimeout: headersWithin,
			IdleConnTimeout:       30 * time.Second,
			ForceAttemptHTTP2:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// URL is the API's address.
func (c *Client) URL() string { return c.base.String() }

// call is one request of the API.
type call struct {
	method string
	path   string // below /crm/v2, escaped
	query  url.Values
	body   []byte
}

// Result is a resource as the server answered it.
type Result[T any] struct {
	Value T
	Raw   json.RawMessage // the member data
}

// envelope is what answers have in common.
type envelope struct {
	Data    json.RawMessage `json:"data"`
	Links   links           `json:"links"`
	HasMore bool            `json:"has_more"`
	Partial bool            `json:"partial"`
}

type links struct {
	Next string `json:"next"`
}

// do makes a call whose answer is one resource.
func do[T any](ctx context.Context, c *Client, call call) (Result[T], error) {
	var r Result[T]
	e, err := c.send(ctx, call)
	if err != nil {
		return r, err
	}
	r.Raw = e.Data
	if len(e.Data) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(e.Data, &r.Value); err != nil {
		return r, &Unexpected{Call: c.name(call), What: "an answer of another form: " + err.Error()}
	}
	return r, nil
}

// send makes a call and reads its answer.
func (c *Client) send(ctx context.Context, call call) (envelope, error) {
	ctx, cancel := context.WithTimeout(ctx, maxTries*maxWait+callWithin)
	defer cancel()
	for try := 1; ; try++ {
		e, err := c.once(ctx, call)
		refused, ok := errors.AsType[*Error](err)
		if !ok || refused.Status != http.StatusTooManyRequests || try == maxTries {
			return e, err
		}
		wait := max(refused.RetryAfter, minWait)
		if wait > maxWait {
			return e, err
		}
		if c.cfg.Waiting != nil {
			c.cfg.Waiting(wait)
		}
		if !sleep.For(ctx, wait) {
			return e, err
		}
	}
}

func (c *Client) once(ctx context.Context, call call) (envelope, error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	resp, err := c.roundTrip(ctx, call, http.Header{"Accept": {"application/json"}})
	if err != nil {
		return envelope{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return envelope{}, &NoAnswer{Call: c.name(call), URL: c.URL(), Cause: err}
	}
	if len(body) > maxAnswer {
		return envelope{}, &Unexpected{Call: c.name(call), What: "an answer of more than 32 MiB"}
	}
	if err := c.judge(call, resp, body); err != nil {
		return envelope{}, err
	}
	var e envelope
	if resp.StatusCode == http.StatusNoContent || len(body) == 0 {
		return e, nil
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, &Unexpected{Call: c.name(call), Status: resp.StatusCode, What: "an answer that is not Gancho's"}
	}
	return e, nil
}

// roundTrip sends the request and returns the answer with any status.
func (c *Client) roundTrip(ctx context.Context, call call, header http.Header) (*http.Response, error) {
	target := c.base.String() + "/crm/v2" + call.path
	if len(call.query) > 0 {
		target += "?" + call.query.Encode()
	}
	var body io.Reader
	if call.body != nil {
		body = bytes.NewReader(call.body)
	}
	req, err := http.NewRequestWithContext(ctx, call.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name(call), err)
	}
	req.Header = header
	req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	if c.cfg.Language != "" {
		req.Header.Set("Accept-Language", c.cfg.Language)
	}
	if c.cfg.UserAgent != "" {
		req.Header.Set("User-Agent", c.cfg.UserAgent)
	}
	if c.cfg.Account != "" {
		req.Header.Set("X-Account-Id", c.cfg.Account)
	}
	if call.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if cause, ok := errors.AsType[*url.Error](err); ok { // it repeats method and address
			err = cause.Err
		}
		return nil, &NoAnswer{Call: c.name(call), URL: c.URL(), Cause: err}
	}
	return resp, nil
}

// judge returns the answer's error, nil for a 2xx.
func (c *Client) judge(call call, resp *http.Response, body []byte) error {
	switch s := resp.StatusCode; {
	case s >= 200 && s <= 299:
		return nil
	case s >= 300 && s <= 399:
		return &Unexpected{Call: c.name(call), Status: s, What: "a redirect, which is not followed"}
	}
	e := &Error{
		Call: c.name(call), Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id"),
		RetryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
	var said struct {
		Errors []Problem `json:"errors"`
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if !strings.Contains(kind, "json") || json.Unmarshal(body, &said) != nil || len(said.Errors) == 0 {
		if e.Status == http.StatusTooManyRequests {
			return e
		}
		return &Unexpected{Call: c.name(call), Status: resp.StatusCode, What: "an answer that is not Gancho's"}
	}
	e.Problems = said.Errors
	return e
}

// name is how errors call a call: method and path.
func (c *Client) name(call call) string {
	return call.method + " " + c.base.Path + "/crm/v2" + call.path
}

// retryAfter reads seconds or a date; 0 when there is none.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && seconds >= 0 && seconds < 1<<30 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
