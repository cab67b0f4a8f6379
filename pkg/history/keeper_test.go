package history

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/share"
	"gancho/pkg/topology"
)

// writer writes records, as a dispatcher does.
type writer struct {
	t *testing.T
	b *bus.Bus
}

// record writes a first record with an answer of that many bytes and returns the notification's id.
func (w writer) record(account string, i, body int) string {
	w.t.Helper()
	id := uuid.NewSHA1(uuid.NameSpaceURL, []byte(fmt.Sprint(account, i))).String()
	_, err := journal.Write(w.t.Context(), w.b, &notification.Record{
		Kind: notification.KindAttempt, At: time.Now(), Account: account, WebhookID: uuid.NewString(), NotificationID: id, Send: 1, AttemptsDone: 6,
		State: notification.PermanentlyFailed, Attempt: &notification.Attempt{Number: 6, Send: 1, ResponseBody: strings.Repeat("x", body)},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// failed keeps a payload.
func (w writer) failed(account string, i, body int) string {
	w.t.Helper()
	n := bustest.Example(i)
	n.Account, n.Body = account, []byte(`"`+strings.Repeat("x", body)+`"`)
	if err := lane.Fail(w.t.Context(), w.b, n, "[]"); err != nil {
		w.t.Fatal(err)
	}
	return n.ID
}

// TestKeeper has an account write both histories full many times over, at most a tenth of the limit between two looks.
// What two others wrote before is all there, the account's oldest is not, its newest is, and its writes were never
// refused.
func TestKeeper(t *testing.T) {
	t.Parallel()
	const limit, burst = 2 << 20, 2 << 20 / 20
	s := bustest.Start(t)
	l := bustest.Limits()
	l.AttemptsMaxBytes, l.FailedMaxBytes = limit, limit
	w := writer{t, s.Topology(l)}
	meter := share.New(share.Config{Share: 0.2}, share.Limits{}, func(string) bool { return true })
	reg := prometheus.NewRegistry()
	k := New(w.b, meter, zap.NewNop(), reg)
	for _, h := range []*history{{Keeper: k, stream: topology.Attempts, most: 20}, {Keeper: k, stream: topology.Failed, most: 20}} {
		write, last := w.record, func(account, id string) error {
			_, err := journal.Last(t.Context(), w.b, account, id)
			return err
		}
		if h.stream == topology.Failed {
			write, last = w.failed, func(account, id string) error {
				_, err := lane.Failed(t.Context(), w.b, account, bustest.Example(0).WebhookID, id)
				return err
			}
		}
		look := func() {
			if _, err := h.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var others [][2]string
		for i := range 60 {
			account := []string{"b", "c"}[i%2]
			others = append(others, [2]string{account, write(account, i, 12<<10)})
		}
		var all []string
		for round := range 60 {
			for range burst / (8 << 10) {
				all = append(all, write("attacker", 1000+len(all), 8<<10-600))
			}
			if look(); round == 30 { // another process takes over
				h.rest(t.Context())
				look()
			}
		}
		for _, o := range others {
			if err := last(o[0], o[1]); err != nil {
				t.Fatalf("%s: a record of %s: %v", h.stream, o[0], err)
			}
		}
		if err := last("attacker", all[0]); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("%s: the attacker's oldest record: %v", h.stream, err)
		}
		if err := last("attacker", all[len(all)-1]); err != nil {
			t.Errorf("%s: the attacker's newest record: %v", h.stream, err)
		}
		left := 0
		for _, id := range all {
			if last("attacker", id) == nil {
				left++
			} else if left > 0 {
				t.Fatalf("%s: a record is gone, and an older one of the attacker is there", h.stream)
			}
		}
		if held := int64(left) * (8 << 10); held < limit/100*17 {
			t.Errorf("%s: %d bytes are left to the attacker, less than its share", h.stream, held)
		}
	}
	metrics, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range metrics[0].GetMetric() {
		if m.GetCounter().GetValue() == 0 {
			t.Errorf("none is counted as removed: %v", m)
		}
	}
}

// TestRetention: records older than an account's retention go, those of others and younger ones stay.
func TestRetention(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	w := writer{t, s.Topology(bustest.Limits())}
	meter := share.New(share.Config{Share: 0.2}, share.Limits{}, nil)
	k := New(w.b, meter, zap.NewNop(), prometheus.NewRegistry())
	for i := range 3 {
		w.record("short", i, 10)
		w.record("long", i, 10)
		w.failed("short", i, 10)
	}
	w.record("short", 3, 10)
	later, err := w.b.Last(t.Context(), topology.Attempts, topology.SubjectAttempts("short", "*"))
	if err != nil {
		t.Fatal(err)
	}
	meter.Set("short", &share.Settings{LogMaxAge: 60})
	// At this moment the account's record of the second round is exactly a minute old.
	if err := k.expire(t.Context(), later.Time.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	count := func(stream, account string) int {
		subjects, err := w.b.Subjects(t.Context(), stream, topology.SubjectsOf(stream, account))
		if err != nil {
			t.Fatal(err)
		}
		return len(subjects)
	}
	if short, long, failed := count(topology.Attempts, "short"), count(topology.Attempts, "long"), count(topology.Failed, "short"); short != 1 || long != 3 || failed != 3 {
		t.Errorf("%d and %d records, %d failures; want 1, 3, 3", short, long, failed)
	}
	meter.Set("short", &share.Settings{FailedMaxAge: 60})
	if err := k.expire(t.Context(), later.Time.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if short, failed := count(topology.Attempts, "short"), count(topology.Failed, "short"); short != 1 || failed != 0 {
		t.Errorf("%d records, %d failures; want 1, 0", short, failed)
	}
	if err := k.expire(t.Context(), later.Time.Add(time.Hour)); err != nil { // nothing is left
		t.Fatal(err)
	}
}
