// Package proctest is for the processes that tests start.
package proctest

import "syscall"

// WithParent ends the process with the test binary, however that ends.
func WithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
