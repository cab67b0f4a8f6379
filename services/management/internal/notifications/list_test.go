package notifications

import "testing"

func FuzzParseCursor(f *testing.F) {
	f.Add(Cursor{created: 1700000000000, id: [16]byte{1}}.String())
	f.Add("")
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if c, ok := ParseCursor(s); ok && c.String() != s {
			t.Errorf("%q is read as %q", s, c.String())
		}
	})
}
