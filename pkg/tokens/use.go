package tokens

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// useKey holds when each token was used last, by its public name, in Unix seconds.
const useKey = "gancho:log:tokens"

// writeUse keeps the newer time of each token: several replicas write.
var writeUse = redis.NewScript(`
for i = 1, #ARGV, 2 do
  local old = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0')
  if tonumber(ARGV[i + 1]) > old then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
return redis.status_reply('OK')`)

// WriteUse records in Redis when tokens were used, by their public names.
func WriteUse(ctx context.Context, client redis.UniversalClient, used map[string]time.Time) error {
	if len(used) == 0 {
		return nil
	}
	args := make([]any, 0, 2*len(used))
	for name, at := range used {
		args = append(args, name, at.Unix())
	}
	if err := writeUse.Eval(ctx, client, []string{useKey}, args...).Err(); err != nil {
		return fmt.Errorf("record the use of tokens: %w", err)
	}
	return nil
}

// ReadUse returns when tokens were used last, by their public names, as far as Redis knows.
func ReadUse(ctx context.Context, client redis.UniversalClient) (map[string]time.Time, error) {
	all, err := client.HGetAll(ctx, useKey).Result()
	if err != nil {
		return nil, fmt.Errorf("read the use of tokens: %w", err)
	}
	used := make(map[string]time.Time, len(all))
	for name, at := range all {
		if seconds, err := strconv.ParseInt(at, 10, 64); err == nil {
			used[name] = time.Unix(seconds, 0).UTC()
		}
	}
	return used, nil
}
