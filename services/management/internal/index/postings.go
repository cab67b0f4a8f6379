package index

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"gancho/pkg/event"
	"gancho/pkg/notification"
)

// A posting is a line of a few dozen bytes about one record or event, all of the same length. Those of an account are
// appended to blocks: strings, one for each 65,536 sequences of the stream. Appending costs Redis one command for all
// postings of an account in a batch. Order and repetition do not matter: readers sort them and leave out
// duplicates.
const blockBits = 16

// kind is a kind of postings.
type kind struct {
	name string // in keys
	size int    // of a posting, in bytes
}

var (
	ofNotifications = kind{"n", notePosting}  //nolint:gochecknoglobals // never written
	ofEvents        = kind{"e", eventPosting} //nolint:gochecknoglobals // never written
)

// accounts is a sorted set: accounts by their newest block.
func (k kind) accounts() string { return prefix + k.name + ":accounts" }

// low is a hash: up to which block an account's postings were dropped for want of room.
func (k kind) low() string { return prefix + k.name + ":low" }

// blocks is a sorted set: an account's blocks by their numbers.
func (k kind) blocks(account string) string { return prefix + k.name + ":" + account }

func (k kind) block(account string, n uint64) string {
	return k.blocks(account) + ":" + strconv.FormatUint(n, 10)
}

// keyGeneration names one life of the postings in Redis: anything read of another one is read again.
const keyGeneration = prefix + "generation"

// Sizes of postings.
const (
	notePosting  = 8 + 8 + 16 + 16 + 8 + 4
	eventPosting = 8 + 8 + 8 + 8 + 8 + 4
)

// note is the posting of a journal record, or of a message on NOTIFICATIONS.
type note struct {
	rank    int64 // 8 x sequence of the record + state
	created int64 // when it happened: the first one says when the notification was created; unix ms
	id      uuid.UUID
	webhook uuid.UUID
	event   uint64 // see hashID
	name    uint32 // see hashName
}

func (n *note) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(n.rank))    //nolint:gosec // not negative
	b = binary.BigEndian.AppendUint64(b, uint64(n.created)) //nolint:gosec // not negative
	b = append(append(b, n.id[:]...), n.webhook[:]...)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, n.event), n.name)
}

func readNote(b string) note {
	n := note{rank: int64(number(b)), created: int64(number(b[8:])), event: number(b[48:]), name: uint32(number("\x00\x00\x00\x00" + b[56:60]))} //nolint:gosec // as they were written
	copy(n.id[:], b[16:])
	copy(n.webhook[:], b[32:])
	return n
}

// eventNote is the posting of an event.
type eventNote struct {
	sequence uint64
	stored   int64  // unix ms
	id       uint64 // see hashID
	// transaction and document are hashes, 0 for none.
	transaction, document uint64
	name                  uint32
}

func (n *eventNote) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, n.sequence)
	b = binary.BigEndian.AppendUint64(b, uint64(n.stored)) //nolint:gosec // not negative
	b = binary.BigEndian.AppendUint64(b, n.id)
	b = binary.BigEndian.AppendUint64(b, n.transaction)
	b = binary.BigEndian.AppendUint64(b, n.document)
	return binary.BigEndian.AppendUint32(b, n.name)
}

func readEventNote(b string) eventNote {
	return eventNote{
		sequence: number(b), stored: int64(number(b[8:])), id: number(b[16:]), //nolint:gosec // as it was written
		transaction: number(b[24:]), document: number(b[32:]), name: uint32(number("\x00\x00\x00\x00" + b[40:44])), //nolint:gosec // 4 bytes
	}
}

func number(b string) uint64 { return binary.BigEndian.Uint64([]byte(b[:8])) }

// hashID is the first half of an event's id, which is a hash already; 0 when s is no id.
func hashID(s string) uint64 {
	id, err := uuid.Parse(s)
	if err != nil {
		return 0
	}
	return binary.BigEndian.Uint64(id[:8])
}

// hashText is 64 bits of a text's hash, 0 for none. Texts that share it are only an account's own, and each hit is
// compared with the event itself.
func hashText(s string) uint64 {
	if s == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(s))
	return max(binary.BigEndian.Uint64(sum[:8]), 1)
}

func hashName(s string) uint32 { return uint32(hashText(s) >> 32) }

// postings gathers postings by account and block.
type postings map[string]map[uint64][]byte

