package notifications

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/notification"
	"gancho/pkg/sleep"
	"gancho/services/management/internal/problem"
)

// goneAgain is how long a look that failed waits before it is repeated.
const goneAgain = time.Second

// Gone disables the webhook of a permanent failure whose attempts were all answered with 410. It repeats until it
// knows, or ctx ends: the record is not acknowledged before.
func (s *Service) Gone(ctx context.Context, r *notification.Summary, log *zap.Logger) {
	if r.HTTPStatus != http.StatusGone || r.AttemptsDone < notification.MaxAttempts {
		return
	}
	for ctx.Err() == nil {
		err := s.gone(ctx, r)
		if err == nil || problem.Of(err).Kind == problem.Missing {
			return
		}
		log.Warn("it is not known yet whether a webhook is gone", zap.String("account_id", r.Account),
			zap.String("webhook_id", r.WebhookID), zap.Error(err))
		sleep.For(ctx, goneAgain)
	}
}

func (s *Service) gone(ctx context.Context, r *notification.Summary) error {
	n, err := s.Get(ctx, r.Account, r.NotificationID)
	if err != nil {
		return err
	}
	var began time.Time
	attempts := 0
	for _, h := range n.History {
		if h.Attempt == nil || h.Send != r.Send {
			continue
		}
		if h.Attempt.HTTPStatus != http.StatusGone {
			return nil
		}
		if attempts++; attempts == 1 {
			began = h.Attempt.StartedAt
		}
	}
	if attempts < notification.MaxAttempts {
		return nil
	}
	return s.webhooks.Gone(ctx, r.Account, r.WebhookID, began)
}
