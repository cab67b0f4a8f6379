package e2e

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	chaosFor  = flag.Duration("chaos", 12*time.Second, "how long TestChaos breaks things; above a minute TestChaosKillDispatcher runs too")
	chaosSeed = flag.Uint64("chaos-seed", 0, "seed of the faults; 0 draws one")
)

// outcome is what the API says of one notification in the end.
type outcome struct {
	state    string
	attempts []int // numbers of the recorded attempts of the last send
}

// audit compares three ledgers: what was acknowledged, what the receivers saw, and what the API says. It
// returns what is wrong; a crash may repeat an attempt, so repetitions are counted and not wrong.
func audit(acknowledged []string, seen map[string][]sighting, said map[string]outcome) (problems []string, repeated int) {
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for _, id := range acknowledged {
		o, known := said[id]
		if !known {
			wrong("%s is lost: nothing is known of it", id)
			continue
		}
		accepted, numbers := false, map[string]bool{}
		for _, s := range seen[id] {
			if numbers[s.attempt] {
				repeated++
			}
			numbers[s.attempt] = true
			accepted = accepted || s.accepted
		}
		for i, n := range o.attempts {
			if n != i+1 {
				wrong("%s: attempts are recorded as %v", id, o.attempts)
				break
			}
		}
		if len(o.attempts) > 6 || len(numbers) > 6 {
			wrong("%s was tried more than six times: seen %v, recorded %v", id, slices.Sorted(maps.Keys(numbers)), o.attempts)
		}
		switch o.state {
		case "delivered":
			if !accepted {
				wrong("%s is delivered, but no receiver accepted it", id)
			}
		case "permanently_failed":
			if len(o.attempts) != 6 {
				wrong("%s is permanently failed after %d attempts", id, len(o.attempts))
			}
		default:
			wrong("%s has not ended: %s after attempts %v, seen %v", id, o.state, o.attempts, seen[id])
		}
		if len(numbers) > len(o.attempts) {
			wrong("%s: the receiver saw attempts %v, recorded are %v", id, slices.Sorted(maps.Keys(numbers)), o.attempts)
		}
	}
	for id := range seen {
		if !slices.Contains(acknowledged, id) {
			wrong("%s was sent but never acknowledged to the publisher", id)
		}
	}
	return problems, repeated
}

// sighting is one request as a receiver saw it.
type sighting struct {
	attempt  string
	accepted bool
}

// TestAuditCatches breaks each rule of the ledgers once: an audit that lets one pass proves nothing.
func TestAuditCatches(t *testing.T) {
	t.Parallel()
	good := func() ([]string, map[string][]sighting, map[string]outcome) {
		return []string{"a", "b"},
			map[string][]sighting{"a": {{"1", false}, {"2", true}}, "b": {{"1", false}, {"2", false}, {"3", false}, {"4", false}, {"5", false}, {"6", false}}},
			map[string]outcome{"a": {"delivered", []int{1, 2}}, "b": {"permanently_failed", []int{1, 2, 3, 4, 5, 6}}}
	}
	if problems, repeated := audit(good()); len(problems) != 0 || repeated != 0 {
		t.Fatalf("good books: %v, %d", problems, repeated)
	}
	for name, breakIt := range map[string]func(acked *[]string, seen map[string][]sighting, said map[string]outcome){
		"ack dropped, event lost": func(_ *[]string, _ map[string][]sighting, said map[string]outcome) { delete(said, "a") },
		"stuck while parked": func(_ *[]string, _ map[string][]sighting, said map[string]outcome) {
			said["a"] = outcome{"parked", []int{1}}
		},
		"delivered but never accepted": func(_ *[]string, seen map[string][]sighting, _ map[string]outcome) { seen["a"] = seen["a"][:1] },
		"failed too early": func(_ *[]string, _ map[string][]sighting, said map[string]outcome) {
			said["b"] = outcome{"permanently_failed", []int{1, 2, 3, 4, 5}}
		},
		"a seventh attempt": func(_ *[]string, seen map[string][]sighting, _ map[string]outcome) {
			seen["b"] = append(seen["b"], sighting{"7", false})
		},
		"an attempt skipped": func(_ *[]string, _ map[string][]sighting, said map[string]outcome) {
			said["a"] = outcome{"delivered", []int{1, 3}}
		},
		"sent without a record": func(_ *[]string, seen map[string][]sighting, _ map[string]outcome) {
			seen["a"] = append(seen["a"], sighting{"3", true})
		},
		"sent without having been asked": func(acked *[]string, _ map[string][]sighting, _ map[string]outcome) { *acked = (*acked)[1:] },
	} {
		acked, seen, said := good()
		breakIt(&acked, seen, said)
		if problems, _ := audit(acked, seen, said); len(problems) == 0 {
			t.Errorf("%s: not caught", name)
		}
	}
}

