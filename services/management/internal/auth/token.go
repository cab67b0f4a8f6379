package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"gancho/pkg/tokens"
)

// Tokens are the configured ones, those of a file read again when it changes. They are kept only as keyed
// hashes. It is safe for concurrent use.
type Tokens struct {
	key    [32]byte // random, of this process
	names  []byte   // key of the tokens' names
	inline string   // API_TOKENS
	path   string   // API_TOKENS_FILE

	set     atomic.Pointer[set]
	trouble atomic.Pointer[string] // with the file

	mu   sync.Mutex
	text string               // of the file, as it was read last
	next chan struct{}        // closed by the next change
	used map[string]time.Time // since it was recorded
}

// set is one reading of the tokens. It is immutable.
type set struct {
	callers map[place][]held
	names   map[string]bool
	count   int
	short   int
}

// digest is the keyed hash of a token; the zero value stands for none.
type digest [sha256.Size]byte

// place is where a token is looked up: the first bytes of its hash. Two tokens may share one.
type place [8]byte

type held struct {
	hash   digest
	caller Caller
}

// OpenTokens reads the tokens in the texts of API_TOKENS and of the file at path, which is API_TOKENS_FILE; both may
// be "". names is a secret key: under the same one a token has the same name in the logs of every process, and
// a reader of the logs without it cannot try tokens against a name.
func OpenTokens(names []byte, inline, path string) (*Tokens, error) {
	t := &Tokens{names: names, inline: inline, path: path, next: make(chan struct{}), used: map[string]time.Time{}}
	_, _ = rand.Read(t.key[:]) // never fails: the program ends when the system has no randomness
	text, err := t.readFile()
	if err != nil {
		return nil, err
	}
	s, err := t.parse(text)
	if err != nil {
		return nil, err
	}
	t.text = text
	t.set.Store(s)
	return t, nil
}

func (t *Tokens) readFile() (string, error) {
	if t.path == "" {
		return "", nil
	}
	text, err := os.ReadFile(t.path)
	if err != nil {
		return "", fmt.Errorf("API_TOKENS_FILE: %w", err)
	}
	return string(text), nil
}

// parse reports every bad entry, each line beginning with the variable's name.
func (t *Tokens) parse(file string) (*set, error) {
	s := &set{callers: map[place][]held{}, names: map[string]bool{}}
	var errs []error
	for _, source := range []struct{ variable, text string }{{"API_TOKENS", t.inline}, {"API_TOKENS_FILE", file}} {
		entries, err := tokens.Parse(source.text)
		for _, e := range entries {
			h := t.hash(e.Token)
			if _, twice := s.find(h); twice {
				err = errors.Join(err, fmt.Errorf("entry %d has the token of another entry; every token belongs to one account", e.Number))
				continue
			}
			c := t.caller(e, h)
			s.callers[place(h[:])] = append(s.callers[place(h[:])], held{h, c})
			s.names[c.Name] = true
			s.count++
			if len(e.Token) < tokens.ShortLength {
				s.short++
			}
		}
		if err != nil {
			errs = append(errs, prefixed(source.variable, err))
		}
	}
	return s, errors.Join(errs...)
}

func (t *Tokens) caller(e tokens.Entry, h digest) Caller {
	c := Caller{Account: e.Account, Kind: KindToken, Name: tokens.Name(t.names, e.Token), ReadOnly: e.ReadOnly, token: h, limit: "token " + hex.EncodeToString(h[:])}
	if e.Account == tokens.Operator {
		c.Account, c.Kind, c.Operator = "", KindOperator, true
	}
	return c
}

// prefixed begins each line of an error with a variable's name.
func prefixed(variable string, err error) error {
	joined, many := err.(interface{ Unwrap() []error })
	if !many {
		return fmt.Errorf("%s: %w", variable, err)
	}
	var errs []error
	for _, e := range joined.Unwrap() {
		errs = append(errs, prefixed(variable, e))
	}
	return errors.Join(errs...)
}

