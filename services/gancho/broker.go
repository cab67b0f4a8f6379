package gancho

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/service"
	"gancho/pkg/topology"
)

// brokerConfig is the settings of the commands that talk to the broker themselves.
type brokerConfig struct {
	Bus    bus.Config
	Limits topology.Limits

	// EncryptionKeyFile is compared with the keys that the webhooks are sealed under. It may be missing.
	EncryptionKeyFile string `env:"ENCRYPTION_KEY_FILE"`
	// RedisURL is the suspension-monitor's or management's, for the doctor. It may be missing.
	RedisURL string `env:"REDIS_URL" secret:"true"`
}

// brokerUser names the connection and its inbox. The rights that these commands need are the operator's.
const brokerUser = "operator"

// replicasVariable begins the setting of replicas. Without it these commands take over the number that the streams
// have: the environment of a person at a cluster's broker is not that of its services.
const replicasVariable = "STREAM_REPLICAS="

// patience is how long a command waits for the broker.
const patience = 10 * time.Second

// withBroker runs f with an operator's connection, and returns the exit code.
func withBroker(environ []string, stderr io.Writer, f func(ctx context.Context, b *bus.Bus, cfg brokerConfig) (int, error)) int {
	var cfg brokerConfig
	if problems := service.Load(&cfg, environ); len(problems) > 0 {
		return refuse(stderr, problems)
	}
	return connected(cfg.Bus, brokerUser, stderr, func(ctx context.Context, b *bus.Bus) (int, error) {
		if !slices.ContainsFunc(environ, func(e string) bool { return strings.HasPrefix(e, replicasVariable) && e != replicasVariable }) {
			there, err := b.Replicas(ctx)
			if err != nil {
				return 0, err
			}
			cfg.Limits.Replicas = cmp.Or(there, cfg.Limits.Replicas)
		}
		return f(ctx, b, cfg)
	})
}

// connected runs f with a connection that receives on user's inbox, and returns the exit code.
func connected(cfg bus.Config, user string, stderr io.Writer, f func(ctx context.Context, b *bus.Bus) (int, error)) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := bus.Connect(cfg, user, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		return refuse(stderr, []string{err.Error()})
	}
	defer b.Close()
	for deadline := time.Now().Add(patience); b.State() != ""; {
		if b.TooOld() != "" || time.Now().After(deadline) || ctx.Err() != nil {
			fmt.Fprintln(stderr, "gancho: NATS_URL:", b.State())
			return service.ExitError
		}
		<-time.After(20 * time.Millisecond)
	}
	code, err := f(ctx, b)
	if err != nil {
		fmt.Fprintln(stderr, "gancho:", err)
		return service.ExitError
	}
	return code
}
