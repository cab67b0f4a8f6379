package suspension

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"gancho/pkg/redistest"
)

// BenchmarkMonitors shows what results of 10,000 URLs cost that all fail or all succeed but for one in twenty: with one
// monitor, and with three that share the journal, so that all of them write the same URLs. It reports the throughput at
// full speed, and the processor time of a result in Redis and in the monitors; at 5,000 results/s a monitor takes that
// share of a core.
func BenchmarkMonitors(b *testing.B) {
	const urls, batchSize = 10_000, 500
	for _, bench := range []struct {
		name     string
		monitors int
		failing  int // of a hundred URLs
		perURL   int // results of one URL in a batch
	}{
		{"monitors=1/failing=0%", 1, 0, 1},
		{"monitors=1/failing=5%", 1, 5, 1},
		{"monitors=1/failing=100%", 1, 100, 1},
		{"monitors=1/failing=100%/per_url=10", 1, 100, 10},
		{"monitors=3/failing=5%", 3, 5, 1},
		{"monitors=3/failing=100%", 3, 100, 1},
		{"monitors=3/failing=100%/per_url=10", 3, 100, 10},
	} {
		b.Run(bench.name, func(b *testing.B) {
			server := redistest.Start(b)
			stores := make([]*Store, bench.monitors)
			for i := range stores {
				stores[i] = newStore(b, server.Client(), DefaultRules())
			}
			if _, err := stores[0].Restore(b.Context(), nil); err != nil {
				b.Fatal(err)
			}
			var seq, url atomic.Uint64
			seq.Store(uint64(time.Now().UnixMilli()))
			next := func() []Observation {
				batch := make([]Observation, 0, batchSize)
				first := url.Add(batchSize/uint64(bench.perURL)) - batchSize/uint64(bench.perURL)
				for u := first; len(batch) < batchSize; u++ {
					for range bench.perURL {
						batch = append(batch, Observation{
							Key: urlKey(int(u % urls)), URLHost: "hooks.example.com", Seq: seq.Add(1),
							Result: Result{At: time.Now(), Delivered: int(u%100) >= bench.failing, Reason: "timeout"},
						})
					}
				}
				return batch
			}
			client := server.Client()
			redisBefore, ownBefore := redisCPU(b, client), ownCPU(b)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			var done atomic.Int64
			for _, s := range stores {
				wg.Go(func() {
					for done.Add(1) <= int64(b.N) {
						if _, err := s.Observe(b.Context(), next()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			results := float64(b.N) * batchSize
			b.ReportMetric(results/b.Elapsed().Seconds(), "results/s")
			b.ReportMetric((redisCPU(b, client)-redisBefore)/results*1e6, "redis-µs/result")
			b.ReportMetric((ownCPU(b)-ownBefore)/results*1e6, "monitor-µs/result")
		})
	}
}

// redisCPU returns the seconds of processor time that Redis has taken.
func redisCPU(b *testing.B, client *redis.Client) float64 {
	b.Helper()
	info, err := client.Info(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	total := 0.0
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				b.Fatal(err)
			}
			total += n
		}
	}
	return total
}

func ownCPU(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
