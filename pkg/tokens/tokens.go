// Package tokens is the format of the API's tokens in API_TOKENS and API_TOKENS_FILE: entries of
// <account_id>:<token>, separated by commas or line breaks. <account_id>:<token>:read may only read, and the account
// * is an operator's. Lines that begin with # are comments.
package tokens

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gancho/pkg/event"
)

// Operator is the account of a token that may act for every account.
const Operator = "*"

// ShortLength is the length below which a token counts as guessable, in characters.
const ShortLength = 16

// Entry is one token.
type Entry struct {
	Account  string // Operator for all
	Token    string
	ReadOnly bool
	Number   int // its place in the text, from 1
}

// Parse returns the good entries of a text, in order. The error names every bad one by its place, never by its
// token.
func Parse(text string) ([]Entry, error) {
	var entries []Entry
	var errs []error
	n := 0
	for line := range strings.SplitSeq(strings.TrimPrefix(text, "\ufeff"), "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for part := range strings.SplitSeq(line, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			n++
			e, err := parseEntry(part)
			if err != nil {
				errs = append(errs, fmt.Errorf("entry %d %w", n, err))
				continue
			}
			e.Number = n
			entries = append(entries, e)
		}
	}
	return entries, errors.Join(errs...)
}

func parseEntry(text string) (Entry, error) {
	account, token, _ := strings.Cut(text, ":")
	token, access, restricted := strings.Cut(token, ":")
	switch {
	case account != Operator && !event.ValidAccount(account):
		return Entry{}, errors.New("does not begin with an account id; write <account_id>:<token>, " +
			"<account_id>:<token>:read, or *:<token> for an operator")
	case token == "":
		return Entry{}, errors.New("has no token; write <account_id>:<token>")
	case !wellFormed(token):
		return Entry{}, errors.New("has a token with characters that cannot be sent; use letters, digits and -._~+/=")
	case restricted && access != "read":
		return Entry{}, errors.New("ends in something else than :read, the only restriction there is")
	}
	return Entry{Account: account, Token: token, ReadOnly: restricted}, nil
}

// wellFormed accepts the characters of a Bearer token (RFC 6750, section 2.1).
func wellFormed(token string) bool {
	if token == "" || len(token) > 8192 {
		return false
	}
	for i := range len(token) {
		c := token[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			strings.IndexByte("-._~+/=", c) >= 0) {
			return false
		}
	}
	return true
}

// Purpose is that of the key of tokens' names, for seal.Keyring.Derive.
const Purpose = "names of API tokens"

// Name is the public name of a token, tok_<8 hex>. It depends on the key, so that tokens cannot be tried against it
// without the key.
func Name(key []byte, token string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(token))
	return "tok_" + hex.EncodeToString(mac.Sum(nil)[:4])
}

// Add puts a new random token for the account at the end of the file, which is made when it is missing, and
// returns it. account is Operator for an operator's.
func Add(path, account string, readOnly bool) (Entry, error) {
	e := Entry{Account: account, Token: strings.ToLower(rand.Text() + rand.Text()), ReadOnly: readOnly}
	if account != Operator && !event.ValidAccount(account) {
		return Entry{}, errors.New("the account is not an account id: 1 to 64 characters " +
			"of A-Z a-z 0-9 _ -, or * for an operator")
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Entry{}, fmt.Errorf("read tokens: %w", err)
	}
	if _, err := Parse(string(text)); err != nil {
		return Entry{}, fmt.Errorf("%s: %w", path, err)
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	line := account + ":" + e.Token
	if readOnly {
		line += ":read"
	}
	return e, write(path, append(text, line+"\n"...))
}

// Remove takes the token with that name out of the file, and returns its account. key is that of the names.
func Remove(path, name string, key []byte) (account string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read tokens: %w", err)
	}
	var kept strings.Builder
	found := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			kept.WriteString(line)
			continue
		}
		var left []string
		for part := range strings.SplitSeq(strings.TrimSuffix(line, "\n"), ",") {
			if e, err := parseEntry(strings.TrimSpace(part)); err == nil && Name(key, e.Token) == name {
				account = e.Account
				found++
				continue
			}
			left = append(left, part)
		}
		if rest := strings.Join(left, ","); strings.TrimSpace(rest) != "" || strings.TrimSpace(line) == "" {
			kept.WriteString(rest + "\n")
		}
	}
	switch {
	case found == 0:
		return "", fmt.Errorf("there is no token %s in %s; gancho tokens list shows them", name, path)
	case found > 1:
		return "", fmt.Errorf("%d tokens in %s are called %s; take the line out by hand", found, path, name)
	}
	return account, write(path, []byte(kept.String()))
}

// write replaces the file all or nothing, with the owner and the mode that it had: a service that runs as another
// user goes on reading it. Where the folder cannot be written, such as that of a file mounted alone, the file
// itself is.
func write(path string, text []byte) error {
	info, statErr := os.Stat(path)
	f, err := os.CreateTemp(filepath.Dir(path), ".tokens-*") // mode 0600
	if err != nil {
		if statErr == nil {
			return overwrite(path, text)
		}
		return fmt.Errorf("write tokens: %w", err)
	}
	defer os.Remove(f.Name())
	if statErr == nil {
		err = keepOwner(f, info)
	}
	_, writeErr := f.Write(text)
	if err := errors.Join(err, writeErr, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		if statErr == nil { // a file that is mounted alone cannot be replaced
			return overwrite(path, text)
		}
		return fmt.Errorf("write tokens: %w", err)
	}
	return nil
}

func overwrite(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	return nil
}
