package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"gancho/services/internal/testsystem"
)

// TestChaosCatchesSeededBugs runs the system from a build that has a bug on purpose (REHEARSAL_FAULT; see
// faults.go of gancho/pkg/bus), without crashes, and sees that the audit of TestChaos finds it, and nothing where
// there is none. make chaos runs all of them.
//
// That an acknowledgement to the broker is dropped is nothing that anybody may notice: the notification comes again,
// and the journal tells that it is done. So the audit has to find nothing, not an attempt too many either, after all
// of them came again. An acknowledgement that comes too early is what loses something.
func TestChaosCatchesSeededBugs(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault string // KIND:STREAM:N
		want  string // what the audit says of it, as a regular expression; "": it finds nothing
		again bool   // first attempts come again
		quick bool   // runs in make test too
	}{
		"none":                    {quick: true},
		"lost first attempt":      {fault: "drop:NOTIFICATIONS:5", want: "has not ended: HTTP 404"},
		"lost retry":              {fault: "drop:RETRIES:5", want: "has not ended: retrying|lost, until the books", quick: true},
		"skipped park":            {fault: "drop:PARKED:3", want: "has not ended: parked|lost, until the books"},
		"lost payload":            {fault: "drop:FAILED:3", want: "its payload is not kept"},
		"lost record":             {fault: "drop:ATTEMPTS:7", want: "was made twice|attempts are recorded as|has not ended|recorded are"},
		"doubled first attempt":   {fault: "repeat:NOTIFICATIONS:5", want: "attempt 1 was made twice"},
		"doubled release":         {fault: "repeat:PARKED:3", want: "attempt 1 was made twice", quick: true},
		"wrong byte":              {fault: "corrupt:NOTIFICATIONS:5", want: "the receiver got"},
		"early acknowledgement":   {fault: "early_ack:RETRIES:3", want: "has not ended: retrying|lost, until the books"},
		"dropped acknowledgement": {fault: "drop_ack:NOTIFICATIONS:4", again: true},
	} {
		if !tc.quick && *chaosFor <= time.Minute {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			patience := 2 * time.Minute
			if tc.want != "" {
				patience = 8 * time.Second // a stuck one stays so
			}
			l := runFaulty(t, tc.fault, patience)
			problems, _ := audit(l)
			caught := false
			for _, p := range problems {
				caught = caught || tc.want != "" && regexp.MustCompile(tc.want).MatchString(p)
			}
			if caught != (tc.want != "") || tc.want == "" && len(problems) > 0 {
				t.Errorf("the audit of %d notifications finds %q, want %q", len(l.published), problems, tc.want)
			}
			if tc.again && l.again == 0 {
				t.Error("no delivery came again: the fault was not there")
			}
			t.Logf("%d notifications, %d problems, such as %.200q", len(l.published), len(problems), problems[:min(1, len(problems))])
		})
	}
}

// runFaulty runs a short load on a system with the fault and returns its ledgers.
func runFaulty(t *testing.T, fault string, patience time.Duration) ledgers {
	t.Helper()
	newest, err := newestBinaries()
	if err != nil {
		t.Fatal(err)
	}
	broker, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, program := range []string{filepath.Join(broker, "nats-server"), filepath.Join(newest, "publisher"), filepath.Join(newest, "dispatcher"), filepath.Join(newest, "suspension-monitor"), filepath.Join(newest, "management")} {
		if err := os.Symlink(program, filepath.Join(bin, filepath.Base(program))); err != nil {
			t.Fatal(err)
		}
	}
	s := newSystemWith(t, testsystem.Options{Bin: bin}, "REHEARSAL_FAULT="+fault, "ATTEMPT_TIMEOUT=1s", "RETRY_DELAYS=200ms,200ms,200ms,200ms,200ms")
	w := newWitness()
	receivers := []*receiver{
		newReceiver(t, w.watch(slowly(300*time.Millisecond, succeed))), // so that what comes twice is under way at once
		newReceiver(t, w.watch(func(rw http.ResponseWriter, attempt string) {
			if attempt < "4" {
				fail(rw, attempt)
			}
		})),
		newReceiver(t, w.watch(fail)),
		newReceiver(t, w.watch(slowly(300*time.Millisecond, succeed))),
	}
	var hooks []hook
	for _, rc := range receivers {
		hooks = append(hooks, s.register(dealCreated, rc.URL))
	}
	parked := hooks[3]
	s.suspendByHand(parked)
	published := map[string]string{}
	for range 12 {
		owe(published, hooks, s.publish(dealCreated))
	}
	s.Until("they are parked", func() bool { // but for those that the fault may take
		return s.count(s.Dispatchers[0], `gancho_notifications_parked_total{reason="suspended"}`) >= 6
	})
	s.call(http.MethodPost, "/crm/v2/webhooks/"+parked.ID+"/resume", nil, nil)
	return s.rest(published, w, receivers, patience)
}
