package ca

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"gancho/pkg/tlstest"
)

func TestPool(t *testing.T) {
	t.Parallel()
	files := tlstest.New(t)
	if pool, err := Pool(files.CA); err != nil || pool == nil {
		t.Errorf("a PEM file: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Pool(empty); !errors.Is(err, ErrNone) {
		t.Errorf("a file without certificates: got %v, want ErrNone", err)
	}
	if _, err := Pool(empty + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v, want ErrNotExist", err)
	}
}
