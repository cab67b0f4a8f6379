package books

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/journal"
	"gancho/pkg/lane"
)

// Keys of the bucket BOOKS. Open sends are stored in pieces, in one of two slots in turn, so that the
// checkpoint before is whole until the next one is.
const (
	keyCheckpoint = "checkpoint"
	keyReport     = "report"
	pieceSize     = 512 << 10
)

// checkpoint is the state from which the books are read on.
type checkpoint struct {
	ID            uuid.UUID    `json:"id"` // repeated in every piece
	Slot          int          `json:"slot"`
	Pieces        int          `json:"pieces"`
	At            time.Time    `json:"at"`
	Counts        Counts       `json:"counts"`
	Notifications bus.Position `json:"notifications"`
	Journal       bus.Position `json:"journal"`

	revision uint64
}

func pieceKey(slot, n int) string { return "open." + strconv.Itoa(slot) + "." + strconv.Itoa(n) }

// Load goes on from the checkpoint in the bucket. Without a usable one it leaves the books as they are, and
// says why in the second result, "" when there was none at all.
func (x *Books) Load(ctx context.Context, bucket *bus.Bucket) (loaded bool, problem string, err error) {
	manifest, err := bucket.Get(ctx, keyCheckpoint)
	if errors.Is(err, bus.ErrNotFound) {
		return false, "", nil
	}
	if err != nil {
		return false, "", err
	}
	c := &checkpoint{revision: manifest.Revision}
	x.stored = c
	if err := json.Unmarshal(manifest.Value, c); err != nil || c.Slot < 0 || c.Slot > 1 {
		*c = checkpoint{revision: manifest.Revision}
		return false, errBroken.Error(), nil
	}
	var raw []byte
	for n := range c.Pieces {
		e, err := bucket.Get(ctx, pieceKey(c.Slot, n))
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return false, "", err
		}
		if len(e.Value) < len(c.ID) || uuid.UUID(e.Value[:len(c.ID)]) != c.ID {
			return false, fmt.Sprintf("piece %d of the checkpoint is missing or of another one", n), nil
		}
		raw = append(raw, e.Value[len(c.ID):]...)
	}
	l, err := decodeLedger(raw)
	if err != nil {
		return false, err.Error(), nil //nolint:nilerr // the books start again
	}
	l.counts = c.Counts
	x.ledger, x.notifications, x.journal = l, lane.NewReader(x.bus, x.reader, c.Notifications),
		journal.NewReader(x.bus, x.reader, c.Journal)
	return true, "", nil
}

// Store writes a checkpoint; bus.ErrConflict says that another process keeps the books now.
func (x *Books) Store(ctx context.Context, bucket *bus.Bucket) error {
	before := x.stored
	if before == nil {
		before = &checkpoint{}
	}
	c := &checkpoint{
		ID: uuid.New(), Slot: 1 - before.Slot, At: time.Now().UTC(), Counts: x.ledger.counts,
		Notifications: x.notifications.At(), Journal: x.journal.At(),
	}
	for raw := encodeLedger(x.ledger); len(raw) > 0; c.Pieces++ {
		piece := raw[:min(len(raw), pieceSize)]
		raw = raw[len(piece):]
		if _, err := bucket.Put(ctx, pieceKey(c.Slot, c.Pieces), append(c.ID[:], piece...)); err != nil {
			return err
		}
	}
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the checkpoint of the books: %w", err)
	}
	if before.revision == 0 {
		c.revision, err = bucket.Create(ctx, keyCheckpoint, body)
	} else {
		c.revision, err = bucket.Update(ctx, keyCheckpoint, body, before.revision)
	}
	if err != nil {
		return err
	}
	x.stored = c
	for n := c.Pieces; n < x.pieces[c.Slot]; n++ {
		if err := bucket.Delete(ctx, pieceKey(c.Slot, n), 0); err != nil {
			return err
		}
	}
	x.pieces[c.Slot] = c.Pieces
	return nil
}

// ledgerVersion is the form in which open sends are stored. The first had no sizes.
const ledgerVersion = 2

func encodeLedger(l *ledger) []byte {
	number := binary.AppendUvarint
	b := number(make([]byte, 0, 64+48*len(l.open)), ledgerVersion)
	b = number(b, uint64(len(l.owners)))
	for _, o := range l.owners {
		for _, s := range []string{o.account, o.webhook} {
			b = append(number(b, uint64(len(s))), s...)
		}
	}
	b = number(b, uint64(len(l.open)))
	for k, e := range l.open {
		b = append(b, k.id[:]...)
		for _, v := range []uint64{
			uint64(k.send), uint64(e.owner), uint64(e.changed), uint64(e.next), uint64(e.state),
			e.seq, e.journal, uint64(e.size),
		} {
			b = number(b, v)
		}
	}
	return b
}

var errBroken = errors.New("the checkpoint of the books is broken")

func decodeLedger(b []byte) (*ledger, error) {
	broken := false
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			broken, b = true, nil
			return 0
		}
		b = b[n:]
		return v
	}
	take := func(n uint64) []byte {
		if n > uint64(len(b)) {
			broken, b = true, nil
			return nil
		}
		s := b[:n]
		b = b[n:]
		return s
	}
	small := func() uint32 {
		v := number()
		broken = broken || v > 1<<32-1
		return uint32(v) //nolint:gosec // checked
	}
	version := number()
	if version < 1 || version > ledgerVersion {
		return nil, errBroken
	}
	l := newLedger()
	for range number() {
		account := string(take(number()))
		webhook := string(take(number()))
		if broken {
			return nil, errBroken
		}
		l.owner(account, webhook)
	}
	for range number() {
		var k key
		copy(k.id[:], take(uint64(len(k.id))))
		k.send = small()
		e := entry{owner: small(), changed: small(), next: small(), state: state(small()), seq: number(), journal: number()} //nolint:gosec // checked below
		if version > 1 {
			e.size = small()
		}
		if broken || int(e.owner) >= len(l.owners) || int(e.state) >= len(states) {
			return nil, errBroken
		}
		l.put(k, e)
	}
	if broken || len(b) > 0 {
		return nil, errBroken
	}
	return l, nil
}

// ReadReport returns the latest report that was stored, bus.ErrNotFound when there is none.
func ReadReport(ctx context.Context, bucket *bus.Bucket) (*Report, error) {
	e, err := bucket.Get(ctx, keyReport)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return nil, fmt.Errorf("decode the report of the books: %w", err)
	}
	return &r, nil
}

func storeReport(ctx context.Context, bucket *bus.Bucket, r *Report) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the report of the books: %w", err)
	}
	_, err = bucket.Put(ctx, keyReport, body)
	return err
}
