package console

import (
	"net/http"
	"strconv"
	"strings"
)

// language of a page: a tag of BCP 47.
type language string

const (
	english    language = "en"
	portuguese language = "pt-BR"
)

func languages() []language { return []language{english, portuguese} }

const languageName = "gancho_language"

// chosen returns the language of a request: what its switch was set to, else what the browser asks for.
func chosen(r *http.Request) language {
	if c, err := r.Cookie(languageName); err == nil {
		for _, l := range languages() {
			if c.Value == string(l) {
				return l
			}
		}
	}
	return accepted(r.Header.Get("Accept-Language"))
}

// accepted returns the language that Accept-Language ranks highest (RFC 9110, section 12.5.4), English when
// it names none of ours. Portuguese of any country is better than English to who asks for it first.
func accepted(header string) language {
	best, weight := english, 0.0
	for part := range strings.SplitSeq(header, ",") {
		tag, parameters, _ := strings.Cut(part, ";")
		q := 1.0
		if v, ok := strings.CutPrefix(strings.TrimSpace(parameters), "q="); ok {
			var err error
			if q, err = strconv.ParseFloat(v, 64); err != nil || q > 1 {
				continue
			}
		}
		primary, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(tag)), "-")
		l := map[string]language{"pt": portuguese, "en": english, "*": english}[primary]
		if l != "" && q > weight {
			best, weight = l, q
		}
	}
	return best
}

// postLanguage is the switch.
func (c *Console) postLanguage(v *visit) error {
	for _, l := range languages() {
		if v.r.PostFormValue("language") == string(l) {
			secure, _ := c.sessions.secure(v.r)
			http.SetCookie(v.w, &http.Cookie{ //nolint:gosec // Secure where the page is
				Name: languageName, Value: string(l), Path: "/", MaxAge: 365 * 24 * 3600, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: secure,
			})
		}
	}
	to := safePath(v.r.PostFormValue("back"))
	if v.session == nil {
		to = "/sign-in"
		if back := v.r.PostFormValue("back"); back != "" {
			to += "?next=" + escapeQuery(safePath(back))
		}
	}
	v.redirect(to)
	return nil
}
