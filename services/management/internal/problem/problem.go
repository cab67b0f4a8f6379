// Package problem has the errors of management's domain packages: a kind, and a list of codes with details for
// people. It knows no transport; package httpstatus maps the kinds to HTTP for the API and the console.
package problem

import (
	"errors"
	"strings"
	"time"

	"gancho/pkg/wireversion"
)

// Kind says what sort of failure an Error is.
type Kind int

// The kinds. The zero value is a fault of this program.
const (
	Internal        Kind = iota
	Malformed            // the request cannot be understood in exactly one way
	Unauthenticated      // no token, or one that is not valid
	Forbidden            // a valid token that may not do this
	Missing              // the account has no such thing
	NotAllowed           // the path does not take this method
	Conflict             // the state of things does not allow it
	Changed              // a precondition of the caller does not hold
	TooLarge             // more bytes than are accepted
	Unsupported          // a media type or an encoding that is not accepted
	Invalid              // a value is out of its range
	Limited              // too much at a time; see Error.RetryAfter
	Unavailable          // something that this needs does not answer
)

var kinds = [...]string{
	"internal", "malformed", "unauthenticated", "forbidden", "missing", "not allowed", "conflict", "changed",
	"too large", "unsupported", "invalid", "limited", "unavailable",
}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kinds) {
		return "unknown"
	}
	return kinds[k]
}

// Ours reports whether the failure is on the service's side.
func (k Kind) Ours() bool { return k == Internal || k == Unavailable }

// Problem is one thing that is wrong.
type Problem struct {
	// Code is stable, for programs.
	Code string `json:"code"`
	// Detail names the problem, the place, and the remedy. It holds no secrets.
	Detail string `json:"detail"`
	// Pointer is the place in the request's body (RFC 6901) or, with a leading ?, the query parameter.
	Pointer string `json:"pointer,omitempty"`
	// ID is that of the thing that is in the way, such as the webhook that has the URL already.
	ID string `json:"id,omitempty"`
}

// Error is why a request was not fulfilled. It is immutable.
type Error struct {
	Kind     Kind
	Problems []Problem
	// RetryAfter, when above zero, is how long the client should wait before it tries again.
	RetryAfter time.Duration
	// Cause is what happened inside, for the log only.
	Cause error
}

func (e *Error) Error() string {
	var s strings.Builder
	s.WriteString(e.Kind.String())
	for _, p := range e.Problems {
		s.WriteString("; " + p.Code + ": " + p.Detail)
	}
	if e.Cause != nil {
		s.WriteString(": " + e.Cause.Error())
	}
	return s.String()
}

func (e *Error) Unwrap() error { return e.Cause }

// Code returns the first problem's code, "" when there is none.
func (e *Error) Code() string {
	if len(e.Problems) == 0 {
		return ""
	}
	return e.Problems[0].Code
}

// New returns an error with one problem.
func New(kind Kind, code, detail string) *Error {
	return &Error{Kind: kind, Problems: []Problem{{Code: code, Detail: detail}}}
}

// At returns an error about one place of the request.
func At(kind Kind, pointer, code, detail string) *Error {
	return &Error{Kind: kind, Problems: []Problem{{Code: code, Detail: detail, Pointer: pointer}}}
}

// NotFound says that the account has no thing of that sort and id. It does not reveal whether another account has.
func NotFound(thing string) *Error {
	return New(Missing, "not_found", "this account has no "+thing+" with that id")
}

// Down says that something the request needs does not answer; the client may try again after 5 s.
func Down(code, detail string, cause error) *Error {
	return &Error{
		Kind: Unavailable, Problems: []Problem{{Code: code, Detail: detail}}, RetryAfter: 5 * time.Second,
		Cause: cause,
	}
}

// Broker wraps an error of the message broker: it is down, slower than the request may take, or holds a record that
// only a newer version can read. It returns nil for nil, and an *Error as it is.
func Broker(cause error) error {
	if cause == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](cause); ok {
		return cause
	}
	if errors.Is(cause, wireversion.ErrNewer) {
		return Down("newer_version", "this was written by a newer version of the service, "+
			"and this one leaves it alone: try again", cause)
	}
	return Down("broker_unavailable", "the message broker does not answer; nothing may have been changed, so try again",
		cause)
}

// Of returns err as an *Error. Any other error becomes one of kind Internal, whose text stays inside.
func Of(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{
		Kind: Internal,
		Problems: []Problem{
			{
				Code:   "internal_error",
				Detail: "the request could not be fulfilled; the log has the reason under this request's id",
			},
		},
		Cause: err,
	}
}

// List gathers the problems of one request's fields.
type List []Problem

// Add adds one.
func (l *List) Add(pointer, code, detail string) {
	*l = append(*l, Problem{Code: code, Detail: detail, Pointer: pointer})
}

// Err returns the list as an error of kind Invalid, nil when it is empty.
func (l List) Err() error {
	if len(l) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Problems: l}
}
