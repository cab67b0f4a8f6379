package dispatcher

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFlatBoundsHeaders(t *testing.T) {
	t.Parallel()
	many := http.Header{}
	for i := range 4000 {
		many[http.CanonicalHeaderKey("x-"+strings.Repeat("a", i%50)+string(rune('a'+i%26)))] = []string{strings.Repeat("v", 40)}
	}
	for name, tc := range map[string]struct {
		in      http.Header
		want    map[string]string // nil: only the bound is checked
		cut     bool
		present string
	}{
		"none":              {in: nil},
		"few":               {in: http.Header{"B": {"2", "3"}, "A": {"1"}}, want: map[string]string{"A": "1", "B": "2, 3"}},
		"exactly the limit": {in: http.Header{"A": {strings.Repeat("x", keptHeaderBytes-1)}}, want: map[string]string{"A": strings.Repeat("x", keptHeaderBytes-1)}},
		"one byte more":     {in: http.Header{"A": {strings.Repeat("x", keptHeaderBytes)}}, cut: true, present: "A"},
		"cut in a letter":   {in: http.Header{"A": {strings.Repeat("é", keptHeaderBytes)}}, cut: true, present: "A"},
		"the first are kept": {
			in: http.Header{"A": {"1"}, "B": {strings.Repeat("x", 60<<10)}, "C": {"3"}}, cut: true, present: "A",
		},
		"very many": {in: many, cut: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := flat(tc.in)
			if tc.want != nil {
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
			if _, cut := got[cutHeader]; cut != tc.cut {
				t.Errorf("truncation told: got %v, want %v", cut, tc.cut)
			}
			if _, ok := got[tc.present]; tc.present != "" && !ok {
				t.Errorf("%s is missing", tc.present)
			}
			size := 0
			for k, v := range got {
				if k != cutHeader {
					size += len(k) + len(v)
				}
			}
			if size > keptHeaderBytes {
				t.Errorf("kept %d bytes", size)
			}
			if raw, err := json.Marshal(got); err != nil || strings.Contains(string(raw), `\ufffd`) {
				t.Errorf("not clean text: %v", err)
			}
		})
	}
}
