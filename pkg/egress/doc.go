// Package egress decides which addresses and ports outgoing connections may
// reach, and dials only those.
//
// # The guarantee
//
// Every connection made with [Policy.DialContext] is checked between the name
// look-up and connect(2), once per candidate address. The address that was
// checked is dialled, so DNS rebinding, CNAMEs into a private network, answers that mix
// public and private addresses and look-ups that change over time reach nothing
// that [Policy.AddrAllowed] refuses. Names never decide anything here.
//
// Without configuration only publicly routable addresses are open: every range
// of the IANA IPv4 and IPv6 Special-Purpose Address Registries is refused, IPv6
// is limited to 2000::/3 (the only space IANA has allocated for global unicast),
// and forms that carry an IPv4 address inside an IPv6 one (mapped, compatible,
// translated, NAT64, 6to4, Teredo) are refused with any address inside. So are the
// addresses of the machine's own interfaces and the metadata services of cloud
// providers.
//
// # What opens and closes it
//
// In this order, the first that applies decides:
//
//  1. EGRESS_DENY_CIDRS refuses: list public addresses of your own there, such as
//     the address of a load balancer in front of this installation, and
//     network-specific NAT64 prefixes (RFC 6052).
//  2. EGRESS_ALLOW_CIDRS opens. A metadata address is opened only by a prefix
//     that holds nothing else (/32 or /128), so that opening a range around it
//     for another reason does not.
//  3. The ranges above refuse.
//  4. An address of one of the machine's interfaces is refused.
//
// # Proxy
//
// With EGRESS_PROXY_URL set, all connections go to the proxy, which looks the
// names up by itself: the check at connect time then covers the proxy's address
// only (list it in EGRESS_ALLOW_CIDRS when it is private; its port needs no
// entry in EGRESS_ALLOW_PORTS). Use a proxy that filters addresses itself.
// HTTP_PROXY and HTTPS_PROXY from the environment are never used.
package egress
