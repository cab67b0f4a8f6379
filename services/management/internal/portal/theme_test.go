package portal

import (
	"strings"
	"testing"
)

// TestAccentText: whatever colour the accent is, the text on it can be read, also under the pointer.
func TestAccentText(t *testing.T) {
	t.Parallel()
	for _, accent := range []string{"#000000", "#ffffff", "#777777", "#7a1f5c", "#0b6b63", "#ff0000", "#00ff00", "#2fa598"} {
		css := Theme{Accent: accent}.CSS()
		value := func(name string) string {
			_, rest, _ := strings.Cut(css, "--"+name+": ")
			return rest[:7]
		}
		for _, back := range []string{"accent", "accent-hover"} {
			if got := Contrast(value("accent-text"), value(back)); got < minContrast {
				t.Errorf("%s: text on %s has %.2f:1", accent, back, got)
			}
		}
	}
	if css := (Theme{Accent: "#fff}</style><script>"}).CSS(); css != "" {
		t.Errorf("no colour makes %q", css)
	}
}

func TestContrast(t *testing.T) {
	t.Parallel()
	if got := Contrast("#000", "#ffffff"); got < 20.99 || got > 21.01 {
		t.Errorf("black on white has %.2f:1, want 21:1", got)
	}
	if got := Contrast("#777777", "#fff"); got < 4.47 || got > 4.49 {
		t.Errorf("#777 on white has %.2f:1, want 4.48:1", got)
	}
}
