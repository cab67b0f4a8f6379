package dispatcher

import (
	"context"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/sleep"
)

// sweepEvery is how often RETRIES is searched for messages whose deliveries are used up.
const sweepEvery = 30 * time.Second

// repair looks after notifications whose deliveries are exhausted: reported by the broker's advisory, which comes once,
// or found by the sweep because the advisory was lost. It also watches how many retries wait, and how much they take.
// It returns when ctx has ended.
func (d *Dispatcher) repair(ctx context.Context, exhausted *lane.ExhaustedConsumer, retries *lane.Puller) {
	work := context.WithoutCancel(ctx)
	nextSweep := time.Now() // a crash may be the reason for this start
	for ctx.Err() == nil {
		err := exhausted.Pull(ctx, func(x *lane.Retry) error { return d.revive(work, x, "exhausted") })
		if err == nil {
			var waiting int
			if waiting, err = retries.AckPending(ctx); err == nil {
				d.crowded.Store(waiting > crowdedAt)
				err = d.backpressure.look(ctx, d)
			}
		}
		if err == nil && !time.Now().Before(nextSweep) {
			nextSweep = time.Now().Add(sweepEvery)
			err = d.sweep(ctx, retries)
		}
		if err != nil && ctx.Err() == nil {
			d.log.Debug("repair interrupted; trying again", zap.Error(err))
			sleep.For(ctx, time.Second)
		}
	}
}

// revive republishes an exhausted message in the state that its journal records, then deletes it.
func (d *Dispatcher) revive(ctx context.Context, x *lane.Retry, kind string) error {
	last, err := d.lastRecord(ctx, &x.Notification)
	if err != nil {
		return err
	}
	receipt := notification.Receipt{
		Lane: notification.LaneRetry, NumDelivered: notification.MaxAttempts - 1, Exhausted: true,
	}
	err = d.store(ctx, &x.Notification, notification.Resume(&x.Notification, receipt, last, time.Now()))
	if err != nil {
		return err
	}
	d.metrics.repaired.WithLabelValues(kind).Inc()
	d.log.Warn("a notification without deliveries left was put right",
		zap.String("kind", kind), zap.String("account_id", x.Account), zap.String("webhook_id", x.WebhookID),
		zap.String("notification_id", x.ID))
	return lane.Remove(ctx, d.bus, x)
}

// sweep revives the messages that the consumer has left behind: on a work queue every message at or below the ack floor
// that still exists is one whose deliveries are used up.
func (d *Dispatcher) sweep(ctx context.Context, retries *lane.Puller) error {
	for x, err := range lane.LeftBehind(ctx, d.bus, retries) {
		if err != nil {
			return err
		}
		if err := d.revive(ctx, x, "stuck"); err != nil {
			return err
		}
	}
	return nil
}
