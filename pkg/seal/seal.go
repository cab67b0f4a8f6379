package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	version  = "v1"
	keyBytes = 32
	maxID    = 64
)

// Keyring seals with its first key and opens with all. It is immutable and safe for concurrent use.
type Keyring struct {
	keys []key // the first seals
}

type key struct {
	id   string
	raw  [keyBytes]byte
	aead cipher.AEAD
}

func newKey(id string, raw []byte) (key, error) {
	k := key{id: id}
	copy(k.raw[:], raw)
	block, err := aes.NewCipher(raw)
	if err != nil {
		return key{}, err
	}
	k.aead, err = cipher.NewGCMWithRandomNonce(block)
	return k, err
}

// Load reads a key file. The warnings are for the log: they concern the file, not its content. No error
// or warning repeats key material.
func Load(path string) (ring *Keyring, warnings []string, err error) {
	if path == "" {
		return nil, nil, errors.New("ENCRYPTION_KEY_FILE: not set; give a file with lines <key id>:<base64 of 32 bytes>")
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("ENCRYPTION_KEY_FILE: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		warnings = append(warnings, fmt.Sprintf("ENCRYPTION_KEY_FILE: %s may be used by everyone on this machine "+
			"(mode %04o); run chmod 600 on it", path, info.Mode().Perm()))
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, warnings, fmt.Errorf("ENCRYPTION_KEY_FILE: %w", err)
	}
	ring, err = parse(text)
	if err != nil {
		return nil, warnings, fmt.Errorf("ENCRYPTION_KEY_FILE: %s: %w", path, err)
	}
	return ring, warnings, nil
}

