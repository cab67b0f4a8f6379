package numbers

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"gancho/pkg/bus"
	"gancho/pkg/topology"
)

// HeldPerMessage is how many webhooks one message on HELD names at most: 32 KB, which fits the smallest payload that a
// broker must take.
const HeldPerMessage = 2000

// Held is an event that conditions held back from webhooks.
type Held struct {
	Account  string
	Sequence uint64      // of the event in CRM_EVENTS
	Webhooks []uuid.UUID // in any order
	// Again says that the event may have been noted before, however long ago.
	Again bool
}

// Start starts storing the note, which makes the event count once for each webhook: the same event again within the
// duplicate window is stored once, and with Again whatever HELD has of it is not stored again.
func (h *Held) Start(ctx context.Context, b *bus.Bus) ([]*bus.Started, error) {
	slices.SortFunc(h.Webhooks, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	var started []*bus.Started
	part := -1
	for webhooks := range slices.Chunk(h.Webhooks, HeldPerMessage) {
		part++
		subject := topology.SubjectHeld(h.Account, h.Sequence, part)
		if h.Again {
			known, err := b.Has(ctx, topology.Held, subject)
			if err != nil {
				return started, fmt.Errorf("look for a note of the event on HELD: %w", err)
			}
			if known {
				continue
			}
		}
		started = append(started, b.Start(topology.Held, h.message(subject, part, webhooks)))
	}
	return started, nil
}

// message returns a message on HELD. Its body is the webhooks' ids, 16 bytes each.
func (h *Held) message(subject string, part int, webhooks []uuid.UUID) *nats.Msg {
	body := make([]byte, 0, len(webhooks)*len(uuid.UUID{}))
	for _, id := range webhooks {
		body = append(body, id[:]...)
	}
	id := h.Account + ":" + strconv.FormatUint(h.Sequence, 10) + ":" + strconv.Itoa(part)
	return bus.NewMessage(subject, id, body)
}

// held returns what a message on HELD names.
func held(subject string, body []byte) (account string, webhooks []uuid.UUID) {
	if parts := strings.Split(subject, "."); len(parts) > 2 {
		account = parts[2]
	}
	for id := range slices.Chunk(body, len(uuid.UUID{})) {
		if len(id) == len(uuid.UUID{}) {
			webhooks = append(webhooks, uuid.UUID(id))
		}
	}
	return account, webhooks
}
