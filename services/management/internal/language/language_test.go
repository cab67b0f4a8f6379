package language

import "testing"

func TestAccepted(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]Language{
		"": English, "pt-BR": Portuguese, "pt": Portuguese, "PT-pt,en;q=0.9": Portuguese, "en-US,en;q=0.9,pt;q=0.8": English,
		"de, pt;q=0.5": Portuguese, "fr": English, "*": English, "pt;q=0": English, "pt;q=0.1, en;q=0.2": English, "pt;q=x": English, ",;;q=": English,
		"en-GB,en;q=0.9,pt-BR;q=0.8": English, "en-AU, pt-BR;q=0.9": English, "pt-PT, en;q=0.9": Portuguese, "es, pt;q=0.5, en;q=0.4": Portuguese,
		"pt ; q=0.4, en;q=0.2": Portuguese,
	} {
		if got := Accepted(header); got != want {
			t.Errorf("%q: got %s, want %s", header, got, want)
		}
	}
}
