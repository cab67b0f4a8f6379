package notification_test

import (
	"fmt"
	"time"

	"gancho/pkg/notification"
)

// Each failed attempt is followed by a retry until the sixth.
func ExampleRecord_Attempted() {
	delays := []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour}
	for number := 1; number <= notification.MaxAttempts; number++ {
		r := &notification.Record{At: time.Date(2026, 1, 21, 10, 0, 0, 0, time.UTC)}
		r.Attempted(&notification.Attempt{Number: number, Outcome: notification.OutcomeFailed, Reason: "status_5xx"},
			func(retry int) time.Duration { return delays[retry-1] })
		if r.NextAttemptAt.IsZero() {
			fmt.Println(number, r.State, r.Reason)
		} else {
			fmt.Println(number, r.State, r.Reason, "again after", r.NextAttemptAt.Sub(r.At))
		}
	}
	// Output:
	// 1 retrying status_5xx again after 10s
	// 2 retrying status_5xx again after 1m0s
	// 3 retrying status_5xx again after 5m0s
	// 4 retrying status_5xx again after 30m0s
	// 5 retrying status_5xx again after 2h0m0s
	// 6 permanently_failed status_5xx
}
