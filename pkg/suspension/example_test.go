package suspension_test

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"gancho/pkg/suspension"
)

// A URL that only fails becomes at risk, then suspended; a resume by hand ends it.
func ExampleStore() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer client.Close()
	rules := suspension.DefaultRules()
	rules.MinFailures, rules.MinSpan = 4, 0
	store, err := suspension.NewStore(client, rules)
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	if _, err := store.Restore(ctx, nil); err != nil { // as the monitor does when it starts
		panic(err)
	}

	key := suspension.Key{Account: "acme", URLKey: "0123456789abcdef0123456789abcdef"}
	show := func(decisions ...suspension.Decision) {
		for _, d := range decisions {
			for _, step := range d.Transitions {
				fmt.Println(step.Event)
			}
		}
	}
	for seq := uint64(1); seq <= 4; seq++ {
		decisions, err := store.Observe(ctx, []suspension.Observation{{
			Key: key, URLHost: "erp.example.com", Seq: seq, Result: suspension.Result{At: time.Now(), Reason: "status_5xx", Status: 503},
		}})
		if err != nil {
			panic(err)
		}
		show(decisions...)
	}
	suspended, err := store.SuspendByHand(ctx, suspension.Command{Key: key, At: time.Now()})
	if err != nil {
		panic(err)
	}
	show(suspended)
	resumed, err := store.Resume(ctx, suspension.Command{Key: key, At: time.Now()})
	if err != nil {
		panic(err)
	}
	show(resumed)
	// Output:
	// at_risk
	// suspended
	// resumed
}
