package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/schema"
	"gancho/pkg/seal"
	"gancho/pkg/tracing"
	"gancho/pkg/webhook"
)

// target is the webhook a notification goes to, as the registry has it now.
type target struct{ *webhook.Webhook }

// urlKey of a webhook that is gone is empty.
func (w *target) urlKey() string {
	if w == nil {
		return ""
	}
	return w.URLKey
}

// webhook returns the notification's webhook, nil when it was deleted. The registry in memory may lag a
// few milliseconds behind the publisher's, so absence is believed only of the bucket itself.
func (d *Dispatcher) webhook(ctx context.Context, m *bus.Delivery) (*target, error) {
	if w := d.registry.Get(m.Account, m.WebhookID); w != nil {
		return &target{w}, nil
	}
	e, err := d.registry.Bucket().Get(ctx, m.Account+"."+m.WebhookID)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	w, err := webhook.Decode(e.Value)
	if err != nil {
		return nil, err
	}
	return &target{w}, nil
}

func (d *Dispatcher) suspended(k urlKey) bool {
	_, yes := d.suspensions.Get(k.suspension())
	return yes
}

// attempt makes the request. An error means that none was made: the webhook's credentials do not open,
// which is our fault and not the receiver's.
func (d *Dispatcher) attempt(ctx context.Context, m *bus.Delivery, w *target, last notification.Position) (delivery.Outcome, error) {
	credentials, err := d.credentials.of(w.Webhook, d.keys)
	if err != nil {
		d.log.Error("credentials do not open; is ENCRYPTION_KEY_FILE the one management seals with?", append(fields(m), zap.Error(err))...)
		return delivery.Outcome{}, err
	}
	d.metrics.inFlight.Inc()
	defer d.metrics.inFlight.Dec()
	return d.sender.Send(ctx, delivery.Request{
		Method: w.Method, URL: w.URL, Body: m.Body, EventName: m.EventName, NotificationID: m.ID,
		Attempt: last.AttemptsDone + 1, Replay: m.Replay, EventTime: m.EventTime,
		AuthHeader: credentials.AuthHeader, AuthKey: credentials.AuthKey, Secrets: credentials.Secrets, Ed25519: credentials.Ed25519,
	}), nil
}

// credentials keeps what was opened of each webhook, so that a request does not pay for opening it again:
// 5 % of the dispatcher's time. It is safe for concurrent use.
type credentials struct{ opened sync.Map } // webhook key -> opened

type opened struct {
	webhook *webhook.Webhook // this very value; a change is a new one
	webhook.Credentials
	until time.Time // the soonest end of a secret; zero: none ends
}

func (c *credentials) of(w *webhook.Webhook, keys *seal.Keyring) (webhook.Credentials, error) {
	now := time.Now()
	if v, ok := c.opened.Load(w.Key()); ok {
		if o, ok := v.(opened); ok && o.webhook == w && (o.until.IsZero() || now.Before(o.until)) {
			return o.Credentials, nil
		}
	}
	open, err := w.Open(keys, now)
	if err != nil {
		return webhook.Credentials{}, err
	}
	o := opened{webhook: w, Credentials: open}
	for _, s := range w.Secrets {
		if now.Before(s.ExpiresAt) && (o.until.IsZero() || s.ExpiresAt.Before(o.until)) {
			o.until = s.ExpiresAt
		}
	}
	c.opened.Store(w.Key(), o)
	return open, nil
}

// forget drops what was opened of a webhook that is gone.
func (c *credentials) forget(key string) { c.opened.Delete(key) }

// record starts a journal record of what happens to m now.
func (d *Dispatcher) record(m *bus.Delivery, w *target, last notification.Position, kind notification.Kind) *notification.Record {
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

// flat joins the values of each header and keeps the first keptHeaderBytes, in alphabetical order. What is
// left out is told by cutHeader.
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

// keepFailed stores the payload on FAILED with a summary of the send's attempts. Doing it again changes nothing.
func (d *Dispatcher) keepFailed(ctx context.Context, n *notification.Notification) error {
	type line struct {
		Number     int             `json:"number"`
		StartedAt  time.Time       `json:"started_at"`
		Reason     delivery.Reason `json:"reason,omitempty"`
		HTTPStatus int             `json:"http_status,omitempty"`
	}
	var lines []line
	last, err := d.bus.LastRecord(ctx, n.Account, n.ID)
	if err == nil || errors.Is(err, schema.ErrNewer) {
		for r, readErr := range d.bus.History(ctx, last) {
			if err = readErr; r == nil || r.Send != n.Send {
				break
			}
			if a := r.Attempt; a != nil {
				lines = append([]line{{a.Number, a.StartedAt, a.Reason, a.HTTPStatus}}, lines...)
			}
		}
	}
	if err != nil && !errors.Is(err, bus.ErrNotFound) && !errors.Is(err, schema.ErrNewer) {
		return err
	}
	summary, err := json.Marshal(lines)
	if err != nil {
		return fmt.Errorf("encode the summary of attempts: %w", err)
	}
	return d.bus.Fail(ctx, n, string(summary))
}

// fields are what every log line about a notification carries.
func fields(m *bus.Delivery) []zap.Field {
	return []zap.Field{
		zap.String("account_id", m.Account), zap.String("webhook_id", m.WebhookID), zap.String("notification_id", m.ID),
		zap.String("event_id", m.EventID), zap.String("event_name", m.EventName),
	}
}

// observe counts the attempt and writes its one wide log line.
func (d *Dispatcher) observe(m *bus.Delivery, r *notification.Record, o delivery.Outcome) {
	d.metrics.attempts.WithLabelValues(r.Attempt.Outcome, string(o.Reason)).Inc()
	d.metrics.duration.WithLabelValues(r.Attempt.Outcome).Observe(o.Duration.Seconds())
	if r.AttemptsDone == 1 && m.Lane == notification.LaneFirst && m.Replay == "" && m.Send == 1 { // what was parked waited on purpose
		d.metrics.latency.Observe(o.Started.Sub(m.EventTime).Seconds())
	}
	d.receivers.saw(m, r.URLHost, o.Certificate)
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
func (d *Dispatcher) traced(m *bus.Delivery, w *target, r *notification.Record, o delivery.Outcome) {
	if d.trace == nil {
		return
	}
	d.trace.Attempted(m.Traceparent, tracing.Attempt{
		Account: m.Account, WebhookID: m.WebhookID, NotificationID: m.ID, EventName: m.EventName, Stream: m.Stream(),
		Method: w.Method, Host: r.URLHost, Number: r.AttemptsDone, Send: m.Send, State: string(r.State), Status: o.Status, Reason: string(o.Reason),
		Probe: r.Probe, Started: o.Started, Duration: o.Duration,
	})
}
