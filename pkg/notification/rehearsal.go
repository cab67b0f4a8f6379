//go:build rehearsal

package notification

import (
	"errors"

	"gancho/pkg/wireversion"
)

// headerRehearsal is a field that only the rehearsed version knows. It cannot do without.
const headerRehearsal = "Gancho-Rehearsal"

func extend(h map[string][]string, id string) { h[headerRehearsal] = []string{id} }

func extended(h map[string][]string, version int) error {
	if version >= wireversion.Newest && (len(h[headerRehearsal]) != 1 || h[headerRehearsal][0] != h[HeaderID][0]) {
		return errors.New("header " + headerRehearsal + " was lost on the way")
	}
	return nil
}
