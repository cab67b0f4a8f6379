package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"gancho/services/internal/testsystem"
)

// costs are counters of everything that a delivery costs, at one time.
type costs struct {
	cpu           map[string]time.Duration // by process
	reads, writes map[string]float64       // system calls, by process
	allocations   map[string]float64       // by service
	allocated     map[string]float64       // bytes, by service
	broker        map[string]float64       // messages and bytes that the broker took in and handed out
	stored        map[string]float64       // messages, by stream
	delivered     map[string]float64       // messages, by stream and consumer
	commands      map[string]float64       // of Redis, by name
}

// costs reads all counters.
func (b *bench) costs() *costs {
	c := &costs{
		cpu: map[string]time.Duration{}, reads: map[string]float64{}, writes: map[string]float64{},
		allocations: map[string]float64{}, allocated: map[string]float64{},
		broker: map[string]float64{}, stored: map[string]float64{}, delivered: map[string]float64{}, commands: map[string]float64{},
	}
	for _, p := range b.processes() {
		c.cpu[p.Name] = p.CPU()
		reads, writes := p.SystemCalls()
		c.reads[p.Name], c.writes[p.Name] = float64(reads), float64(writes)
	}
	for _, p := range b.system.Services() {
		c.allocations[p.Name], c.allocated[p.Name] = b.allocations(p)
	}
	var varz map[string]any
	b.must(json.Unmarshal(b.get(b.system.MonitorURL+"/varz"), &varz))
	for _, name := range []string{"in_msgs", "out_msgs", "in_bytes", "out_bytes"} {
		c.broker[name], _ = varz[name].(float64)
	}
	ctx := context.Background()
	for s := range b.js.ListStreams(ctx).Info() {
		c.stored[s.Config.Name] = float64(s.State.LastSeq)
		stream, err := b.js.Stream(ctx, s.Config.Name)
		b.must(err)
		for k := range stream.ListConsumers(ctx).Info() {
			if k.Config.Durable != "" {
				c.delivered[s.Config.Name+"/"+k.Name] = float64(k.Delivered.Consumer)
			}
		}
	}
	options, err := redis.ParseURL(b.redisURL)
	b.must(err)
	rdb := redis.NewClient(options)
	defer rdb.Close()
	text, err := rdb.Info(ctx, "commandstats").Result()
	b.must(err)
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		if calls, _, found := strings.Cut(rest, ","); ok && found {
			c.commands[name], _ = strconv.ParseFloat(calls, 64)
		}
	}
	return c
}

// allocations returns how many objects and bytes the service has allocated.
func (b *bench) allocations(p *testsystem.Process) (objects, bytes float64) {
	for line := range strings.Lines(string(b.get(b.ops[p.Name] + "/metrics"))) {
		if rest, ok := strings.CutPrefix(line, "gancho_go_memstats_mallocs_total "); ok {
			objects, _ = strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
		if rest, ok := strings.CutPrefix(line, "gancho_go_memstats_alloc_bytes_total "); ok {
			bytes, _ = strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return objects, bytes
}

func (b *bench) get(url string) []byte {
	resp, err := http.Get(url) //nolint:gosec // loopback
	b.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(bufio.NewReader(resp.Body))
	b.must(err)
	return body
}

// print prints the cost of each of n deliveries since before.
func (c *costs) print(before *costs, n int) {
	per := func(now, then float64) float64 { return (now - then) / float64(n) }
	fmt.Printf("%20s %12s %12s %12s %12s %10s\n", "for one delivery", "CPU s/10k", "reads", "writes", "allocations", "KB")
	total := 0.0
	for _, name := range slices.Sorted(maps.Keys(c.cpu)) {
		cpu := 10_000 * (c.cpu[name] - before.cpu[name]).Seconds() / float64(n)
		total += cpu
		fmt.Printf("%20s %12.2f %12.2f %12.2f", name, cpu, per(c.reads[name], before.reads[name]), per(c.writes[name], before.writes[name]))
		if c.allocations[name] > 0 {
			fmt.Printf(" %12.1f %10.1f", per(c.allocations[name], before.allocations[name]), per(c.allocated[name], before.allocated[name])/1e3)
		}
		fmt.Println()
	}
	fmt.Printf("%20s %12.2f\n", "all", total)
	fmt.Printf("%20s messages in %.2f (%.0f bytes), out %.2f (%.0f bytes)\n", "nats-server",
		per(c.broker["in_msgs"], before.broker["in_msgs"]), per(c.broker["in_bytes"], before.broker["in_bytes"]),
		per(c.broker["out_msgs"], before.broker["out_msgs"]), per(c.broker["out_bytes"], before.broker["out_bytes"]))
	list := func(title string, now, then map[string]float64) {
		type share struct {
			name string
			n    float64
		}
		var all []share
		sum := 0.0
		for name := range now {
			if s := (share{name, per(now[name], then[name])}); s.n >= 0.005 {
				all, sum = append(all, s), sum+s.n
			}
		}
		slices.SortFunc(all, func(x, y share) int { return cmp.Or(cmp.Compare(y.n, x.n), cmp.Compare(x.name, y.name)) })
		fmt.Printf("%20s %.2f:", title, sum)
		for _, s := range all {
			fmt.Printf(" %s %.2f", s.name, s.n)
		}
		fmt.Println()
	}
	list("messages stored", c.stored, before.stored)
	list("delivered", c.delivered, before.delivered)
	list("Redis commands", c.commands, before.commands)
}
