package monitor

import (
	"context"
	"strconv"

	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/status"
	"gancho/pkg/webhook"
)

// publish stores a step on WEBHOOK_STATUS, once for each webhook of the URL.
func (m *Monitor) publish(ctx context.Context, t suspension.Transition) error {
	for _, w := range m.webhooks(t.Flag.Key()) {
		if err := status.Publish(ctx, m.bus, change(t, w), stepName(t)); err != nil {
			return err
		}
	}
	return nil
}

func change(t suspension.Transition, w *webhook.Webhook) status.Change {
	s := status.Change{
		Event: string(t.Event), Account: w.Account, WebhookID: w.ID, URLHost: t.Flag.URLHost, At: t.At.UTC(),
		Reason: t.Flag.Reason, Evidence: t.Flag.Evidence,
	}
	if t.Event != suspension.EventResumed && !t.Flag.Until.IsZero() {
		s.Until = &t.Flag.Until
	}
	return s
}

func stepName(t suspension.Transition) string {
	name := string(t.Event) + ":" + t.Flag.Trip
	if t.Event == suspension.EventProbing && t.Flag.Probe != nil {
		name += ":" + strconv.FormatInt(t.Flag.Probe.StartedAt.UnixMilli(), 10)
	}
	return name
}

func (m *Monitor) webhooks(key suspension.Key) []*webhook.Webhook {
	var out []*webhook.Webhook
	for _, w := range m.registry.Account(key.Account) {
		if w.URLKey == key.URLKey {
			out = append(out, w)
		}
	}
	return out
}

// publishFailures publishes permanent failures, one change for each webhook and minute.
func (m *Monitor) publishFailures(ctx context.Context, records []notification.Summary) error {
	type minute struct {
		webhook string
		minute  int64
	}
	type evidence struct {
		Notifications []string `json:"notifications"` // the first few of this minute
		Failures      int      `json:"failures"`      // known when the change was published
	}
	first := map[minute]*status.Change{}
	for _, r := range records {
		if r.State != notification.PermanentlyFailed || r.Kind == notification.KindErased {
			continue
		}
		k := minute{r.WebhookID, r.At.Unix() / 60}
		s := first[k]
		if s == nil {
			s = &status.Change{Event: "permanent_failure", Account: r.Account, WebhookID: r.WebhookID, URLHost: r.URLHost, At: r.At, Reason: r.Reason, Evidence: &evidence{}}
			first[k] = s
		}
		if e, ok := s.Evidence.(*evidence); ok {
			if e.Failures++; len(e.Notifications) < 10 {
				e.Notifications = append(e.Notifications, r.NotificationID)
			}
		}
	}
	for k, s := range first {
		if err := status.Publish(ctx, m.bus, *s, strconv.FormatInt(k.minute, 10)); err != nil {
			m.lasting.Error("a permanent failure was not published; its records come again", zap.Error(err))
			return err
		}
	}
	return nil
}
