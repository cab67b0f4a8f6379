//go:build !linux

// Package proctest is for the processes that tests start.
package proctest

import "syscall"

// WithParent has no way here to end the process when the test binary is killed; it ends with the test in every other
// case.
func WithParent() *syscall.SysProcAttr { return nil }
