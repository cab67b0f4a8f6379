package notification

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"gancho/pkg/event"
	"gancho/pkg/wireversion"
)

// notifications generates well-formed notifications.
func notifications() *rapid.Generator[Notification] {
	return rapid.Custom(func(t *rapid.T) Notification {
		webhook := uuid.NewSHA1(uuid.NameSpaceOID, []byte(rapid.String().Draw(t, "webhook")))
		eventID := uuid.NewSHA1(uuid.NameSpaceURL, []byte(rapid.String().Draw(t, "event"))).String()
		return Notification{
			Account: rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`).Draw(t, "account"), ID: event.NotificationID(eventID, webhook),
			WebhookID: webhook.String(), EventID: eventID, EventName: "crm_deal_created",
			EventSequence: rapid.Uint64Max(1<<62).Draw(t, "sequence"),
			EventTime:     time.Unix(0, rapid.Int64Range(0, 1<<60).Draw(t, "time")),
			Send:          rapid.IntRange(1, 1<<20).Draw(t, "send"),
			AttemptsDone:  rapid.IntRange(0, MaxAttempts-1).Draw(t, "done"),
			Moves:         rapid.IntRange(0, 1<<20).Draw(t, "hop"),
			Journal:       rapid.Uint64Max(1<<62).Draw(t, "journal"),
			Replay:        rapid.SampledFrom([]string{"", uuid.NewString()}).Draw(t, "replay"),
			RefusedAt:     rapid.SampledFrom([]time.Time{{}, time.UnixMilli(1_800_000_000_123)}).Draw(t, "refused"),
			Body:          []byte(rapid.String().Draw(t, "body")),
			Ref:           rapid.SampledFrom([]*Reference{nil, Refer([]byte("a body that is stored elsewhere"))}).Draw(t, "reference"),
		}
	})
}

// TestMessage: a notification is the same after a trip through a message, its event's time to the nanosecond.
func TestMessage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := notifications().Draw(t, "notification")
		got, err := Decode(n.Header(), n.Data())
		if err != nil {
			t.Fatal(err)
		}
		if n.Ref != nil {
			n.Body = nil
		}
		if diff := cmp.Diff(n, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestMessageOfOlderVersion: a message without nanoseconds carries its event's time to the millisecond.
func TestMessageOfOlderVersion(t *testing.T) {
	t.Parallel()
	n := notifications().Example(1)
	n.EventTime = time.Date(2026, 11, 27, 12, 0, 0, 123_456_789, time.UTC)
	h := n.Header()
	delete(h, headerEventNanos)
	got, err := Decode(h, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := n.EventTime.Truncate(time.Millisecond); !got.EventTime.Equal(want) {
		t.Errorf("event time %v, want %v", got.EventTime, want)
	}
}

// TestReferenceIsNotMisread: a version that does not know references leaves such a message alone, because it would send
// an empty body. Others have the schema that it knows.
func TestReferenceIsNotMisread(t *testing.T) {
	t.Parallel()
	n := notifications().Example(1)
	n.Ref = nil
	if got := n.Header()[HeaderSchema][0]; got != strconv.Itoa(wireversion.Newest) {
		t.Errorf("with its body it has schema %s", got)
	}
	n.Ref = Refer([]byte("body"))
	h := n.Header()
	if got := h[HeaderSchema][0]; got != strconv.Itoa(wireversion.Newest+1) || n.Data() != nil || n.Size() != 4 || ReferredBytes(h) != 4 {
		t.Errorf("schema %s, %d bytes of data, size %d", got, len(n.Data()), n.Size())
	}
	if _, err := Decode(h, []byte("body")); err == nil {
		t.Error("a message with a reference and a body is taken for good")
	}
	h[HeaderSchema] = []string{strconv.Itoa(wireversion.Newest + 2)}
	if _, err := Decode(h, nil); !errors.Is(err, wireversion.ErrNewer) {
		t.Errorf("of a newer version: %v", err)
	}
}

// TestMessageRefused: a message that no version of Gancho writes is refused, with the header in the error.
func TestMessageRefused(t *testing.T) {
	t.Parallel()
	for header, values := range map[string][]string{
		HeaderSchema: {"", "0", "x"}, HeaderAccount: {"", "a.b"}, HeaderWebhookID: {"", "x"}, HeaderID: {"", uuid.NewString()},
		headerEventName: {"", "deal"}, headerSend: {"", "0", "-1", "x"}, headerAttemptsDone: {"-1", "6"}, headerHop: {"-1", "x"},
		headerEventTime: {"-1", "x"}, headerEventNanos: {"-1", "1000000"}, headerReplay: {"x"}, headerJournal: {"-1"},
		HeaderBody: {"x", "10", ":", "0:" + strings.Repeat("0", 64), "10:00", "10:" + strings.Repeat("x", 64)},
	} {
		for _, value := range values {
			n := notifications().Example(1)
			h := n.Header()
			h[header] = []string{value}
			if _, err := Decode(h, nil); err == nil || !strings.Contains(err.Error(), header) {
				t.Errorf("%s %q: error %v does not name the header", header, value, err)
			}
		}
	}
}
