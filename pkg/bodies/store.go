package bodies

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"gancho/pkg/bus"
	"gancho/pkg/event"
	"gancho/pkg/notification"
	"gancho/pkg/share"
	"gancho/pkg/topology"
)

const (
	// storeWithin is how long storing a body may take. After that the notifications carry it.
	storeWithin = 10 * time.Second
	// countEvery is how old the count of an account's bytes on BODIES may be.
	countEvery = 5 * time.Second
	// mostCounted is how many accounts' counts are kept.
	mostCounted = 4096
)

// Lasts is how long after it was stored a body may be referred to for the first time: the sweeper looks more seldom.
const Lasts = time.Minute

// ErrShare says that an account has its share of BODIES.
var ErrShare = errors.New("the account has its share of BODIES")

// Store stores bodies within the shares of their accounts. It is safe for concurrent use.
type Store struct {
	bus   *bus.Bus
	meter *share.Meter
	limit int64 // bytes of BODIES; 0: none

	mu   sync.Mutex
	held map[string]held
}

// held is how many bytes an account has on BODIES.
type held struct {
	bytes int64
	at    time.Time
}

// NewStore returns a store. limit is how many bytes BODIES may hold, 0: no limit.
func NewStore(b *bus.Bus, meter *share.Meter, limit int64) *Store {
	return &Store{bus: b, meter: meter, limit: limit, held: map[string]held{}}
}

// Put stores the event's body and returns the reference to it. After an error it may be stored or not; nothing must
// refer to it then.
func (s *Store) Put(ctx context.Context, e *event.Event) (*notification.Reference, error) {
	ctx, cancel := context.WithTimeout(ctx, storeWithin)
	defer cancel()
	ref := notification.Refer(e.Body)
	size := int64(len(e.Body)) + share.Overhead
	if err := s.admit(ctx, e.Account, size); err != nil {
		return nil, err
	}
	// An id of this call alone: a body that was removed must not be taken for one that is there.
	m := bus.NewMessage(ref.Subject(e.Account, e.ID), uuid.NewString(), e.Body)
	m.Header[notification.HeaderAccount] = []string{e.Account}
	m.Header[headerEventName] = []string{e.Name}
	m.Header[headerEventID] = []string{e.ID}
	if err := s.bus.Offer(topology.Bodies, m).Wait(ctx); err != nil {
		return nil, err
	}
	return ref, nil
}

// Headers of a body's message, for erasures.
const (
	headerEventName = "Gancho-Event-Name"
	headerEventID   = "Gancho-Event-Id"
)

// Event returns the event that a message on BODIES has the bytes of, as far as these say, and its id.
func Event(raw *bus.Stored) (event.Message, string) {
	return event.Message{
		Subject: event.Subject(raw.Header.Get(notification.HeaderAccount), raw.Header.Get(headerEventName)),
		Header:  func(string) string { return "" }, Body: raw.Data,
	}, raw.Header.Get(headerEventID)
}

// admit counts size bytes more for the account, and returns ErrShare where these are above its share.
func (s *Store) admit(ctx context.Context, account string, size int64) error {
	if s.limit == 0 {
		return nil
	}
	s.mu.Lock()
	h, known := s.held[account]
	s.mu.Unlock()
	if !known || time.Since(h.at) > countEvery {
		subjects, err := s.bus.Subjects(ctx, topology.Bodies, topology.SubjectBody(account, "*", "*", "*"))
		if err != nil {
			return fmt.Errorf("count BODIES: %w", err)
		}
		h = held{at: time.Now()}
		for subject, n := range subjects {
			h.bytes += (lengthOf(subject) + share.Overhead) * int64(n) //nolint:gosec // a count
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.held[account]; ok && !now.at.Before(h.at) { // others were admitted meanwhile
		h = now
	}
	if h.bytes > 0 && h.bytes+size > s.meter.Part(account, s.limit) {
		s.held[account] = h
		return ErrShare
	}
	h.bytes += size
	if len(s.held) >= mostCounted {
		clear(s.held)
	}
	s.held[account] = h
	return nil
}

// lengthOf returns the length of the body on a subject of BODIES.
func lengthOf(subject string) int64 {
	n, _ := strconv.ParseInt(subject[strings.LastIndexByte(subject, '.')+1:], 10, 64)
	return n
}
