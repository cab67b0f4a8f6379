package delivery

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Sizes of a signing key in bytes (Standard Webhooks: 24 to 64).
const (
	minKeyBytes = 24
	maxKeyBytes = 64
	newKeyBytes = 32
)

const secretPrefix = "whsec_"

// Sign returns the value of webhook-signature (Standard Webhooks 1.0.0, symmetric): one "v1,<base64>" per
// signing key, separated by spaces. id holds no dot.
func Sign(id string, ts time.Time, body []byte, secrets [][]byte) string {
	return sign(id, strconv.FormatInt(ts.Unix(), 10), body, secrets)
}

func sign(id, ts string, body []byte, secrets [][]byte) string {
	head := make([]byte, 0, 64)
	head = append(head, id...)
	head = append(head, '.')
	head = append(head, ts...)
	head = append(head, '.')

	out := make([]byte, 0, len(secrets)*48)
	var sum [sha256.Size]byte
	for i, secret := range secrets {
		if i > 0 {
			out = append(out, ' ')
		}
		mac := hmac.New(sha256.New, secret)
		mac.Write(head)
		mac.Write(body)
		out = append(out, "v1,"...)
		out = base64.StdEncoding.AppendEncode(out, mac.Sum(sum[:0]))
	}
	return string(out)
}

// ParseSecret returns the signing key in a secret of the form whsec_<base64>. The error does not repeat it.
func ParseSecret(whsec string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(whsec, secretPrefix)
	if !ok {
		return nil, errors.New("signing secret: does not start with whsec_")
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, errors.New("signing secret: what follows whsec_ is not base64")
	}
	if len(key) < minKeyBytes || len(key) > maxKeyBytes {
		return nil, errors.New("signing secret: its key must have 24 to 64 bytes")
	}
	return key, nil
}

// NewSecret makes a random signing key of 32 bytes, in the form owners get it and raw.
func NewSecret() (whsec string, key []byte) {
	key = make([]byte, newKeyBytes)
	_, _ = rand.Read(key) // never fails: the program ends when the system has no randomness
	return secretPrefix + base64.StdEncoding.EncodeToString(key), key
}
