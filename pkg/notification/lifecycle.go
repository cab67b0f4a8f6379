package notification

import (
	"time"

	"github.com/google/uuid"

	"gancho/pkg/event"
)

// This file holds the rules of a notification's life, without broker, clock or sockets: the step after a message
// and the notification's last journal record, and every message that follows from another one.

// Lane is one of the ways on which a notification reaches a dispatcher.
type Lane string

// The lanes.
const (
	LaneFirst  Lane = "first"  // NOTIFICATIONS: first attempts
	LaneRetry  Lane = "retry"  // RETRIES: the broker's delivery count 1..5 is the number of the retry
	LaneParked Lane = "parked" // PARKED: released or probing
)

// LaneDisabled is the backlog of PARKED for webhooks that their owner disabled. Every other backlog has the key of
// its URL.
const LaneDisabled = "disabled"

// Receipt says how the broker handed out a message.
type Receipt struct {
	Lane         Lane
	NumDelivered int  // counts from 1
	Again        bool // a dispatcher may have had the message before, even where NumDelivered is 1
	Exhausted    bool // the broker will not deliver the message again
}

// Trusted reports whether no dispatcher can have had the message before, so that its headers say where the
// notification stands and the journal need not be read.
func (r Receipt) Trusted() bool { return !r.Again && !r.Exhausted && r.Lane != LaneParked }

// Position is where a notification stands.
type Position struct {
	AttemptsDone int     // of the current send
	Journal      uint64  // sequence of the last record, the one that the next record follows; 0: none
	Last         *Record // that record; nil when it was not read
}

// Position returns the position that the message's headers carry. It is right only for a trusted message.
func (n *Notification) Position() Position {
	return Position{AttemptsDone: n.AttemptsDone, Journal: n.Journal}
}

// Step is the next thing to do with a message. Each step ends with the message's acknowledgement, except Postpone.
type Step int

// The steps.
const (
	StepSend       Step = iota // admit the notification: make its next attempt, or park it
	StepSettle                 // nothing: the send has ended, or lives on in a later message
	StepKeepFailed             // store the payload on FAILED
	StepReschedule             // store Decision.Next on RETRIES for Decision.At
	StepFinishPark             // store Decision.Next on PARKED, in Decision.Backlog
	StepSetAside               // store the bytes on QUARANTINE and end the send with internal_error
	StepPostpone               // have the broker deliver this very message again at Decision.At
)

// Decision is the step to which journal and message lead.
type Decision struct {
	Step     Step
	Position Position
	Next     Notification // of StepReschedule and StepFinishPark
	At       time.Time    // of StepReschedule and StepPostpone
	Backlog  string       // of StepFinishPark
	Burnt    bool         // a crash used up a delivery of the message without an attempt
}

const (
	// maxCrashes is how many deliveries of a message may leave no trace before the message is set aside: it stops the
	// process that handles it. RETRIES has a lower limit of its own.
	maxCrashes = 10
	// earlyBy is how much earlier than scheduled a retry may start: the clocks of broker and dispatcher differ.
	earlyBy = 50 * time.Millisecond
)

// Resume decides what to do with a message that a dispatcher may have had before. last is the notification's newest
// record, nil when the journal has none. Resume finishes the work of a crash between any two writes of the
// dispatcher, and is right again when it is interrupted itself.
func Resume(n *Notification, r Receipt, last *Record, now time.Time) Decision {
	d := Decision{Step: StepSend, Position: Position{AttemptsDone: n.AttemptsDone, Last: last}}
	if last != nil {
		d.Position.Journal = last.Sequence
	}
	switch {
	case last != nil && last.Send >= n.Send:
		d = resumeRecorded(n, r, last, now)
	case last == nil && n.Journal > 0 && r.Lane == LaneRetry: // its records were removed: each delivery was an attempt
		d.Position.AttemptsDone = min(n.AttemptsDone+r.NumDelivered-1, MaxAttempts-1)
	}
	switch {
	case d.Step == StepSend && r.Exhausted:
		return d.reschedule(n, now)
	case d.Step == StepSend && r.Lane != LaneRetry && r.NumDelivered > maxCrashes:
		d.Step = StepSetAside
	}
	return d
}

