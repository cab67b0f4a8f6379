package books

import (
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/lane"
	"gancho/pkg/notification"
)

// BenchmarkLedger opens sends and reports what one costs.
func BenchmarkLedger(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	l := newLedger()
	n := 0
	for b.Loop() {
		n++
		l.arrive(lane.Arrival{Notification: notification.Notification{Account: "acme", WebhookID: "w", ID: uuid.NewString(), Send: 1}, StoredAt: time.Unix(1, 0)}, uint64(n))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/open")
	runtime.KeepAlive(l)
}
