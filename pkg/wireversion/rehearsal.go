//go:build rehearsal

package wireversion

// Newest is that of a version yet to come, with which the test of rolling upgrades builds the programs a
// second time (-tags rehearsal). Its notifications carry a field more; see rehearsal.go of gancho/pkg/notification.
// It is above every schema that this version's notifications have.
const Newest = 3
