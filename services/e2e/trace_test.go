package e2e

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// TestTraceFromEventToAttempts publishes an event with a trace context and sees the spans of the publisher and
// of each attempt in that trace, and none of it at the receiver.
func TestTraceFromEventToAttempts(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	spans := map[string][]*otlp.Span{} // by service
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if z, err := gzip.NewReader(r.Body); err == nil && r.Header.Get("Content-Encoding") == "gzip" {
			body = z
		}
		raw, _ := io.ReadAll(body)
		var m collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(raw, &m); err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, r := range m.ResourceSpans {
			service := ""
			for _, a := range r.Resource.Attributes {
				if a.Key == "service.name" {
					service = a.Value.GetStringValue()
				}
			}
			for _, s := range r.ScopeSpans {
				spans[service] = append(spans[service], s.Spans...)
			}
		}
	}))
	t.Cleanup(sink.Close)
	s := newSystem(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+sink.URL, "OTEL_EXPORTER_OTLP_COMPRESSION=gzip", "OTEL_BSP_SCHEDULE_DELAY=100")
	var sent sync.Map
	rc := newReceiver(t, func(w http.ResponseWriter, attempt string) {
		if attempt == "1" {
			fail(w, attempt)
		}
	})
	rc.Config.Handler = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, h := range []string{"traceparent", "tracestate", "baggage"} {
				if v := r.Header.Get(h); v != "" {
					sent.Store(h, v)
				}
			}
			next.ServeHTTP(w, r)
		})
	}(rc.Config.Handler)
	s.register(dealCreated, rc.URL)
	s.settle()
	m := &nats.Msg{Subject: "crm.events." + account + "." + dealCreated, Header: nats.Header{}, Data: []byte(`{"transaction_uuid":"traced"}`)}
	m.Header["traceparent"] = []string{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
	if _, err := s.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	s.Until("there are spans of both attempts", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(spans["dispatcher"]) == 2 && len(spans["publisher"]) == 1
	})
	mu.Lock()
	defer mu.Unlock()
	publisher := spans["publisher"][0]
	for i, attempt := range spans["dispatcher"] {
		if string(attempt.TraceId) != string(publisher.TraceId) || string(attempt.ParentSpanId) != string(publisher.SpanId) || attempt.TraceId[0] != 0x4b {
			t.Errorf("attempt %d is in trace %x under %x, want trace %x under %x", i+1, attempt.TraceId, attempt.ParentSpanId, publisher.TraceId, publisher.SpanId)
		}
	}
	sent.Range(func(h, v any) bool { t.Errorf("the receiver was sent %s: %s", h, v); return true })
}
