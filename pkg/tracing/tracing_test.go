package tracing

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// receive starts a collector and returns what it got so far.
func receive(t *testing.T) (url string, got func() []*otlp.Span) {
	t.Helper()
	var mu sync.Mutex
	var spans []*otlp.Span
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = z
		}
		raw, err := io.ReadAll(body)
		var m collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(raw, &m) != nil {
			t.Errorf("not a trace export: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, r := range m.ResourceSpans {
			for _, s := range r.ScopeSpans {
				spans = append(spans, s.Spans...)
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, func() []*otlp.Span { mu.Lock(); defer mu.Unlock(); return spans }
}

const incoming = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestSpansFollowTheEvent(t *testing.T) {
	url, got := receive(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	tracer, err := Open("dispatcher", "1", func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	processing, next := tracer.Process(incoming, Event{ID: "event", Name: "crm_deal_created", Account: "acme"})
	processing.End(2, nil)
	began := time.Now().Add(-time.Minute)
	tracer.Attempted(next, Attempt{
		Method: "POST", Host: "hooks.example.com:8443", Number: 2, Send: 1, Status: 503, Reason: "status_5xx", Stream: "RETRIES", Started: began, Duration: 250 * time.Millisecond,
	})
	if err := tracer.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	spans := got()
	if len(spans) != 2 {
		t.Fatalf("got %d spans, want 2", len(spans))
	}
	process, attempt := spans[0], spans[1]
	for _, s := range spans {
		if id := cmp.Diff([]byte("\x4b\xf9\x2f\x35\x77\xb3\x4d\xa6\xa3\xce\x92\x9d\x0e\x0e\x47\x36"), s.TraceId); id != "" {
			t.Errorf("%s: another trace: %s", s.Name, id)
		}
	}
	if string(process.ParentSpanId) != "\x00\xf0\x67\xaa\x0b\xa9\x02\xb7" || string(attempt.ParentSpanId) != string(process.SpanId) {
		t.Errorf("parents: %x, %x", process.ParentSpanId, attempt.ParentSpanId)
	}
	if process.Name != "process crm.events" || attempt.Name != "POST" || process.Kind != otlp.Span_SPAN_KIND_CONSUMER || attempt.Kind != otlp.Span_SPAN_KIND_CLIENT {
		t.Errorf("names and kinds: %s %v, %s %v", process.Name, process.Kind, attempt.Name, attempt.Kind)
	}
	if took := attempt.EndTimeUnixNano - attempt.StartTimeUnixNano; took != uint64(250*time.Millisecond) || attempt.StartTimeUnixNano != uint64(began.UnixNano()) {
		t.Errorf("the attempt's time: %d ns", took)
	}
	attributes := map[string]string{}
	for _, a := range attempt.Attributes {
		attributes[a.Key] = a.Value.GetStringValue()
		if n := a.Value.GetIntValue(); n != 0 {
			attributes[a.Key] = time.Duration(n).String()
		}
	}
	for key, want := range map[string]string{
		"http.request.method": "POST", "server.address": "hooks.example.com", "server.port": "8.443µs", "http.response.status_code": "503ns",
		"error.type": "status_5xx", "http.request.resend_count": "1ns", "messaging.system": "nats", "messaging.destination.name": "RETRIES",
	} {
		if attributes[key] != want {
			t.Errorf("%s: got %q, want %q", key, attributes[key], want)
		}
	}
	if attempt.Status.Code != otlp.Status_STATUS_CODE_ERROR {
		t.Errorf("status: %v", attempt.Status)
	}
}

func TestOffCostsNothing(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	tracer, err := Open("publisher", "1", func(error) {})
	if err != nil || tracer != nil {
		t.Fatalf("got %v, %v; want it off", tracer, err)
	}
	allocations := testing.AllocsPerRun(100, func() {
		p, next := tracer.Process(incoming, Event{ID: "event"})
		if next != incoming {
			t.Error("the trace context changed")
		}
		p.End(1, nil)
		tracer.Attempted(next, Attempt{Method: "POST"})
	})
	if allocations > 0 {
		t.Errorf("%v allocations, want none", allocations)
	}
	if err := tracer.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestEventWithoutTraceBeginsOne(t *testing.T) {
	url, _ := receive(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	tracer, err := Open("publisher", "1", func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	p, next := tracer.Process("", Event{})
	p.End(0, nil)
	if len(next) != len(incoming) {
		t.Errorf("traceparent %q", next)
	}
	if err := tracer.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
