package suspension

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// The guard against mass suspension.
const (
	massWindow = 15 * time.Minute
	massURLs   = 20
	massShare  = 20 // one in so many, 5 %

	// activeKeep is how long a minute's HyperLogLog is kept.
	activeKeep = massWindow + 2*time.Minute
	// accountsPeriod is the stretch of time for which an account's active URLs are counted together; accountsKeep is
	// how long such a count is kept.
	accountsPeriod = 5 * time.Minute
	accountsKeep   = massWindow + 2*accountsPeriod
	// largest is how many of the accounts with the most active URLs are counted exactly.
	largest = 10
)

// accountsPrefix + period: ZSET of the accounts with attempts in that period of 5 minutes, by about how many URLs they
// had; + ":" + account: HyperLogLog of those URLs. Both expire. Rebuilt from the attempts to come.
const accountsPrefix = "gancho:active:{accounts}:"

// Mass is the reading of the guard against mass suspension.
type Mass struct {
	// Candidates is the number of URLs that fulfilled the rule in the last 15 minutes and did not work again since,
	// suspended or not.
	Candidates int
	// Active is about how many URLs had attempts in the last 15 minutes.
	Active int
	// Holding says that nothing is suspended automatically: at least 20 candidates, and more than 5 % of those active,
	// where no account counts for more than half of either number, rounded up. The fault is probably ours.
	Holding bool
}

// fair returns a total in which its largest part counts for no more than half, rounded up.
func fair(total, largest int) int {
	others := total - largest
	return others + min(largest, others+1)
}

// guard remembers which URLs this process has counted in the current period.
type guard struct {
	mu      sync.Mutex
	period  int64
	counted map[Key]struct{}
}

// count queues the commands that count URLs as active.
func (g *guard) count(ctx context.Context, pipe redis.Pipeliner, now int64, keys []Key) {
	if len(keys) == 0 {
		return
	}
	members := make([]any, len(keys))
	for i, key := range keys {
		members[i] = key.String()
	}
	minute := activePrefix + strconv.FormatInt(now/60_000, 10)
	pipe.PFAdd(ctx, minute, members...)
	pipe.Expire(ctx, minute, activeKeep)

	period := now / accountsPeriod.Milliseconds()
	byAccount := g.fresh(period, keys)
	if len(byAccount) == 0 {
		return
	}
	name := accountsPrefix + strconv.FormatInt(period, 10)
	for account, urls := range byAccount {
		pipe.ZIncrBy(ctx, name, float64(len(urls)), account)
		pipe.PFAdd(ctx, name+":"+account, urls...)
		pipe.Expire(ctx, name+":"+account, accountsKeep)
	}
	pipe.Expire(ctx, name, accountsKeep)
}

// fresh returns the URLs that were not counted yet, by account.
func (g *guard) fresh(period int64, keys []Key) map[string][]any {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.period != period || g.counted == nil {
		g.period, g.counted = period, map[Key]struct{}{}
	}
	byAccount := map[string][]any{}
	for _, key := range keys {
		if _, yes := g.counted[key]; !yes {
			g.counted[key] = struct{}{}
			byAccount[key.Account] = append(byAccount[key.Account], key.URLKey)
		}
	}
	return byAccount
}

// Mass reads the guard's numbers.
func (s *Store) Mass(ctx context.Context) (Mass, error) {
	return s.mass(ctx, time.Now())
}

func (s *Store) mass(ctx context.Context, at time.Time) (Mass, error) {
	now := at.UnixMilli()
	since := strconv.FormatInt(now-massWindow.Milliseconds(), 10)
	minutes := make([]string, 0, massWindow/time.Minute+1)
	for m := (now - massWindow.Milliseconds()) / 60_000; m <= now/60_000; m++ {
		minutes = append(minutes, activePrefix+strconv.FormatInt(m, 10))
	}
	var candidates *redis.StringSliceCmd
	active := make([]*redis.IntCmd, 0, len(minutes))
	err := s.run(ctx, nil, func(pipe redis.Pipeliner) {
		pipe.ZRemRangeByScore(ctx, recentKey, "-inf", "("+since)
		candidates = pipe.ZRangeByScore(ctx, recentKey, &redis.ZRangeBy{Min: since, Max: "+inf"})
		active = append(active, pipe.PFCount(ctx, minutes...))
	})
	if err != nil {
		return Mass{}, fmt.Errorf("read suspension guard: %w", err)
	}
	byAccount, most := map[string]int{}, 0
	for _, m := range candidates.Val() {
		account, _, _ := strings.Cut(m, ":")
		byAccount[account]++
		most = max(most, byAccount[account])
	}
	total := int(active[0].Val())
	busiest, err := s.busiest(ctx, now)
	if err != nil {
		return Mass{}, fmt.Errorf("read suspension guard: %w", err)
	}
	failing, all := fair(len(candidates.Val()), most), fair(total, min(busiest, total))
	return Mass{
		Candidates: len(candidates.Val()), Active: total, Holding: failing >= massURLs && failing*massShare > all,
	}, nil
}

// busiest returns about how many active URLs the account has that has the most of them.
func (s *Store) busiest(ctx context.Context, now int64) (int, error) {
	var periods []string
	for p := (now - massWindow.Milliseconds()) / accountsPeriod.Milliseconds(); p <= now/accountsPeriod.Milliseconds(); p++ {
		periods = append(periods, accountsPrefix+strconv.FormatInt(p, 10))
	}
	tops := make([]*redis.StringSliceCmd, len(periods))
	err := s.run(ctx, nil, func(pipe redis.Pipeliner) {
		for i, name := range periods {
			tops[i] = pipe.ZRevRange(ctx, name, 0, largest-1)
		}
	})
	if err != nil {
		return 0, err
	}
	counts := map[string]*redis.IntCmd{}
	err = s.run(ctx, nil, func(pipe redis.Pipeliner) {
		for _, top := range tops {
			for _, account := range top.Val() {
				if counts[account] != nil {
					continue
				}
				names := make([]string, len(periods))
				for i, name := range periods {
					names[i] = name + ":" + account
				}
				counts[account] = pipe.PFCount(ctx, names...)
			}
		}
	})
	most := 0
	for _, n := range counts {
		most = max(most, int(n.Val()))
	}
	return most, err
}
