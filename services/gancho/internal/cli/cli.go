// Package cli is the command line of gancho: the grammar, the commands that call the API, and how results and
// errors are shown to people and to scripts.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"gancho/pkg/client"
	"gancho/pkg/service"
)

// Exit codes. They are part of the command line's interface.
const (
	exitOK       = 0
	exitError    = 1 // the API refused or could not be reached
	exitUsage    = 2 // wrong usage or settings; nothing was asked
	exitNotFound = 3
	exitDenied   = 4 // the token is not good, or not for this
	exitConflict = 5 // the state of things does not allow it

	exitInterrupted = 130 // as shells have it
)

// Program is the command line's view of its process. All members are required.
type Program struct {
	Args, Environ  []string // without the program's name; NAME=value
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Serve, Demo    func(environ []string, stdout, stderr io.Writer) int
	Setup          func(dir string, stdout io.Writer) error
	Doctor         func(environ []string, asJSON bool, stdout, stderr io.Writer) int
	Topology       func(environ []string, apply bool, stdout, stderr io.Writer) int
	Backup         func(environ []string, dir string, stdout, stderr io.Writer) int
	Restore        func(environ []string, dir string, withoutKeys bool, stdout, stderr io.Writer) int
	Reseal         func(environ []string, dryRun bool, stdout, stderr io.Writer) int
}

// grammar is the whole command line.
type grammar struct {
	Serve       serveCmd       `cmd:"" group:"run" help:"Run all services in one process, state in DATA_DIR (./data)."`
	Demo        demoCmd        `cmd:"" group:"run" help:"Show everything at work in under a minute, check the books, and end."`
	Setup       setupCmd       `cmd:"" group:"run" help:"Make an encryption key and a first operator token where they are missing."`
	Tokens      tokensCmd      `cmd:"" group:"run" help:"Add, list and remove tokens of the API."`
	Status      statusCmd      `cmd:"" group:"run" help:"Ask every process of an installation whether it is ready, and show its faults."`
	Healthcheck healthcheckCmd `cmd:"" group:"run" help:"Ask the process at OPS_ADDR whether it is ready; the exit code says."`

	Webhooks      webhooksCmd      `cmd:"" group:"api" help:"Register, show, change, test, suspend and resume webhooks."`
	Apply         applyCmd         `cmd:"" group:"api" help:"Make the account's webhooks what a file says."`
	Notifications notificationsCmd `cmd:"" group:"api" help:"See how notifications ended, and why; send one again."`
	Replays       replaysCmd       `cmd:"" group:"api" help:"Send a range of past events to a webhook again."`
	Events        eventsCmd        `cmd:"" group:"api" help:"Publish an event, or say what became of one."`
	Usage         usageCmd         `cmd:"" group:"api" help:"Count what accounts used; for operators."`
	Tail          tailCmd          `cmd:"" group:"api" help:"Watch attempts as they are made."`
	Listen        listenCmd        `cmd:"" group:"api" help:"Forward events to a local address as they come, to develop a receiver."`
	Audit         auditCmd         `cmd:"" group:"api" help:"See who changed what."`
	Erasures      erasuresCmd      `cmd:"" group:"api" help:"Erase the events of a document, a transaction, or one event; for operators."`
	PortalLink    portalLinkCmd    `cmd:"" group:"api" help:"Make a link into the console for a person without a token."`

	Doctor   doctorCmd   `cmd:"" group:"broker" help:"Check the books: has every notification ended, or is it on its way? Say what is stuck."`
	Topology topologyCmd `cmd:"" group:"broker" help:"Compare streams, buckets and consumers with their configuration."`
	Backup   backupCmd   `cmd:"" group:"broker" help:"Copy every stream and bucket into a folder."`
	Restore  restoreCmd  `cmd:"" group:"broker" help:"Make streams and buckets from a backup on an empty broker."`
	Keys     keysCmd     `cmd:"" group:"broker" help:"Change the key that the webhooks' secrets are sealed under."`

	Completion completionCmd `cmd:"" group:"more" help:"Print a completion script for bash, zsh or fish."`
	Version    versionCmd    `cmd:"" group:"more" help:"Print the version."`
}

