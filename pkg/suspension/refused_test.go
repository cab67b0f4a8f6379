package suspension

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func (j *journal) refused(status int) Observation {
	return j.add(Result{Reason: "status_4xx", Status: status})
}

// refusedDriver notes the reasons of warnings too.
type refusedDriver struct {
	*driver

	warnings []Flag
}

func (d *refusedDriver) see(batch ...Observation) {
	steps, _ := d.m.observeAll(time.Now(), batch)
	for _, s := range steps {
		if s.Event == EventAtRisk {
			d.warnings = append(d.warnings, s.Flag)
		}
	}
}

// TestRefusedCredentials: twenty answers of 401 or 403 in a row give one warning, however far apart they are; any other
// outcome begins a new streak.
func TestRefusedCredentials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &refusedDriver{driver: newDriver(DefaultRules())}
		hourly := func(n, status int) {
			for range n {
				d.see(d.refused(status))
				time.Sleep(time.Hour)
			}
		}
		want := func(n int, when string) {
			t.Helper()
			if len(d.warnings) != n {
				t.Fatalf("%s: %d warnings, want %d", when, len(d.warnings), n)
			}
		}
		first := time.Now()
		hourly(10, 401)
		hourly(9, 403)
		want(0, "after 19")
		hourly(1, 401)
		want(1, "after 20")
		f := Flag{
			Account: testKey.Account, URLKey: testKey.URLKey, URLHost: "hooks.example.com", State: Active, Trip: d.warnings[0].Trip, Since: first.UTC(),
			Reason:   ReasonCredentialsRefused,
			Evidence: Evidence{Failures: 20, FirstAt: first.UTC(), LastAt: first.Add(19 * time.Hour).UTC(), Statuses: []string{"403", "401"}},
		}
		if diff := cmp.Diff(f, d.warnings[0]); diff != "" {
			t.Error("the warning (-want +got):\n" + diff)
		}
		hourly(40, 403)
		want(1, "in the same streak")
		for _, other := range []func() Observation{d.success, d.timeout, func() Observation { return d.refused(404) }} {
			before := len(d.warnings)
			d.see(other())
			hourly(19, 401)
			want(before, "19 after another outcome")
			hourly(1, 401)
			want(before+1, "20 after another outcome")
		}
		if slices.ContainsFunc(d.warnings[1:], func(f Flag) bool { return f.Trip == d.warnings[0].Trip }) {
			t.Error("two streaks have one name")
		}
	})
}

// TestRefusedCredentialsAtOnce: a batch that also takes the URL half way to its suspension makes one warning, with the
// reason that helps more and the time of the suspension. Seen again, it makes none.
func TestRefusedCredentialsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &refusedDriver{driver: newDriver(DefaultRules())}
		var batch []Observation
		for range 25 {
			batch = append(batch, d.refused(401))
			time.Sleep(time.Second)
		}
		d.see(batch...)
		d.see(batch...)
		if len(d.warnings) != 1 || d.warnings[0].Reason != ReasonCredentialsRefused || d.warnings[0].Until.IsZero() {
			t.Errorf("warnings %+v", d.warnings)
		}
		// By hand its past is forgotten, a streak of nine too.
		d.see(d.success())
		for range 9 {
			d.see(d.refused(401))
		}
		d.m.resume(time.Now(), Command{At: time.Now()})
		time.Sleep(time.Second)
		for range 19 {
			d.see(d.refused(401))
		}
		if n := len(d.warnings); n != 2 || d.warnings[1].Reason != ReasonAlwaysFailing {
			t.Errorf("19 failures after a resume by hand: warnings %+v", d.warnings)
		}
	})
}
