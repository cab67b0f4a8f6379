package delivery

import (
	"crypto/ed25519"
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

const (
	secretPrefix = "whsec_"
	publicPrefix = "whpk_"
)

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

// SignEd25519 returns the value of webhook-signature for a receiver that verifies with a public key (Standard Webhooks
// 1.0.0, asymmetric): one "v1a,<base64>" per key, separated by spaces. id holds no dot.
func SignEd25519(id string, ts time.Time, body []byte, keys []ed25519.PrivateKey) string {
	return signEd25519(id, strconv.FormatInt(ts.Unix(), 10), body, keys)
}

func signEd25519(id, ts string, body []byte, keys []ed25519.PrivateKey) string {
	signed := make([]byte, 0, len(id)+len(ts)+2+len(body))
	signed = append(append(signed, id...), '.')
	signed = append(append(signed, ts...), '.')
	signed = append(signed, body...)
	var out []byte
	for i, key := range keys {
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, "v1a,"...)
		out = base64.StdEncoding.AppendEncode(out, ed25519.Sign(key, signed))
	}
	return string(out)
}

// PublicKey is a public key in the form owners get it: whpk_<base64>.
func PublicKey(key ed25519.PublicKey) string {
	return publicPrefix + base64.StdEncoding.EncodeToString(key)
}

// ParsePublicKey returns the key in a text of the form whpk_<base64>.
func ParsePublicKey(whpk string) (ed25519.PublicKey, error) {
	encoded, ok := strings.CutPrefix(whpk, publicPrefix)
	if !ok {
		return nil, errors.New("public key: does not start with whpk_")
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("public key: the part after whpk_ is not the base64 of 32 bytes")
	}
	return key, nil
}

// ParseSecret returns the signing key in a secret of the form whsec_<base64>. The error does not repeat it.
func ParseSecret(whsec string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(whsec, secretPrefix)
	if !ok {
		return nil, errors.New("signing secret: does not start with whsec_")
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, errors.New("signing secret: the part after whsec_ is not base64")
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
