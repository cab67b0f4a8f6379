package publisher

import (
	"gancho/pkg/bus"
	"gancho/pkg/service"
	"gancho/pkg/share"
	"gancho/pkg/topology"
)

// Config of the publisher.
type Config struct {
	Service service.Config
	Bus     bus.Config
	Limits  topology.Limits
	Share   share.Config
}
