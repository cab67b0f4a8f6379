package bus_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"

	"github.com/nats-io/nats.go"
)

// delivered returns first records of the notifications number from to below to.
func delivered(from, to int) (records []*notification.Record) {
	for i := from; i < to; i++ {
		n := bustest.Example(i)
		records = append(records, &notification.Record{
			Kind: notification.KindAttempt, At: time.Now().UTC(), Account: n.Account, WebhookID: n.WebhookID, NotificationID: n.ID,
			Send: 1, AttemptsDone: 1, State: notification.Delivered,
		})
	}
	return records
}

// record starts all records at once and returns what became of each.
func record(ctx context.Context, b *bus.Bus, records []*notification.Record) (sequences []uint64, errs []error) {
	var started []*journal.Started
	for _, r := range records {
		started = append(started, journal.Start(b, r))
	}
	for _, s := range started {
		sequence, err := s.Wait(ctx)
		sequences, errs = append(sequences, sequence), append(errs, err)
	}
	return sequences, errs
}

// check compares what the journal has with the answers.
func check(t *testing.T, b *bus.Bus, records []*notification.Record, sequences []uint64) {
	t.Helper()
	for i, r := range records {
		last, err := journal.Last(t.Context(), b, r.Account, r.NotificationID)
		if err != nil || last.Sequence != sequences[i] {
			t.Fatalf("record %d: the journal has it at %+v (%v), the answer said %d", i, last, err, sequences[i])
		}
	}
}

func TestBatchesKeepOrderAndSequences(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	b.SyncingBroker(topology.Attempts)
	records := delivered(0, 500)
	sequences, errs := record(t.Context(), b, records)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(sequences) {
		t.Errorf("not stored in the order in which they were started: %v", sequences)
	}
	check(t, b, records, sequences)
	if w := b.Written(topology.Attempts); w.Batches < 1 || w.Queued != 0 || w.InFlight != 0 {
		t.Errorf("writer: %+v; want batches, and nothing left", w)
	}
}

func TestOneConflictSpoilsNoOtherRecord(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	if _, err := journal.Write(t.Context(), b, delivered(100, 101)[0]); err != nil {
		t.Fatal(err)
	}
	b.SyncingBroker(topology.Attempts)
	records := delivered(0, 200)
	sequences, errs := record(t.Context(), b, records)
	for i, err := range errs {
		if want := i == 100; errors.Is(err, bus.ErrConflict) != want || !want && err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
	check(t, b, records[:100], sequences[:100])
	check(t, b, records[101:], sequences[101:])
	if w := b.Written(topology.Attempts); w.InFlight != 0 {
		t.Errorf("writer: %+v; want nothing in flight", w)
	}
}

// TestLostAnswerOfABatch: messages that were stored in a batch whose answer was lost conflict with their repetition,
// and are stored once.
func TestLostAnswerOfABatch(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	var messages []*nats.Msg
	for i := range 50 {
		m := bus.NewMessage(topology.SubjectAttempts("acme", strconv.Itoa(i)), "", []byte("{}"))
		bus.ExpectLast(m, 0)
		messages = append(messages, m)
	}
	started, err := b.CommitUnanswered(topology.Attempts, messages)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range started {
		if err := p.Wait(t.Context()); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("message %d: got %v, want ErrConflict", i, err)
		}
	}
	if state, err := b.StreamState(t.Context(), topology.Attempts); err != nil || state.Messages != 50 {
		t.Errorf("%d messages stored, %v; want 50", state.Messages, err)
	}
}

func TestDuplicatesInABatchAreStoredOnce(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	for range 2 {
		b.SyncingBroker(topology.Notifications)
		var started []*bus.Started
		for i := range 200 {
			started = append(started, lane.Notify(b, bustest.Example(i)))
		}
		for _, n := range started {
			if err := n.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	stream, err := s.JetStream().Stream(t.Context(), topology.Notifications)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 200 {
		t.Errorf("%d messages stored, want 200", n)
	}
}

func TestStreamWithoutBatches(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	js := s.JetStream()
	stream, err := js.Stream(t.Context(), topology.Attempts)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.AllowAtomicPublish = false // as a version before batches made it
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	b.SyncingBroker(topology.Attempts)
	records := delivered(0, 200)
	sequences, errs := record(t.Context(), b, records)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	check(t, b, records, sequences)
	if w := b.Written(topology.Attempts); !w.Spared || w.InFlight != 0 {
		t.Errorf("writer: %+v; want batches spared, and nothing in flight", w)
	}
}

func TestWriterForgetsWhatNobodyWaitsFor(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	s := bustest.Start(t)
	b := s.Topology(bustest.Limits())
	b.SyncingBroker(topology.Attempts)
	s.Stop() // nothing is answered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, errs := record(ctx, b, delivered(0, 300))
	for i, err := range errs {
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	s.Run()
	records := delivered(1000, 1300)
	sequences, errs := record(t.Context(), b, records)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	check(t, b, records, sequences)
	if w := b.Written(topology.Attempts); w.Queued != 0 || w.InFlight != 0 {
		t.Errorf("writer: %+v; want nothing left", w)
	}
}
