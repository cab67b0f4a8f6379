package gancho

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// lockFile is the file in DATA_DIR that a running process holds locked. It contains the process id.
const lockFile = "gancho.lock"

// lockDataDir makes the folder if it is missing and locks it for this process: two processes on one folder would
// each write the broker's files, and lose and repeat events. The lock ends with the process, however it ends, or
// with the close of the returned file. The error names the process that holds the lock.
func lockDataDir(dir string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("DATA_DIR: %w", err)
	}
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("DATA_DIR: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		_ = f.Close()
		return nil, fmt.Errorf("DATA_DIR: %s is in use by the process with the id %s; stop it "+
			"first, or set DATA_DIR to another folder",
			dir, strings.TrimSpace(string(holder)))
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("DATA_DIR: lock %s: %w", path, err)
	}
	return f, nil
}
