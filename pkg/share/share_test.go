package share

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// accounts of the model: the bytes really stored, and whether the account exists.
type model struct {
	meter  *Meter
	clock  time.Time
	exists map[string]bool
	open   map[string][]int64 // bytes of each open piece of work
	last   uint64
	known  map[string]bool // held something at the last count, or stored something since
}

func newModel(limit int64) *model {
	m := &model{clock: time.Unix(1_800_000_000, 0), exists: map[string]bool{}, open: map[string][]int64{}}
	m.meter = New(Config{Share: 0.2}, Limits{Notifications: limit, Retries: 2 * limit, Parked: limit}, func(account string) bool {
		for a := range m.exists {
			if a != account {
				return true
			}
		}
		return false
	})
	m.meter.now = func() time.Time { return m.clock }
	m.count()
	return m
}

func (m *model) held(account string) (n int64) {
	for _, b := range m.open[account] {
		n += b
	}
	return n
}

// count is what the books and the dispatchers report.
func (m *model) count() {
	all := map[string]Open{}
	for a := range m.open {
		if n := m.held(a); n > 0 {
			all[a] = Open{Retrying: n}
		}
	}
	m.known = map[string]bool{}
	for a := range all {
		m.known[a] = true
	}
	m.meter.takeWork(NewWork(m.clock, m.last, all))
	m.meter.Settled(m.last)
}

// TestShareHolds: whatever accounts ask for and whenever their work ends, none is admitted above its share while others
// exist, one that is alone gets nine tenths, one that holds nothing is always admitted, and when the work has ended
// everyone is.
func TestShareHolds(t *testing.T) {
	t.Parallel()
	const limit = 10_000
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(limit)
		names := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		t.Repeat(map[string]func(*rapid.T){
			"ask": func(t *rapid.T) {
				account, bytes := names.Draw(t, "account"), rapid.Int64Range(1, 3000).Draw(t, "bytes")
				m.exists[account] = true
				before := m.held(account)
				share := int64(limit * 2 / 10)
				if len(m.exists) == 1 {
					share = limit * 9 / 10
				}
				hold, over := m.meter.Admit(account, bytes)
				switch {
				case hold != nil && before > 0 && before+bytes > share:
					t.Fatalf("%s holds %d and was admitted %d more, its share is %d", account, before, bytes, share)
				case hold == nil && !m.known[account]:
					t.Fatalf("%s holds nothing and was refused: %v", account, over)
				case hold == nil && over.Used+bytes <= over.Share:
					t.Fatalf("%s was refused although it fits: %v", account, over)
				}
				if hold == nil {
					return
				}
				if rapid.Bool().Draw(t, "lost") {
					hold.Release()
					return
				}
				m.last++
				m.known[account] = true
				m.open[account] = append(m.open[account], bytes)
				hold.Stored(m.last)
			},
			"end": func(t *rapid.T) {
				account := names.Draw(t, "account")
				if n := len(m.open[account]); n > 0 {
					m.open[account] = m.open[account][:n-1]
				}
			},
			"count":   func(*rapid.T) { m.clock = m.clock.Add(time.Second); m.count() },
			"silence": func(*rapid.T) { m.clock = m.clock.Add(20 * time.Second) },
			"gone": func(t *rapid.T) {
				account := names.Draw(t, "account")
				if m.held(account) == 0 {
					delete(m.exists, account)
				}
			},
		})
		clear(m.open)
		m.clock = m.clock.Add(time.Second)
		m.count()
		for a := range m.exists {
			if hold, over := m.meter.Admit(a, 5*limit); hold == nil {
				t.Fatalf("nothing is stored and %s is refused: %v", a, over)
			}
		}
	})
}

