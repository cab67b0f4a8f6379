// Management serves the API and the console.
package main

import (
	"os"

	"gancho/pkg/service"
	"gancho/services/management"
)

func main() {
	os.Exit(service.Main("management", func(c *management.Config) *service.Config { return &c.Service },
		management.Run))
}
