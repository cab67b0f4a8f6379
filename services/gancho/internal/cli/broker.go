package cli

type doctorCmd struct {
	Output string `short:"o" enum:"table,json" default:"table" help:"table for people, json for programs."`
}

func (doctorCmd) Help() string {
	return `It connects to the broker at NATS_URL, audits the books itself, and names what is stuck and what to do. With ENCRYPTION_KEY_FILE it looks for missing keys. It changes nothing. Exit code 1 says that the books do not balance, or that something serious was found.

Example:

	NATS_URL=nats://operator:secret@127.0.0.1:4222 gancho doctor`
}

func (c doctorCmd) Run(a *app) error {
	a.code = a.Doctor(a.Environ, c.Output == "json", a.Stdout, a.Stderr)
	return nil
}

type topologyCmd struct {
	Apply bool `help:"Create what is missing and loosen limits. Nothing that could drop messages is done."`
}

func (topologyCmd) Help() string {
	return `It connects to the broker at NATS_URL and compares its streams, buckets and consumers with what the services would create with this environment. Exit code 1 says that something is missing or differs.

Examples:

	gancho topology
	EVENTS_MAX_AGE=336h gancho topology --apply`
}

func (c topologyCmd) Run(a *app) error {
	a.code = a.Topology(a.Environ, c.Apply, a.Stdout, a.Stderr)
	return nil
}

type backupCmd struct {
	Dir string `arg:"" placeholder:"DIR" help:"New or empty folder."`
}

func (backupCmd) Help() string {
	return `It copies every stream and bucket of the broker at NATS_URL, with what consumers have settled. The services may run. It names the encryption keys that a restore needs; they and the tokens are not part of it: keep those elsewhere.

Example:

	gancho backup ./backup-$(date +%F)`
}

func (c backupCmd) Run(a *app) error {
	a.code = a.Backup(a.Environ, c.Dir, a.Stdout, a.Stderr)
	return nil
}

type restoreCmd struct {
	Dir         string `arg:"" placeholder:"DIR" help:"Folder of a backup."`
	WithoutKeys bool   `help:"Restore although ENCRYPTION_KEY_FILE lacks keys that the backup needs."`
}

func (restoreCmd) Help() string {
	return `It makes the streams and buckets of a backup on the broker at NATS_URL, which must hold none that has messages. Stop all services before. ENCRYPTION_KEY_FILE must have the keys that the backup names.

Example:

	ENCRYPTION_KEY_FILE=./keys gancho restore ./backup-2026-01-31`
}

func (c restoreCmd) Run(a *app) error {
	a.code = a.Restore(a.Environ, c.Dir, c.WithoutKeys, a.Stdout, a.Stderr)
	return nil
}
