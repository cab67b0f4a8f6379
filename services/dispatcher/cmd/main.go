// Dispatcher sends notifications to their webhooks.
package main

import (
	"os"

	"gancho/pkg/service"
	"gancho/services/dispatcher"
)

func main() {
	os.Exit(service.Main("dispatcher", func(c *dispatcher.Config) *service.Config { return &c.Service },
		dispatcher.Run))
}