// lookEvery is how often the file is read. It is small, and a watch of the file system misses a change where the
// file is mounted or linked.
const lookEvery = time.Second

// Watch reads the file again every second, and at once after each value of again, until ctx ends. A file that
// cannot be used leaves the tokens as they are, with one line in the log for each new cause.
func (t *Tokens) Watch(ctx context.Context, again <-chan os.Signal, log *zap.Logger) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	logged := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-again:
			log.Info("reading API_TOKENS_FILE again, as SIGHUP asked")
		case <-tick.C:
		}
		changed, err := t.reload()
		switch {
		case err != nil && err.Error() != logged:
			logged = err.Error()
			log.Error("the tokens stay as they were: the file cannot be used", zap.Error(err))
		case err == nil && (changed || logged != ""):
			logged = ""
			log.Info("tokens read again", zap.Int("tokens", t.Len()))
		}
	}
}

// reload reads the file and reports whether the tokens are other ones. After an error they stay as they are.
func (t *Tokens) reload() (changed bool, err error) {
	defer func() {
		if err == nil {
			t.trouble.Store(nil)
			return
		}
		text := err.Error()
		t.trouble.Store(&text)
	}()
	text, err := t.readFile()
	if err != nil {
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if text == t.text {
		return false, nil
	}
	s, err := t.parse(text)
	if err != nil {
		return false, err
	}
	t.text = text
	t.set.Store(s)
	close(t.next)
	t.next = make(chan struct{})
	return true, nil
}

// State returns "" while the file can be used, else the problem.
func (t *Tokens) State() string {
	if text := t.trouble.Load(); text != nil {
		return *text
	}
	return ""
}

// changed returns a channel that the next change closes.
func (t *Tokens) changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next
}

// keepEvery is how often the use of tokens is recorded.
const keepEvery = 10 * time.Second

// KeepUse records in Redis when tokens were used, every 10 s and once more when ctx ends, for gancho tokens list.
// What Redis does not take now it gets later.
func (t *Tokens) KeepUse(ctx context.Context, client redis.UniversalClient) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case <-tick.C:
		}
		used := t.takeUsed()
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		if tokens.WriteUse(limited, client, used) != nil {
			t.putBack(used)
		}
		cancel()
	}
}

func (t *Tokens) takeUsed() map[string]time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	used := t.used
	t.used = map[string]time.Time{}
	return used
}

// putBack keeps the times of use that were taken, unless a token was used again since.
func (t *Tokens) putBack(used map[string]time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, at := range used {
		if _, again := t.used[name]; !again {
			t.used[name] = at
		}
	}
}

// hash is keyed with a secret of this process, so the duration of a look-up says nothing about tokens.
func (t *Tokens) hash(token string) (out digest) {
	mac := hmac.New(sha256.New, t.key[:])
	mac.Write([]byte(token))
	mac.Sum(out[:0])
	return out
}

// find returns whose the token is.
func (t *Tokens) find(token string) (Caller, bool) {
	c, ok := t.set.Load().find(t.hash(token))
	if ok {
		t.mu.Lock()
		t.used[c.Name] = time.Now()
		t.mu.Unlock()
	}
	return c, ok
}

// find looks a hash up. Where it looks depends on a keyed hash, whose bits a client cannot choose; a token is good
// when the whole hashes are equal, compared in constant time. So a near miss takes as long as a far one, however
// many tokens there are.
func (s *set) find(h digest) (Caller, bool) {
	for _, e := range s.callers[place(h[:])] {
		if subtle.ConstantTimeCompare(h[:], e.hash[:]) == 1 {
			return e.caller, true
		}
	}
	return Caller{}, false
}

func (t *Tokens) holds(h digest) bool {
	_, ok := t.set.Load().find(h)
	return ok
}

// knows reports whether a token has that public name.
func (t *Tokens) knows(name string) bool { return t.set.Load().names[name] }

// Short is the number of tokens so short that they may be guessed.
func (t *Tokens) Short() int { return t.set.Load().short }

// Len is the number of tokens.
func (t *Tokens) Len() int { return t.set.Load().count }
