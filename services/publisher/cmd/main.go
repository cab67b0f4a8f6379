// Publisher matches the CRM's events with the registered webhooks.
package main

import (
	"os"

	"gancho/pkg/service"
	"gancho/services/publisher"
)

func main() {
	os.Exit(service.Main("publisher", func(c *publisher.Config) *service.Config { return &c.Service }, publisher.Run))
}