const about = `Gancho delivers a CRM's events to the webhooks its customers registered.

The API's commands read GANCHO_URL (` + client.DefaultURL + `), GANCHO_TOKEN and, for an operator's token,
GANCHO_ACCOUNT. serve and demo read the variables that the README lists.

Exit codes: 0 done; 1 the API refused or could not be reached; 2 wrong usage or settings; 3 not found;
4 the token is not good, or not for this; 5 the state of things does not allow it.`

// app is what commands run with.
type app struct {
	Program

	ctx    context.Context //nolint:containedctx // of the command, ends with an interrupt
	now    time.Time
	kong   *kong.Kong
	client *client.Client
	output string // table or json
	code   int    // of a command that ran something else
}

// Run runs one command line and returns the exit code.
func Run(p Program) int {
	a := &app{Program: p, now: time.Now()}
	helped := false
	var err error
	a.kong, err = kong.New(&grammar{},
		kong.Name("gancho"), kong.Description(about), kong.Writers(p.Stdout, p.Stderr),
		kong.Exit(func(int) { helped = true }), // it goes on, and the result is not used
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "run", Title: "Run Gancho:"},
			{Key: "api", Title: "Use the API:"},
			{Key: "broker", Title: "Look after the broker (NATS_URL):"},
			{Key: "more", Title: "More:"},
			{Key: "where", Title: "The API:"},
		}),
		kong.Vars{"default_url": client.DefaultURL}, kong.Bind(a),
	)
	if err != nil {
		fmt.Fprintln(p.Stderr, "gancho:", err)
		return exitError
	}
	args := p.Args
	if len(args) == 0 {
		args = []string{"--help"}
	}
	selected, err := a.kong.Parse(args)
	switch {
	case helped:
		return exitOK
	case err != nil:
		return a.fail(&usageError{err.Error()})
	}
	if c, ok := reflect.TypeAssert[interface{ connect(a *app) error }](selected.Selected().Target); ok {
		if err := c.connect(a); err != nil {
			return a.fail(err)
		}
		defer a.interruptible()()
	}
	if err := selected.Run(a); err != nil {
		if a.interrupted() {
			return exitInterrupted
		}
		return a.fail(err)
	}
	return a.code
}

// interrupted reports whether a signal ended the command.
func (a *app) interrupted() bool { return a.ctx != nil && a.ctx.Err() != nil }

// usageError says that the command line or a setting makes no sense.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// fail prints the problem, its place and the remedy on stderr, and returns the exit code.
func (a *app) fail(err error) int {
	code, hint := advise(err)
	fmt.Fprintln(a.Stderr, "gancho:", clean(err.Error()))
	if hint != "" {
		fmt.Fprintln(a.Stderr, "       ", hint)
	}
	return code
}

// advise returns the exit code of an error and what to do about it.
func advise(err error) (code int, hint string) {
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage, "gancho --help and gancho <command> --help show how it is used."
	}
	if refused, ok := errors.AsType[*client.Error](err); ok {
		return adviseRefused(refused)
	}
	if e, ok := errors.AsType[*client.NoAnswer](err); ok {
		hint := "Is Gancho running there, and is " + e.URL + " its address (GANCHO_URL)?"
		if !strings.HasPrefix(e.Call, "GET ") {
			hint += " What was asked for may have happened."
		}
		return exitError, hint
	}
	if _, ok := errors.AsType[*client.Unexpected](err); ok {
		return exitError, "Is GANCHO_URL the address of Gancho's API, and is it as new as this program?"
	}
	return exitError, ""
}

func adviseRefused(e *client.Error) (code int, hint string) {
	switch {
	case e.Has("account_required"):
		return exitUsage, "Give --account ACCOUNT or set GANCHO_ACCOUNT."
	case e.Status == 401:
		return exitDenied, "Set GANCHO_TOKEN to a token of this installation."
	case e.Status == 403:
		return exitDenied, ""
	case e.Status == 404:
		return exitNotFound, ""
	case e.Status == 409, e.Status == 412:
		return exitConflict, ""
	case e.Status == 429:
		return exitError, "The token makes more requests than it may; try again later."
	case e.Status >= 500 && e.RequestID != "":
		return exitError, "The service's log has the reason under the request id " + e.RequestID + "."
	}
	return exitError, ""
}

