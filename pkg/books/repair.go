package books

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bodies"
	"gancho/pkg/bus"
	"gancho/pkg/delivery"
	"gancho/pkg/eventstream"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
)

// Kinds of repairs.
const (
	// repairLost is a send without a message: it was scheduled again with the attempts in its journal.
	repairLost = "lost"
	// repairEnded is a send that nothing carried and whose event is not kept any more: it was ended as permanently
	// failed.
	repairEnded = "ended"
	// repairOrphan is a schedule for a send that ended: it was removed.
	repairOrphan = "orphaned_schedule"
)

// Kinds returns the closed list.
func Kinds() []string { return []string{repairLost, repairEnded, repairOrphan} }

// maxMoves bounds the search for a step that the broker does not know yet.
const maxMoves = 100

// reconciler repairs the findings of the audits. Each repair is harmless when it is done twice: a message
// has the id that the dispatcher would have given it, a record is written on top of the last one.
type reconciler struct {
	log  *zap.Logger
	bus  *bus.Bus
	done func(kind string)
}

func (r *reconciler) repair(ctx context.Context, found []Lost, orphans []Orphan) {
	for _, s := range found {
		kind, err := r.revive(ctx, s)
		fields := []zap.Field{
			zap.String("kind", kind), zap.String("account_id", s.account), zap.String("webhook_id", s.webhook),
			zap.String("notification_id", s.id.String()), zap.Uint32("send", s.send),
			zap.String("state", string(states[s.state])),
		}
		if err != nil {
			r.log.Error("a notification that nothing carries cannot be put right", append(fields, zap.Error(err))...)
			continue
		}
		r.done(kind)
		r.log.Warn("a notification that nothing carried was put right", fields...)
	}
	for _, o := range orphans {
		removed, err := r.remove(ctx, o)
		if err != nil {
			r.log.Warn("a schedule of a notification that ended is not removed; it is tried again",
				zap.String("notification_id", o.NotificationID), zap.Error(err))
		} else if removed {
			r.done(repairOrphan)
			r.log.Warn("a schedule of a notification that ended was removed", zap.String("account_id", o.Account),
				zap.String("notification_id", o.NotificationID))
		}
	}
}

// revive schedules a lost send for its next attempt, from its last record.
func (r *reconciler) revive(ctx context.Context, s Lost) (string, error) {
	last, err := journal.Last(ctx, r.bus, s.account, s.id.String())
	if errors.Is(err, bus.ErrNotFound) {
		last, err = nil, nil
	}
	if err != nil {
		return repairLost, err
	}
	n, err := r.message(ctx, s, last)
	if errors.Is(err, bus.ErrNotFound) && last != nil {
		return repairEnded, r.end(ctx, s, last)
	}
	if err != nil {
		return repairLost, err
	}
	next, at := n.Repaired(int(s.send), last)
	// The message begins with the id of the move that got lost. Where the broker knows an id, the move was made and the
	// message it stored is gone.
	for range maxMoves {
		if stored, err := lane.Reschedule(ctx, r.bus, &next, at); stored || err != nil {
			return repairLost, err
		}
		next.Moves++
	}
	return repairLost, errors.New("the broker takes every step of it for one that it has")
}

// message finds the bytes again: on NOTIFICATIONS, on FAILED (after a resend), or in CRM_EVENTS. The error is
// bus.ErrNotFound when neither the event nor a copy of it is kept.
func (r *reconciler) message(
	ctx context.Context, s Lost, last *notification.Record,
) (*notification.Notification, error) {
	n, err := lane.Pending(ctx, r.bus, s.account, s.id.String())
	if errors.Is(err, bus.ErrNotFound) {
		n, err = lane.Failed(ctx, r.bus, s.account, s.webhook, s.id.String())
	}
	if err == nil {
		err = bodies.Inline(ctx, r.bus, n)
	}
	if errors.Is(err, bodies.ErrGone) {
		err = bus.ErrNotFound
	}
	if errors.Is(err, bus.ErrNotFound) && last != nil {
		n, err = eventstream.Notification(ctx, r.bus, last.EventSequence, last.EventID, s.webhook)
	}
	return n, err
}

// end records that a send whose event is gone permanently failed.
func (r *reconciler) end(ctx context.Context, s Lost, last *notification.Record) error {
	_, err := journal.Write(ctx, r.bus, notification.Abandoned(last, int(s.send), string(delivery.InternalError),
		time.Now()))
	return err
}

// remove deletes a schedule whose notification really ended or lives on elsewhere.
func (r *reconciler) remove(ctx context.Context, o Orphan) (bool, error) {
	m, err := lane.Scheduled(ctx, r.bus, o.Account, o.NotificationID)
	if errors.Is(err, bus.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	last, err := journal.Last(ctx, r.bus, o.Account, o.NotificationID)
	if err != nil {
		if errors.Is(err, bus.ErrNotFound) {
			return false, nil
		}
		return false, fmt.Errorf("look at the journal: %w", err)
	}
	if last.Send < m.Send || last.Send == m.Send && !last.State.Terminal() {
		return false, nil
	}
	return true, lane.Remove(ctx, r.bus, m)
}
