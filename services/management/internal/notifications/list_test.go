package notifications

import (
	"testing"
	"time"

	"gancho/pkg/share"
)

func FuzzParseCursor(f *testing.F) {
	f.Add(Cursor{created: 1700000000000, id: [16]byte{1}}.String())
	f.Add("")
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if c, ok := ParseCursor(s); ok && c.String() != s {
			t.Errorf("%q is read as %q", s, c.String())
		}
	})
}

// TestKept: lists of an account with a retention of its own end where its records do.
func TestKept(t *testing.T) {
	t.Parallel()
	s := &Service{meter: share.New(share.Config{}, share.Limits{}, nil)}
	s.meter.Set("short", &share.Settings{LogMaxAge: 3600})
	now := time.Now()
	for _, c := range []struct {
		account    string
		from, want time.Time
	}{
		{"other", time.Time{}, time.Time{}},
		{"short", time.Time{}, now.Add(-time.Hour)},
		{"short", now.Add(-2 * time.Hour), now.Add(-time.Hour)},
		{"short", now.Add(-time.Minute), now.Add(-time.Minute)},
	} {
		if got := s.kept(c.account, c.from); got.Sub(c.want).Abs() > time.Minute/2 {
			t.Errorf("%s from %v: %v, want %v", c.account, c.from, got, c.want)
		}
	}
}
