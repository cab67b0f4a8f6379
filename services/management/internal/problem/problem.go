// Package problem is what goes wrong in a request, in the words of the API: a status and a list of codes with
// details for people, in the shape of RD Station's errors.
package problem

import (
	"cmp"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"gancho/pkg/schema"
)

// Problem is one thing that is wrong.
type Problem struct {
	// Code is stable, for programs.
	Code string `json:"code"`
	// Detail says what is wrong, where, and what to do. It holds no secrets.
	Detail string `json:"detail"`
	// Pointer is the place in the request's body (RFC 6901) or, with a leading ?, the query parameter.
	Pointer string `json:"pointer,omitempty"`
}

// Error is why a request was not fulfilled. It is immutable.
type Error struct {
	Status   int // of HTTP
	Problems []Problem
	// RetryAfter is told to the client when it is above zero.
	RetryAfter time.Duration
	// Cause is what happened inside, for the log only.
	Cause error
}

func (e *Error) Error() string {
	var s strings.Builder
	s.WriteString(strconv.Itoa(e.Status))
	for _, p := range e.Problems {
		s.WriteString(" " + p.Code + ": " + p.Detail)
	}
	if e.Cause != nil {
		s.WriteString(": " + e.Cause.Error())
	}
	return s.String()
}

func (e *Error) Unwrap() error { return e.Cause }

// New returns an error with one problem.
func New(status int, code, detail string) *Error {
	return &Error{Status: status, Problems: []Problem{{Code: code, Detail: detail}}}
}

// At returns an error about one place of the request.
func At(status int, pointer, code, detail string) *Error {
	return &Error{Status: status, Problems: []Problem{{code, detail, pointer}}}
}

// NotFound says that the account has no such thing, without telling whether another one has.
func NotFound(what string) *Error {
	return New(http.StatusNotFound, "not_found", "this account has no "+what+" with that id")
}

// Unavailable says that something the request needs is away.
func Unavailable(code, detail string, cause error) *Error {
	return &Error{
		Status: http.StatusServiceUnavailable, Problems: []Problem{{Code: code, Detail: detail}},
		RetryAfter: 5 * time.Second, Cause: cause,
	}
}

// Broker wraps an error of the message broker: it is away, slower than the request may take, or holds what only
// a newer version can read.
func Broker(cause error) error {
	if cause == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](cause); ok {
		return cause
	}
	if errors.Is(cause, schema.ErrNewer) {
		return Unavailable("newer_version", "this was written by a newer version of the service, and this one leaves it alone: try again", cause)
	}
	return Unavailable("broker_unavailable", "the message broker does not answer; nothing may have been changed, so try again", cause)
}

// Of returns err as an *Error; what is none is an internal error whose text stays inside.
func Of(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{
		Status:   http.StatusInternalServerError,
		Problems: []Problem{{Code: "internal_error", Detail: "the request could not be fulfilled; the log has the reason under this request's id"}},
		Cause:    err,
	}
}

// List gathers the problems of one request's fields.
type List []Problem

// Add adds one.
func (l *List) Add(pointer, code, detail string) { *l = append(*l, Problem{code, detail, pointer}) }

// Err returns the list as a 422, nil when it is empty.
func (l List) Err() error {
	if len(l) == 0 {
		return nil
	}
	return &Error{Status: http.StatusUnprocessableEntity, Problems: l}
}

// Code returns the first problem's code.
func (e *Error) Code() string {
	if len(e.Problems) == 0 {
		return ""
	}
	return cmp.Or(e.Problems[0].Code, "")
}
