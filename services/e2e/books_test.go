package e2e

import (
	"bufio"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"gancho/services/internal/testsystem"
)

// metric returns the value of a series (name and labels as they are printed, without the label service) of a
// process; false while there is none.
func (s *system) metric(p *testsystem.Process, series string) (float64, bool) {
	s.t.Helper()
	resp, err := http.Get(s.Ops(p) + "/metrics")
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "} ")
		name = strings.Replace(name, `service="`+p.Name+`"`, "", 1) + "}"
		if strings.NewReplacer("{,", "{", ",}", "}", ",,", ",").Replace(name) == series {
			v, err := strconv.ParseFloat(value, 64)
			return v, err == nil
		}
	}
	return 0, false
}

// waitBooks waits until the monitor shows a value.
func (s *system) waitBooks(series string, want float64) {
	s.t.Helper()
	var got float64
	defer func() {
		if s.t.Failed() {
			s.t.Logf("last value of %s: %v", series, got)
		}
	}()
	s.Until(series+" is "+strconv.FormatFloat(want, 'f', -1, 64), func() bool {
		var ok bool
		got, ok = s.metric(s.Monitor, series)
		return ok && got == want
	})
}

// testBooksBalanceThroughKills kills and restarts everything under load and sees that the books come out
// exactly.
func testBooksBalanceThroughKills(t *testing.T, s *system) {
	rc, bad := newReceiver(t, succeed), newReceiver(t, fail)
	good, failing := s.register(dealCreated, rc.URL), s.register(dealCreated, bad.URL)
	var txs []string
	for _, p := range []*testsystem.Process{s.Dispatchers[0], s.Monitor, s.Publisher, s.Broker, s.Monitor} {
		txs = append(txs, s.publishMany(40)...)
		p.Kill()
		if p == s.Broker {
			s.StartBroker()
		} else {
			p.Start()
		}
	}
	s.waitAll(ids(dealCreated, good, txs), "delivered")
	s.waitAll(ids(dealCreated, failing, txs), "permanently_failed")
	s.waitBooks(`gancho_notifications{state="delivered"}`, float64(len(txs)))
	s.waitBooks(`gancho_notifications{state="permanently_failed"}`, float64(len(txs)))
	s.waitBooks(`gancho_notifications_opened{}`, float64(2*len(txs)))
	for _, series := range []string{
		`gancho_unaccounted_notifications{}`, `gancho_notifications{state="pending"}`, `gancho_notifications{state="retrying"}`, `gancho_notifications{state="parked"}`,
	} {
		s.waitBooks(series, 0)
	}
}

// TestRemovedRetryIsFoundAndRepaired removes a waiting retry behind all services' backs.
func TestRemovedRetryIsFoundAndRepaired(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "RETRY_DELAYS=30s,30s,30s,30s,30s")
	bad := newReceiver(t, fail)
	h := s.register(dealCreated, bad.URL)
	notifications := ids(dealCreated, h, s.publishMany(3))
	s.waitAll(notifications, "retrying")
	bad.become(succeed)
	retries, err := s.js.Stream(t.Context(), "RETRIES")
	if err != nil {
		t.Fatal(err)
	}
	if err := retries.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.waitBooks(`gancho_repairs_total{kind="lost"}`, 3)
	s.waitAll(notifications, "delivered")
	s.waitBooks(`gancho_unaccounted_notifications{}`, 0)
	for id, attempts := range bad.snapshot() {
		if len(attempts) != 2 || attempts[1] != "2" {
			t.Errorf("notification %s was tried %v, want 1 and 2", id, attempts)
		}
	}
}
