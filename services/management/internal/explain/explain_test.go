package explain

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
	"gancho/pkg/suspension"
	"gancho/services/management/internal/language"
)

func TestOf(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 13, 14, 15, 0, time.UTC)
	attempt := func(number int, reason delivery.Reason, status int) *notification.Attempt {
		return &notification.Attempt{Number: number, Send: 1, Reason: reason, HTTPStatus: status, DurationMS: 5000.4}
	}
	flag := &suspension.Flag{
		State: suspension.Suspended, Since: at, Until: at.Add(5 * time.Minute),
		Evidence: suspension.Evidence{Failures: 20, Statuses: []string{"500", "timeout"}},
	}
	probing, byHand := *flag, *flag
	probing.State, byHand.ByHand = suspension.Probing, true
	used := map[string]bool{}
	for name, tc := range map[string]struct {
		facts          Facts
		reason         string
		why, next, not string // parts, and one of neither
	}{
		"pending":    {Facts{State: notification.Pending, Sends: 1}, WaitingForFirstAttempt, "not been made yet", "within a second", "pause"},
		"sent again": {Facts{State: notification.Pending, Sends: 3}, WaitingForFirstAttempt, "send 3", "within a second", "pause"},
		"first attempts pause": {
			Facts{State: notification.Pending, Sends: 1, Paused: true}, FirstAttemptsPaused, "First attempts pause for all accounts", "once enough of those retries are done", "within a second",
		},
		"timeout": {
			Facts{State: notification.Retrying, AttemptsDone: 2, NextAttemptAt: at, Last: attempt(2, delivery.Timeout, 0)},
			AttemptFailed, "Attempt 2 of 6 failed: no answer within 5000 ms.", "Attempt 3 is due at 2026-11-20 13:14:15 UTC.", "last one",
		},
		"last retry": {
			Facts{State: notification.Retrying, AttemptsDone: 5, NextAttemptAt: at, Last: attempt(5, delivery.Status5xx, 503)},
			AttemptFailed, "answered 503", "It is the last one", "suspended",
		},
		"aged out": {Facts{State: notification.Retrying, AttemptsDone: 1, NextAttemptAt: at}, AttemptFailed, "Attempt 1 of 6 failed.", "Attempt 2", "suspended"},
		"retrying, suspended": {
			Facts{State: notification.Retrying, AttemptsDone: 1, NextAttemptAt: at, Flag: flag}, AttemptFailed, "Attempt 1 of 6 failed.", "the notification waits and uses no attempt", "last one",
		},
		"suspended": {
			Facts{State: notification.Parked, Reason: notification.Suspended, AttemptsDone: 1, Flag: flag},
			URLSuspended, "20 failures and no success (500, timeout). 1 of its 6 attempts", "tried again at 2026-11-20 13:19:15 UTC", "requests open",
		},
		"saturated, then suspended": {
			Facts{State: notification.Parked, Reason: notification.Saturated, AttemptsDone: 1, Flag: flag},
			URLSuspended, "suspended since 2026-11-20 13:14:15 UTC", "tried again at 2026-11-20 13:19:15 UTC", "those ahead of it are answered",
		},
		"saturated, then suspended by hand": {
			Facts{State: notification.Parked, Reason: notification.Saturated, Flag: &byHand}, URLSuspended, "by hand", "resumed", "those ahead of it are answered",
		},
		"probing":  {Facts{State: notification.Parked, Reason: notification.Suspended, Flag: &probing}, URLSuspended, "20 failures", "right now", "tried again at"},
		"by hand":  {Facts{State: notification.Parked, Reason: notification.Suspended, Flag: &byHand}, URLSuspended, "by hand", "resumed", "tried again"},
		"resumed":  {Facts{State: notification.Parked, Reason: notification.Suspended}, URLSuspended, "active again", "released soon", "tried again"},
		"disabled": {Facts{State: notification.Parked, Reason: notification.Disabled, Flag: flag}, WebhookDisabled, "disabled", "does not expire", "tried again"},
		"over its limit": {
			Facts{State: notification.Parked, Reason: notification.Saturated, PerMinute: 30, Waiting: 60, SentBy: at},
			URLSaturated, "at most 30 requests per minute", "wait for this URL: 60", "suspended",
		},
		"over its limit, of how many is not known": {
			Facts{State: notification.Parked, Reason: notification.Saturated, PerMinute: 30},
			URLSaturated, "at most 30 requests per minute", "when those ahead of it are", "{",
		},
		"saturated":               {Facts{State: notification.Parked, Reason: notification.Saturated}, URLSaturated, "as many requests open", "oldest first", "suspended"},
		"delivered":               {Facts{State: notification.Delivered, Last: attempt(1, "", 204)}, Delivered, "Attempt 1 was answered with 204 after 5000 ms", "can be sent again", "cannot"},
		"failed":                  {Facts{State: notification.PermanentlyFailed, AttemptsDone: 6, Reason: "redirect", Last: attempt(6, delivery.Redirect, 301)}, RetriesExhausted, "All 6 attempts failed; the last one: the receiver answered 301, a redirect", "can be sent again", "cannot"},
		"expired":                 {Facts{State: notification.PermanentlyFailed, AttemptsDone: 2, Reason: "expired_while_suspended"}, "expired_while_suspended", "2 of 6 attempts", "can be sent again", "All"},
		"internal error":          {Facts{State: notification.PermanentlyFailed, Reason: "internal_error"}, "internal_error", "fault in Gancho", "can be sent again", "All"},
		"webhook deleted":         {Facts{State: notification.Cancelled}, WebhookDeleted, "deleted", "cannot be sent again", "newer"},
		"superseded":              {Facts{State: notification.Cancelled, Reason: Superseded}, Superseded, "newer event of the same document was delivered", "cannot be sent again", "webhook was deleted"},
		"superseded by a known":   {Facts{State: notification.Cancelled, Reason: Superseded, Newer: "4c8d"}, Superseded, "newer event of the same document (4c8d)", "cannot be sent again", "webhook was deleted"},
		"erased":                  {Facts{State: notification.Cancelled, Reason: Erased}, Erased, "erased on request", "cannot be sent again", "webhook was deleted"},
		"nothing known, all done": {Facts{State: notification.PermanentlyFailed, AttemptsDone: 6}, RetriesExhausted, "All 6 attempts failed.", "can be sent again", "last one"},
	} {
		e := Of(tc.facts)
		used[e.Reason] = true
		why, next := e.Why.In(language.English), e.Next.In(language.English)
		if e.Reason != tc.reason || !strings.Contains(why, tc.why) || !strings.Contains(next, tc.next) || strings.Contains(why+next, tc.not) {
			t.Errorf("%s: %s: %s %s\nwant %s, with %q and %q, without %q", name, e.Reason, why, next, tc.reason, tc.why, tc.next, tc.not)
		}
		for _, l := range []language.Language{language.English, language.Portuguese} {
			if text := e.Why.In(l) + e.Next.In(l); strings.ContainsAny(text, "{}") {
				t.Errorf("%s: %s: a place without an argument: %s", name, l, text)
			}
		}
		if e.Why.In(language.Portuguese) == why || e.Next.In(language.Portuguese) == next {
			t.Errorf("%s: Portuguese repeats English", name)
		}
	}
	for _, r := range Reasons() {
		if !used[r] {
			t.Errorf("no case for %s", r)
		}
	}
	if len(used) != len(Reasons()) {
		t.Errorf("codes that are not listed: %v", slices.Sorted(maps.Keys(used)))
	}
}

