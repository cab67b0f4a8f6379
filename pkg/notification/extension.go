//go:build !rehearsal

package notification

// extend adds the headers that this version has and the first schema has not: none.
func extend(map[string][]string, string) {}

// extended checks the headers that extend added.
func extended(map[string][]string, int) error { return nil }
