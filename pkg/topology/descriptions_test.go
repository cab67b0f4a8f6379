package topology

import "testing"

// TestDescriptions: whoever lists streams, buckets and consumers reads what each is for.
func TestDescriptions(t *testing.T) {
	t.Parallel()
	for _, o := range Owners() {
		for _, cfg := range append(o.Streams(Limits{}), o.Buckets(Limits{})...) {
			if cfg.Description == "" {
				t.Errorf("%s has no description", cfg.Name)
			}
		}
	}
	for _, d := range Durables() {
		if Description(d.Name) == "" {
			t.Errorf("consumer %s has no description", d.Name)
		}
	}
}
