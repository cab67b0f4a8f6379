// Package tracing records OpenTelemetry spans of an event's way: one when the publisher turns the event into
// notifications, one for each attempt. They continue the trace of the event's traceparent header (W3C Trace
// Context), which travels from span to span in the messages' headers and is not sent to receivers.
//
// It is off unless OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set, and then costs
// nothing: a nil *Tracer is a valid one that does nothing. The standard's other variables (OTEL_TRACES_SAMPLER,
// OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES and so on) are read by the library.
//
// Names follow the semantic conventions for messaging and HTTP. Those do not know NATS yet, so
// messaging.system is ours: nats.
package tracing

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Tracer records the spans of one service. It is safe for concurrent use; nil is off.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// Open returns the tracer of a service as the environment of the process says, nil when tracing is off. failed
// is called when spans of any service of the process cannot be sent.
func Open(service, version string, failed func(error)) (*Tracer, error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" ||
		os.Getenv("OTEL_SDK_DISABLED") == "true" {
		return nil, nil
	}
	ctx := context.Background()
	exporter, err := otlptracehttp.New(ctx) // it connects when it has something to send
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.namespace", "gancho"),
			attribute.String("service.name", service), attribute.String("service.version", version)),
		resource.WithFromEnv(), resource.WithTelemetrySDK(), resource.WithHost())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetLogger(logr.Discard()) // it would write plain lines to stderr
	otel.SetErrorHandler(otel.ErrorHandlerFunc(failed))
	p := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	return &Tracer{p, p.Tracer("gancho")}, nil
}

// Close sends the remaining spans.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// header is where the parent of a span comes from and where its own context goes.
const header = "traceparent"

func parent(traceparent string) context.Context {
	return propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{header: traceparent})
}

// Event holds the attributes of the publisher's span.
type Event struct {
	ID, Name, Account string
	Sequence          uint64
	Deliveries        int // how often the broker delivered it, this time included
}

// Processing is the span of an event in the publisher.
type Processing struct{ span trace.Span }

// Process starts the span of an event, and returns the traceparent that its notifications carry.
func (t *Tracer) Process(traceparent string, e Event) (*Processing, string) {
	if t == nil {
		return nil, traceparent
	}
	ctx, span := t.tracer.Start(parent(traceparent), "process crm.events", trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			attribute.String("messaging.system", "nats"),
			attribute.String("messaging.operation.name", "process"),
			attribute.String("messaging.operation.type", "process"),
			attribute.String("messaging.destination.name", "CRM_EVENTS"),
			attribute.String("messaging.destination.template", "crm.events.{account_id}.{event_name}"),
			attribute.String("messaging.message.id", e.ID),
			attribute.String("gancho.account_id", e.Account),
			attribute.String("gancho.event_name", e.Name),
			attribute.Int64("gancho.event_sequence", int64(e.Sequence)), //nolint:gosec // a count
			attribute.Int("gancho.deliveries", e.Deliveries),
		))
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return &Processing{span}, carrier[header]
}

// End ends the span. err says that not all notifications were stored.
func (p *Processing) End(notifications int, err error) {
	if p == nil {
		return
	}
	p.span.SetAttributes(attribute.Int("gancho.notifications", notifications))
	if err != nil {
		p.span.SetAttributes(attribute.String("error.type", "broker"))
		p.span.SetStatus(codes.Error, "notifications not stored")
	}
	p.span.End()
}

// Attempt holds the attributes of an attempt's span.
type Attempt struct {
	Account, WebhookID, NotificationID, EventName string

	Stream   string // the notification came from
	Method   string
	Host     string // of the URL, with the port where it has one
	Number   int    // 1..6
	Send     int
	State    string // of the notification, afterwards
	Status   int    // 0: no answer
	Reason   string // of the failure, "" for success
	Probe    bool
	Started  time.Time
	Duration time.Duration
}

// Attempted records the span of an attempt that was made.
func (t *Tracer) Attempted(traceparent string, a Attempt) {
	if t == nil {
		return
	}
	attributes := []attribute.KeyValue{
		attribute.String("messaging.system", "nats"),
		attribute.String("messaging.operation.name", "process"),
		attribute.String("messaging.destination.name", a.Stream),
		attribute.String("messaging.message.id", a.NotificationID),
		attribute.String("http.request.method", a.Method),
		attribute.String("gancho.account_id", a.Account),
		attribute.String("gancho.webhook_id", a.WebhookID),
		attribute.String("gancho.event_name", a.EventName),
		attribute.Int("gancho.attempt", a.Number),
		attribute.Int("gancho.send", a.Send),
		attribute.String("gancho.state", a.State),
	}
	host, port, err := net.SplitHostPort(a.Host)
	if err != nil {
		host = a.Host
	}
	attributes = append(attributes, attribute.String("server.address", host))
	if n, err := strconv.Atoi(port); err == nil {
		attributes = append(attributes, attribute.Int("server.port", n))
	}
	if a.Number > 1 {
		attributes = append(attributes, attribute.Int("http.request.resend_count", a.Number-1))
	}
	if a.Status > 0 {
		attributes = append(attributes, attribute.Int("http.response.status_code", a.Status))
	}
	if a.Probe {
		attributes = append(attributes, attribute.Bool("gancho.probe", true))
	}
	if a.Reason != "" {
		attributes = append(attributes, attribute.String("error.type", a.Reason))
	}
	_, span := t.tracer.Start(parent(traceparent), a.Method, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithTimestamp(a.Started), trace.WithAttributes(attributes...))
	if a.Reason != "" {
		span.SetStatus(codes.Error, a.Reason)
	}
	span.End(trace.WithTimestamp(a.Started.Add(a.Duration)))
}
