package delivery

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"gancho/pkg/egress"
)

// Reason says why an attempt failed. The list is closed and the same in API, logs, metrics and console.
type Reason string

// The reasons; the table in the package comment says when each applies.
const (
	Timeout        Reason = "timeout"
	DNS            Reason = "dns"
	Connect        Reason = "connect"
	TLS            Reason = "tls"
	Redirect       Reason = "redirect"
	Status1xx      Reason = "status_1xx"
	Status4xx      Reason = "status_4xx"
	Status5xx      Reason = "status_5xx"
	RateLimited    Reason = "rate_limited"
	BlockedAddress Reason = "blocked_address"
	BadResponse    Reason = "bad_response"
	HeaderLimit    Reason = "header_limit"

	// InternalError and ExpiredWhileSuspended end notifications without a
	// receiver's fault.
	InternalError         Reason = "internal_error"
	ExpiredWhileSuspended Reason = "expired_while_suspended"
)

// Reasons returns the closed list.
func Reasons() []Reason {
	return []Reason{
		Timeout, DNS, Connect, TLS, Redirect, Status1xx, Status4xx, Status5xx, RateLimited, BlockedAddress,
		BadResponse, HeaderLimit, InternalError, ExpiredWhileSuspended,
	}
}

// Phases are the parts of an attempt's time. DNS, Connect and TLS are zero on a kept connection.
type Phases struct {
	DNS     time.Duration // name look-up
	Connect time.Duration // TCP
	TLS     time.Duration // handshake
	// FirstByte is from the connection being ready to the headers of the
	// answer; zero when none came.
	FirstByte time.Duration
}

// Certificate is how long the receiver's own (leaf) certificate is valid.
type Certificate struct {
	From, Until time.Time
	// New means that the receiver showed it for this attempt, in a full handshake. On a kept connection and in
	// a resumed session it is the one of an earlier handshake, and may have been renewed since.
	New bool
}

// certificateNotice is how long before its end a certificate ends soon; of one that is valid for less than three
// times as long, the last third of its time, so those that are renewed every few days do not.
const certificateNotice = 14 * 24 * time.Hour

// EndsSoon reports whether the certificate ends within 14 days, or within a third of its validity where that is
// less, or has ended. The zero Certificate does not.
func (c Certificate) EndsSoon(now time.Time) bool {
	return !c.Until.IsZero() && c.Until.Sub(now) <= min(certificateNotice, c.Until.Sub(c.From)/3)
}

// Outcome is the result of one attempt. It belongs to the caller.
type Outcome struct {
	// Delivered means a 2xx within the timeout.
	Delivered bool
	// Canceled means that the caller's context ended first: there is no
	// verdict, the request may or may not have arrived, and Reason is empty.
	Canceled bool
	// Reason is empty when Delivered or Canceled.
	Reason Reason
	// Status is the HTTP status, or 0 when none came.
	Status int
	// RetryAfter is how long a failed answer asked us to wait (RFC 9110,
	// section 10.2.3), 0 to 24 h; 0 when it did not.
	RetryAfter time.Duration

	Started  time.Time
	Duration time.Duration // from Started to the verdict, without reading the body
	Phases   Phases
	// Certificate is that of the receiver that answered, or the one that was refused and has ended; nothing else of
	// that one is verified. Zero for plain HTTP and all other failures without an answer.
	Certificate Certificate

	// RequestHeaders are those sent, the auth key and the signature as "***".
	// Nil when no request could be built.
	RequestHeaders http.Header
	// ResponseHeaders are the receiver's, at most 64 KiB; cookies, tokens and the like are "***".
	ResponseHeaders http.Header
	// ResponseBody is the beginning of the body, at most 4 KiB: without a gzip or deflate coding, and in UTF-8 where
	// its encoding is named. Any bytes may be in it; a character of UTF-8 is not cut in two.
	ResponseBody []byte
	// Detail is one sentence with the cause of a failure, of at most 400 bytes. When Delivered it is empty, or says
	// why the connection is not used again.
	Detail string
}

// judge sets the verdict of an answer.
func (o *Outcome) judge(rep *reply) {
	o.Status = rep.status
	switch s := rep.status; {
	case s >= 200 && s <= 299:
		o.Delivered = true
		return
	case s < 100 || s > 599:
		o.Reason = BadResponse
	case s < 200:
		o.Reason = Status1xx
	case s < 400:
		o.Reason = Redirect
	case s == http.StatusTooManyRequests:
		o.Reason = RateLimited
	case s < 500:
		o.Reason = Status4xx
	default:
		o.Reason = Status5xx
	}
	o.Detail = "the receiver answered with status " + strconv.Itoa(o.Status)
	if o.Reason == BadResponse {
		o.Detail += ", which does not exist"
	}
	o.RetryAfter = parseRetryAfter(rep.header.Get("Retry-After"), o.Started.Add(o.Duration))
}

