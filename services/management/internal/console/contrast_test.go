package console

import (
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestContrast: text has 4.5:1 to what it stands on and the edges of controls have 3:1, in both palettes
// (WCAG 2.2, 1.4.3 and 1.4.11).
func TestContrast(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("static/console.css")
	if err != nil {
		t.Fatal(err)
	}
	light, dark, ok := strings.Cut(string(raw), "prefers-color-scheme: dark")
	if !ok {
		t.Fatal("no dark palette")
	}
	palettes := map[string]map[string]string{"light": palette(light)}
	palettes["dark"] = palette(dark)
	for name, p := range palettes {
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
			if got := contrast(t, p, pair.fore, pair.back); got < pair.least {
				t.Errorf("%s: %s on %s has %.2f:1, less than %.1f:1", name, pair.fore, pair.back, got, pair.least)
			}
		}
	}
}

var colour = regexp.MustCompile(`--([a-z-]+): (#[0-9a-f]{3,6})\b`)

// palette are the colours of a sheet by name, the first of each.
func palette(css string) map[string]string {
	p := map[string]string{}
	for _, m := range colour.FindAllStringSubmatch(css, -1) {
		if p[m[1]] == "" {
			p[m[1]] = m[2]
		}
	}
	return p
}

func contrast(t *testing.T, p map[string]string, fore, back string) float64 {
	t.Helper()
	a, b := luminance(t, p, fore), luminance(t, p, back)
	return (max(a, b) + .05) / (min(a, b) + .05)
}

// luminance is WCAG's relative luminance.
func luminance(t *testing.T, p map[string]string, name string) float64 {
	t.Helper()
	hex := name
	if !strings.HasPrefix(name, "#") {
		hex = p[name]
	}
	hex = strings.TrimPrefix(hex, "#")
	if len(hex) == 3 {
		hex = string([]byte{hex[0], hex[0], hex[1], hex[1], hex[2], hex[2]})
	}
	n, err := strconv.ParseUint(hex, 16, 32)
	if err != nil || len(hex) != 6 {
		t.Fatalf("the palette has no colour %s", name)
	}
	linear := func(shift uint) float64 {
		c := float64(n>>shift&0xff) / 255
		if c <= .04045 {
			return c / 12.92
		}
		return math.Pow((c+.055)/1.055, 2.4)
	}
	return .2126*linear(16) + .7152*linear(8) + .0722*linear(0)
}
