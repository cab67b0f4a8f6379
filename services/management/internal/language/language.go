// Package language is the languages in which Gancho speaks to people: English and Brazilian Portuguese.
package language

import (
	"fmt"
	"strings"

	xlanguage "golang.org/x/text/language"
)

// Language is a tag of BCP 47.
type Language string

// The languages.
const (
	English    Language = "en"
	Portuguese Language = "pt-BR"
)

// Text is one text in every language. {name} is a place for an argument.
type Text struct{ English, Portuguese string }

// In returns the text in a language.
func (t Text) In(l Language) string {
	if l == Portuguese {
		return t.Portuguese
	}
	return t.English
}

// Fill puts arguments (name, value, ...) into the places of a text, each as show shows it.
func Fill(text string, arguments []any, show func(argument any) string) string {
	pairs := make([]string, 0, len(arguments))
	for i := 0; i+1 < len(arguments); i += 2 {
		pairs = append(pairs, "{"+fmt.Sprint(arguments[i])+"}", show(arguments[i+1]))
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// matcher chooses among ours, in the order of languages.
var (
	languages = []Language{English, Portuguese}
	matcher   = xlanguage.NewMatcher([]xlanguage.Tag{xlanguage.English, xlanguage.BrazilianPortuguese})
)

// Accepted returns the language that Accept-Language ranks highest (RFC 9110, section 12.5.4), English when it names
// none of ours. It takes Portuguese of any country: a reader who asks for it first prefers it to English.
func Accepted(header string) Language {
	_, i := xlanguage.MatchStrings(matcher, header)
	return languages[i]
}
