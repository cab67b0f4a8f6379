package publisher

import (
	"gancho/pkg/bus"
	"gancho/pkg/service"
)

// Config of the publisher.
type Config struct {
	Service service.Config
	Bus     bus.Config
	Limits  bus.Limits
}
