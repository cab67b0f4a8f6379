package monitor

import (
	"gancho/pkg/bus"
	"gancho/pkg/service"
	"gancho/pkg/suspension"
	"gancho/pkg/topology"
)

// Config of the suspension-monitor.
type Config struct {
	Service service.Config
	Bus     bus.Config
	Limits  topology.Limits
	Rules   suspension.Rules
	// RedisURL is the Redis that holds error windows and suspended flags: redis://user:password@host:6379/0,
	// rediss://..., or Sentinels with ?master_name=.
	RedisURL string `env:"REDIS_URL" envDefault:"redis://127.0.0.1:6379/0" secret:"true"`
}

// Validate reports a Redis address that cannot be one.
func (c *Config) Validate() error {
	client, err := suspension.Open(c.RedisURL)
	if err != nil {
		return err
	}
	return client.Close()
}
