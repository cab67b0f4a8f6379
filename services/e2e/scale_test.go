package e2e

import (
	"net/http"
	"slices"
	"testing"

	"gancho/services/internal/testsystem"
)

// testScale starts dispatchers and suspension-monitors under load and stops some again, the first ones too:
// nothing is lost, sent twice or used up.
func testScale(t *testing.T, s *system) {
	rc := newReceiver(t, succeed)
	flaky := newReceiver(t, func(w http.ResponseWriter, attempt string) {
		if attempt < "4" {
			fail(w, attempt)
		}
	})
	good, retried := s.register(dealCreated, rc.URL), s.register(dealCreated, flaky.URL)
	more := func(name string) *testsystem.Process {
		p := s.StartFrom(built, name)
		t.Cleanup(p.Kill)
		return p
	}
	txs := s.publishMany(30)
	second, third, monitor := more("dispatcher"), more("dispatcher"), more("suspension-monitor")
	delivered := `gancho_attempts_total{outcome="delivered",reason=""}`
	for _, d := range []*testsystem.Process{s.Dispatchers[0], second, third} { // each has its part of the work
		for had := s.count(d, delivered); s.count(d, delivered) == had; {
			txs = append(txs, s.publishMany(5)...)
		}
	}
	for _, p := range []*testsystem.Process{s.Dispatchers[0], s.Monitor, third} {
		txs = append(txs, s.publishMany(30)...)
		s.stopCleanly(p)
	}
	s.Monitor = monitor
	txs = append(txs, s.publishMany(10)...)
	s.waitAll(ids(dealCreated, good, txs), "delivered")
	s.waitAll(ids(dealCreated, retried, txs), "delivered")
	for id, attempts := range rc.snapshot() {
		if !slices.Equal(attempts, []string{"1"}) {
			t.Errorf("notification %s was sent %v", id, attempts)
		}
	}
	for id, attempts := range flaky.snapshot() {
		if !slices.Equal(attempts, []string{"1", "2", "3", "4"}) {
			t.Errorf("notification %s was tried %v", id, attempts)
		}
	}
	s.waitBooks(`gancho_notifications{state="delivered"}`, float64(2*len(txs)))
	s.waitBooks(`gancho_unaccounted_notifications{}`, 0)
}
