package gancho

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gancho/pkg/seal"
)

// The places of Setup's files, below its directory. Each has a folder of its own, so that a service can be
// given one of them and not the other.
const (
	setupKeyFile   = "encryption/keys"
	setupTokenFile = "tokens/api"
)

// operatorAccount is the account of a token that may act for every account.
const operatorAccount = "*"

// Setup makes the files that an installation needs before its first start, if they are missing: an encryption key in
// <dir>/encryption/keys (ENCRYPTION_KEY_FILE) and an operator's API token in <dir>/tokens/api
// (API_TOKENS_FILE). It never changes a file that is there, so it may run before every start, and several
// times at once. The token is shown on stdout when it is made, and only then.
func Setup(dir string, stdout io.Writer) error {
	if err := setupKey(filepath.Join(dir, setupKeyFile), stdout); err != nil {
		return err
	}
	return setupToken(filepath.Join(dir, setupTokenFile), stdout)
}

func setupKey(path string, stdout io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the folder of the encryption key: %w", err)
	}
	_, statErr := os.Stat(path)
	err := makeKey(path)
	switch {
	case errors.Is(err, fs.ErrExist): // another setup was faster
		statErr = nil
	case err != nil:
		return err
	}
	ring, warnings, err := seal.Load(path)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(stdout, "warning:", w)
	}
	if errors.Is(statErr, fs.ErrNotExist) {
		fmt.Fprintf(stdout, "Made a new encryption key %s in %s: it opens nothing that was sealed before. If the "+
			"data come from a backup, put the key file of that time there instead, before the services start.\n",
			ring.Current(), path)
	}
	fmt.Fprintf(stdout, "Encryption key %s in %s. Back this file up: nothing opens the webhooks' secrets without it.\n",
		ring.Current(), path)
	return nil
}

func setupToken(path string, stdout io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the folder of the API tokens: %w", err)
	}
	token := newToken()
	err := writeNew(path, "# <account_id>:<token>, or <account_id>:<token>:read; the account * is an operator.\n"+
		operatorAccount+":"+token+"\n")
	switch {
	case errors.Is(err, fs.ErrExist):
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read the API tokens: %w", err)
		}
		if strings.TrimSpace(string(text)) == "" {
			return fmt.Errorf("the file of API tokens %s is empty; remove it and run setup again, "+
				"or write a line <account_id>:<token>", path)
		}
		fmt.Fprintf(stdout, "API tokens are in %s; it was left as it is.\n", path)
		return nil
	case err != nil:
		return fmt.Errorf("write the API tokens: %w", err)
	}
	fmt.Fprintf(stdout, "First API token, of an operator (kept in %s, not shown "+
		"again):\n\n    export GANCHO_TOKEN=%s\n\n"+
		"It acts for the account in GANCHO_ACCOUNT (the header X-Account-Id).\n", path, token)
	return nil
}

// writeNew stores text in a new file that only its owner may read, durably and all or nothing. It fails with
// fs.ErrExist when there is a file.
func writeNew(path, text string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike Rename it fails when path exists
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
