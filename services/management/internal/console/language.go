package console

import (
	"net/http"

	lang "gancho/services/management/internal/language"
)

// language of a page, with the ways in which it writes numbers, times and texts.
type language lang.Language

const (
	english    = language(lang.English)
	portuguese = language(lang.Portuguese)
)

func languages() []language { return []language{english, portuguese} }

const languageName = "gancho_language"

// chosen returns the language of a request: the choice of its switch, else the browser's preference.
func chosen(r *http.Request) language {
	if c, err := r.Cookie(languageName); err == nil {
		for _, l := range languages() {
			if c.Value == string(l) {
				return l
			}
		}
	}
	return language(lang.Accepted(r.Header.Get("Accept-Language")))
}

// postLanguage is the switch.
func (c *Console) postLanguage(v *visit) error {
	for _, l := range languages() {
		if v.r.PostFormValue("language") == string(l) && !c.switchLanguage(v, l) {
			secure, _ := c.sessions.secure(v.r)
			http.SetCookie(v.w, &http.Cookie{ //nolint:gosec // Secure where the page is
				Name: languageName, Value: string(l), Path: "/", MaxAge: 365 * 24 * 3600, HttpOnly: true,
				SameSite: http.SameSiteLaxMode, Secure: secure,
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
