// Package idempotency answers a request that a client repeats under the same key with the answer of the first.
//
// A key belongs to one account and one request: method, path, query and body. Of requests with one key at the same
// time one runs and the others wait for its answer. Answers are kept for 24 h, sealed, because some hold a secret.
// A request that failed leaves no trace: it can be repeated, or put right, under its key. After a crash in the middle
// of a request its key is free again within staleAfter.
package idempotency

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/seal"
	"gancho/services/management/internal/problem"
)

const (
	// staleAfter is longer than any request may take.
	staleAfter = time.Minute
	// lookEvery is how often a request looks for the answer of the one that runs.
	lookEvery = 100 * time.Millisecond
)

// MaxKeyBytes bounds a key.
const MaxKeyBytes = 255

// Answer is kept and given again.
type Answer struct {
	Status int               `json:"status"`
	Header map[string]string `json:"header,omitempty"`
	Body   []byte            `json:"body,omitempty"`
}

// Request is one that a client may repeat.
type Request struct {
	Account, Key string
	// Fingerprint distinguishes requests: a hash of everything that decides the effect of a request.
	Fingerprint [sha256.Size]byte
}

// record is the stored form of a request.
type record struct {
	Fingerprint string    `json:"fingerprint"`
	At          time.Time `json:"at"`
	Sealed      string    `json:"answer,omitempty"` // empty while the request runs
}

// Store keeps answers in a bucket whose keys live 24 h. It is safe for concurrent use.
type Store struct {
	bucket *bus.Bucket
	keys   *seal.Keyring
	log    *zap.Logger
}

// New returns a store on the bucket, which seals answers with keys.
func New(bucket *bus.Bucket, keys *seal.Keyring, log *zap.Logger) *Store {
	return &Store{bucket, keys, log.Named("idempotency")}
}

// Do returns the answer kept for the request, and true, or runs it and keeps its answer when there is no error. The
// error is a problem: of kind Conflict when the key was used for another request or its first one still runs.
func (s *Store) Do(ctx context.Context, r Request, run func() (Answer, error)) (Answer, bool, error) {
	sum := sha256.Sum256([]byte(r.Key))
	key := r.Account + "." + hex.EncodeToString(sum[:16])
	revision, kept, err := s.begin(ctx, key, r)
	if err != nil || kept != nil {
		if kept == nil {
			kept = &Answer{}
		}
		return *kept, err == nil, err
	}
	answer, err := run()
	// The outcome is kept even when the client has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err != nil {
		if err := s.bucket.Delete(ctx, key, revision); err != nil {
			s.log.Warn("the key of a request that failed stays taken for a minute", zap.Error(err))
		}
		return Answer{}, false, err
	}
	sealed, err := s.seal(answer, key)
	if err == nil {
		err = s.write(ctx, key, record{hex.EncodeToString(r.Fingerprint[:]), time.Now().UTC(), sealed}, revision)
	}
	if err != nil {
		s.log.Warn("the answer to a request is not kept: under its key it would run again", zap.Error(err))
	}
	return answer, false, nil
}

// begin takes the key for the request and returns its revision, or returns the answer that is kept for it.
func (s *Store) begin(ctx context.Context, key string, r Request) (uint64, *Answer, error) {
	fingerprint := hex.EncodeToString(r.Fingerprint[:])
	for {
		now := time.Now().UTC()
		value, err := json.Marshal(record{fingerprint, now, ""})
		if err != nil {
			return 0, nil, fmt.Errorf("encode the record of a request: %w", err)
		}
		revision, err := s.bucket.Create(ctx, key, value)
		if !errors.Is(err, bus.ErrConflict) {
			return revision, nil, problem.Broker(err)
		}
		e, err := s.bucket.Get(ctx, key)
		if errors.Is(err, bus.ErrNotFound) {
			continue // its request has failed
		}
		if err != nil {
			return 0, nil, problem.Broker(err)
		}
		var held record
		if err := json.Unmarshal(e.Value, &held); err != nil {
			return 0, nil, fmt.Errorf("decode the record of a request: %w", err)
		}
		switch {
		case held.Fingerprint != fingerprint:
			return 0, nil, problem.New(problem.Conflict, "idempotency_key_reused",
				"this Idempotency-Key was used for another request in the last 24 hours; take a new one")
		case held.Sealed != "":
			answer, err := s.open(held.Sealed, key)
			return 0, answer, err
		case now.Sub(held.At) > staleAfter:
			revision, err := s.bucket.Update(ctx, key, value, e.Revision)
			if !errors.Is(err, bus.ErrConflict) {
				return revision, nil, problem.Broker(err)
			}
		}
		wait := time.NewTimer(lookEvery)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			e := problem.New(problem.Conflict, "idempotency_key_in_use",
				"the first request with this Idempotency-Key has not been answered yet; try again")
			e.RetryAfter = time.Second
			return 0, nil, e
		}
	}
}

func (s *Store) write(ctx context.Context, key string, r record, revision uint64) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = s.bucket.Update(ctx, key, value, revision)
	return err
}

func (s *Store) seal(a Answer, key string) (string, error) {
	plain, err := json.Marshal(a)
	if err != nil {
		return "", err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(plain); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	return s.keys.Seal(packed.Bytes(), sealContext(key)), nil
}

func (s *Store) open(sealed, key string) (*Answer, error) {
	packed, err := s.keys.Open(sealed, sealContext(key))
	if err != nil {
		return nil, fmt.Errorf("open a kept answer: %w", err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("read a kept answer: %w", err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read a kept answer: %w", err)
	}
	var a Answer
	if err := json.Unmarshal(plain, &a); err != nil {
		return nil, fmt.Errorf("decode a kept answer: %w", err)
	}
	return &a, nil
}

// sealContext binds a sealed answer to its key.
func sealContext(key string) []byte { return []byte("idempotency/" + key) }
