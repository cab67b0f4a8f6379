package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"gancho/pkg/event"
)

// Operator is the account name of a token that may act for every account.
const Operator = "*"

// Grant is what a token may do.
type Grant struct {
	Account  string // Operator for all
	ReadOnly bool
	// Name tells grants apart in logs and evidence. It reveals nothing of the token.
	Name string
}

// Tokens are the configured ones. They are kept only as keyed hashes.
type Tokens struct {
	key    [32]byte // random, of this process
	names  []byte   // key of the tokens' names
	grants map[place][]held
	count  int
	short  int
}

// place is where a token is looked up: the first bytes of its hash. Two tokens may share one.
type place [8]byte

type held struct {
	hash  [sha256.Size]byte
	grant Grant
}

// NewTokens returns an empty set. names is a secret key: under the same one a token has the same name in the
// logs of every process, and nobody without it can try tokens against a name.
func NewTokens(names []byte) *Tokens {
	t := &Tokens{names: names, grants: map[place][]held{}}
	_, _ = rand.Read(t.key[:]) // never fails: the program ends when the system has no randomness
	return t
}

// Add reads <account_id>:<token>[:read], separated by commas or line breaks; account * is an operator; lines
// that begin with # are comments. The error names every bad entry by its place, never by its token, and
// begins each line with the variable's name. Add must not be called once the set is in use.
func (t *Tokens) Add(variable, text string) error {
	var problems []error
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for entry := range strings.SplitSeq(line, ",") {
			if entry = strings.TrimSpace(entry); entry == "" {
				continue
			}
			n++
			if err := t.addOne(entry); err != nil {
				problems = append(problems, fmt.Errorf("%s: entry %d %w", variable, n, err))
			}
		}
	}
	return errors.Join(problems...)
}

func (t *Tokens) addOne(entry string) error {
	account, token, _ := strings.Cut(entry, ":")
	token, access, restricted := strings.Cut(token, ":")
	switch {
	case account != Operator && !event.ValidAccount(account):
		return errors.New("does not begin with an account id; write <account_id>:<token>, <account_id>:<token>:read, or *:<token> for an operator")
	case token == "":
		return errors.New("has no token; write <account_id>:<token>")
	case !wellFormed(token):
		return errors.New("has a token with characters that cannot be sent; use letters, digits and -._~+/=")
	case restricted && access != "read":
		return errors.New("ends in something else than :read, the only restriction there is")
	}
	if _, twice := t.find(token); twice {
		return errors.New("has the token of another entry; every token belongs to one account")
	}
	if len(token) < shortToken {
		t.short++
	}
	h := t.hash(token)
	t.grants[place(h[:])] = append(t.grants[place(h[:])], held{h, Grant{account, restricted, "token:" + t.fingerprint(token)}})
	t.count++
	return nil
}

// wellFormed accepts the characters of a Bearer token (RFC 6750, section 2.1).
func wellFormed(token string) bool {
	if token == "" || len(token) > 8192 {
		return false
	}
	for i := range len(token) {
		c := token[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~+/=", c) >= 0) {
			return false
		}
	}
	return true
}

// fingerprint names a token in logs.
func (t *Tokens) fingerprint(token string) string {
	mac := hmac.New(sha256.New, t.names)
	mac.Write([]byte(token))
	return hex.EncodeToString(mac.Sum(nil)[:4])
}

// hash is keyed with a secret of this process, so the time a look-up takes tells nothing about tokens.
func (t *Tokens) hash(token string) (out [sha256.Size]byte) {
	mac := hmac.New(sha256.New, t.key[:])
	mac.Write([]byte(token))
	mac.Sum(out[:0])
	return out
}

// find returns the token's grant. Where it is looked up depends on a keyed hash, whose bits a client cannot
// choose; whether it is the one is told by comparing whole hashes in constant time. So the duration is the same
// for a near miss as for a far one, however many tokens there are.
func (t *Tokens) find(token string) (Grant, bool) {
	h := t.hash(token)
	for _, e := range t.grants[place(h[:])] {
		if subtle.ConstantTimeCompare(h[:], e.hash[:]) == 1 {
			return e.grant, true
		}
	}
	return Grant{}, false
}

// shortToken is below how many characters a token is thought to be guessable.
const shortToken = 16

// Short is the number of tokens so short that they may be guessed.
func (t *Tokens) Short() int { return t.short }

// Len is the number of tokens.
func (t *Tokens) Len() int { return t.count }