// resumeRecorded is Resume for a send that has a record, or that a later send followed.
func resumeRecorded(n *Notification, r Receipt, last *Record, now time.Time) Decision {
	d := Decision{Position: Position{AttemptsDone: last.AttemptsDone, Journal: last.Sequence, Last: last}}
	switch {
	case last.Send > n.Send, last.Moves > n.Moves: // a later message carries the notification
		d.Step = StepSettle
	case last.State == PermanentlyFailed:
		d.Step = StepKeepFailed
	case last.State.Terminal():
		d.Step = StepSettle
	case last.State == Parked && last.Moves < n.Moves: // n is the message that was parked, or follows from it
		d.Step = StepSend
	case last.State == Parked: // n was being parked; the move may not be stored
		d.Step, d.Next, d.Backlog = StepFinishPark, n.Parked(d.Position), last.Backlog()
	case r.Lane != LaneRetry && last.Moves == n.Moves: // n was attempted; the schedule of the retry may not be stored
		d = d.reschedule(n, last.NextAttemptAt)
	case last.AttemptsDone < n.attemptsExpected(r), last.NextAttemptAt.Sub(now) > earlyBy:
		d.Burnt = true
		d = d.reschedule(n, last.NextAttemptAt)
	default:
		d.Step = StepSend
	}
	return d
}

// attemptsExpected returns the attempts done before this delivery when no delivery was burnt: each delivery on
// RETRIES is one attempt.
func (n *Notification) attemptsExpected(r Receipt) int {
	if r.Lane == LaneRetry && !r.Exhausted {
		return n.AttemptsDone + r.NumDelivered - 1
	}
	return n.AttemptsDone
}

func (d Decision) reschedule(n *Notification, at time.Time) Decision {
	d.Step, d.At, d.Next = StepReschedule, at, n.Retry(d.Position)
	return d
}

// Conclude decides the step after the attempt that the record r, which is stored as the journal's last one,
// describes. crowded says that the broker holds too many postponed messages, so that the next retry is scheduled.
func Conclude(n *Notification, r Receipt, last *Record, crowded bool) Decision {
	d := Decision{Position: Position{AttemptsDone: last.AttemptsDone, Journal: last.Sequence, Last: last}, At: last.NextAttemptAt}
	switch {
	case last.State == PermanentlyFailed:
		d.Step = StepKeepFailed
	case last.State.Terminal():
		d.Step = StepSettle
	case r.Lane == LaneRetry && r.NumDelivered < MaxAttempts-1 && !crowded:
		d.Step = StepPostpone // the broker counts the retries of this message
	default:
		d = d.reschedule(n, last.NextAttemptAt)
	}
	return d
}

// First returns the first send of an event to a webhook. storedAt is when the broker stored the event.
func First(e *event.Event, storedAt time.Time, webhookID uuid.UUID) Notification {
	return Notification{
		Account: e.Account, ID: event.NotificationID(e.ID, webhookID), WebhookID: webhookID.String(),
		EventID: e.ID, EventName: e.Name, EventSequence: e.Sequence, EventTime: storedAt,
		Send: 1, Traceparent: e.Traceparent, Body: e.Body,
	}
}

// Resend returns the message that opens the next send of n. last is the notification's newest record and must be
// terminal; nil when there is none. replay is the id of the replay that sends it, "" for a single resend.
func (n *Notification) Resend(last *Record, replay string) Notification {
	again := *n
	again.Send, again.Journal, again.Replay = n.Send+1, 0, replay
	again.AttemptsDone, again.Moves, again.RefusedAt = 0, 0, time.Time{}
	if last != nil {
		again.Send, again.Journal = last.Send+1, last.Sequence
	}
	return again
}

// Retry returns the message that carries n to its next attempt over RETRIES.
func (n *Notification) Retry(p Position) Notification {
	next := *n
	next.Moves, next.AttemptsDone, next.Journal, next.RefusedAt = n.Moves+1, p.AttemptsDone, p.Journal, time.Time{}
	return next
}

// Parked returns the message that carries n to PARKED. It names no record, because the record of its parking is
// written at the same time: a message taken out of PARKED is always compared with the journal.
func (n *Notification) Parked(p Position) Notification {
	next := n.Retry(p)
	next.Journal = 0
	return next
}

// shortestRefusal and longestRefusal bound the pause of a notification that PARKED refused.
const shortestRefusal, longestRefusal = time.Second, 10 * time.Minute

// Displaced returns the message that carries n to RETRIES because PARKED refused it, and when the message comes back.
// The pause is a quarter of the time since the first refusal, at least 1 s and at most 10 min. p is the position after
// the record of the parking.
func (n *Notification) Displaced(p Position, now time.Time) (next Notification, at time.Time) {
	next = n.Retry(p)
	next.RefusedAt = n.RefusedAt
	if next.RefusedAt.IsZero() {
		next.RefusedAt = now
	}
	return next, now.Add(min(max(now.Sub(next.RefusedAt)/4, shortestRefusal), longestRefusal))
}

// Repaired returns the message that carries a send on that nothing carries. n holds the notification's payload and
// may come from an earlier send. last is the notification's newest record, nil when there is none. The message has
// the id of the move that got lost, so that a move that is only late is not doubled.
func (n *Notification) Repaired(send int, last *Record) (next Notification, at time.Time) {
	base := *n
	if n.Send != send {
		base.Send, base.AttemptsDone, base.Moves, base.Replay = send, 0, 0, ""
	}
	p := Position{AttemptsDone: base.AttemptsDone}
	if last != nil {
		p.Journal = last.Sequence
	}
	if last != nil && last.Send == send {
		base.Moves, base.Replay, p.AttemptsDone, at = last.Moves, last.Replay, last.AttemptsDone, last.NextAttemptAt
	}
	return base.Retry(p), at
}

