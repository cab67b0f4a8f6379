package suspension

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrCluster says that REDIS_URL names a Redis Cluster: one script of ours works on keys that it keeps on several
// servers.
var ErrCluster = errors.New("REDIS_URL: it is a Redis Cluster, which cannot be used; name a single Redis, or one " +
	"that Sentinels watch (master_name)")

// refuseWithin is how long a service that starts asks what kind of Redis it has.
const refuseWithin = time.Second

// RefuseCluster returns ErrCluster when the server is part of a Redis Cluster. One that cannot be asked now is not
// refused.
func RefuseCluster(ctx context.Context, client redis.UniversalClient) error {
	ctx, cancel := context.WithTimeout(ctx, refuseWithin)
	defer cancel()
	about, err := client.Do(ctx, "HELLO").Result()
	if err != nil {
		return nil //nolint:nilerr // every command will show the fault
	}
	var mode any
	switch m := about.(type) {
	case map[any]any:
		mode = m["mode"]
	case []any: // RESP2
		for i := 0; i+1 < len(m); i += 2 {
			if m[i] == "mode" {
				mode = m[i+1]
			}
		}
	}
	if mode == "cluster" {
		return ErrCluster
	}
	return nil
}
