package cli

import "testing"

func TestLocale(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		vars map[string]string
		want string
	}{
		{map[string]string{"LANG": "pt_BR.UTF-8"}, "pt-BR"},
		{map[string]string{"LANG": "pt_BR.UTF-8", "LC_ALL": "C.UTF-8"}, ""},
		{map[string]string{"LC_MESSAGES": "en_GB", "LANG": "pt_BR"}, "en-GB"},
		{nil, ""},
	} {
		if got := locale(tc.vars); got != tc.want {
			t.Errorf("%v: got %q, want %q", tc.vars, got, tc.want)
		}
	}
}
