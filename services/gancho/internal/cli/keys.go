package cli

import (
	"fmt"

	"gancho/pkg/seal"
)

// keysCmd rotates the keys of ENCRYPTION_KEY_FILE.
type keysCmd struct {
	Add    keysAdd    `cmd:"" help:"Put a new key first in a key file."`
	Reseal keysReseal `cmd:"" help:"Seal every webhook's secrets under the first key of ENCRYPTION_KEY_FILE."`
	Remove keysRemove `cmd:"" help:"Take an old key out of a key file."`
}

type keysAdd struct {
	File string `arg:"" placeholder:"FILE" help:"The key file."`
}

func (c keysAdd) Run(a *app) error {
	id, err := seal.Add(c.File)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Stdout, "Key %s is the first in %s now. Back the file up, restart dispatchers and then "+
		"management with it, then run gancho keys reseal.\n", id, c.File)
	return err
}

type keysReseal struct {
	DryRun bool `help:"Only count the secrets under each key."`
}

func (keysReseal) Help() string {
	return `It connects to the broker at NATS_URL as its user management (or operator) and seals what is under another key again under the first one of ENCRYPTION_KEY_FILE. The services may run, all of them with this key file. It can be stopped and run again. Exit code 1 says that something still needs another key.

Example:

	ENCRYPTION_KEY_FILE=./keys NATS_URL=nats://management:secret@127.0.0.1:4222 gancho keys reseal`
}

func (c keysReseal) Run(a *app) error {
	a.code = a.Reseal(a.Environ, c.DryRun, a.Stdout, a.Stderr)
	return nil
}

type keysRemove struct {
	File string `arg:"" placeholder:"FILE" help:"The key file."`
	ID   string `arg:"" placeholder:"KEY_ID" help:"The id of the key, as gancho keys reseal shows it."`
}

func (keysRemove) Help() string {
	return `What is still sealed under the key is lost with it: remove it when gancho keys reseal says that nothing is. Keep it with the backups that need it.`
}

func (c keysRemove) Run(a *app) error {
	if err := seal.Remove(c.File, c.ID); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.Stdout, "Key %s is out of %s. Restart dispatchers and management.\n", c.ID, c.File)
	return err
}
