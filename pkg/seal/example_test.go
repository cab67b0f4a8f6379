package seal_test

import (
	"fmt"

	"gancho/pkg/seal"
)

// A value sealed for one purpose opens for no other one: the context is part of it.
func ExampleKeyring() {
	ring := seal.New()
	sealed := ring.Seal([]byte("Bearer 123"), []byte("acme/webhook-1/auth_key"))

	opened, err := ring.Open(sealed, []byte("acme/webhook-1/auth_key"))
	fmt.Println(string(opened), err)
	_, err = ring.Open(sealed, []byte("acme/webhook-2/auth_key"))
	fmt.Println(err != nil)
	id, err := seal.KeyID(sealed)
	fmt.Println(id == ring.Current(), err)
	// Output:
	// Bearer 123 <nil>
	// true
	// true <nil>
}
