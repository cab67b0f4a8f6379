package tokens_test

import (
	"fmt"

	"gancho/pkg/tokens"
)

// A line that is wrong is named by its place, never by its token.
func ExampleParse() {
	entries, err := tokens.Parse("# owners\nacme:a-long-random-token\nacme:another-random-one:read\n*:an-operators-token\nno token\n")
	for _, e := range entries {
		fmt.Println(e.Number, e.Account, e.Account == tokens.Operator, e.ReadOnly)
	}
	fmt.Println(err != nil)
	// Output:
	// 1 acme false false
	// 2 acme false true
	// 3 * true false
	// true
}