// apiFlags are the flags of every command that calls the API. Run connects before it.
type apiFlags struct {
	API     string `group:"where" name:"api" placeholder:"URL" help:"Address of the API (GANCHO_URL; ${default_url})."`
	Token   string `group:"where" placeholder:"TOKEN" help:"API token; better set GANCHO_TOKEN, which no list of processes shows."`
	Account string `group:"where" placeholder:"ACCOUNT" help:"Account to act for, with an operator's token (GANCHO_ACCOUNT)."`
	Output  string `short:"o" enum:"table,json" default:"table" help:"table for people, json for programs."`
}

// connect makes the client.
func (f apiFlags) connect(a *app) (err error) {
	vars := map[string]string{}
	for _, e := range a.Environ {
		name, value, _ := strings.Cut(e, "=")
		vars[name] = value
	}
	token := cmp.Or(f.Token, vars["GANCHO_TOKEN"])
	if token == "" {
		return usage("there is no API token: set GANCHO_TOKEN (gancho serve and gancho setup print the first one)")
	}
	a.client, err = client.New(client.Config{
		URL: cmp.Or(f.API, vars["GANCHO_URL"]), Token: token, Account: cmp.Or(f.Account, vars["GANCHO_ACCOUNT"]),
		UserAgent: "gancho-cli/" + service.Version, Language: locale(vars),
		Waiting: func(d time.Duration) {
			fmt.Fprintf(a.Stderr, "gancho: the API asks to slow down; waiting %v\n", d)
		},
	})
	if err != nil {
		return usage("%s (GANCHO_URL, GANCHO_TOKEN)", err)
	}
	a.output = f.Output
	return nil
}

// locale is the language of the user's locale as a tag of BCP 47, "" when there is none.
func locale(vars map[string]string) string {
	name, _, _ := strings.Cut(cmp.Or(vars["LC_ALL"], vars["LC_MESSAGES"], vars["LANG"]), ".")
	if name == "C" || name == "POSIX" {
		return ""
	}
	return strings.ReplaceAll(name, "_", "-")
}

// interruptible ends the command's context with an interrupt. Only commands that call the API have one: those that run
// services stop in their own way.
func (a *app) interruptible() (stop func()) {
	a.ctx, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	return stop
}

type serveCmd struct{}

func (serveCmd) Help() string {
	return `It runs publisher, dispatcher, suspension-monitor and management on an embedded NATS server and, unless REDIS_URL is set, an embedded Redis. All settings are environment variables. It makes its own encryption key and a first API token, which it prints once.

Examples:

	gancho serve
	HTTP_ADDR=127.0.0.1:8081 DATA_DIR=/var/lib/gancho gancho serve`
}

func (serveCmd) Run(a *app) error {
	a.code = a.Serve(a.Environ, a.Stdout, a.Stderr)
	return nil
}

type demoCmd struct{}

func (demoCmd) Run(a *app) error {
	a.code = a.Demo(a.Environ, a.Stdout, a.Stderr)
	return nil
}

type setupCmd struct {
	Dir string `required:"" placeholder:"DIR" help:"Folder for encryption/keys and tokens/api."`
}

func (setupCmd) Help() string {
	return `It makes DIR/encryption/keys (ENCRYPTION_KEY_FILE) and DIR/tokens/api (API_TOKENS_FILE), and leaves alone what is there. The token is printed when it is made, and only then.

Example:

	gancho setup --dir ./secrets`
}

func (c setupCmd) Run(a *app) error { return a.Setup(c.Dir, a.Stdout) }

type healthcheckCmd struct {
	Verbose bool `short:"v" help:"Also say when nothing is wrong."`
}

func (c healthcheckCmd) Run(a *app) error {
	var cfg struct{ Service service.Config }
	service.Load(&cfg, a.Environ) // what else is wrong is for the process that is asked to say
	a.code = service.Healthcheck(cfg.Service.OpsAddr, c.Verbose, a.Stderr)
	return nil
}

type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	_, err := fmt.Fprintln(a.Stdout, "gancho", service.Version)
	return err
}
