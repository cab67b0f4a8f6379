// Package explain says in words why a notification is in its state, and what happens to it when: in every language,
// for the API, the command line and the console.
package explain

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/suspension"
	"gancho/services/management/internal/language"
)

// Facts are the input of an explanation.
type Facts struct {
	State         notification.State
	Reason        string
	Sends         int
	AttemptsDone  int // of the current send
	NextAttemptAt time.Time
	Last          *notification.Attempt // of the current send; nil when none is known
	// Flag is the suspension of the webhook's URL, nil when there is none.
	Flag *suspension.Flag
	// Paused says that no first attempts are made because RETRIES holds more than it may.
	Paused bool
	// Newer is the id of the event whose delivery made this notification stale, "" when that is not known.
	Newer string
	// PerMinute is how many requests the webhook's URL gets in a minute at most, 0 where it has no limit.
	PerMinute int
	// Waiting is how many notifications wait for that URL, 0 when that is not known; SentBy is when they are sent at
	// that rate.
	Waiting int
	SentBy  time.Time
}

// Explanation says why, and names the next step.
type Explanation struct {
	Reason string // a code of Reasons
	Why    Sentence
	Next   Sentence // the zero Sentence when there is nothing to say
}

// Sentence is a text with its arguments. Each is a string, an int, a time.Time, a Due, a Took, an Outcomes or a
// Sentence.
type Sentence struct {
	Text      language.Text
	Arguments []any // name, value, ...
}

// Arguments that are shown in their own way.
type (
	// Due is a time to come.
	Due time.Time
	// Took is a duration in milliseconds.
	Took float64
	// Outcomes are statuses of HTTP and reasons of failures.
	Outcomes []string
)

// Zero reports whether there is nothing to say.
func (s Sentence) Zero() bool { return s.Text == language.Text{} }

// In returns the sentence as plain text.
func (s Sentence) In(l language.Language) string {
	return s.Say(l, func(argument any) string { return plain(l, argument) })
}

// Say returns the sentence with its arguments as show shows them.
func (s Sentence) Say(l language.Language, show func(argument any) string) string {
	return language.Fill(s.Text.In(l), s.Arguments, show)
}

