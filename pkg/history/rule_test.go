package history

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestExcess: whatever accounts hold, only those above their share give up records, only while the stream is nearly
// full, never more than down to seven eighths of their share, and enough of them do.
func TestExcess(t *testing.T) {
	t.Parallel()
	names := []string{"a", "b", "c", "d", "e", "f"}
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(1000, 1<<40).Draw(t, "limit")
		held, share := map[string]int64{}, map[string]int64{}
		for _, a := range names {
			share[a] = int64(rapid.SampledFrom([]float64{0.01, 0.2, 0.2, 0.4, 0.9, 1}).Draw(t, "share") * float64(limit))
			held[a] = int64(rapid.SampledFrom([]float64{0, 0.5, 0.97, 1, 1.01, 1.2, 2}).Draw(t, "part of it") * float64(share[a]))
		}
		total := int64(rapid.SampledFrom([]float64{0.8, 0.89, 0.91, 0.95, 1}).Draw(t, "full") * float64(limit))
		give := excess(held, total, limit, func(a string) int64 { return share[a] })
		var sum int64
		left := false // an account above its share that could have given more
		for _, a := range names {
			n := give[a]
			sum += n
			bounded := float64(share[a]) < actAbove*float64(limit)
			switch {
			case n < 0 || n > 0 && held[a] <= share[a]:
				t.Fatalf("%s holds %d of its %d and is to give up %d", a, held[a], share[a], n)
			case n > 0 && !bounded:
				t.Fatalf("%s may have nearly everything and is to give up %d", a, n)
			case n > 0 && held[a]-n < share[a]-share[a]/8-1:
				t.Fatalf("%s keeps %d of its share of %d", a, held[a]-n, share[a])
			}
			left = left || bounded && held[a] > share[a] && held[a]-n > share[a]
		}
		need := total - int64(enough*float64(limit))
		switch full := float64(total) > actAbove*float64(limit); {
		case !full && sum > 0:
			t.Fatalf("%d of %d bytes are held and %d are to be given up", total, limit, sum)
		case full && sum > need:
			t.Fatalf("%d are to be given up, and %d are enough", sum, need)
		case full && left && sum < need:
			t.Fatalf("%d of the %d needed are given up, although one is above its share still: %v", sum, need, give)
		}
	})
}

// stored is a record of the model's stream.
type stored struct {
	account string
	bytes   int64
}

// TestOthersKeepTheirs plays the broker, which drops the oldest of everybody at the limit, accounts that write as they
// like, and the rule between bursts of at most a tenth of the limit. The accounts that stay within their shares keep
// what package history promises.
func TestOthersKeepTheirs(t *testing.T) {
	t.Parallel()
	const limit, share, burst = 10_000, 2_000, 1_000
	rapid.Check(t, func(t *rapid.T) {
		var stream []stored
		held, wrote, total := map[string]int64{}, map[string]int64{}, int64(0)
		drop := func(i int) {
			held[stream[i].account] -= stream[i].bytes
			total -= stream[i].bytes
			stream = slices.Delete(stream, i, i+1)
		}
		attackers := []string{"attacker", "accomplice"}[:rapid.IntRange(1, 2).Draw(t, "attackers")]
		// The others write at most their share each: five of them are within nine tenths less the attackers' shares
		// together.
		others := []string{"b", "c", "d", "e", "f"}
		most := rapid.Int64Range(0, (9_000-int64(len(attackers))*share)/5).Draw(t, "most of each")
		for range rapid.IntRange(10, 80).Draw(t, "looks") {
			for written := int64(0); written < burst; {
				r := stored{rapid.SampledFrom(append(attackers, others...)).Draw(t, "account"), rapid.Int64Range(1, 200).Draw(t, "bytes")}
				if written+r.bytes > burst {
					break
				}
				if !slices.Contains(attackers, r.account) && wrote[r.account]+r.bytes > most {
					r.account = attackers[0]
				}
				stream = append(stream, r)
				written += r.bytes
				wrote[r.account] += r.bytes
				held[r.account] += r.bytes
				for total += r.bytes; total > limit; {
					drop(0)
				}
			}
			for account, n := range excess(held, total, limit, func(string) int64 { return share }) {
				for i := 0; n > 0 && i < len(stream); {
					if stream[i].account != account {
						i++
						continue
					}
					n -= stream[i].bytes
					drop(i)
				}
			}
			for _, a := range others {
				if held[a] != wrote[a] {
					t.Fatalf("%s wrote %d bytes of its share of %d and %d are left", a, wrote[a], share, held[a])
				}
			}
		}
	})
}

