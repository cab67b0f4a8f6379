package portal

import (
	"fmt"
	"html/template"
	"math"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"gancho/services/management/internal/problem"
)

// Theme is how the console looks in the sessions of a link. Empty members are as the console's own.
type Theme struct {
	// Accent colours buttons, links and marks on light pages, AccentDark on dark ones: #rrggbb.
	Accent     string `json:"accent,omitempty" pattern:"^#[0-9a-fA-F]{6}$" doc:"colour of buttons and links on light pages; text in it must have a contrast of 4.5:1"`
	AccentDark string `json:"accent_dark,omitempty" pattern:"^#[0-9a-fA-F]{6}$" doc:"the same on dark pages"`
	// Logo is the https address of an image that stands in the place of Gancho's mark and name.
	Logo string `json:"logo_url,omitempty" format:"uri" maxLength:"300" doc:"https address of an image that stands in the place of Gancho's mark; it is shown 28 px high"`
}

// Palette is what pages are made of, as #rrggbb or #rgb, by the names that the style sheet has for them.
type Palette map[string]string

// grounds are the backgrounds of texts in the accent's colour.
var grounds = []string{"ground", "card", "sunk"}

// minContrast is WCAG's for text (2.2, 1.4.3). It is more than controls need (1.4.11).
const minContrast = 4.5

const maxLogo = 300

var (
	colour   = regexp.MustCompile(`^#[0-9a-fA-F]{6}$`)
	logoHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$`)
)

// check adds the problems of t.
func (t Theme) check(light, dark Palette, problems *problem.List) {
	for _, c := range []struct {
		name, value, pages, change string
		palette                    Palette
	}{{"accent", t.Accent, "light", "darker", light}, {"accent_dark", t.AccentDark, "dark", "lighter", dark}} {
		if c.value == "" {
			continue
		}
		if !colour.MatchString(c.value) {
			problems.Add("/data/theme/"+c.name, "bad_colour", c.name+" is not a colour of the form #rrggbb")
			continue
		}
		least := math.Inf(1)
		for _, ground := range grounds {
			least = min(least, Contrast(c.value, c.palette[ground]))
		}
		if least < minContrast {
			problems.Add("/data/theme/"+c.name, "low_contrast",
				fmt.Sprintf("%s has a contrast of %.1f:1 on %s pages, and text needs 4.5:1; choose a %s one", c.name,
					math.Floor(least*10)/10, c.pages, c.change))
		}
	}
	if t.Logo == "" {
		return
	}
	u, err := url.Parse(t.Logo)
	if err != nil || u.Scheme != "https" || u.User != nil || !logoHost.MatchString(u.Host) || len(t.Logo) > maxLogo {
		problems.Add("/data/theme/logo_url", "bad_logo",
			fmt.Sprintf("logo_url is not an https address of at most %d characters with a host in ASCII", maxLogo))
	}
}

// LogoOrigin is the origin that the logo comes from, for a policy of contents; "" without a logo.
func (t Theme) LogoOrigin() string {
	u, err := url.Parse(t.Logo)
	if err != nil || t.Logo == "" {
		return ""
	}
	return "https://" + u.Host
}

// Query are the colours as a query string, "" without any.
func (t Theme) Query() template.URL {
	q := url.Values{}
	for name, value := range map[string]string{"accent": t.Accent, "accent_dark": t.AccentDark} {
		if colour.MatchString(value) {
			q.Set(name, value)
		}
	}
	return template.URL(q.Encode()) //nolint:gosec // encoded colours
}

// CSS sets the accent in the console's style sheet; "" where it is the console's own.
func (t Theme) CSS() string {
	var b strings.Builder
	for scheme, accent := range map[string]string{"light": t.Accent, "dark": t.AccentDark} {
		if !colour.MatchString(accent) {
			continue
		}
		text, hover := "#ffffff", mix(accent, 0)
		if Contrast(accent, "#000000") > Contrast(accent, text) {
			text, hover = "#000000", mix(accent, 0xff)
		}
		fmt.Fprintf(&b, "@media (prefers-color-scheme: %s) { :root { --accent: %s; --link: %[2]s; --accent-text: "+
			"%s; --accent-hover: %s; } }\n", scheme, accent, text, hover)
	}
	return b.String()
}

// mix moves a colour a sixth of the way to black (0) or white (0xff), away from the text on it.
func mix(hex string, to float64) string {
	c := channels(hex)
	for i := range c {
		c[i] += (to - c[i]) / 6
	}
	return fmt.Sprintf("#%02x%02x%02x", int(c[0]), int(c[1]), int(c[2]))
}

// Contrast is WCAG's ratio of two colours, #rrggbb or #rgb: 1 to 21. Anything else counts as black.
func Contrast(a, b string) float64 {
	l, m := luminance(a), luminance(b)
	return (max(l, m) + .05) / (min(l, m) + .05)
}

func luminance(hex string) float64 {
	c := channels(hex)
	for i, v := range c {
		if v /= 255; v <= .04045 {
			c[i] = v / 12.92
		} else {
			c[i] = math.Pow((v+.055)/1.055, 2.4)
		}
	}
	return .2126*c[0] + .7152*c[1] + .0722*c[2]
}

// channels are red, green and blue, 0 to 255.
func channels(hex string) [3]float64 {
	hex = strings.TrimPrefix(hex, "#")
	if len(hex) == 3 {
		hex = string([]byte{hex[0], hex[0], hex[1], hex[1], hex[2], hex[2]})
	}
	n, err := strconv.ParseUint(hex, 16, 32)
	if err != nil || len(hex) != 6 {
		return [3]float64{}
	}
	return [3]float64{float64(n >> 16 & 0xff), float64(n >> 8 & 0xff), float64(n & 0xff)}
}
