//go:build !linux

package redistest

import "syscall"

// withParent has no way here to end the server when the test binary is killed;
// it ends with the test in every other case.
func withParent() *syscall.SysProcAttr { return nil }
