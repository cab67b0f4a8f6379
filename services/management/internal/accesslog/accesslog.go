// Package accesslog records each request to the API and the console: it notes status and size of the answer, turns a
// panic into an error, and writes one log line.
package accesslog

import (
	"errors"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/problem"
)

// Recorder notes the status and size of an answer.
type Recorder struct {
	http.ResponseWriter

	Status int // 0 until the answer has begun
	Bytes  int64
}

// WriteHeader notes the status.
func (r *Recorder) WriteHeader(status int) {
	if r.Status == 0 {
		r.Status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write counts.
func (r *Recorder) Write(b []byte) (int, error) {
	if r.Status == 0 {
		r.Status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.Bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (r *Recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Guard returns the error of handle. A panic in it is logged and counted, and is an error of 500.
func Guard(log *zap.Logger, panics prometheus.Counter, id string, handle func() error) (failure *problem.Error) {
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		if cause == http.ErrAbortHandler { //nolint:errorlint // the value itself is thrown
			panic(cause)
		}
		panics.Inc()
		log.Error("handling a request panicked", zap.String("request_id", id), zap.Any("panic", cause), zap.ByteString("stack", debug.Stack()))
		failure = problem.Of(errors.New("panic"))
	}()
	if err := handle(); err != nil {
		return problem.Of(err)
	}
	return nil
}

// Line is the log line of a request. All members but Failure and More are required.
type Line struct {
	ID, Method, Route string
	Answer            *Recorder
	Took              time.Duration
	Caller            auth.Caller // zero when the request was refused before
	RemoteAddr        string
	Failure           *problem.Error
	More              []zap.Field
}

// Log writes the line: as an error when the failure is on our side.
func (l Line) Log(log *zap.Logger) {
	fields := append([]zap.Field{
		zap.String("request_id", l.ID), zap.String("method", l.Method), zap.String("route", l.Route), zap.Int("http_status", l.Answer.Status),
		zap.Float64("duration_ms", float64(l.Took.Microseconds())/1000), zap.Int64("response_bytes", l.Answer.Bytes),
		zap.String("account_id", l.Caller.Account), zap.String("token", l.Caller.Name), zap.String("remote_addr", l.RemoteAddr),
	}, l.More...)
	level := zap.InfoLevel
	if l.Failure != nil {
		fields = append(fields, zap.String("code", l.Failure.Code()))
		if l.Failure.Cause != nil {
			fields = append(fields, zap.Error(l.Failure.Cause))
		}
		if l.Failure.Kind.Ours() {
			level = zap.ErrorLevel
		}
	}
	log.Log(level, "request", fields...)
}

// Method bounds how much of a client's text gets into labels and logs.
func Method(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions:
		return method
	}
	return "other"
}
