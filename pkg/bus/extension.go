//go:build !rehearsal

package bus

// The seeded bugs of the rehearsed version (see faults.go): this one has none.

func intercepted(*Started) bool     { return false }
func handedOut(*Delivery)           {}
func unacknowledged(*Delivery) bool { return false }