const maxRetryAfter = 24 * time.Hour

// parseRetryAfter reads seconds or a date; what makes no sense counts as not sent.
func parseRetryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseUint(value, 10, 64)
		if err != nil || seconds > uint64(maxRetryAfter/time.Second) {
			return maxRetryAfter // digits only: too big for us, however big
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// errDeadline is the cause with which an attempt's context ends by itself.
var errDeadline = errors.New("the attempt's timeout is over")

// dialError marks errors before a connection was ready.
type dialError struct {
	reason Reason // Connect or TLS
	err    error
	proxy  bool // it came from the proxy, not from the receiver
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// classify names the failure behind err. Reasons that the caller's context explains are not decided here.
func (a *attempt) classify(err error, timeout time.Duration) (Reason, string) {
	if blocked, ok := errors.AsType[*egress.Blocked](err); ok {
		return BlockedAddress, blocked.Error()
	}
	dial, dialing := errors.AsType[*dialError](err)
	failed, lookup := errors.AsType[*net.DNSError](err)
	// The dialer ends at the same moment as the attempt and may be noticed first.
	if !time.Now().Before(a.deadline) {
		text := a.stage() + " took longer than " + timeout.String()
		if tried, ok := errors.AsType[*egress.DialError](err); ok {
			text += ": " + tried.Error()
		} else if lookup && failed.Server != "" {
			text += ": no answer from name server " + failed.Server
		}
		return Timeout, text
	}
	if lookup {
		return DNS, nameFailure(failed)
	}
	if dialing && dial.reason == Connect {
		if slow, ok := errors.AsType[net.Error](err); ok && slow.Timeout() {
			return Timeout, "connecting: " + err.Error()
		}
		return Connect, "connecting: " + err.Error()
	}
	if dialing || isTLS(err) {
		if why := a.refused(err, time.Now()); why != "" {
			return TLS, "TLS handshake: " + why
		}
		return TLS, handshakeFailure(err)
	}
	if _, lost := errors.AsType[*lostError](err); lost {
		return Connect, "the connection was lost before an answer (the request may have arrived): " + cause(err) + a.doubt()
	}
	if text, ok := errors.AsType[badAnswer](err); ok {
		return BadResponse, string(text)
	}
	if text, ok := malformed(err); ok {
		return BadResponse, "the answer's headers are malformed: " + text + "; the next attempt uses HTTP/1.1"
	}

	text := err.Error()
	switch {
	case errors.Is(err, errHeaderLimit):
		return HeaderLimit, errHeaderLimit.Error()
	// net/http has no types for these.
	case strings.Contains(text, headerList):
		return HeaderLimit, errHeaderLimit.Error()
	case errors.Is(err, errFlood):
		return BadResponse, errFlood.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, errNothingSent),
		strings.Contains(text, "http2: client conn"), strings.Contains(text, "http2: server sent GOAWAY"):
		return Connect, "the connection was lost before an answer (the request may have arrived): " + text + a.doubt()
	}
	return BadResponse, text
}

// cause is the short text of a network error.
func cause(err error) string {
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no.Error()
	}
	if errors.Is(err, io.EOF) {
		return "the receiver closed it"
	}
	return err.Error()
}

// nameFailure says which name server said what.
func nameFailure(e *net.DNSError) string {
	text := "looking up " + e.Name + ": "
	switch {
	case e.Server == "":
		return text + e.Err
	case e.IsNotFound:
		return text + "the name does not exist, says name server " + e.Server
	}
	return text + "name server " + e.Server + ": " + e.Err
}

// isTLS finds TLS failures outside our own handshake: alerts that TLS 1.3 sends after it, such as for a missing
// client certificate.
func isTLS(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "remote error" || op.Op == "local error") {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok
}

// ended returns the receiver's certificate where err says that it was refused and it has ended.
func ended(err error, now time.Time) Certificate {
	refused, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if !ok || len(refused.UnverifiedCertificates) == 0 {
		return Certificate{}
	}
	if dial, dialing := errors.AsType[*dialError](err); dialing && dial.proxy {
		return Certificate{}
	}
	leaf := refused.UnverifiedCertificates[0]
	if !now.After(leaf.NotAfter) {
		return Certificate{}
	}
	return Certificate{From: leaf.NotBefore, Until: leaf.NotAfter, New: true}
}

const maxDetailBytes = 400

// tidy makes text from outside fit for one line of a log.
func tidy(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == utf8.RuneError || (r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, text)
	if len(text) > maxDetailBytes {
		text = strings.ToValidUTF8(text[:maxDetailBytes], "") + "..."
	}
	return text
}
