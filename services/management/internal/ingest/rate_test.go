package ingest

import (
	"testing"
	"time"

	"gancho/services/management/internal/problem"
)

// TestRates: over any time an account's events are its rate and a second's worth more at most, refused ones say when to
// come again and do not count, a new rate holds at once, and accounts without a rate know no limit and take no memory.
func TestRates(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, perSecond := range []float64{0.5, 1, 7.5, 1000} {
		var r rates
		taken, waited := 0, time.Duration(0)
		const span = 20 * time.Second
		for waited < span && taken < 100_000 {
			err := r.take("acme", perSecond, now.Add(waited))
			if err == nil {
				taken++
				continue
			}
			e := problem.Of(err)
			if e.Kind != problem.Limited || e.Code() != "account_rate" || e.RetryAfter <= 0 || e.RetryAfter.Seconds() > 1/perSecond+0.001 {
				t.Fatalf("%v a second: refused with %v, retry after %v", perSecond, err, e.RetryAfter)
			}
			waited += e.RetryAfter
		}
		if want := perSecond * span.Seconds(); float64(taken) < want || float64(taken) > want+perSecond+1 {
			t.Errorf("%v a second: %d in %v", perSecond, taken, span)
		}
		if err := r.take("other", perSecond, now); err != nil {
			t.Errorf("%v a second: another account is refused: %v", perSecond, err)
		}
	}

	var r rates
	for range 10_000 {
		if err := r.take("acme", 0, now); err != nil || len(r.all) != 0 {
			t.Fatalf("no rate: %v, %d kept", err, len(r.all))
		}
	}
	for i, perSecond := range []float64{1, 3, 1} {
		n := 0
		for n < 10 && r.take("acme", perSecond, now) == nil {
			n++
		}
		if n != int(perSecond) {
			t.Errorf("change %d to %v a second: %d at once", i, perSecond, n)
		}
	}
	if err := r.take("acme", 0, now); err != nil || len(r.all) != 0 {
		t.Errorf("the rate was taken away: %v, %d kept", err, len(r.all))
	}
}