// Record returns a journal record about n that follows the position p. Its state is to be set.
func (n *Notification) Record(p Position, kind Kind, at time.Time) *Record {
	r := &Record{
		Kind: kind, At: at.UTC(), Account: n.Account, WebhookID: n.WebhookID, NotificationID: n.ID,
		EventID: n.EventID, EventName: n.EventName, EventSequence: n.EventSequence,
		Send: n.Send, AttemptsDone: p.AttemptsDone, Previous: p.Journal, Moves: n.Moves, Replay: n.Replay,
	}
	if p.Last != nil {
		r.Follow(p.Last)
	}
	return r
}

// Attempted completes the record of an attempt: the state after it and, where a retry follows, its time.
// delay returns the wait before the retry with that number, 1..5.
func (r *Record) Attempted(a *Attempt, delay func(retry int) time.Duration) {
	r.Attempt = a
	r.AttemptsDone = a.Number
	switch {
	case a.Outcome == OutcomeDelivered:
		r.State = Delivered
	case r.AttemptsDone >= MaxAttempts:
		r.State, r.Reason = PermanentlyFailed, string(a.Reason)
	default:
		r.State, r.Reason = Retrying, string(a.Reason)
		r.NextAttemptAt = r.At.Add(delay(r.AttemptsDone))
	}
}

// Ended completes the record of a send that ends without an attempt. A webhook's deletion needs no reason.
func (r *Record) Ended(reason string) {
	r.State, r.Reason = PermanentlyFailed, reason
	if r.Kind == KindCancelled {
		r.State = Cancelled
	}
}

// Place is where an event stands among those of its account.
type Place struct {
	EventID  string
	Sequence uint64    // in CRM_EVENTS
	Time     time.Time // when the broker stored it
}

// Place returns where n's event stands.
func (n *Notification) Place() Place { return Place{n.EventID, n.EventSequence, n.EventTime} }

// Waited reports whether n, which comes from that lane, was kept back before, so that a later event can have been
// delivered meanwhile. First attempts from NOTIFICATIONS have not waited, those of replays excepted: their events are
// past ones.
func (n *Notification) Waited(l Lane) bool { return l != LaneFirst || n.Replay != "" }

// Later reports whether p is certainly later than q. A stream that was created again counts its sequences from 1, and a
// clock can be set back: both must agree, so that the newest event of a document is never taken for an old one.
func (p Place) Later(q Place) bool {
	return p.Sequence > q.Sequence && q.Sequence > 0 && p.Time.After(q.Time)
}

// Abandoned returns the record that ends a send whose event is not kept any more. last is the notification's newest
// record, of this send or of an earlier one.
func Abandoned(last *Record, send int, reason string, at time.Time) *Record {
	r := *last
	r.Kind, r.At = KindFailed, at.UTC()
	r.Attempt, r.NextAttemptAt, r.Probe, r.Trip = nil, time.Time{}, false, ""
	r.Follow(last)
	if last.Send != send {
		r.Send, r.AttemptsDone, r.Moves = send, 0, 0
	}
	r.Ended(reason)
	return &r
}

// Erase returns the record that follows last, the notification's newest record, when its event is erased: a send that
// is on its way is cancelled, one that has ended keeps its state. The record carries nothing of the records before it.
// Erase returns nil when last is such a record already.
func Erase(last *Record, at time.Time) *Record {
	if last.Erased() {
		return nil
	}
	r := *last
	r.Kind, r.Reason, r.At, r.Previous = KindErased, ReasonErased, at.UTC(), last.Sequence
	r.Attempt, r.Earlier, r.NextAttemptAt, r.Probe, r.Trip = nil, nil, time.Time{}, false, ""
	if !last.State.Terminal() {
		r.Kind, r.State = KindCancelled, Cancelled
	}
	return &r
}

// Erased reports whether the records before r were erased with the notification's event.
func (r *Record) Erased() bool { return r.Reason == ReasonErased && r.State.Terminal() }

// Backlog returns where on PARKED the notification waits that r, the record of its parking, is about.
func (r *Record) Backlog() string {
	if r.Reason == Disabled {
		return LaneDisabled
	}
	return r.URLKey
}

// Overtaken reports whether r, the record of an attempt, may follow last although it was made without it: last is
// the record of the parking out of which the attempt's message was taken.
func (r *Record) Overtaken(last *Record) bool {
	return last.Kind == KindParked && last.Send == r.Send && last.Moves < r.Moves && last.AttemptsDone == r.AttemptsDone-1
}
