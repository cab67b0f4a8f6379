// Package latest remembers, for webhooks that skip stale notifications, the latest event of each document that they
// got.
//
// A dispatcher writes an event down once the receiver has accepted it and before the journal says so: an event that the
// journal has as delivered makes older ones stale from then on. A crash between the answer and the write lets an older
// one be sent once more; so does the loss of the bucket. Neither can leave out the last event of a document, because
// only an accepted one is ever written.
//
// Each account has a fixed number of places in the bucket, so that documents of one account push out only its own. A
// place is one key; it holds the newest events of those documents that a hash assigns to it.
package latest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/topology"
)

const (
	// places is how many an account has, and perPlace how many documents each holds: 65,536 in all, about 3 MB.
	places, perPlace = 4096, 16
	// format begins every value.
	format = 1
	// entryBytes is the size of an entry: the hash of its document, the event's id, sequence and time.
	entryBytes = 16 + 16 + 8 + 8
	// within bounds a call.
	within = 5 * time.Second
	// fresh bounds the age of an answer: one that comes later is asked for again, because a newer event may have been
	// delivered meanwhile.
	fresh = 500 * time.Millisecond
)

// Store is the bucket LATEST. It is safe for concurrent use.
type Store struct{ bucket *bus.Bucket }

// Open returns the store, waiting until its bucket exists.
func Open(ctx context.Context, b *bus.Bus) (*Store, error) {
	bucket, err := b.Bucket(ctx, topology.BucketLatest)
	return &Store{bucket}, err
}

// document is the hash of a webhook's document: its kind and its id.
type document [16]byte

type entry struct {
	document document
	place    notification.Place
}

// documentOf returns the document that n is about, false when its event names none or has no place among others.
func documentOf(n *notification.Notification) (document, bool) {
	id := event.DocumentOf(n.Body)
	if id == "" || n.EventSequence == 0 {
		return document{}, false
	}
	sum := sha256.Sum256([]byte(n.WebhookID + "/" + event.Entity(n.EventName) + "/" + id))
	return document(sum[:16]), true
}

func (d document) key(account string) string {
	return account + "." + strconv.Itoa(int(binary.BigEndian.Uint16(d[:]))%places)
}

// Newest returns the latest delivered event of the document that n is about, the zero Place when none is known. The
// answer is at most half a second old. Without one within 5 s there is an error.
func (s *Store) Newest(ctx context.Context, n *notification.Notification) (notification.Place, error) {
	d, ok := documentOf(n)
	if !ok {
		return notification.Place{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	entries, err := s.readFresh(ctx, d.key(n.Account))
	if err != nil {
		return notification.Place{}, err
	}
	if at := find(entries, d); at >= 0 {
		return entries[at].place, nil
	}
	return notification.Place{}, nil
}

// Delivered writes down that n was delivered, unless a later event of its document was. Doing it again changes nothing.
func (s *Store) Delivered(ctx context.Context, n *notification.Notification) error {
	d, ok := documentOf(n)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		entries, revision, err := s.read(ctx, d.key(n.Account))
		if err != nil {
			return err
		}
		next := entry{d, n.Place()}
		if at := find(entries, d); at >= 0 {
			if !next.place.Time.After(entries[at].place.Time) {
				return nil
			}
			entries = slices.Delete(entries, at, at+1)
		}
		entries = append(entries, next)
		slices.SortFunc(entries, func(a, b entry) int { return b.place.Time.Compare(a.place.Time) })
		value := encode(entries[:min(len(entries), perPlace)])
		if revision == 0 {
			_, err = s.bucket.Create(ctx, d.key(n.Account), value)
		} else {
			_, err = s.bucket.Update(ctx, d.key(n.Account), value, revision)
		}
		if !errors.Is(err, bus.ErrConflict) { // another document of the place came first
			return err
		}
	}
}

// readFresh returns the entries of a place as they were at most half a second ago.
func (s *Store) readFresh(ctx context.Context, key string) ([]entry, error) {
	for {
		soon, cancel := context.WithTimeout(ctx, fresh)
		entries, _, err := s.read(soon, key)
		late := soon.Err() != nil
		cancel()
		if !late {
			return entries, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// read returns the entries of a place. One in another format has none, and is written over.
func (s *Store) read(ctx context.Context, key string) ([]entry, uint64, error) {
	e, err := s.bucket.Get(ctx, key)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the latest events: %w", err)
	}
	return decode(e.Value), e.Revision, nil
}

func find(entries []entry, d document) int {
	return slices.IndexFunc(entries, func(e entry) bool { return e.document == d })
}

func encode(entries []entry) []byte {
	b := []byte{format}
	for _, e := range entries {
		id, _ := uuid.Parse(e.place.EventID) // event ids are UUIDs
		b = append(append(b, e.document[:]...), id[:]...)
		b = binary.BigEndian.AppendUint64(b, e.place.Sequence)
		b = binary.BigEndian.AppendUint64(b, uint64(e.place.Time.UnixNano()))
	}
	return b
}

func decode(b []byte) []entry {
	if len(b) == 0 || b[0] != format {
		return nil
	}
	var entries []entry
	for one := range slices.Chunk(b[1:], entryBytes) {
		if len(one) < entryBytes {
			break
		}
		entries = append(entries, entry{document(one[:16]), notification.Place{
			EventID: uuid.UUID(one[16:32]).String(), Sequence: binary.BigEndian.Uint64(one[32:40]),
			Time: time.Unix(0, int64(binary.BigEndian.Uint64(one[40:48]))), //nolint:gosec // as it was written
		}})
	}
	return entries
}
