package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"gancho/pkg/seal"
	"gancho/pkg/webhook"
	"gancho/pkg/wireversion"
)

// purpose names the key of the records' MACs.
const purpose = "registry record"

// macMember begins the last member of a record. Inside a JSON string its quotes would be escaped.
var macMember = []byte(`,"mac":"`)

// macEnd ends a record.
var macEnd = []byte(`"}`)

// Why an entry is not used; labels of gancho_registry_forged_total.
var (
	errUnsigned  = errors.New("it has no MAC")
	errMalformed = errors.New("it is not a record of the webhook under that key")
	errMAC       = errors.New("its MAC is not management's")
	errOlder     = errors.New("it is older than the last good one")
	errDeleted   = errors.New("it is a deletion without a MAC")
)

// causes are the values of the label, with the error of each.
var causes = map[string]error{
	"unsigned": errUnsigned, "malformed": errMalformed, "mac": errMAC, "older": errOlder, "deleted": errDeleted,
	"unknown_key": seal.ErrUnknownKey,
}

// record holds a good entry's members other than the webhook's.
type record struct {
	Version uint64 `json:"version"`
	Deleted bool   `json:"deleted"`

	revision uint64
	keyID    string // of the MAC; "" for one stored before records were authenticated
}

// Sign returns the record of w, which must have a version above 0, as the bucket stores it.
func Sign(keys *seal.Keyring, w *webhook.Webhook) ([]byte, error) {
	if w.Version == 0 {
		return nil, fmt.Errorf("webhook %s has no version", w.ID)
	}
	body, err := w.Encode()
	if err != nil {
		return nil, err
	}
	return sign(keys, w.Key(), body), nil
}

// SignDeletion returns the record of w's deletion.
func SignDeletion(keys *seal.Keyring, w *webhook.Webhook) []byte {
	return tombstone(keys, w.Key(), w.Version+1)
}

// tombstone returns the record of a deletion.
func tombstone(keys *seal.Keyring, key string, version uint64) []byte {
	return sign(keys, key, fmt.Appendf(nil, `{"deleted":true,"version":%d}`, version))
}

// sign appends the MAC, over the key and the bytes before it, as the last member of a JSON object.
func sign(keys *seal.Keyring, key string, object []byte) []byte {
	body := object[:len(object)-1]
	mac := keys.MAC(purpose, signed(key, body))
	return bytes.Join([][]byte{body, macMember, []byte(mac), macEnd}, nil)
}

// signed returns the bytes that a MAC covers. No key holds a NUL.
func signed(key string, body []byte) []byte {
	return bytes.Join([][]byte{[]byte(key), body}, []byte{0})
}

// parse reads an entry's value and verifies its MAC, if keys are given. A deletion has no webhook. A webhook that a
// newer version wrote is wireversion.ErrNewer, with a good record.
func parse(keys *seal.Keyring, key string, value []byte) (*record, *webhook.Webhook, error) {
	r := &record{}
	if at := bytes.LastIndex(value, macMember); at >= 0 && bytes.HasSuffix(value, macEnd) {
		mac := string(value[at+len(macMember) : len(value)-len(macEnd)])
		id, err := seal.KeyID(mac)
		if err != nil {
			return nil, nil, errMalformed
		}
		r.keyID = id
		if keys != nil {
			if err := keys.Verify(purpose, signed(key, value[:at]), mac); errors.Is(err, seal.ErrUnknownKey) {
				return nil, nil, err
			} else if err != nil {
				return nil, nil, errMAC
			}
		}
	}
	if err := json.Unmarshal(value, r); err != nil || (r.keyID == "") != (r.Version == 0) {
		return nil, nil, errMalformed
	}
	if r.Deleted {
		if r.keyID == "" {
			return nil, nil, errMalformed
		}
		return r, nil, nil
	}
	w, err := webhook.Decode(value)
	if errors.Is(err, wireversion.ErrNewer) {
		return r, nil, err
	}
	if err != nil || w.Key() != key {
		return nil, nil, errMalformed
	}
	return r, w, nil
}
