package journal_test

import (
	"errors"
	"testing"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

func TestRecordIsCompareAndSet(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	record := func(previous uint64, done int) *notification.Record {
		n := bustest.Example(1)
		return &notification.Record{Kind: notification.KindAttempt, At: time.Now(), Account: n.Account, NotificationID: n.ID, Send: 1, AttemptsDone: done, State: notification.Retrying, Previous: previous}
	}
	first := record(0, 1)
	seq, err := journal.Write(t.Context(), b, first)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := journal.Write(t.Context(), b, first); err != nil || again != seq {
		t.Errorf("the same record again, its answer lost: got %d, %v, want %d", again, err, seq)
	}
	if _, err := journal.Write(t.Context(), b, record(0, 1)); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("another first record: got %v, want ErrConflict", err)
	}
	second, err := journal.Write(t.Context(), b, record(seq, 2))
	if err != nil {
		t.Fatal(err)
	}
	last, err := journal.Last(t.Context(), b, "acme", first.NotificationID)
	if err != nil || last.Sequence != second || last.AttemptsDone != 2 || last.Previous != seq {
		t.Errorf("last record: got %+v, %v", last, err)
	}
	if _, err := journal.Last(t.Context(), b, "acme", "none"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("no record: got %v", err)
	}
}

// TestHistory reads six records back from the newest, whether each carries those before it, none does (an older
// version wrote it), or the carried ones cannot be read; and the rest when records are gone.
func TestHistory(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	stream, err := s.JetStream().Stream(t.Context(), topology.Attempts)
	if err != nil {
		t.Fatal(err)
	}
	const records = 6
	write := func(i int, carry func(r, last *notification.Record)) (sequences []uint64, last *notification.Record) {
		for done := 1; done <= records; done++ {
			n := bustest.Example(i)
			r := &notification.Record{Kind: notification.KindAttempt, At: time.Now(), Account: n.Account, NotificationID: n.ID, Send: 1, AttemptsDone: done, State: notification.Retrying}
			if last != nil {
				carry(r, last)
			}
			sequence, err := journal.Write(t.Context(), b, r)
			if err != nil {
				t.Fatal(err)
			}
			sequences = append(sequences, sequence)
			if last, err = journal.Last(t.Context(), b, n.Account, n.ID); err != nil {
				t.Fatal(err)
			}
		}
		return sequences, last
	}
	read := func(name string, last *notification.Record, sequences []uint64, want int, wantErr error) {
		t.Helper()
		got, gotErr := 0, error(nil)
		for r, err := range journal.History(t.Context(), b, last) {
			if err != nil {
				gotErr = err
				continue
			}
			if r.AttemptsDone != records-got || r.Sequence != sequences[records-1-got] || r.NotificationID != last.NotificationID {
				t.Errorf("%s: record %d is attempt %d at %d", name, got, r.AttemptsDone, r.Sequence)
			}
			got++
		}
		if got != want || !errors.Is(gotErr, wantErr) {
			t.Errorf("%s: %d records, %v; want %d, %v", name, got, gotErr, want, wantErr)
		}
	}
	remove := func(sequences ...uint64) {
		t.Helper()
		for _, n := range sequences {
			if err := stream.DeleteMsg(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
	}
	follow := func(r, last *notification.Record) { r.Follow(last) }
	chain := func(r, last *notification.Record) { r.Previous = last.Sequence }

	at, last := write(1, follow)
	read("carried", last, at, records, nil)
	remove(at[:records-1]...)
	read("carried and gone", last, at, records, nil)

	at, last = write(2, chain)
	read("by the chain", last, at, records, nil)
	remove(at[2])
	read("by a broken chain", last, at, 3, bus.ErrNotFound)

	at, last = write(3, func(r, last *notification.Record) {
		if chain(r, last); r.AttemptsDone%3 == 0 {
			follow(r, last)
		}
	})
	read("old and new versions by turns", last, at, records, nil)

	at, last = write(4, follow)
	last.Earlier = last.Earlier[:len(last.Earlier)/2]
	read("cannot be read", last, at, records, nil)
}
