package console

import (
	"cmp"
	"testing"

	"gancho/services/management/internal/portal"
)

// TestContrast: text has 4.5:1 to its background and the edges of controls have 3:1, in both palettes
// (WCAG 2.2, 1.4.3 and 1.4.11).
func TestContrast(t *testing.T) {
	t.Parallel()
	light, dark, err := Palettes()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]portal.Palette{"light": light, "dark": dark} {
		for _, pair := range []struct {
			fore, back string
			least      float64
		}{
			{"text", "ground", 4.5},
			{"text", "card", 4.5},
			{"text", "sunk", 4.5},
			{"soft", "ground", 4.5},
			{"soft", "card", 4.5},
			{"soft", "sunk", 4.5},
			{"link", "ground", 4.5},
			{"link", "card", 4.5},
			{"link", "sunk", 4.5},
			{"accent-text", "accent", 4.5},
			{"accent-text", "accent-hover", 4.5},
			{"ok-text", "ok-soft", 4.5},
			{"bad-text", "bad-soft", 4.5},
			{"warn-text", "warn-soft", 4.5},
			{"info-text", "info-soft", 4.5},
			{"muted-text", "muted-soft", 4.5},
			{"bad-text", "card", 4.5},
			{"#ffffff", "bad-solid", 4.5},
			{"line-strong", "ground", 3},
			{"line-strong", "card", 3},
			{"line-strong", "sunk", 3},
			{"accent", "ground", 3},
			{"accent", "card", 3},
			{"bad-solid", "card", 3},
		} {
			if got := portal.Contrast(cmp.Or(p[pair.fore], pair.fore), cmp.Or(p[pair.back], pair.back)); got < pair.least {
				t.Errorf("%s: %s on %s has %.2f:1, less than %.1f:1", name, pair.fore, pair.back, got, pair.least)
			}
		}
	}
}
