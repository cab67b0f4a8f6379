package suspension

import (
	"strings"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRulesFromEnvironment(t *testing.T) {
	t.Parallel()
	var got Rules
	if err := env.ParseWithOptions(&got, env.Options{Environment: map[string]string{}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(DefaultRules(), got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	if err := got.Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestRulesValidate(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*Rules)
		want   []string // variables named, one per line
	}{
		"defaults": {func(*Rules) {}, nil},
		"smallest": {func(r *Rules) {
			*r = Rules{Window: time.Second, MinFailures: 1, Duration: time.Second, MaxDuration: time.Second}
		}, nil},
		"largest":            {func(r *Rules) { *r = Rules{24 * time.Hour, 1_000_000, 24 * time.Hour, longest, longest} }, nil},
		"window too short":   {func(r *Rules) { r.Window, r.MinSpan = 999*time.Millisecond, 0 }, []string{"SUSPENSION_WINDOW"}},
		"window too long":    {func(r *Rules) { r.Window = 24*time.Hour + 1 }, []string{"SUSPENSION_WINDOW"}},
		"no failures":        {func(r *Rules) { r.MinFailures = 0 }, []string{"SUSPENSION_MIN_FAILURES"}},
		"too many failures":  {func(r *Rules) { r.MinFailures = 1_000_001 }, []string{"SUSPENSION_MIN_FAILURES"}},
		"negative span":      {func(r *Rules) { r.MinSpan = -1 }, []string{"SUSPENSION_MIN_SPAN"}},
		"span over window":   {func(r *Rules) { r.MinSpan = r.Window + 1 }, []string{"SUSPENSION_MIN_SPAN"}},
		"duration too short": {func(r *Rules) { r.Duration = time.Second - 1 }, []string{"SUSPENSION_DURATION"}},
		"duration over max":  {func(r *Rules) { r.Duration = r.MaxDuration + 1 }, []string{"SUSPENSION_DURATION"}},
		"max too long":       {func(r *Rules) { r.MaxDuration = longest + 1 }, []string{"SUSPENSION_MAX_DURATION"}},
		"all wrong": {func(r *Rules) { *r = Rules{MinSpan: -1} }, []string{
			"SUSPENSION_WINDOW", "SUSPENSION_MIN_FAILURES", "SUSPENSION_MIN_SPAN", "SUSPENSION_DURATION", "SUSPENSION_MAX_DURATION",
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := DefaultRules()
			test.change(&r)
			err := r.Validate()
			var got []string
			if err != nil {
				for line := range strings.Lines(err.Error()) {
					got = append(got, line[:strings.Index(line, ": ")])
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("variables named (-want +got):\n%s\nin: %v", diff, err)
			}
		})
	}
}

func TestSettle(t *testing.T) {
	t.Parallel()
	for span, want := range map[time.Duration]time.Duration{
		0:                time.Second,
		20 * time.Second: 2 * time.Second,
		time.Minute:      5 * time.Second,
		time.Hour:        5 * time.Second,
	} {
		if got := (Rules{MinSpan: span}).Settle(); got != want {
			t.Errorf("MinSpan %v: got %v, want %v", span, got, want)
		}
	}
}

func TestLengthDoublesUpToTheMaximum(t *testing.T) {
	t.Parallel()
	l := DefaultRules().limits()
	want := []time.Duration{5, 10, 20, 40, 80, 160, 320, 360, 360}
	for i, minutes := range want {
		if got := l.length(int64(i + 1)); got != (minutes * time.Minute).Milliseconds() {
			t.Errorf("trip %d: got %v, want %v", i+1, time.Duration(got)*time.Millisecond, minutes*time.Minute)
		}
	}
	if l.Levels != 8 {
		t.Errorf("levels: got %d, want 8", l.Levels)
	}
}

func TestJitterIsEvenAndBounded(t *testing.T) {
	t.Parallel()
	low, high, sum := int64(0), int64(0), int64(0)
	const n = 20_000
	for i := range int64(n) {
		p := permille(Key{"acme", "00"}, 1_700_000_000_000+i)
		low, high, sum = min(low, p), max(high, p), sum+p
	}
	if low != -100 || high != 100 {
		t.Errorf("reach: got %d to %d, want -100 to 100", low, high)
	}
	if mean := float64(sum) / n; mean < -3 || mean > 3 {
		t.Errorf("mean of %d draws: got %.1f thousandths, want about 0", n, mean)
	}
}

func TestDurationsStayInBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := drawRules(t)
		l := r.limits()
		trips := rapid.Int64Range(1, 200).Draw(t, "trips")
		p := rapid.Int64Range(-100, 100).Draw(t, "permille")
		base, got := l.length(trips), l.jittered(trips, p)
		if base < l.Duration || base > l.Longest {
			t.Fatalf("length %d outside %d..%d", base, l.Duration, l.Longest)
		}
		if got > l.Longest || float64(got) < 0.9*float64(base)-1 || float64(got) > 1.1*float64(base) {
			t.Fatalf("length %d with jitter %d: got %d", base, p, got)
		}
		if l.length(trips+1) < base {
			t.Fatal("a further trip is shorter")
		}
		if l.length(l.Levels) != l.Longest || l.Levels > 1 && l.length(l.Levels-1) == l.Longest {
			t.Fatalf("%d is not the first level with the longest length", l.Levels)
		}
	})
}

// drawRules draws valid rules, small ones mostly, so that things happen.
func drawRules(t *rapid.T) Rules {
	window := rapid.Int64Range(1000, 60_000).Draw(t, "window")
	longest := rapid.Int64Range(1000, 300_000).Draw(t, "max duration")
	r := Rules{
		Window:      time.Duration(window) * time.Millisecond,
		MinFailures: rapid.IntRange(1, 12).Draw(t, "min failures"),
		MinSpan:     time.Duration(rapid.Int64Range(0, window/2).Draw(t, "min span")) * time.Millisecond,
		Duration:    time.Duration(rapid.Int64Range(1000, longest).Draw(t, "duration")) * time.Millisecond,
		MaxDuration: time.Duration(longest) * time.Millisecond,
	}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	return r
}
