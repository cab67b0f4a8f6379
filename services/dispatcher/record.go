package dispatcher

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"gancho/pkg/delivery"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/tracing"
	"gancho/pkg/webhook"
)

// record starts a journal record of what happens to m now.
func (d *Dispatcher) record(m *lane.Delivery, w *webhook.Webhook, last notification.Position, kind notification.Kind) *notification.Record {
	r := m.Record(last, kind, time.Now())
	if w != nil {
		r.URLKey, r.URLHost = w.URLKey, webhook.URLHost(w.URL)
	}
	return r
}

func describe(o delivery.Outcome, number, send int) *notification.Attempt {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	a := &notification.Attempt{
		Number: number, Send: send, StartedAt: o.Started.UTC(), Outcome: notification.OutcomeFailed, Reason: o.Reason,
		HTTPStatus: o.Status, Detail: o.Detail, DurationMS: ms(o.Duration), RetryAfterMS: ms(o.RetryAfter),
		Phases: notification.PhasesMS{
			DNS: ms(o.Phases.DNS), Connect: ms(o.Phases.Connect), TLS: ms(o.Phases.TLS), FirstByte: ms(o.Phases.FirstByte),
		},
		RequestHeaders: flat(o.RequestHeaders), ResponseHeaders: flat(o.ResponseHeaders),
	}
	if o.Delivered {
		a.Outcome = notification.OutcomeDelivered
	}
	if utf8.Valid(o.ResponseBody) {
		a.ResponseBody = string(o.ResponseBody)
	} else {
		a.ResponseBase64 = o.ResponseBody
	}
	return a
}

// keptHeaderBytes is how much of the headers the journal keeps: a receiver may send 64 KiB with each answer,
// and a record is kept for a month.
const keptHeaderBytes = 8 << 10

// cutHeader stands in a record for the headers left out. No header can have this name.
const cutHeader = "(truncated)"

// flat joins the values of each header and keeps the first keptHeaderBytes, in alphabetical order. The part
// left out is marked by cutHeader.
func flat(h http.Header) map[string]string {
	if len(h) == 0 {
		return nil
	}
	out := make(map[string]string, min(len(h), 64))
	left, cut := keptHeaderBytes, 0
	for _, k := range slices.Sorted(maps.Keys(h)) {
		v := strings.Join(h[k], ", ")
		switch size := len(k) + len(v); {
		case size <= left:
			out[k] = v
			left -= size
		case len(k) < left: // what fits of this one, and nothing after it
			out[k] = strings.ToValidUTF8(v[:left-len(k)], "")
			left, cut = 0, cut+1
		default:
			left, cut = 0, cut+1
		}
	}
	if cut > 0 {
		out[cutHeader] = fmt.Sprintf("%d of %d headers are cut or left out; the first %d bytes are kept", cut, len(h), keptHeaderBytes)
	}
	return out
}

// fields are those of every log line about a notification.
func fields(m *lane.Delivery) []zap.Field {
	return []zap.Field{
		zap.String("account_id", m.Account), zap.String("webhook_id", m.WebhookID), zap.String("notification_id", m.ID),
		zap.String("event_id", m.EventID), zap.String("event_name", m.EventName),
	}
}

// observe counts the attempt and writes its one wide log line.
func (d *Dispatcher) observe(m *lane.Delivery, r *notification.Record, o delivery.Outcome) {
	d.metrics.attempts.WithLabelValues(r.Attempt.Outcome, string(o.Reason)).Inc()
	d.metrics.duration.WithLabelValues(r.Attempt.Outcome).Observe(o.Duration.Seconds())
	if r.AttemptsDone == 1 && m.Lane == notification.LaneFirst && m.Replay == "" && m.Send == 1 { // a parked one waited on purpose
		d.metrics.latency.Observe(o.Started.Sub(m.EventTime).Seconds())
	}
	d.receivers.saw(m, r.URLHost, r.URLHost, o.Certificate)
	if r.State.Terminal() {
		d.metrics.ended.WithLabelValues(string(r.State)).Inc()
	}
	if ce := d.log.Check(zap.InfoLevel, "attempt"); ce != nil {
		f := append(fields(m),
			zap.Int("attempt", r.AttemptsDone), zap.String("outcome", r.Attempt.Outcome), zap.String("reason", string(o.Reason)),
			zap.Int("http_status", o.Status), zap.Float64("duration_ms", r.Attempt.DurationMS),
			zap.String("url_host", r.URLHost), zap.String("state", string(r.State)), zap.Int("send", m.Send),
			zap.String("trace_id", traceID(m.Traceparent)), next(r.NextAttemptAt))
		if o.Detail != "" {
			f = append(f, zap.String("detail", o.Detail))
		}
		ce.Write(f...)
	}
}

// next is when the next attempt is due, null when there is none: every line has every field.
func next(at time.Time) zap.Field {
	if at.IsZero() {
		return zap.Reflect("next_attempt_at", nil)
	}
	return zap.Time("next_attempt_at", at)
}

// traceID is the trace id of a W3C traceparent, "" when there is none.
func traceID(traceparent string) string {
	if len(traceparent) == 55 && traceparent[2] == '-' && traceparent[35] == '-' {
		return traceparent[3:35]
	}
	return ""
}

// traced records the attempt's span.
func (d *Dispatcher) traced(m *lane.Delivery, w *webhook.Webhook, r *notification.Record, o delivery.Outcome) {
	if d.trace == nil {
		return
	}
	d.trace.Attempted(m.Traceparent, tracing.Attempt{
		Account: m.Account, WebhookID: m.WebhookID, NotificationID: m.ID, EventName: m.EventName, Stream: m.Stream(),
		Method: w.Method, Host: r.URLHost, Number: r.AttemptsDone, Send: m.Send, State: string(r.State), Status: o.Status, Reason: string(o.Reason),
		Probe: r.Probe, Started: o.Started, Duration: o.Duration,
	})
}
