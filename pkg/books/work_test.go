package books

import (
	"encoding/binary"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/share"
	"gancho/pkg/waittest"
)

// TestLedgerKnowsWhatAccountsHold: after any history the running sums are those of the open sends, also behind a
// checkpoint and after owners were forgotten.
func TestLedgerKnowsWhatAccountsHold(t *testing.T) {
	t.Parallel()
	states := []notification.State{notification.Pending, notification.Retrying, notification.Parked, notification.Delivered, notification.Cancelled}
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger()
		ids := []string{uuid.NewString(), uuid.NewString(), uuid.NewString()}
		id := rapid.SampledFrom(ids)
		account := map[string]string{ids[0]: "a", ids[1]: "a", ids[2]: "b"}
		var seq uint64
		t.Repeat(map[string]func(*rapid.T){
			"arrive": func(t *rapid.T) {
				seq++
				i := id.Draw(t, "id")
				l.arrive(lane.Arrival{Notification: notification.Notification{Account: account[i], WebhookID: i, ID: i, Send: 1}, Size: rapid.IntRange(0, 9).Draw(t, "size")}, seq)
			},
			"record": func(t *rapid.T) {
				seq++
				i := id.Draw(t, "id")
				l.record(notification.Summary{Account: account[i], WebhookID: i, NotificationID: i, Send: 1, Sequence: seq, State: rapid.SampledFrom(states).Draw(t, "state")})
			},
			"duplicate": func(t *rapid.T) {
				if k, ok := parseKey(id.Draw(t, "id"), 1); ok {
					l.duplicate(k)
				}
			},
			"checkpoint": func(t *rapid.T) {
				got, err := decodeLedger(encodeLedger(l))
				if err != nil {
					t.Fatal(err)
				}
				got.counts, l = l.counts, got
			},
			"": func(t *rapid.T) {
				want := map[string]share.Open{}
				for _, e := range l.open {
					o := want[l.owners[e.owner].account]
					switch e.state {
					case pending:
						o.Pending += int64(e.size)
					case retrying:
						o.Retrying += int64(e.size)
					case parked:
						o.Parked += int64(e.size)
					}
					if o.Sum() > 0 {
						want[l.owners[e.owner].account] = o
					}
				}
				if got := l.work(); !maps.Equal(got, want) {
					t.Fatalf("accounts hold %v, want %v", got, want)
				}
			},
		})
	})
}

// TestLedgerCountsAnErasureOnce: the record of an erasure ends a send only where its end was not read.
func TestLedgerCountsAnErasureOnce(t *testing.T) {
	t.Parallel()
	l := newLedger()
	read := uuid.NewString()
	unread := uuid.NewString()
	for i, id := range []string{read, unread} {
		l.arrive(lane.Arrival{Notification: notification.Notification{Account: "a", WebhookID: id, ID: id, Send: 1}}, uint64(i+1))
	}
	s := notification.Summary{Account: "a", WebhookID: read, NotificationID: read, Send: 1, State: notification.Delivered}
	l.record(s)
	s.Kind = notification.KindErased
	l.record(s)
	s.WebhookID, s.NotificationID = unread, unread
	l.record(s)
	if want := (Counts{Matched: 2, Delivered: 2}); l.counts != want || len(l.open) > 0 {
		t.Errorf("counts %+v with %d open, want %+v", l.counts, len(l.open), want)
	}
}

// TestLedgerReadsTheFormWithoutSizes: a checkpoint of the version before is read on from.
func TestLedgerReadsTheFormWithoutSizes(t *testing.T) {
	t.Parallel()
	number := binary.AppendUvarint
	raw := number(number(nil, 1), 1)
	raw = append(append(append(number(raw, 1), 'a'), 1), 'w')
	k := key{uuid.New(), 1}
	raw = append(number(raw, 1), k.id[:]...)
	for _, v := range []uint64{1, 0, 5, 6, uint64(retrying), 7, 8} {
		raw = number(raw, v)
	}
	l, err := decodeLedger(raw)
	if err != nil || l.open[k] != (entry{changed: 5, next: 6, state: retrying, seq: 7, journal: 8}) {
		t.Fatalf("%+v, %v", l, err)
	}
}

// TestKeeperCountsWhatAccountsHold: a message on NOTIFICATIONS shows in the bucket SHARES, and its end too.
func TestKeeperCountsWhatAccountsHold(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	d := newDesk(t, nil)
	shares, err := d.bus.Bucket(t.Context(), "SHARES")
	d.must(err)
	leases, err := d.bus.Bucket(t.Context(), "LEASES")
	d.must(err)
	meter := share.New(share.Config{Share: 0.2}, share.Limits{Notifications: 1 << 20, Retries: 1 << 20, Parked: 1 << 20}, func(string) bool { return true })
	go func() { _ = meter.Watch(t.Context(), d.bus, bustest.Logger(t), nil) }()
	k := &Keeper{Log: bustest.Logger(t), Bus: d.bus, Leases: leases, Bucket: d.bucket, Shares: shares, Name: "k"}
	go k.Run(t.Context())
	until := func(want share.Open) {
		t.Helper()
		waittest.Until(t, fmt.Sprintf("acme holds %+v", want), func() bool {
			got, fresh := meter.Open("acme")
			return got == want && fresh
		})
	}
	n := d.example("acme", 1)
	d.notify(n)
	size := int64(len(n.Body)) + share.Overhead
	until(share.Open{Pending: size})
	n = d.record(n, notification.Retrying, time.Now().Add(time.Hour))
	until(share.Open{Retrying: size})
	n = d.record(n, notification.Parked, time.Time{})
	until(share.Open{Parked: size})
	d.record(n, notification.Delivered, time.Time{})
	until(share.Open{})
}
