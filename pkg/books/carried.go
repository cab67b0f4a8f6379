package books

import (
	"context"
	"errors"
	"strings"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

// maxListed is how many subjects of RETRIES are listed at once. The broker goes through all of them for each page of
// 100,000, so more are listed account by account.
const maxListed = 100_000

// eachRetry shows every notification that has a message on RETRIES, scheduled or due; one can be shown twice. Of a long
// list it looks only at those of the accounts.
func eachRetry(
	ctx context.Context, b *bus.Bus, accounts func() []string, show func(account string, id uuid.UUID, scheduled bool),
) error {
	if err := b.Await(ctx, topology.Retries); err != nil {
		return err
	}
	state, err := b.StreamState(ctx, topology.Retries)
	if err != nil {
		return err
	}
	filters := []string{"gancho.retries.>"}
	switch {
	case state.Messages == 0:
		return nil
	case state.Subjects > maxListed:
		filters = nil
		for _, a := range accounts() {
			filters = append(filters, "gancho.retries.*."+a+".>")
		}
	}
	for _, filter := range filters {
		subjects, err := b.Subjects(ctx, topology.Retries, filter)
		if err != nil {
			return err
		}
		for subject := range subjects {
			t := strings.Split(subject, ".")
			if id, err := uuid.Parse(t[len(t)-1]); err == nil && len(t) >= 5 {
				show(t[3], id, t[2] == "at")
			}
		}
	}
	return nil
}

// parkedOf returns the ids of the webhook's notifications on PARKED, over all lanes, at most n of them. It reads the
// messages one by one.
func parkedOf(ctx context.Context, b *bus.Bus, account, webhook string, n int) (map[uuid.UUID]bool, error) {
	out := map[uuid.UUID]bool{}
	for next := uint64(1); len(out) < n; {
		raw, err := b.Get(ctx, topology.Parked, topology.SubjectParked(account, "*", webhook), next)
		if errors.Is(err, bus.ErrNotFound) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		next = raw.Sequence + 1
		if id, err := uuid.Parse(raw.Header.Get(notification.HeaderID)); err == nil {
			out[id] = true
		}
	}
	return out, nil
}
