package history

import "encoding/binary"

// chunkBytes is the size of a piece of the count's memory.
const chunkBytes = 64 << 10

// count is whose the records of a stream are, in their order: of each the distance to the one before, the account and
// the size, as varints. One goroutine uses it.
type count struct {
	chunks   []chunk // oldest first
	last     uint64  // sequence of the newest record
	total    int64   // bytes
	index    map[string]uint64
	accounts []tally
}

type chunk struct {
	before uint64 // sequence of the record before the first one
	data   []byte
}

// tally is what one account has.
type tally struct {
	name    string
	bytes   int64
	records uint64
	from    uint64 // its records before this sequence were removed
}

func newCount() *count { return &count{index: map[string]uint64{}} }

// add takes in the next record.
func (c *count) add(account string, sequence uint64, bytes int64) {
	i, known := c.index[account]
	if !known {
		i = uint64(len(c.accounts))
		c.index[account], c.accounts = i, append(c.accounts, tally{name: account})
	}
	if n := len(c.chunks); n == 0 || len(c.chunks[n-1].data) >= chunkBytes {
		c.chunks = append(c.chunks, chunk{before: c.last})
	}
	k := &c.chunks[len(c.chunks)-1]
	for _, v := range []uint64{sequence - c.last, i, uint64(bytes)} { //nolint:gosec // not negative
		k.data = binary.AppendUvarint(k.data, v)
	}
	c.last = sequence
	c.put(&c.accounts[i], bytes, 1)
}

func (c *count) put(t *tally, bytes int64, records int) {
	c.total += bytes
	t.bytes += bytes
	t.records += uint64(records) //nolint:gosec // wraps around where it is negative
}

// next returns the chunk's first record and the bytes it takes.
func (k *chunk) next() (sequence, account uint64, bytes int64, n int) {
	distance, a := binary.Uvarint(k.data)
	account, b := binary.Uvarint(k.data[a:])
	size, c := binary.Uvarint(k.data[a+b:])
	return k.before + distance, account, int64(size), a + b + c //nolint:gosec // as it was written
}

// forget drops the records of all accounts before the sequence: the stream no longer has them.
func (c *count) forget(first uint64) {
	for len(c.chunks) > 0 {
		k := &c.chunks[0]
		for len(k.data) > 0 {
			sequence, account, bytes, n := k.next()
			if sequence >= first {
				return
			}
			if t := &c.accounts[account]; sequence >= t.from {
				c.put(t, -bytes, -1)
			}
			k.before, k.data = sequence, k.data[n:]
		}
		c.chunks = c.chunks[1:]
	}
}

// of calls each with the account's records that are not removed, oldest first, until it returns false.
func (c *count) of(account string, each func(sequence uint64, bytes int64) bool) {
	index, known := c.index[account]
	if !known {
		return
	}
	from := c.accounts[index].from
	for _, k := range c.chunks {
		for len(k.data) > 0 {
			sequence, i, bytes, n := k.next()
			if i == index && sequence >= from && !each(sequence, bytes) {
				return
			}
			k.before, k.data = sequence, k.data[n:]
		}
	}
}

// cut drops the account's records before the sequence: they were removed.
func (c *count) cut(account string, first uint64) {
	index, known := c.index[account]
	if !known {
		return
	}
	var bytes int64
	records := 0
	c.of(account, func(sequence uint64, n int64) bool {
		if sequence >= first {
			return false
		}
		bytes, records = bytes+n, records+1
		return true
	})
	t := &c.accounts[index]
	c.put(t, -bytes, -records)
	t.from = max(t.from, first)
}

// oldest returns how many of the account's oldest records have together that many bytes, at most most.
func (c *count) oldest(account string, bytes int64, most uint64) (records uint64) {
	c.of(account, func(_ uint64, n int64) bool {
		records, bytes = records+1, bytes-n
		return bytes > 0 && records < most
	})
	return records
}

// records returns how many records of the account there are.
func (c *count) records(account string) uint64 {
	if i, known := c.index[account]; known {
		return c.accounts[i].records
	}
	return 0
}

// held returns the bytes of every account that has any.
func (c *count) held() map[string]int64 {
	all := make(map[string]int64, len(c.accounts))
	for _, t := range c.accounts {
		if t.bytes > 0 {
			all[t.name] = t.bytes
		}
	}
	return all
}
