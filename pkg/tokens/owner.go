package tokens

import (
	"os"
	"syscall"
)

// keepOwner gives f the mode of a file and, where this process may, its owner.
func keepOwner(f *os.File, info os.FileInfo) error {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil && !os.IsPermission(err) {
			return err
		}
	}
	return f.Chmod(info.Mode().Perm())
}