// TestOthersKeepTheRest: where the others fill what the attacker's share leaves, they lose the messages
// between two looks once, and no more however long it goes on.
func TestOthersKeepTheRest(t *testing.T) {
	t.Parallel()
	const limit, share = 10_000, 2_000
	rapid.Check(t, func(t *rapid.T) {
		burst := rapid.Int64Range(1, 1500).Draw(t, "burst")
		var stream []stored
		held, total := map[string]int64{}, int64(0)
		add := func(account string, bytes int64) {
			stream = append(stream, stored{account, bytes})
			held[account] += bytes
			for total += bytes; total > limit; {
				held[stream[0].account] -= stream[0].bytes
				total -= stream[0].bytes
				stream = stream[1:]
			}
		}
		names := []string{"b", "c", "d", "e", "f", "g", "h"}
		for i := range 4 * limit / 10 { // they fill the stream, each below its share
			add(names[i%len(names)], 10)
		}
		for range 60 {
			for written := int64(0); written < burst; written += 10 {
				add("attacker", 10)
			}
			for account, n := range excess(held, total, limit, func(string) int64 { return share }) {
				stream = slices.DeleteFunc(stream, func(r stored) bool {
					if r.account != account || n <= 0 {
						return false
					}
					n -= r.bytes
					held[account] -= r.bytes
					total -= r.bytes
					return true
				})
			}
			var rest int64
			for _, a := range names {
				rest += held[a]
			}
			if least := limit - share - burst - 20; rest < least {
				t.Fatalf("the others are left with %d bytes, less than %d", rest, least)
			}
		}
	})
}

// TestCount: after any history the count has what the stream has, whoever's records were removed and whichever aged
// out.
func TestCount(t *testing.T) {
	t.Parallel()
	type record struct {
		sequence uint64
		account  string
		bytes    int64
	}
	rapid.Check(t, func(t *rapid.T) {
		c, sequence := newCount(), uint64(0)
		var stream []record
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.IntRange(1, 3000).Draw(t, "records") {
					sequence += 1 + sequence%3
					r := record{sequence, []string{"a", "b", "c"}[sequence%7%3], int64(sequence % 70_000)}
					stream = append(stream, r)
					c.add(r.account, r.sequence, r.bytes)
				}
			},
			"age": func(t *rapid.T) {
				n := min(len(stream), rapid.IntRange(0, 2000).Draw(t, "records"))
				stream = stream[n:]
				if len(stream) > 0 {
					c.forget(stream[0].sequence)
				} else {
					c.forget(sequence + 1)
				}
			},
			"remove": func(t *rapid.T) {
				account, bytes := names.Draw(t, "account"), rapid.Int64Range(1, 1<<20).Draw(t, "bytes")
				n := c.oldest(account, bytes, 1000)
				first, left := sequence+1, int(n)
				stream = slices.DeleteFunc(stream, func(r record) bool {
					if r.account != account {
						return false
					}
					if left > 0 {
						left, bytes = left-1, bytes-r.bytes
						return true
					}
					first = min(first, r.sequence)
					return false
				})
				if left > 0 || bytes > 0 && n < 1000 && c.records(account) > n {
					t.Fatalf("%d records of %s, %d of them not there, %d bytes short", n, account, left, bytes)
				}
				c.cut(account, first)
			},
			"": func(t *rapid.T) {
				want, records, total := map[string]int64{}, map[string]uint64{}, int64(0)
				for _, r := range stream {
					want[r.account] += r.bytes
					records[r.account]++
					total += r.bytes
				}
				for _, a := range []string{"a", "b", "c"} {
					if got := c.held()[a]; got != want[a] || c.records(a) != records[a] {
						t.Fatalf("%s has %d bytes in %d records, want %d in %d", a, got, c.records(a), want[a], records[a])
					}
				}
				if c.total != total {
					t.Fatalf("%d bytes in all, want %d", c.total, total)
				}
			},
		})
	})
}

// BenchmarkCount counts a record, and shows the memory that it takes.
func BenchmarkCount(b *testing.B) {
	names := make([]string, 1000)
	for i := range names {
		names[i] = string(rune('a'+i%26)) + string(rune('a'+i/26))
	}
	c := newCount()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		c.add(names[n*7%1000], uint64(n), 1159)
	}
	memory := 0
	for _, k := range c.chunks {
		memory += cap(k.data)
	}
	b.ReportMetric(float64(memory)/float64(n), "B/record")
}
