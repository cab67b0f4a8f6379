package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/journal"
	"gancho/services/internal/testsystem"
)

// fresh registers webhooks one after the other and publishes an event for each so long after the API's answer, on
// an idle system and among 500 other events/s. It prints how many of these events were not matched with the webhook
// that had just been registered.
func (b *bench) fresh(name string) {
	const eventName, other, each = "crm_contact_created", "crm_task_created", 200
	b.register(other, fmt.Sprintf("http://%s/back/%s/0", b.target, other))
	ctx := context.Background()
	store, err := bus.Connect(bus.Config{URL: b.system.NATSURL}, "bench", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		b.f.Fatalf("%v", err)
	}
	defer store.Close()
	fmt.Println(name)
	for _, others := range []int{0, 500} {
		for _, wait := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, known} {
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for others > 0 {
					select {
					case <-stop:
						return
					default:
						b.publishAt(other, others/10, others)
					}
				}
			}()
			var hooks, told []string
			for i := range each {
				id := b.register(eventName, fmt.Sprintf("http://%s/ok/%s/%d-%d-%d", b.target, eventName, others, wait,
					i))
				time.Sleep(wait)
				transaction := fmt.Sprintf("%d-%d-%d", others, wait, i)
				if _, err := b.js.Publish(ctx, "crm.events."+testsystem.Account+"."+eventName,
					fmt.Appendf(nil, `{"transaction_uuid":%q}`, transaction)); err != nil {
					b.f.Fatalf("publish: %v", err)
				}
				hooks = append(hooks, id)
				told = append(told, event.NotificationID(event.ID(testsystem.Account, eventName, transaction),
					uuid.MustParse(id)))
			}
			close(stop)
			<-stopped
			b.idleEvents()
			b.idle()
			missed := 0
			for _, id := range told {
				if _, err := journal.Last(ctx, store, testsystem.Account, id); errors.Is(err, bus.ErrNotFound) {
					missed++
				} else if err != nil {
					b.f.Fatalf("%v", err)
				}
			}
			fmt.Printf("%30s %3d of %d events missed a webhook registered %v before, among %d events/s\n", "", missed,
				each, wait, others)
			for _, id := range hooks {
				b.remove(id)
			}
		}
	}
}