func (p postings) add(account string, block uint64, posting func([]byte) []byte) {
	if account == "" {
		return
	}
	blocks := p[account]
	if blocks == nil {
		blocks = map[uint64][]byte{}
		p[account] = blocks
	}
	blocks[block] = posting(blocks[block])
}

func (p postings) note(account string, block uint64, n note) { p.add(account, block, n.append) }

func (p postings) event(e *event.Event, stored time.Time) {
	n := eventNote{
		e.Sequence, stored.UnixMilli(), hashID(e.ID), hashText(e.Transaction), hashText(e.Document), hashName(e.Name),
	}
	p.add(e.Account, e.Sequence>>blockBits, n.append)
}

// listed remembers which blocks this process has put into the sets of blocks lately.
type listed struct {
	mu    sync.Mutex
	known map[string]bool
	at    time.Time
}

// listAgain is how often a block is put into the sets although it is there: Redis may have forgotten.
const listAgain = time.Minute

func (l *listed) has(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil || time.Since(l.at) > listAgain {
		l.known, l.at = map[string]bool{}, time.Now()
	}
	return l.known[key]
}

func (l *listed) add(keys []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil { // forgotten since
		return
	}
	for _, k := range keys {
		l.known[k] = true
	}
}

func (l *listed) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = nil
}

// queue puts the commands that append p into a pipeline. done is called once they succeeded.
func (x *Index) queue(ctx context.Context, pipe redis.Pipeliner, k kind, p postings) (done func()) {
	var accounts []redis.Z
	var keys []string
	for account, blocks := range p {
		var unlisted []redis.Z
		newest := uint64(0)
		for n, b := range blocks {
			key := k.block(account, n)
			pipe.Append(ctx, key, string(b))
			if !x.listed.has(key) {
				unlisted = append(unlisted, redis.Z{Score: float64(n), Member: n})
				keys = append(keys, key)
				newest = max(newest, n)
			}
		}
		if len(unlisted) > 0 {
			pipe.ZAdd(ctx, k.blocks(account), unlisted...)
			accounts = append(accounts, redis.Z{Score: float64(newest), Member: account})
		}
	}
	if len(accounts) > 0 {
		pipe.ZAddArgs(ctx, k.accounts(), redis.ZAddArgs{GT: true, Members: accounts})
	}
	return func() { x.listed.add(keys) }
}

// accountBlocks is this process's knowledge of one account's blocks.
type accountBlocks struct {
	account string
	blocks  []uint64 // oldest first
	sizes   []int64  // bytes
	total   int64
}

// trim drops postings of records that the stream no longer holds; while more than most remain, also the oldest of the
// account that has the most of them if that is more than its share, else the oldest of all.
func (x *Index) trim(ctx context.Context, k kind, first uint64, most int64) error {
	names, err := x.rdb.ZRange(ctx, k.accounts(), 0, -1).Result()
	if err := x.check(err); err != nil {
		return err
	}
	accounts := make([]*accountBlocks, 0, len(names))
	total := int64(0)
	for part := range slices.Chunk(names, 500) {
		some, err := x.sizes(ctx, k, part)
		if err != nil {
			return err
		}
		for _, a := range some {
			total += a.total
		}
		accounts = append(accounts, some...)
	}
	gone, short := map[string][]uint64{}, map[string]uint64{}
	drop := func(a *accountBlocks) {
		gone[a.account], short[a.account] = append(gone[a.account], a.blocks[0]), a.blocks[0]+1
		total -= a.sizes[0]
		a.total -= a.sizes[0]
		a.blocks, a.sizes = a.blocks[1:], a.sizes[1:]
	}
	for _, a := range accounts {
		for len(a.blocks) > 0 && (a.blocks[0]+1)<<blockBits <= first {
			drop(a)
		}
	}
	aged := len(gone)
	for bound := most * int64(k.size); total > bound; {
		victim := slices.MaxFunc(accounts, func(a, b *accountBlocks) int { return cmp.Compare(a.total, b.total) })
		if float64(victim.total) <= indexShare*float64(bound) {
			victim = slices.MinFunc(accounts, func(a, b *accountBlocks) int {
				return cmp.Compare(a.oldest(), b.oldest())
			})
		}
		if len(victim.blocks) == 0 {
			break
		}
		drop(victim)
	}
	for account, blocks := range gone {
		_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.HSet(ctx, k.low(), account, short[account]) // first: dropped ones are then looked for in the stream
			for _, n := range blocks {
				p.Del(ctx, k.block(account, n))
				p.ZRem(ctx, k.blocks(account), n)
			}
			return nil
		})
		if err := x.check(err); err != nil {
			return err
		}
	}
	for _, a := range accounts {
		if len(a.blocks) == 0 {
			if err := x.check(x.rdb.ZRem(ctx, k.accounts(), a.account).Err()); err != nil {
				return err
			}
		}
	}
	if len(gone) > aged {
		x.log.Info("the oldest postings are dropped; the streams still have their notifications",
			zap.String("postings", k.name), zap.Int("accounts", len(short)), zap.Int64("bytes_left", total))
	}
	x.listed.forget() // another process may have dropped some that this one knows to be listed
	return nil
}

