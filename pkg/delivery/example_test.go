package delivery_test

import (
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

// A receiver computes the signature of the bytes that came, and compares it with each one in the header, as two are sent
// while a secret is being rotated. Production code compares in constant time (crypto/hmac.Equal).
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
