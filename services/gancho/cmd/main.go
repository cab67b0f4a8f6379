// Gancho runs all services in one process, shows them at work, and is the command line of the API.
package main

import (
	"os"

	"gancho/services/gancho"
	"gancho/services/gancho/internal/cli"
)

func main() {
	os.Exit(cli.Run(cli.Program{
		Args: os.Args[1:], Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Serve: gancho.Serve, Demo: gancho.Demo, Setup: gancho.Setup,
		Doctor: gancho.Doctor, Topology: gancho.Topology, Backup: gancho.Backup, Restore: gancho.Restore,
		Reseal: gancho.Reseal,
	}))
}