// indexShare is the part of the postings that one account may have while others have some.
const indexShare = 0.2

func (a *accountBlocks) oldest() uint64 {
	if len(a.blocks) == 0 {
		return 1 << 63
	}
	return a.blocks[0]
}

func (x *Index) sizes(ctx context.Context, k kind, accounts []string) ([]*accountBlocks, error) {
	lists := make([]*redis.StringSliceCmd, len(accounts))
	_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, a := range accounts {
			lists[i] = p.ZRange(ctx, k.blocks(a), 0, -1)
		}
		return nil
	})
	if err := x.check(err); err != nil {
		return nil, err
	}
	all := make([]*accountBlocks, len(accounts))
	var sizes []*redis.IntCmd
	_, err = x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, a := range accounts {
			all[i] = &accountBlocks{account: a, blocks: numbers(lists[i].Val())}
			for _, n := range all[i].blocks {
				sizes = append(sizes, p.StrLen(ctx, k.block(a, n)))
			}
		}
		return nil
	})
	if err := x.check(err); err != nil {
		return nil, err
	}
	for _, a := range all {
		for range a.blocks {
			a.sizes = append(a.sizes, sizes[0].Val())
			a.total += sizes[0].Val()
			sizes = sizes[1:]
		}
	}
	return all, nil
}

func numbers(members []string) []uint64 {
	out := make([]uint64, 0, len(members))
	for _, m := range members {
		if n, err := strconv.ParseUint(m, 10, 64); err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// copied is a process's copy of an account's postings.
type copied struct {
	life string           // of the postings: another one begins when some were lost or dropped
	read map[uint64]int64 // bytes of each block
}

// update hands the account's postings appended since the last time to add. low is the sequence from which on the
// postings are complete, and partial says that older ones are still being read back. When renewed is called, all those
// handed over before do not count any more.
func (x *Index) update(
	ctx context.Context, k kind, s *source, account string, c *copied, renewed func(), add func(posting string),
) (low uint64, partial bool, err error) {
	var (
		generation, floor, target, short *redis.StringCmd
		list                             *redis.StringSliceCmd
	)
	_, err = x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		generation, floor, target = p.Get(ctx, keyGeneration), p.Get(ctx, s.floorKey), p.Get(ctx, s.targetKey)
		short, list = p.HGet(ctx, k.low(), account), p.ZRange(ctx, k.blocks(account), 0, -1)
		return nil
	})
	if err := x.check(err); err != nil {
		return 0, false, err
	}
	if life := generation.Val() + "/" + short.Val(); c.read == nil || c.life != life {
		c.life, c.read = life, map[uint64]int64{}
		renewed()
	}
	for part := range slices.Chunk(numbers(list.Val()), blocksAtOnce) {
		texts := make([]*redis.StringCmd, len(part))
		_, err := x.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, n := range part {
				texts[i] = p.GetRange(ctx, k.block(account, n), c.read[n], -1)
			}
			return nil
		})
		if err := x.check(err); err != nil {
			return 0, false, err
		}
		for i, n := range part {
			text := texts[i].Val()
			whole := len(text) - len(text)%k.size
			c.read[n] += int64(whole)
			for ; len(text) >= k.size; text = text[k.size:] {
				add(text[:k.size])
			}
		}
	}
	block, _ := strconv.ParseUint(short.Val(), 10, 64)
	at, err := strconv.ParseUint(floor.Val(), 10, 64)
	if err != nil {
		at = 1 << 62 // nothing is there
	}
	return max(block<<blockBits, at), filling(floor, target), nil
}

// blocksAtOnce is how many blocks are read in one go: at most 32 MB, if nothing stands there twice.
const blocksAtOnce = 8

// stateOf is the state in a rank.
func stateOf(rank int64) notification.State { return state(int(rank % 8)) }
