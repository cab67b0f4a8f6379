//go:build rehearsal

package bus

import (
	"errors"

	"github.com/nats-io/nats.go"

	"gancho/pkg/topology"
)

// headerRehearsal is a field that only the rehearsed version knows. It cannot do without.
const headerRehearsal = "Gancho-Rehearsal"

func extend(h nats.Header, id string) { h[headerRehearsal] = []string{id} }

func extended(h nats.Header, version int) error {
	if version >= 2 && (len(h[headerRehearsal]) != 1 || h[headerRehearsal][0] != h[topology.HeaderNotification][0]) {
		return errors.New("header " + headerRehearsal + " was lost on the way")
	}
	return nil
}
