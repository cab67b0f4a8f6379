package event

import (
	"fmt"
	"slices"
	"strings"
)

// classic lists the entities that have the three classic actions (RD Station CRM, "Webhooks").
var classic = []string{"deal", "contact", "organization", "task", "product", "campaign", "source", "lost_reason"}

// Names is the set of event names that a webhook may name exactly. It is immutable.
type Names struct{ sorted []string }

// KnownNames returns the 28 names RD Station documents (24 classic ones, lead and proposal) plus extra,
// which operators add by configuration. A malformed extra name is an error.
func KnownNames(extra ...string) (Names, error) {
	all := []string{"crm_lead_created", "crm_lead_updated", "crm_lead_rating_changed", "crm_proposal_created"}
	for _, entity := range classic {
		for _, action := range []string{"created", "updated", "deleted"} {
			all = append(all, "crm_"+entity+"_"+action)
		}
	}
	for _, n := range extra {
		if n = strings.TrimSpace(n); n == "" {
			continue
		}
		if !ValidName(n) {
			return Names{}, fmt.Errorf("%q is not an event name: crm_<entity>_<action>, [a-z0-9_], at most 64 characters", n)
		}
		all = append(all, n)
	}
	slices.Sort(all)
	return Names{slices.Compact(all)}, nil
}

// Entity returns the kind of document that events of that name are about: all but the action, which is the last word of
// every name but one. Of a name that is not known it may be too narrow, so that kinds are kept apart rather than mixed
// up.
func Entity(name string) string {
	if name == "crm_lead_rating_changed" {
		return "lead"
	}
	rest := strings.TrimPrefix(name, "crm_")
	if last := strings.LastIndexByte(rest, '_'); last > 0 {
		return rest[:last]
	}
	return rest
}

// Has reports whether name is known.
func (n Names) Has(name string) bool { _, ok := slices.BinarySearch(n.sorted, name); return ok }

// All returns the names in alphabetical order.
func (n Names) All() []string { return slices.Clone(n.sorted) }
