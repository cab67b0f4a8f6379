// Package shares holds the API's writes for an account to the account's share; see gancho/pkg/share.
package shares

import (
	"context"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/share"
	"gancho/services/management/internal/problem"
)

// Code is that of the error for an account with its share of a store.
const Code = "account_share"

const (
	// retryAfter is how long a client should wait for room: the counts are a second old.
	retryAfter = 2 * time.Second
	// askEvery is how often Wait asks for room.
	askEvery = 250 * time.Millisecond
)

// Check returns an error of 429 account_share when the account has its share of a store, or its events wait.
func Check(m *share.Meter, account string) error {
	if _, deferred := m.Deferred(account); deferred {
		return refusal("events of this account wait until it holds less than its share of the stores; try again later")
	}
	if over, full := m.Over(account); full {
		return Refusal(over)
	}
	return nil
}

// Refusal is the error of 429 account_share, for the part in excess.
func Refusal(over share.Excess) error {
	return refusal("the account has its share of the stores (" + over.String() + "); try again later")
}

func refusal(detail string) error {
	return &problem.Error{Kind: problem.Limited, Problems: []problem.Problem{{Code: Code, Detail: detail}}, RetryAfter: retryAfter}
}

// Notify stores n for its first attempt if its account has room for it, else it returns 429 account_share.
func Notify(ctx context.Context, m *share.Meter, b *bus.Bus, n *notification.Notification) error {
	hold, over := m.Admit(n.Account, int64(len(n.Data()))+share.Overhead)
	if hold == nil {
		return Refusal(over)
	}
	ack, err := lane.Notify(b, n).Receipt(ctx)
	if err != nil {
		hold.Release()
		return problem.Broker(err)
	}
	hold.Stored(ack.Sequence)
	return nil
}

// Wait returns once the account holds less than its share, or ctx ended.
func Wait(ctx context.Context, m *share.Meter, account string) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for Check(m, account) != nil {
		select {
		case <-ctx.Done():
			return ctx.Err() //nolint:wrapcheck // the caller knows
		case <-tick.C:
		}
	}
	return nil
}
