package webhook

import (
	"encoding/json"
	"time"

	"gancho/pkg/condition"
	"gancho/pkg/event"
)

// Why says why an event led to no notification for a webhook.
type Why string

// The reasons, in the order in which they are looked for.
const (
	OtherName       Why = "other_name"       // the webhook is for events of other names
	RegisteredLater Why = "registered_later" // the webhook, or what matches now, came after the event
	IsDisabled      Why = "disabled"
	ByCondition     Why = "condition"
)

// Unmatched is why an event is not for a webhook as it is now.
type Unmatched struct {
	Why Why
	// Condition is the first one that does not hold, and Found the value at its path as JSON: nil when nothing is
	// there. They are set for ByCondition.
	Condition *condition.Condition
	Found     json.RawMessage
}

// ConditionEvent returns the event that conditions are held against. It serves any number of webhooks, one at a time.
func ConditionEvent(ev *event.Event) *condition.Event {
	return condition.NewEvent(ev.Body, ev.Changed, ev.Origin)
}

// Unmatched explains why the event, stored at that time, led to no notification for w. A webhook that was changed
// since is judged as it is now; where it would match now, it was changed later. nil: the event is for w. against is the
// event's ConditionEvent, shared by calls for several webhooks; nil makes one when it is needed.
func (w *Webhook) Unmatched(ev *event.Event, storedAt time.Time, against *condition.Event) *Unmatched {
	switch {
	case !w.EventName.Matches(ev.Name):
		return &Unmatched{Why: OtherName}
	case w.CreatedAt.After(storedAt):
		return &Unmatched{Why: RegisteredLater}
	case w.Status != Active:
		return &Unmatched{Why: IsDisabled}
	}
	if w.conditions.Len() > 0 {
		if against == nil {
			against = ConditionEvent(ev)
		}
		if i := w.conditions.Failing(against); i >= 0 {
			_, found := w.conditions.Holds(i, against)
			return &Unmatched{Why: ByCondition, Condition: &w.Conditions[i], Found: found}
		}
	}
	if w.UpdatedAt.After(storedAt) {
		return &Unmatched{Why: RegisteredLater}
	}
	return nil
}