// TestNoDeadlockWithoutBooks: the books fell silent when an account had its share. Once the stores have drained, and
// the dispatchers settled what this process stored, it goes on.
func TestNoDeadlockWithoutBooks(t *testing.T) {
	t.Parallel()
	m := newModel(10_000)
	m.exists["a"], m.exists["b"] = true, true
	m.open["a"] = []int64{2000}
	m.count()
	if hold, _ := m.meter.Admit("a", 1); hold != nil {
		t.Fatal("admitted above its share")
	}
	hold, _ := m.meter.Admit("b", 1500)
	hold.Stored(8)
	m.clock = m.clock.Add(Stale + time.Second)
	if hold, _ := m.meter.Admit("a", 1); hold != nil {
		t.Fatal("silence alone frees nothing")
	}
	m.meter.Bound(100)
	if hold, over := m.meter.Admit("a", 1900); hold == nil {
		t.Fatalf("the stores hold 100 bytes together, and %v", over)
	}
	if hold, _ := m.meter.Admit("b", 1000); hold != nil {
		t.Fatal("what this process stored is not settled")
	}
	m.meter.Settled(8)
	if hold, over := m.meter.Admit("b", 1000); hold == nil {
		t.Fatal(over)
	}
}

func TestEventsAreHeldToTheirShare(t *testing.T) {
	t.Parallel()
	others := true
	m := New(Config{Share: 0.2}, Limits{Events: 1000}, func(string) bool { return others })
	at := time.Now()
	admit := func(account string, bytes int64, sequence uint64) bool {
		hold, _ := m.AdmitEvent(account, bytes)
		if hold != nil {
			hold.Stored(sequence)
		}
		return hold != nil
	}
	if !admit("a", 500, 1) {
		t.Fatal("one event is always taken")
	}
	if admit("a", 1, 2) || !admit("b", 200, 3) || admit("b", 1, 4) {
		t.Fatal("what this process stored counts at once")
	}
	m.takeKept(Kept{At: at, Position: 3, Total: 300, Exact: true, Accounts: map[string]int64{"a": 100, "b": 200}})
	if !admit("a", 100, 5) || admit("b", 1, 6) {
		t.Fatal("the count holds")
	}
	if over := m.OverEvents(); len(over) != 0 {
		t.Fatalf("%v are over", over)
	}
	m.takeKept(Kept{At: at.Add(time.Second), Position: 6, Total: 401, Exact: true, Accounts: map[string]int64{"a": 201, "b": 200}})
	if over := m.OverEvents(); len(over) != 1 || over[0] != "a" {
		t.Fatalf("%v are over", over)
	}
	m.Set("a", &Settings{Share: 0.5})
	if !admit("a", 299, 7) || admit("a", 1, 8) {
		t.Fatal("the operator's share holds")
	}
	others = false
	if !admit("b", 700, 9) || admit("b", 1, 10) {
		t.Fatal("an account that is alone gets nine tenths")
	}
	m.takeKept(Kept{At: at.Add(2 * time.Second), Position: 10, Total: 950})
	if others = true; !admit("new", 200, 11) || admit("new", 1, 12) {
		t.Fatal("an account that stored nothing is not held to what others stored")
	}
}

func TestWithoutLimitsThereAreNoShares(t *testing.T) {
	t.Parallel()
	m := New(Config{Share: 0.2}, Limits{}, func(string) bool { return true })
	for i := range uint64(100) {
		hold, _ := m.Admit("a", 1<<40)
		event, _ := m.AdmitEvent("a", 1<<40)
		hold.Stored(i)
		event.Stored(i)
	}
	if over, full := m.Over("a"); full || len(m.own) != 0 {
		t.Fatalf("%v, %d tallies", over, len(m.own))
	}
}

func TestCountsNameTheLargest(t *testing.T) {
	t.Parallel()
	all := map[string]Open{}
	for i := range 1000 {
		all[string(rune('a'+i%26))+time.Duration(i).String()] = Open{Pending: int64(i), Parked: 1}
	}
	w := NewWork(time.Now(), 7, all)
	if len(w.Accounts) != MaxListed {
		t.Fatalf("%d accounts", len(w.Accounts))
	}
	for a, o := range w.Accounts {
		if o.Pending < 1000-MaxListed {
			t.Errorf("%s with %d is not among the largest", a, o.Pending)
		}
	}
}

func BenchmarkAdmit(b *testing.B) {
	m := New(Config{Share: 0.2}, Limits{Notifications: 1 << 40, Retries: 1 << 40, Parked: 1 << 40}, func(string) bool { return true })
	b.ReportAllocs()
	for i := uint64(1); b.Loop(); i++ {
		hold, _ := m.Admit("acme", 1024)
		hold.Stored(i)
		if i%5000 == 0 {
			m.Settled(i)
			m.takeWork(Work{At: time.Now(), Position: i})
		}
	}
}
