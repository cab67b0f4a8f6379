package notifications

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/suspension"
)

// Explanation says why a notification is in its state and what happens when.
type Explanation struct {
	// Reason is a code of a closed list, see Explain.
	Reason string `json:"reason"`
	Text   string `json:"text"`
	Next   string `json:"next"`
}

// Explain explains n. The reasons: waiting_for_first_attempt, attempt_failed, url_suspended,
// webhook_disabled, url_saturated, delivered, retries_exhausted, expired_while_suspended, internal_error,
// webhook_deleted.
func (s *Service) Explain(n *Notification) Explanation {
	var flag *suspension.Flag
	if n.Webhook != nil {
		_, flag = s.webhooks.Status(n.Webhook)
	}
	return explain(n, flag)
}

func explain(n *Notification, flag *suspension.Flag) Explanation {
	last := lastAttempt(n)
	switch n.State {
	case notification.Pending:
		e := Explanation{"waiting_for_first_attempt", "The first attempt has not been made yet.", "It is made as soon as a dispatcher is free, normally within a second."}
		if n.Sends > 1 {
			e.Text = fmt.Sprintf("It was sent again (send %d); the first attempt of this send has not been made yet.", n.Sends)
		}
		return e
	case notification.Retrying:
		e := Explanation{"attempt_failed", fmt.Sprintf("Attempt %d of %d failed.", n.AttemptsDone, notification.MaxAttempts), ""}
		if last != nil {
			e.Text = fmt.Sprintf("Attempt %d of %d failed: %s.", n.AttemptsDone, notification.MaxAttempts, whatHappened(last))
		}
		e.Next = fmt.Sprintf("Attempt %d is due at %s.", n.AttemptsDone+1, clock(n.NextAttemptAt))
		if n.AttemptsDone+1 == notification.MaxAttempts {
			e.Next += " It is the last one; if it fails too, the notification is permanently failed."
		}
		return e
	case notification.Parked:
		return explainParked(n, flag)
	case notification.Delivered:
		e := Explanation{"delivered", "The receiver accepted it.", "Nothing more is sent. It can be sent again."}
		if last != nil {
			e.Text = fmt.Sprintf("Attempt %d was answered with %d after %s.", last.Number, last.HTTPStatus, took(last))
		}
		return e
	case notification.PermanentlyFailed:
		return explainFailed(n, last)
	case notification.Cancelled:
		return Explanation{"webhook_deleted", "Its webhook was deleted before it was delivered.", "Nothing more is sent, and it cannot be sent again."}
	}
	return Explanation{string(n.State), "Its state is " + string(n.State) + ".", ""}
}

func explainParked(n *Notification, flag *suspension.Flag) Explanation {
	left := fmt.Sprintf("%d of its %d attempts are used; waiting uses none.", n.AttemptsDone, notification.MaxAttempts)
	switch n.Reason {
	case notification.Disabled:
		return Explanation{"webhook_disabled", "Its webhook is disabled by its owner. " + left, "It goes on when the webhook's status is set to active again. It does not expire."}
	case notification.Saturated:
		return Explanation{"url_saturated", "Its URL has as many requests open as it answers well at a time. " + left, "It is sent when those ahead of it are answered, oldest first."}
	}
	if flag == nil {
		return Explanation{"url_suspended", "Its URL was suspended and is active again. " + left, "It is released soon: first one at a time, then more with each that is accepted, oldest first."}
	}
	e := Explanation{Reason: "url_suspended"}
	if flag.ByHand {
		e.Text = fmt.Sprintf("Its URL was suspended by hand at %s. %s", clock(flag.Since), left)
		e.Next = "It is sent after POST /crm/v2/webhooks/" + n.WebhookID + "/resume or a change of the webhook. It expires if that takes too long (PARKED_MAX_AGE)."
		return e
	}
	e.Text = fmt.Sprintf("Its URL is suspended since %s: %d failures and no success (%s). %s", clock(flag.Since), flag.Evidence.Failures, details(flag.Evidence.Statuses), left)
	e.Next = fmt.Sprintf("The URL is tried again at %s with the oldest notification that waits; if that is accepted, the others follow. POST /crm/v2/webhooks/%s/resume does it at once.", clock(flag.Until), n.WebhookID)
	if flag.State == suspension.Probing {
		e.Next = "The URL is being tried right now with the oldest notification that waits; if that is accepted, the others follow."
	}
	return e
}

func explainFailed(n *Notification, last *notification.Attempt) Explanation {
	next := "Nothing more is sent by itself. It can be sent again while its payload is kept."
	switch n.Reason {
	case string(delivery.ExpiredWhileSuspended):
		return Explanation{n.Reason, fmt.Sprintf("Its URL stayed suspended too long (PARKED_MAX_AGE); %d of %d attempts were made.", n.AttemptsDone, notification.MaxAttempts), next}
	case string(delivery.InternalError):
		return Explanation{n.Reason, "It could not be handled because of a fault in Gancho, and was set aside for the operators.", next}
	}
	e := Explanation{"retries_exhausted", fmt.Sprintf("All %d attempts failed.", n.AttemptsDone), next}
	if last != nil {
		e.Text = fmt.Sprintf("All %d attempts failed; the last one: %s.", n.AttemptsDone, whatHappened(last))
	}
	return e
}

// lastAttempt returns the newest attempt of the current send, nil when there is none.
func lastAttempt(n *Notification) *notification.Attempt {
	for _, r := range slices.Backward(n.History) {
		if r.Attempt != nil && r.Send == n.Sends {
			return r.Attempt
		}
	}
	return nil
}

// whatHappened puts the outcome of a failed attempt into words.
func whatHappened(a *notification.Attempt) string {
	switch a.Reason {
	case delivery.Timeout:
		return "no answer within " + took(a)
	case delivery.DNS:
		return "the host's name could not be looked up"
	case delivery.Connect:
		return "no connection could be made"
	case delivery.TLS:
		return "the TLS handshake failed or the certificate is not valid"
	case delivery.Redirect:
		return fmt.Sprintf("the receiver answered %d, a redirect, which is not followed", a.HTTPStatus)
	case delivery.RateLimited:
		return fmt.Sprintf("the receiver answered %d and asked to slow down", a.HTTPStatus)
	case delivery.BlockedAddress:
		return "the host's address is not publicly routable, so nothing was sent"
	case delivery.BadResponse:
		return "the answer was not valid HTTP, or the connection broke before it"
	case delivery.HeaderLimit:
		return "the answer's headers were larger than 64 KiB"
	case delivery.Status1xx, delivery.Status4xx, delivery.Status5xx, delivery.InternalError, delivery.ExpiredWhileSuspended:
	}
	if a.HTTPStatus > 0 {
		return fmt.Sprintf("the receiver answered %d", a.HTTPStatus)
	}
	return string(a.Reason)
}

func took(a *notification.Attempt) string {
	return strconv.FormatFloat(a.DurationMS, 'f', 0, 64) + " ms"
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func details(words []string) string {
	if len(words) == 0 {
		return "no details"
	}
	return strings.Join(words, ", ")
}