func TestDeferred(t *testing.T) {
	t.Parallel()
	e := Deferred(time.Date(2026, 11, 20, 13, 14, 15, 0, time.UTC))
	if why := e.Why.In(language.English); e.Reason != AccountDeferred || !strings.Contains(why, "since 2026-11-20 13:14:15 UTC") {
		t.Errorf("%s: %s", e.Reason, why)
	}
}

func TestHappened(t *testing.T) {
	t.Parallel()
	for _, r := range delivery.Reasons() {
		s := Happened(&notification.Attempt{Reason: r, HTTPStatus: 400})
		for _, l := range []language.Language{language.English, language.Portuguese} {
			if words := s.In(l); words == "" || strings.ContainsAny(words, "_{}") {
				t.Errorf("reason %s: %q", r, words)
			}
		}
	}
	for _, status := range []int{401, 403} {
		s := Happened(&notification.Attempt{Reason: delivery.Status4xx, HTTPStatus: status})
		if words := s.In(language.English); words != fmt.Sprintf("the receiver answered %d: it refuses our credentials", status) {
			t.Error(words)
		}
	}
	a := &notification.Attempt{Reason: delivery.Status4xx, Detail: delivery.TokenServer + "auth.example.com: it answered with status 401"}
	if words := Happened(a).In(language.English); words != "the token server gave no token, so nothing was sent" {
		t.Errorf("without a token: %q", words)
	}
	if n := len(delivery.Reasons()); len(happened) != n {
		t.Errorf("%d reasons have words, there are %d", len(happened), n)
	}
}

// Both languages of a text must have the same places.
func TestPlaces(t *testing.T) {
	t.Parallel()
	seen := 0
	var look func(Sentence)
	look = func(s Sentence) {
		seen++
		for i := 0; i+1 < len(s.Arguments); i += 2 {
			place := "{" + reflect.ValueOf(s.Arguments[i]).String() + "}"
			if strings.Count(s.Text.English, place) != strings.Count(s.Text.Portuguese, place) {
				t.Errorf("%s is not as often in %q as in %q", place, s.Text.English, s.Text.Portuguese)
			}
			if inner, ok := s.Arguments[i+1].(Sentence); ok {
				look(inner)
			}
		}
	}
	flag := &suspension.Flag{Evidence: suspension.Evidence{Statuses: []string{"500"}}}
	for _, s := range notification.States() {
		for _, r := range append(Reasons(), notification.Suspended, notification.Saturated, notification.Disabled) {
			for _, f := range []*suspension.Flag{nil, flag} {
				for _, a := range []*notification.Attempt{nil, {Number: 1}} {
					e := Of(Facts{State: s, Reason: r, Sends: 2, AttemptsDone: 5, Flag: f, Last: a, Paused: f != nil, Newer: "x"})
					look(e.Why)
					look(e.Next)
				}
			}
		}
	}
	if seen == 0 {
		t.Error("no sentence was looked at")
	}
}
