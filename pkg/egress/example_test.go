package egress_test

import (
	"fmt"
	"net/netip"

	"gancho/pkg/egress"
)

// Only publicly routable addresses may be dialled, unless an operator opened their range.
func ExamplePolicy_AddrAllowed() {
	policy, err := egress.New(egress.Config{AllowCIDRs: []string{"10.20.0.0/16"}, AllowPorts: []string{"443"}})
	if err != nil {
		panic(err)
	}
	for _, text := range []string{"8.8.8.8", "10.20.1.1", "10.0.0.1", "169.254.169.254", "64:ff9b::7f00:1"} {
		fmt.Println(text, policy.AddrAllowed(netip.MustParseAddr(text)) == nil)
	}
	// Output:
	// 8.8.8.8 true
	// 10.20.1.1 true
	// 10.0.0.1 false
	// 169.254.169.254 false
	// 64:ff9b::7f00:1 false
}