func plain(l language.Language, argument any) string {
	switch v := argument.(type) {
	case Sentence:
		return v.In(l)
	case time.Time:
		return clock(v)
	case Due:
		return clock(time.Time(v))
	case Took:
		return strconv.FormatFloat(float64(v), 'f', 0, 64) + " ms"
	case Outcomes:
		return strings.Join(v, ", ")
	}
	return fmt.Sprint(argument)
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// Codes of explanations.
const (
	WaitingForFirstAttempt = "waiting_for_first_attempt"
	FirstAttemptsPaused    = "first_attempts_paused"
	AttemptFailed          = "attempt_failed"
	URLSuspended           = "url_suspended"
	WebhookDisabled        = "webhook_disabled"
	URLSaturated           = "url_saturated"
	Delivered              = "delivered"
	RetriesExhausted       = "retries_exhausted"
	WebhookDeleted         = "webhook_deleted"
	Superseded             = notification.Superseded
	Erased                 = "erased"
	AccountDeferred        = "account_deferred"
)

// Reasons returns the closed list of codes of a notification's explanation.
func Reasons() []string {
	return []string{
		WaitingForFirstAttempt, FirstAttemptsPaused, AttemptFailed, URLSuspended, WebhookDisabled, URLSaturated, Delivered,
		RetriesExhausted, string(delivery.ExpiredWhileSuspended), string(delivery.InternalError), WebhookDeleted, Superseded, Erased,
	}
}

// Of explains a notification.
func Of(f Facts) Explanation {
	if f.Reason == Erased {
		return Explanation{Erased, say(erased), say(cancelledNext)}
	}
	switch f.State {
	case notification.Pending:
		why := say(pending)
		if f.Sends > 1 {
			why = say(pendingAgain, "send", f.Sends)
		}
		if f.Paused {
			return Explanation{FirstAttemptsPaused, say(both, "first", why, "second", say(paused)), say(pausedNext)}
		}
		return Explanation{WaitingForFirstAttempt, why, say(pendingNext)}
	case notification.Retrying:
		e := Explanation{AttemptFailed, say(failedOne, "done", f.AttemptsDone, "most", notification.MaxAttempts), say(retryNext, "number", f.AttemptsDone+1, "at", Due(f.NextAttemptAt))}
		if f.Last != nil {
			e.Why = say(failedHow, "done", f.AttemptsDone, "most", notification.MaxAttempts, "how", Happened(f.Last))
		}
		if f.AttemptsDone+1 == notification.MaxAttempts {
			e.Next = say(both, "first", e.Next, "second", say(retryLast))
		}
		if f.Flag != nil { // it is parked when it falls due
			e.Next = say(both, "first", e.Next, "second", say(retrySuspended))
		}
		return e
	case notification.Parked:
		return parked(f)
	case notification.Delivered:
		if f.Last == nil {
			return Explanation{Delivered, say(accepted), say(deliveredNext)}
		}
		return Explanation{Delivered, say(answered, "number", f.Last.Number, "status", f.Last.HTTPStatus, "took", Took(f.Last.DurationMS)), say(deliveredNext)}
	case notification.PermanentlyFailed:
		return failed(f)
	case notification.Cancelled:
		switch {
		case f.Reason == Superseded && f.Newer != "":
			return Explanation{Superseded, say(supersededBy, "event", f.Newer), say(cancelledNext)}
		case f.Reason == Superseded:
			return Explanation{Superseded, say(superseded), say(cancelledNext)}
		}
		return Explanation{WebhookDeleted, say(webhookDeleted), say(cancelledNext)}
	}
	return Explanation{Reason: string(f.State)}
}

func parked(f Facts) Explanation {
	left := say(attemptsLeft, "done", f.AttemptsDone, "most", notification.MaxAttempts)
	two := func(first Sentence) Sentence { return say(both, "first", first, "second", left) }
	flag := f.Flag
	switch {
	case f.Reason == notification.Disabled:
		return Explanation{WebhookDisabled, two(say(disabled)), say(disabledNext)}
	case f.Reason == notification.Saturated && flag == nil && f.PerMinute > 0:
		e := Explanation{URLSaturated, two(say(limited, "limit", f.PerMinute)), say(limitedNext)}
		if f.Waiting > 0 {
			e.Next = say(limitedUntil, "waiting", f.Waiting, "at", Due(f.SentBy))
		}
		return e
	case f.Reason == notification.Saturated && flag == nil:
		return Explanation{URLSaturated, two(say(saturated)), say(saturatedNext)}
	case flag == nil:
		return Explanation{URLSuspended, two(say(released)), say(releasedNext)}
	}
	e := Explanation{Reason: URLSuspended}
	switch {
	case flag.ByHand:
		e.Why, e.Next = say(byHand, "since", flag.Since), say(byHandNext)
	case flag.State == suspension.Probing:
		e.Why, e.Next = always(flag), say(probingNext)
	default:
		e.Why, e.Next = always(flag), say(suspendedNext, "until", Due(flag.Until))
	}
	if f.Reason == notification.Saturated { // it was parked before the URL was suspended
		e.Why = say(both, "first", say(wasSaturated), "second", e.Why)
	}
	e.Why = two(e.Why)
	return e
}

func always(flag *suspension.Flag) Sentence {
	if len(flag.Evidence.Statuses) == 0 {
		return say(suspended, "since", flag.Since, "failures", flag.Evidence.Failures)
	}
	return say(suspendedWith, "since", flag.Since, "failures", flag.Evidence.Failures, "statuses", Outcomes(flag.Evidence.Statuses))
}

func failed(f Facts) Explanation {
	switch f.Reason {
	case string(delivery.ExpiredWhileSuspended):
		return Explanation{f.Reason, say(expired, "done", f.AttemptsDone, "most", notification.MaxAttempts), say(failedNext)}
	case string(delivery.InternalError):
		return Explanation{f.Reason, say(internal), say(failedNext)}
	}
	if f.Last == nil {
		return Explanation{RetriesExhausted, say(allFailed, "done", f.AttemptsDone), say(failedNext)}
	}
	return Explanation{RetriesExhausted, say(allFailedLast, "done", f.AttemptsDone, "how", Happened(f.Last)), say(failedNext)}
}

// Happened says how an attempt failed.
func Happened(a *notification.Attempt) Sentence {
	text, ok := happened[a.Reason]
	if !ok {
		text = happened[delivery.Status4xx]
	}
	if strings.HasPrefix(a.Detail, delivery.TokenServer) {
		text = noToken
	}
	if a.Reason == delivery.Status4xx && (a.HTTPStatus == http.StatusUnauthorized || a.HTTPStatus == http.StatusForbidden) {
		text = refused
	}
	return say(text, "status", a.HTTPStatus, "took", Took(a.DurationMS))
}

// Deferred says that an account's events wait because it has its share of a store.
func Deferred(since time.Time) Explanation {
	return Explanation{AccountDeferred, say(deferred, "since", since), say(deferredNext)}
}

// LastAttempt returns the newest attempt of a send in a history that begins with the oldest record, nil when it has
// none.
func LastAttempt(history []*notification.Record, send int) *notification.Attempt {
	for _, r := range slices.Backward(history) {
		if r.Attempt != nil && r.Send == send {
			return r.Attempt
		}
	}
	return nil
}

func say(t language.Text, arguments ...any) Sentence { return Sentence{t, arguments} }
