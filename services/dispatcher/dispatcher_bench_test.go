package dispatcher

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/service"
	"gancho/pkg/webhook"
)

// BenchmarkDispatch measures the way of one notification from NOTIFICATIONS to its ack, broker and
// receiver in this process.
func BenchmarkDispatch(b *testing.B) {
	r := newRig(b, func(c *Config) { c.MaxInFlight, c.MaxInFlightPerURL = 2048, 64 })
	var got atomic.Int64
	var wait sync.WaitGroup
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { got.Add(1); wait.Done() }))
	defer srv.Close()
	var hooks []*webhook.Webhook
	for i := range 10 {
		hooks = append(hooks, r.webhook(fmt.Sprintf("%s/%d", srv.URL, i), nil))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, r.cfg, &service.Process{Name: "dispatcher", Log: zap.NewNop(), Metrics: prometheus.NewRegistry(), Health: service.NewHealth()})
	}()
	body := make([]byte, 1024)
	for i := range body {
		body[i] = 'x'
	}
	publish := func(from, n int) {
		wait.Add(n)
		var started []*bus.Started
		for i := range n {
			w := hooks[i%len(hooks)]
			eventID := event.ID(w.Account, "crm_deal_created", fmt.Sprint(from+i))
			started = append(started, lane.Notify(r.bus, &notification.Notification{
				Account: w.Account, ID: event.NotificationID(eventID, uuid.MustParse(w.ID)), WebhookID: w.ID, EventID: eventID,
				EventName: "crm_deal_created", EventTime: time.Now(), Send: 1, Body: body,
			}))
			if len(started) == 1000 || i == n-1 {
				for _, s := range started {
					if err := s.Wait(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				started = nil
			}
		}
		wait.Wait()
	}
	publish(0, 2000)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if n++; n%1000 == 0 {
			publish(n+2000, 1000)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "notifications/s")
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
