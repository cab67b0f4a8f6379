package index

import (
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/pkg/redistest"
)

// BenchmarkActivity reads what a page of 25 webhooks shows, each with as many notifications as the index keeps.
func BenchmarkActivity(b *testing.B) {
	rdb := redistest.Start(b).Client()
	x := New(Config{MaxEntries: 1e6, MaxAge: time.Hour}, rdb, nil, zap.NewNop())
	now := time.Now()
	hooks := make([]string, 25)
	for h := range hooks {
		hooks[h] = uuid.NewString()
		w := newWrites()
		for i := range perWebhook {
			w.summary(summaryOf(&notification.Record{
				NotificationID: uuid.NewSHA1(uuid.NameSpaceURL, []byte(strconv.Itoa(h*perWebhook+i))).String(), WebhookID: hooks[h], State: []notification.State{notification.Delivered, notification.Retrying}[i%2],
				Send: 1, At: now.Add(-time.Duration(i) * time.Minute / 2), Sequence: uint64(1 + h*perWebhook + i),
			}))
		}
		if err := x.write(b.Context(), w); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		all, _, err := x.Activity(b.Context(), hooks, []time.Duration{24 * time.Hour, 8 * time.Hour}, now)
		if err != nil || all[24].Bars[Bars-1].Delivered < 10 {
			b.Fatal(len(all), err)
		}
	}
}