// parse reports every bad line.
func parse(text []byte) (*Keyring, error) {
	var ring Keyring
	var problems []error
	seen := make(map[string]int)
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		n := i + 1
		id, encoded, ok := strings.Cut(line, ":")
		if !ok {
			problems = append(problems, fmt.Errorf("line %d has no colon; write <key id>:<base64 of 32 bytes>", n))
			continue
		}
		id, encoded = strings.TrimSpace(id), strings.TrimSpace(encoded)
		raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
		switch first := seen[id]; {
		case !validID(id):
			problems = append(problems, fmt.Errorf("line %d has a bad key id; use 1 to %d of A-Z a-z 0-9 _ -", n,
				maxID))
		case first != 0:
			problems = append(problems, fmt.Errorf("line %d has the key id %q of line %d again; every key needs its own", n, id, first))
		case err != nil:
			problems = append(problems, fmt.Errorf("line %d (key id %q) is not base64; "+
				"make a key with: openssl rand -base64 32", n, id))
		case len(raw) != keyBytes:
			problems = append(problems, fmt.Errorf("line %d (key id %q) has a key of %d bytes; it must have %d, as "+
				"from: openssl rand -base64 32", n, id, len(raw), keyBytes))
		default:
			k, err := newKey(id, raw)
			if err != nil {
				problems = append(problems, fmt.Errorf("line %d (key id %q): %w", n, id, err))
				continue
			}
			seen[id] = n
			ring.keys = append(ring.keys, k)
		}
	}
	if len(problems) == 0 && len(ring.keys) == 0 {
		problems = append(problems, errors.New("the file holds no key; write a line <key id>:<base64 of 32 bytes>"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return &ring, nil
}

// validID keeps ids out of the way of the sealed form's dots and the file's colons.
func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		if c := id[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// New returns a keyring with one random key, named after the current date and time (UTC).
func New() *Keyring {
	raw := make([]byte, keyBytes)
	_, _ = rand.Read(raw) // never fails: the program ends when the system has no randomness
	k, err := newKey(time.Now().UTC().Format("20060102-150405"), raw)
	if err != nil {
		panic(err) // 32 bytes are always an AES key
	}
	return &Keyring{keys: []key{k}}
}

// Write stores the keyring in a new file that only its owner may read, durably and all or nothing. It
// never overwrites: values sealed under a lost key are lost.
func (r *Keyring) Write(path string) error {
	var text bytes.Buffer
	text.WriteString("# Keys for secrets at rest: <key id>:<base64 of 32 bytes>. The first " +
		"seals, all open. Back this file up.\n")
	for i := range r.keys {
		text.WriteString(r.keys[i].line())
	}
	// Link, unlike Rename, fails when path exists.
	return store(path, text.Bytes(), os.Link)
}

func (k *key) line() string { return k.id + ":" + base64.StdEncoding.EncodeToString(k.raw[:]) + "\n" }

// Add puts a new random key first in the key file at path, so that it seals from the next start on, and
// returns its id. The previous lines of the file stay behind it. The file is replaced all or nothing.
func Add(path string) (id string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read key file: %w", err)
	}
	fresh := New().keys[0]
	text = append([]byte(fresh.line()), bytes.TrimPrefix(text, []byte("\ufeff"))...)
	if _, err := parse(text); err != nil {
		return "", fmt.Errorf("key file %s with a new first line: %w", path, err)
	}
	return fresh.id, store(path, text, os.Rename)
}

// Remove takes the key with that id out of the key file at path. The first one stays: it seals. Values
// still sealed under the removed key do not open any more. The file is replaced all or nothing.
func Remove(path, id string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read key file: %w", err)
	}
	ring, err := parse(text)
	if err != nil {
		return fmt.Errorf("key file %s: %w", path, err)
	}
	if ring.Current() == id {
		return fmt.Errorf("key %q is the first in %s, which seals; add a new one before it is removed", id, path)
	}
	var kept bytes.Buffer
	found := false
	for line := range strings.Lines(string(text)) {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == id {
			found = true
			continue
		}
		kept.WriteString(line)
	}
	if !found {
		return fmt.Errorf("there is no key %q in %s", id, path)
	}
	return store(path, kept.Bytes(), os.Rename)
}

// store writes a file that only its owner may read, durably and all or nothing; place moves it from where
// it was written to path.
func store(path string, text []byte, place func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".keys-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	if err := place(f.Name(), path); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	return nil
}

// Missing returns ErrUnknownKey for the first of the ids whose key is not in the ring, nil when all are.
func (r *Keyring) Missing(ids []string) error {
	for _, id := range ids {
		if !slices.ContainsFunc(r.keys, func(k key) bool { return k.id == id }) {
			return fmt.Errorf("%w: %q", ErrUnknownKey, id)
		}
	}
	return nil
}

// Current is the id of the key that seals.
func (r *Keyring) Current() string { return r.keys[0].id }

// Derive returns a key of 32 bytes for another purpose than sealing. It is the same wherever the first key is,
// and says nothing about that.
func (r *Keyring) Derive(purpose string) []byte {
	mac := hmac.New(sha256.New, r.keys[0].raw[:])
	mac.Write([]byte("gancho\x00" + purpose))
	return mac.Sum(nil)
}

// MAC authenticates data under the current key, in the sealed form's spelling: v1.<key id>.<base64url>. The key of
// each purpose is derived from the one in the file by HKDF, so that neither says anything about the other.
func (r *Keyring) MAC(purpose string, data []byte) string {
	k := &r.keys[0]
	return version + "." + k.id + "." + base64.RawURLEncoding.EncodeToString(k.mac(purpose, data))
}

// Verify compares mac with that of data, in constant time. ErrUnknownKey: the key is not in the ring.
func (r *Keyring) Verify(purpose string, data []byte, mac string) error {
	id, encoded, err := split(mac)
	if err != nil {
		return err
	}
	for i := range r.keys {
		if r.keys[i].id != id {
			continue
		}
		want := base64.RawURLEncoding.EncodeToString(r.keys[i].mac(purpose, data))
		if !hmac.Equal([]byte(want), []byte(encoded)) {
			return fmt.Errorf("its MAC under key %q is not right", id)
		}
		return nil
	}
	return fmt.Errorf("%w: %q", ErrUnknownKey, id)
}

// ErrUnknownKey says that a key is not in ENCRYPTION_KEY_FILE.
var ErrUnknownKey = errors.New("its key is not in ENCRYPTION_KEY_FILE; add the line again")

func (k *key) mac(purpose string, data []byte) []byte {
	secret, err := hkdf.Key(sha256.New, k.raw[:], nil, "gancho mac v1: "+purpose, keyBytes)
	if err != nil {
		panic(err) // HKDF gives up to 255 hashes
	}
	m := hmac.New(sha256.New, secret)
	m.Write(data)
	return m.Sum(nil)
}

// Seal encrypts plaintext under the current key and binds it to context: Open needs the same context.
// Sealing the same value twice gives different texts.
func (r *Keyring) Seal(plaintext, context []byte) string {
	k := &r.keys[0]
	sealed := k.aead.Seal(nil, nil, plaintext, additional(k.id, context)) //nolint:gosec // this AEAD draws its own nonce and takes none
	return version + "." + k.id + "." + base64.RawURLEncoding.EncodeToString(sealed)
}

// Open returns what Seal was given. It fails when the value was changed, belongs to another context, or
// was sealed under a key that is not in the ring; the error holds neither the value nor key material.
func (r *Keyring) Open(sealed string, context []byte) ([]byte, error) {
	id, encoded, err := split(sealed)
	if err != nil {
		return nil, fmt.Errorf("open sealed value: %w", err)
	}
	// Strict: a text with other trailing bits is not another spelling of the same value.
	box, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || strings.ContainsAny(encoded, "\r\n") {
		return nil, errors.New("open sealed value: not base64")
	}
	for i := range r.keys {
		if r.keys[i].id != id {
			continue
		}
		plain, err := r.keys[i].aead.Open(nil, nil, box, additional(id, context))
		if err != nil {
			return nil, fmt.Errorf("open sealed value under key %q: it was changed, belongs elsewhere, "+
				"or the key is another one of that name", id)
		}
		return plain, nil
	}
	return nil, fmt.Errorf("open sealed value: %w: %q", ErrUnknownKey, id)
}

// KeyID returns the id of the key a value is sealed under.
func KeyID(sealed string) (string, error) {
	id, _, err := split(sealed)
	return id, err
}

func split(sealed string) (id, encoded string, err error) {
	v, rest, ok := strings.Cut(sealed, ".")
	if ok && v == version {
		if id, encoded, ok = strings.Cut(rest, "."); ok && validID(id) {
			return id, encoded, nil
		}
	}
	return "", "", errors.New("not of the form v1.<key id>.<base64>")
}

// additional is the data authenticated along with the value. No part before the context holds a dot, so no two
// inputs give the same bytes.
func additional(id string, context []byte) []byte {
	return append([]byte(version+"."+id+"."), context...)
}
