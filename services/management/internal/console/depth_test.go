package console

import (
	"strings"
	"testing"
)

func TestDeeplyNestedBodyIsShownAsItCame(t *testing.T) {
	t.Parallel()
	deep := `{"a":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`
	if text, _ := pretty([]byte(deep)); len(text) > len(deep) {
		t.Errorf("%d bytes became %d", len(deep), len(text))
	}
	if text, _ := pretty([]byte(`{"a":[1]}`)); !strings.Contains(text, "\n") {
		t.Errorf("not indented: %s", text)
	}
}
