package command_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"gancho/pkg/bus/bustest"
	"gancho/pkg/suspension/command"
)

// TestUnsettledHoldsUpNoOther: commands that a crashed monitor had taken, or that cannot be carried out yet, hold up no
// other one.
func TestUnsettledHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t).Topology(bustest.Limits())
	commands, err := command.Consume(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	const taken = 10
	for i := range taken + 1 {
		c := command.Command{Verb: command.Suspend, Account: "acme", URLKey: string(rune('a' + i)), At: time.Now()}
		if err := command.Send(t.Context(), b, c, c.URLKey); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	seen := map[string]bool{}
	for len(seen) <= taken {
		if ctx.Err() != nil {
			t.Fatalf("only %d of %d commands came", len(seen), taken+1)
		}
		err := commands.Pull(ctx, func(c command.Command, _ uint64) error {
			seen[c.URLKey] = true
			return errors.New("not yet")
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
