package notification

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"

	"gancho/pkg/topology"
	"gancho/pkg/wireversion"
)

// newestSchema is the schema of a notification whose event's bytes are stored elsewhere. A version without it leaves
// such a message alone, because it would send an empty body.
const newestSchema = wireversion.Newest + 1

// Reference says which bytes a notification is about that are stored once for all notifications of their event. See
// gancho/pkg/bodies.
type Reference struct {
	Length int
	SHA256 [sha256.Size]byte
}

// Refer returns the reference to a body.
func Refer(body []byte) *Reference { return &Reference{len(body), sha256.Sum256(body)} }

// Matches reports whether body is what r refers to.
func (r *Reference) Matches(body []byte) bool {
	return len(body) == r.Length && sha256.Sum256(body) == r.SHA256
}

// String is the value of HeaderBody.
func (r *Reference) String() string {
	return strconv.Itoa(r.Length) + ":" + hex.EncodeToString(r.SHA256[:])
}

// Subject returns where the bytes are stored that r refers to, of the account's event.
func (r *Reference) Subject(account, eventID string) string {
	return topology.SubjectBody(account, eventID, hex.EncodeToString(r.SHA256[:]), strconv.Itoa(r.Length))
}

var errReference = errors.New("header " + HeaderBody + " is not a length and a SHA-256")

func parseReference(s string) (*Reference, error) {
	length, sum, _ := strings.Cut(s, ":")
	n, err := strconv.Atoi(length)
	digest, hexErr := hex.DecodeString(sum)
	if err != nil || hexErr != nil || n <= 0 || len(digest) != sha256.Size {
		return nil, errReference
	}
	return &Reference{n, [sha256.Size]byte(digest)}, nil
}

// ReferredBytes returns the length of the body that the header of a notification's message refers to, 0 when it refers
// to none.
func ReferredBytes(header map[string][]string) int {
	if v := header[HeaderBody]; len(v) > 0 {
		if r, err := parseReference(v[0]); err == nil {
			return r.Length
		}
	}
	return 0
}

// Size returns how many bytes the notification's body has, whether they are here or only referred to.
func (n *Notification) Size() int {
	if n.Ref != nil {
		return n.Ref.Length
	}
	return len(n.Body)
}

// Data returns the bytes that its message carries.
func (n *Notification) Data() []byte {
	if n.Ref != nil {
		return nil
	}
	return n.Body
}
