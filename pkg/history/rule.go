package history

import (
	"cmp"
	"slices"
	"strings"
)

const (
	// actAbove is the part of a stream's limit above which accounts over their share give up records, enough the part
	// that is left then.
	actAbove, enough = 0.9, 0.85
	// spare is the part of its share that an account gives up beyond its surplus over it.
	spare = 1.0 / 8
)

// excess returns how many bytes each account is to give up. held is what accounts have of a stream that holds total
// bytes, part an account's share of the limit in bytes. An account that may have nine tenths of the stream gives up
// nothing: what the broker drops is its own.
func excess(held map[string]int64, total, limit int64, part func(account string) int64) map[string]int64 {
	if limit <= 0 || float64(total) <= actAbove*float64(limit) {
		return nil
	}
	type over struct {
		account       string
		beyond, spare int64
	}
	var all []over
	for account, bytes := range held {
		share := part(account)
		if bytes > share && float64(share) < actAbove*float64(limit) {
			all = append(all, over{account, bytes - share, int64(spare * float64(share))})
		}
	}
	slices.SortFunc(all, func(a, b over) int {
		return cmp.Or(cmp.Compare(b.beyond, a.beyond), strings.Compare(a.account, b.account))
	})
	need := total - int64(enough*float64(limit))
	give := map[string]int64{}
	for _, o := range all {
		if n := min(need, o.beyond+o.spare); n > 0 {
			give[o.account] = n
			need -= n
		}
	}
	return give
}
