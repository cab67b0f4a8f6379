// Suspension-monitor suspends URLs that always fail and resumes them.
package main

import (
	"os"

	"gancho/pkg/service"
	monitor "gancho/services/suspension-monitor"
)

func main() {
	os.Exit(service.Main("suspension-monitor", func(c *monitor.Config) *service.Config { return &c.Service },
		monitor.Run))
}
