package notifications

import (
	"strings"
	"testing"
	"time"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/suspension"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 13, 14, 15, 0, time.UTC)
	attempt := func(number int, reason delivery.Reason, status int) []*notification.Record {
		outcome := notification.OutcomeFailed
		if reason == "" {
			outcome = notification.OutcomeDelivered
		}
		return []*notification.Record{{Send: 1, Attempt: &notification.Attempt{Number: number, Send: 1, Outcome: outcome, Reason: reason, HTTPStatus: status, DurationMS: 5000.4}}}
	}
	flag := &suspension.Flag{State: suspension.Suspended, Since: at, Until: at.Add(5 * time.Minute), Evidence: suspension.Evidence{Failures: 20, Statuses: []string{"500", "timeout"}}}
	probing, byHand := *flag, *flag
	probing.State, byHand.ByHand = suspension.Probing, true
	for name, tc := range map[string]struct {
		n          Notification
		flag       *suspension.Flag
		reason     string
		text, next string // parts
	}{
		"pending":        {Notification{State: notification.Pending, Sends: 1}, nil, "waiting_for_first_attempt", "not been made yet", "within a second"},
		"sent again":     {Notification{State: notification.Pending, Sends: 3}, nil, "waiting_for_first_attempt", "send 3", "within a second"},
		"timeout":        {Notification{State: notification.Retrying, Sends: 1, AttemptsDone: 2, NextAttemptAt: at, History: attempt(2, delivery.Timeout, 0)}, nil, "attempt_failed", "Attempt 2 of 6 failed: no answer within 5000 ms.", "Attempt 3 is due at 2026-11-20 13:14:15 UTC."},
		"last retry":     {Notification{State: notification.Retrying, Sends: 1, AttemptsDone: 5, NextAttemptAt: at, History: attempt(5, delivery.Status5xx, 503)}, nil, "attempt_failed", "answered 503", "It is the last one"},
		"aged out":       {Notification{State: notification.Retrying, Sends: 1, AttemptsDone: 1, NextAttemptAt: at}, nil, "attempt_failed", "Attempt 1 of 6 failed.", "Attempt 2"},
		"suspended":      {Notification{State: notification.Parked, Reason: notification.Suspended, AttemptsDone: 1}, flag, "url_suspended", "20 failures and no success (500, timeout). 1 of its 6 attempts", "tried again at 2026-11-20 13:19:15 UTC"},
		"probing":        {Notification{State: notification.Parked, Reason: notification.Suspended}, &probing, "url_suspended", "20 failures", "right now"},
		"by hand":        {Notification{State: notification.Parked, Reason: notification.Suspended}, &byHand, "url_suspended", "by hand", "resume"},
		"resumed":        {Notification{State: notification.Parked, Reason: notification.Suspended}, nil, "url_suspended", "active again", "released soon"},
		"disabled":       {Notification{State: notification.Parked, Reason: notification.Disabled}, nil, "webhook_disabled", "disabled by its owner", "set to active"},
		"saturated":      {Notification{State: notification.Parked, Reason: notification.Saturated}, nil, "url_saturated", "as many requests open", "oldest first"},
		"delivered":      {Notification{State: notification.Delivered, Sends: 1, History: attempt(1, "", 204)}, nil, "delivered", "Attempt 1 was answered with 204 after 5000 ms", "can be sent again"},
		"failed":         {Notification{State: notification.PermanentlyFailed, Sends: 1, AttemptsDone: 6, Reason: "redirect", History: attempt(6, delivery.Redirect, 301)}, nil, "retries_exhausted", "All 6 attempts failed; the last one: the receiver answered 301, a redirect", "can be sent again"},
		"expired":        {Notification{State: notification.PermanentlyFailed, AttemptsDone: 2, Reason: "expired_while_suspended"}, nil, "expired_while_suspended", "2 of 6 attempts", "can be sent again"},
		"internal error": {Notification{State: notification.PermanentlyFailed, Reason: "internal_error"}, nil, "internal_error", "fault in Gancho", "can be sent again"},
		"cancelled":      {Notification{State: notification.Cancelled}, nil, "webhook_deleted", "deleted", "cannot be sent again"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := explain(&tc.n, tc.flag)
			if e.Reason != tc.reason || !strings.Contains(e.Text, tc.text) || !strings.Contains(e.Next, tc.next) {
				t.Errorf("%+v\nwant %s, text with %q, next with %q", e, tc.reason, tc.text, tc.next)
			}
		})
	}
	for _, r := range delivery.Reasons() {
		if words := whatHappened(&notification.Attempt{Reason: r, HTTPStatus: 400}); words == "" || strings.Contains(words, "_") {
			t.Errorf("reason %s: %q", r, words)
		}
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add(Cursor{created: 1700000000000, id: [16]byte{1}}.String())
	f.Add("")
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if c, ok := ParseCursor(s); ok && c.String() != s {
			t.Errorf("%q is read as %q", s, c.String())
		}
	})
}
