// Package accesslog records each request to the API and the console: it notes status and size of the answer, turns a
// panic into an error, measures the time, and writes one log line.
package accesslog

import (
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
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

// Log is the log and the metrics of one front: the API or the console. It is safe for concurrent use.
type Log struct {
	log      *zap.Logger
	duration *prometheus.HistogramVec
	panics   prometheus.Counter
}

// New returns the log of a front. The names of its metrics begin with prefix, their texts name the front.
func New(log *zap.Logger, reg prometheus.Registerer, prefix, front string) *Log {
	auto := promauto.With(reg)
	return &Log{
		log: log,
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "_request_duration_seconds", Help: "Duration of requests to " + front +
				", by route, method and status.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route", "method", "status"}),
		panics: auto.NewCounter(prometheus.CounterOpts{
			Name: prefix + "_panics_total", Help: "Panics while handling a request to " + front + ".",
		}),
	}
}

// Guard returns the error of handle. A panic in it is logged and counted, and is an error of 500.
func (l *Log) Guard(id string, handle func() error) (failure *problem.Error) {
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		if cause == http.ErrAbortHandler { //nolint:errorlint // the value itself is thrown
			panic(cause)
		}
		l.panics.Inc()
		l.log.Error("handling a request panicked", zap.String("request_id", id), zap.Any("panic", cause),
			zap.ByteString("stack", debug.Stack()))
		failure = problem.Of(errors.New("panic"))
	}()
	if err := handle(); err != nil {
		return problem.Of(err)
	}
	return nil
}

// Line is one request. All members but Failure and More are required.
type Line struct {
	ID, Route string
	Request   *http.Request
	Answer    *Recorder
	Began     time.Time
	Caller    auth.Caller // zero when the request was refused before
	Failure   *problem.Error
	More      []zap.Field
}

// Write observes the request's duration and writes its line: as an error when the failure is on our side.
func (l *Log) Write(r Line) {
	took, method := time.Since(r.Began), method(r.Request.Method)
	l.duration.WithLabelValues(r.Route, method, strconv.Itoa(r.Answer.Status)).Observe(took.Seconds())
	fields := append([]zap.Field{
		zap.String("request_id", r.ID), zap.String("method", method), zap.String("route", r.Route),
		zap.Int("http_status", r.Answer.Status),
		zap.Float64("duration_ms", float64(took.Microseconds())/1000), zap.Int64("response_bytes", r.Answer.Bytes),
		zap.String("account_id", r.Caller.Account), zap.String("token", r.Caller.Name),
		zap.String("remote_addr", r.Request.RemoteAddr),
	}, r.More...)
	level := zap.InfoLevel
	if r.Failure != nil {
		fields = append(fields, zap.String("code", r.Failure.Code()))
		if r.Failure.Cause != nil {
			fields = append(fields, zap.Error(r.Failure.Cause))
		}
		if r.Failure.Kind.Ours() {
			level = zap.ErrorLevel
		}
	}
	l.log.Log(level, "request", fields...)
}

// method bounds how much of a client's text gets into labels and logs.
func method(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch,
		http.MethodOptions:
		return method
	}
	return "other"
}
