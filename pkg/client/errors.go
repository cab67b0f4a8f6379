package client

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Problem is one thing that is wrong with a request.
type Problem struct {
	Code    string `json:"code"`
	Detail  string `json:"detail"`
	Pointer string `json:"pointer"`
}

// Error is the API's refusal of a call.
type Error struct {
	Call       string // method and path
	Status     int    // of HTTP
	RequestID  string // which the service's log has
	Problems   []Problem
	RetryAfter time.Duration
}

// Error returns the API's error in one line.
func (e *Error) Error() string {
	if len(e.Problems) == 0 {
		return fmt.Sprintf("%s: the API answered %d %s", e.Call, e.Status, http.StatusText(e.Status))
	}
	parts := make([]string, 0, len(e.Problems))
	for _, p := range e.Problems {
		part := p.Detail
		if p.Pointer != "" {
			part += " (" + p.Pointer + ")"
		}
		parts = append(parts, part)
	}
	return fmt.Sprintf("%s: %s", e.Call, strings.Join(parts, "; "))
}

// Has reports whether one of the problems has the code.
func (e *Error) Has(code string) bool {
	for _, p := range e.Problems {
		if p.Code == code {
			return true
		}
	}
	return false
}

// NoAnswer says that the API could not be reached, or that its answer broke off. The call may have had its effect.
type NoAnswer struct {
	Call, URL string
	Cause     error
}

func (e *NoAnswer) Error() string {
	return fmt.Sprintf("%s: no answer from %s: %v", e.Call, e.URL, e.Cause)
}

func (e *NoAnswer) Unwrap() error { return e.Cause }

// Unexpected says that something else than the API answered.
type Unexpected struct {
	Call   string
	Status int // 0: the status does not say
	What   string
}

func (e *Unexpected) Error() string {
	if e.Status > 0 {
		return fmt.Sprintf("%s: %s (status %d)", e.Call, e.What, e.Status)
	}
	return fmt.Sprintf("%s: %s", e.Call, e.What)
}
