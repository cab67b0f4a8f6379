package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/suspension"
	"gancho/pkg/tokens"
)

// tokensCmd looks after the file of API tokens.
type tokensCmd struct {
	Add    tokensAdd    `cmd:"" help:"Make a token and print it, this once."`
	List   tokensList   `cmd:"" help:"List the tokens by their names, as logs have them."`
	Remove tokensRemove `cmd:"" help:"Take a token out of the file."`
}

// tokenFile are the flags that say where the tokens are.
type tokenFile struct {
	File string `placeholder:"FILE" help:"The file of tokens (API_TOKENS_FILE; that of gancho serve in DATA_DIR)."`
}

// open returns the path of the file of tokens and the key of their names.
func (f tokenFile) open(environ []string) (path string, names []byte, err error) {
	var cfg struct {
		Tokens  string `env:"API_TOKENS_FILE"`
		Keys    string `env:"ENCRYPTION_KEY_FILE"`
		DataDir string `env:"DATA_DIR" envDefault:"./data"`
	}
	service.Load(&cfg, environ)
	ring, _, err := seal.Load(cmp.Or(cfg.Keys, filepath.Join(cfg.DataDir, "encryption.key")))
	if err != nil {
		return "", nil, usage("%s; tokens are named under the key of ENCRYPTION_KEY_FILE", err)
	}
	return cmp.Or(f.File, cfg.Tokens, filepath.Join(cfg.DataDir, "api_tokens")), ring.Derive(tokens.Purpose), nil
}

type tokensAdd struct {
	tokenFile

	Account string `arg:"" placeholder:"ACCOUNT" help:"Whose webhooks it is for; '*' for an operator, who acts for every account."`
	Read    bool   `help:"It may read only."`
}

func (tokensAdd) Help() string {
	return `Management reads the file again within a second, without a restart.

Examples:

	gancho tokens add acme
	docker compose run --rm --no-deps setup tokens add acme`
}

func (c tokensAdd) Run(a *app) error {
	path, names, err := c.open(a.Environ)
	if err != nil {
		return err
	}
	e, err := tokens.Add(path, c.Account, c.Read)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Stdout, "%s in %s, not shown again:\n\n    export GANCHO_TOKEN=%s\n", tokens.Name(names, e.Token), path, e.Token)
	return err
}

type tokensList struct{ tokenFile }

func (tokensList) Help() string {
	return `When a token was used last comes from Redis (REDIS_URL, as management has it), at most 10 s late. A Redis that
lost its data knows later uses only.

Example:

	docker compose run --rm gancho tokens list`
}

func (c tokensList) Run(a *app) error {
	path, names, err := c.open(a.Environ)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read tokens: %w", err)
	}
	entries, err := tokens.Parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	used, why := lastUse(a.Environ)
	rows := [][]string{{"NAME", "ACCOUNT", "MAY", "LAST USED"}}
	for _, e := range entries {
		may := "read and write"
		if e.ReadOnly {
			may = "read"
		}
		name, last := tokens.Name(names, e.Token), "?"
		if at, known := used[name]; known {
			last = at.Format(time.RFC3339)
		} else if why == "" {
			last = "never"
		}
		rows = append(rows, []string{name, e.Account, may, last})
	}
	if err := a.rows(rows); err != nil {
		return err
	}
	if why != "" {
		fmt.Fprintln(a.Stderr, "when they were used is not known:", why)
	}
	return nil
}

// lastUse asks Redis when tokens were used, or says why it cannot.
func lastUse(environ []string) (used map[string]time.Time, why string) {
	var cfg struct {
		RedisURL string `env:"REDIS_URL" secret:"true"`
	}
	if problems := service.Load(&cfg, environ); len(problems) > 0 {
		return nil, problems[0]
	}
	if cfg.RedisURL == "" {
		return nil, "set REDIS_URL as management has it"
	}
	client, err := suspension.Open(cfg.RedisURL)
	if err != nil {
		return nil, err.Error()
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if used, err = tokens.ReadUse(ctx, client); err != nil {
		return nil, "Redis (" + suspension.Hosts(cfg.RedisURL) + "): " + suspension.Cause(err)
	}
	return used, ""
}

type tokensRemove struct {
	tokenFile

	Name string `arg:"" placeholder:"NAME" help:"The token's name, such as tok_0a1b2c3d, as gancho tokens list shows it."`
}

func (tokensRemove) Help() string {
	return `It is refused within a second, and the sessions of the console that began with it end.`
}

func (c tokensRemove) Run(a *app) error {
	path, names, err := c.open(a.Environ)
	if err != nil {
		return err
	}
	account, err := tokens.Remove(path, c.Name, names)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Stdout, "%s of %s is out of %s.\n", c.Name, account, path)
	return err
}
