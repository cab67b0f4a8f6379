//go:build !rehearsal

package wireversion

// Newest is the schema that this version writes, and the highest that it reads.
const Newest = 1
