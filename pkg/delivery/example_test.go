package delivery_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"gancho/pkg/delivery"
)

func ExampleSign() {
	key, err := delivery.ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		panic(err)
	}
	body := []byte(`{"test": 2432232314}`)
	fmt.Println(delivery.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), body, [][]byte{key}))
	// Output: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=
}

// A receiver computes the signature of the bytes that came, and compares it with each one in the header, as two are
// sent while a secret is being rotated. Production code compares in constant time (crypto/hmac.Equal).
func ExampleSign_verify() {
	key, err := delivery.ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		panic(err)
	}
	header := "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	want := delivery.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`), [][]byte{key})
	good := false
	for signature := range strings.FieldsSeq(header) {
		good = good || signature == want
	}
	fmt.Println(good)
	// Output: true
}

// A receiver verifies the bytes that came with the webhook's public key. It tries each signature in the header, as two
// are sent while the key pair is being rotated.
func ExampleSignEd25519_verify() {
	seed := sha256.Sum256([]byte("the key pair of a webhook"))
	private := ed25519.NewKeyFromSeed(seed[:])
	public, _ := private.Public().(ed25519.PublicKey)
	whpk := delivery.PublicKey(public)

	id, at, body := "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)
	header := "v1,AAAA " + delivery.SignEd25519(id, at, body, []ed25519.PrivateKey{private})

	key, err := delivery.ParsePublicKey(whpk)
	if err != nil {
		panic(err)
	}
	signed := fmt.Appendf(nil, "%s.%d.%s", id, at.Unix(), body)
	good := false
	for signature := range strings.FieldsSeq(header) {
		encoded, found := strings.CutPrefix(signature, "v1a,")
		raw, err := base64.StdEncoding.DecodeString(encoded)
		good = good || found && err == nil && ed25519.Verify(key, signed, raw)
	}
	fmt.Println(good)
	// Output: true
}