// TestChaos kills, freezes and restarts every process at random under steady load, then lets everything
// come to rest and compares the ledgers.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with -chaos-seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	s := newSystem(t, "ATTEMPT_TIMEOUT=1s", "SUSPENSION_WINDOW=1m", "SUSPENSION_MIN_FAILURES=15", "SUSPENSION_MIN_SPAN=1s", "SUSPENSION_DURATION=1s", "SUSPENSION_MAX_DURATION=2s")
	s.AddDispatcher()
	w := newWitness()
	broken := make(chan struct{}) // closed when the faulty receivers are repaired
	untilRepaired := func(answer func(http.ResponseWriter, string)) func(http.ResponseWriter, string) {
		return func(rw http.ResponseWriter, attempt string) {
			select {
			case <-broken:
			default:
				answer(rw, attempt)
			}
		}
	}
	receivers := []*receiver{
		newReceiver(t, w.watch(succeed)),
		// None refuses for good: once its URL is suspended, each notification that is refused costs a probe, one after
		// the other, and together more time than this test has.
		newReceiver(t, w.watch(untilRepaired(func(rw http.ResponseWriter, attempt string) {
			if attempt < "3" {
				fail(rw, attempt)
			}
		}))),
		newReceiver(t, w.watch(untilRepaired(func(rw http.ResponseWriter, attempt string) {
			if rw.Header().Get(seenID) < "8" {
				fail(rw, attempt)
			}
		}))),
		newReceiver(t, w.watch(untilRepaired(fail))),
	}
	var hooks []hook
	for _, rc := range receivers {
		hooks = append(hooks, s.register(dealCreated, rc.URL))
	}
	var acknowledged []string
	ctx := time.After(*chaosFor)
	load := time.NewTicker(50 * time.Millisecond)
	defer load.Stop()
	faults := 0
	next := time.Now()
	for running := true; running; {
		select {
		case <-ctx:
			running = false
		case <-load.C:
			tx := s.publish(dealCreated)
			for _, h := range hooks {
				acknowledged = append(acknowledged, ids(dealCreated, h, []string{tx})...)
			}
			if time.Now().After(next) {
				s.fault(random)
				faults++
				next = time.Now().Add(time.Duration(300+random.IntN(1200)) * time.Millisecond)
			}
		}
	}
	close(broken)
	s.mend()
	said := map[string]outcome{}
	rest := time.After(2 * time.Minute)
	for _, id := range acknowledged {
		var n note
		for waited := false; !waited; {
			if n = s.notification(id); n.State == "delivered" || n.State == "permanently_failed" {
				break
			}
			select {
			case <-rest:
				waited = true
				rest = time.After(0) // no more patience for the others
			case <-time.After(50 * time.Millisecond):
			}
		}
		o := outcome{state: n.State}
		for _, a := range n.Attempts {
			o.attempts = append(o.attempts, a.Number)
		}
		slices.Sort(o.attempts)
		said[id] = o
	}
	problems, repeated := audit(acknowledged, w.seen(), said)
	for _, p := range problems[:min(20, len(problems))] {
		t.Error(p)
	}
	t.Logf("%d faults, %d notifications, %d attempts repeated after crashes, %d problems", faults, len(acknowledged), repeated, len(problems))
}

// fault breaks one thing. What is frozen or down is mended by a later fault or by mend.
func (s *system) fault(random *rand.Rand) {
	s.t.Helper()
	ours := s.Services()
	p := ours[random.IntN(len(ours))]
	switch random.IntN(8) {
	case 0:
		s.Broker.Kill()
		s.StartBroker()
	case 1:
		s.redis.Kill()
		s.redis.Restart()
	case 2:
		s.redis.Client().FlushAll(s.t.Context())
	case 3: // freeze a dispatcher for longer than its ack wait, or until it is mended
		d := s.Dispatchers[random.IntN(len(s.Dispatchers))]
		d.Signal(syscall.SIGSTOP)
		time.AfterFunc(time.Duration(random.IntN(9000))*time.Millisecond, func() { _ = d.TrySignal(syscall.SIGCONT) })
	default:
		p.Kill()
		p.Start()
	}
}

// mend has everything run again.
func (s *system) mend() {
	s.t.Helper()
	for _, p := range s.Services() {
		_ = p.TrySignal(syscall.SIGCONT)
	}
	s.WaitReady()
}

// witness remembers what all receivers answered.
type witness struct {
	mu   sync.Mutex
	what map[string][]sighting
}

func newWitness() *witness { return &witness{what: map[string][]sighting{}} }

func (w *witness) seen() map[string][]sighting {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.what)
}

// watch notes each request with the answer it gets.
func (w *witness) watch(answer func(http.ResponseWriter, string)) func(http.ResponseWriter, string) {
	return func(rw http.ResponseWriter, attempt string) {
		spy := &statusSpy{ResponseWriter: rw, status: http.StatusOK}
		answer(spy, attempt)
		id := rw.Header().Get(seenID)
		rw.Header().Del(seenID)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.what[id] = append(w.what[id], sighting{attempt, spy.status < 300})
	}
}

type statusSpy struct {
	http.ResponseWriter

	status int
}

func (s *statusSpy) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// TestChaosKillDispatcher is the long form of the dispatcher's crash: 10 kills under 1,000 always-failing
// notifications.
func TestChaosKillDispatcher(t *testing.T) {
	if *chaosFor <= time.Minute {
		return // make chaos runs it; the short form is TestKillDispatcherUnderFailingNotifications
	}
	s := newSystem(t, "ATTEMPT_TIMEOUT=500ms")
	rc := newReceiver(t, slowly(5*time.Millisecond, fail))
	h := s.register(dealCreated, rc.URL)
	notifications := ids(dealCreated, h, s.publishMany(1000))
	d := s.Dispatchers[0]
	for kill := range 10 {
		want := 300 + kill*500
		s.Until(fmt.Sprint(want, " requests"), func() bool { return rc.total() >= want })
		d.Kill()
		d.Start()
	}
	checkSix(t, s, rc, notifications, 10)
}
