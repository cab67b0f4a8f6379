// Package gancho runs all services in one process (serve), shows them at work (demo), and is the command
// line of the API. It is the only service that imports the others.
package gancho
