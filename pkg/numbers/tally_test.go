package numbers

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// keeping is a process that keeps the books, and counts for the numbers meanwhile.
type keeping struct {
	t             *testing.T
	bus           *bus.Bus
	name          string
	tally         *Tally
	notifications *lane.Reader
	journal       *journal.Reader
}

func keep(t *testing.T, b *bus.Bus, name string) *keeping {
	k := &keeping{t: t, bus: b, name: name}
	k.restart(bus.Position{}, bus.Position{})
	return k
}

// restart has another process go on from a checkpoint.
func (k *keeping) restart(notifications, records bus.Position) {
	k.tally = NewTally(k.bus, zaptest.NewLogger(k.t))
	k.tally.keeper.every = -1
	k.notifications, k.journal = lane.NewReader(k.bus, k.name, notifications), journal.NewReader(k.bus, k.name, records)
}

// read reads on.
func (k *keeping) read() time.Time {
	k.t.Helper()
	began := time.Now()
	if _, err := k.journal.Mark(k.t.Context()); err != nil {
		k.t.Fatal(err)
	}
	err := k.notifications.Read(k.t.Context(), func(bus.Progress) {}, func(a lane.Arrival, sequence uint64) { k.tally.Arrived(&a, sequence) })
	if err != nil {
		k.t.Fatal(err)
	}
	if err := k.journal.Read(k.t.Context(), func(r notification.Summary, at time.Time) { k.tally.Recorded(&r, at) }); err != nil {
		k.t.Fatal(err)
	}
	return began
}

func (k *keeping) write() {
	k.t.Helper()
	k.finish(k.read())
}

// finish writes the counts. Others may have written since the reading began.
func (k *keeping) finish(began time.Time) {
	k.t.Helper()
	if err := k.tally.Write(k.t.Context(), k.notifications.At(), k.journal.At(), began); err != nil {
		k.t.Fatal(err)
	}
}

// TestTally: keepers and tallies count in any order, tallies begin again where they were, further back, or far behind
// the last slice, and each message is counted once.
func TestTally(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := bustest.Start(t).Topology(bustest.Limits())
			dice := rand.New(rand.NewPCG(seed, 1))
			one, two := keep(t, b, "one"), keep(t, b, "two")
			n := 0
			checkpoint := [2]bus.Position{}
			for range 60 {
				switch dice.IntN(8) {
				case 0, 1:
					happen(t, b, "acme", 3)
					n += 3
				case 2:
					if _, err := keeper(t, b).step(t.Context()); err != nil {
						t.Fatal(err)
					}
				case 3, 4:
					one.write()
				case 5:
					two.write()
				case 6:

					began := one.read()
					two.write()
					one.finish(began)
					checkpoint = [2]bus.Position{one.notifications.At(), one.journal.At()}
				case 7:
					one.restart(checkpoint[0], checkpoint[1])
					one.finish(time.Now())
				}
			}
			happen(t, b, "acme", 3)
			checkSums(t, b, "a part is counted", n+3, "acme")
			one.write()
			two.write()
			checkSums(t, b, "a tally counted last", n+3, "acme")
		})
	}
}

// TestTallyReadsOnce: what a tally counted is in its slice, and no keeper reads it again; without one a keeper counts
// after a while.
func TestTallyReadsOnce(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	books := keep(t, b, "books")
	books.write() // it begins here
	happen(t, b, "acme", 3)
	books.write()
	last, _, err := keeper(t, b).last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if last.At[topology.Notifications] != 3 || last.At[topology.Attempts] != 3 || last.At[topology.Events] != 0 {
		t.Errorf("the tally counted up to %v", last.At)
	}
	happen(t, b, "acme", 3)
	k := keeper(t, b)
	k.forlorn = time.Hour
	if _, err := k.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if last, _, err = k.last(t.Context()); err != nil {
		t.Fatal(err)
	}
	if last.At[topology.Notifications] != 3 || last.At[topology.Events] != 6 {
		t.Errorf("beside a tally the keeper counted up to %v", last.At)
	}
	k.forlorn = -1
	if _, err := k.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if last, _, err = k.last(t.Context()); err != nil {
		t.Fatal(err)
	}
	if last.At[topology.Notifications] != 6 || last.At[topology.Attempts] != 6 {
		t.Errorf("without a tally the keeper counted up to %v", last.At)
	}
	checkSums(t, b, "both counted", 6, "acme")
}

// TestTallyGivesUp: one that would have too many counts for a slice leaves them to a keeper, and then goes on.
func TestTallyGivesUp(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	books := keep(t, b, "books")
	books.write()
	now := time.Now()
	for i := range mostCells + 1 {
		books.tally.Recorded(&notification.Summary{Account: "acme", WebhookID: fmt.Sprint(i), Sequence: uint64(i + 1)}, now)
	}
	if books.tally.from != nil || len(books.tally.counts) > 0 {
		t.Errorf("it holds %d counts", len(books.tally.counts))
	}
	happen(t, b, "acme", 3)
	books.write()
	checkSums(t, b, "it went on", 3, "acme")
}
