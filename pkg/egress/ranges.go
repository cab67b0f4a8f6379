package egress

import "net/netip"

// Rule names why an address or port is refused. The list is closed; the words
// appear in operator texts only.
type Rule string

// The rules, in the order of the ranges below.
const (
	RuleInvalid       Rule = "invalid"        // not an address
	RuleZone          Rule = "zone"           // an IPv6 address with a zone id
	RuleDenied        Rule = "denied"         // listed in EGRESS_DENY_CIDRS
	RuleMetadata      Rule = "metadata"       // a cloud provider's metadata service
	RuleOwn           Rule = "own_address"    // an address of this machine
	RulePort          Rule = "port"           // not listed in EGRESS_ALLOW_PORTS
	RuleNetwork       Rule = "network"        // not TCP
	RuleThisNetwork   Rule = "this_network"   // RFC 791
	RulePrivate       Rule = "private"        // RFC 1918
	RuleShared        Rule = "shared"         // carrier-grade NAT, RFC 6598
	RuleLoopback      Rule = "loopback"       // RFC 1122, RFC 4291
	RuleLinkLocal     Rule = "link_local"     // RFC 3927, RFC 4291
	RuleProtocol      Rule = "protocol"       // IETF protocol assignments, RFC 6890, RFC 2928
	RuleDocumentation Rule = "documentation"  // RFC 5737, RFC 3849, RFC 9637
	RuleBenchmark     Rule = "benchmark"      // RFC 2544
	RuleAS112         Rule = "as112"          // RFC 7534, RFC 7535
	RuleAMT           Rule = "amt"            // automatic multicast tunnelling, RFC 7450
	RuleMulticast     Rule = "multicast"      // RFC 5771, RFC 4291
	RuleReserved      Rule = "reserved"       // RFC 1112
	RuleBroadcast     Rule = "broadcast"      // RFC 8190
	RuleUnspecified   Rule = "unspecified"    // ::
	RuleMapped        Rule = "ipv4_mapped"    // ::ffff:0:0/96
	RuleCompatible    Rule = "ipv4_in_ipv6"   // ::/96, deprecated
	RuleTranslated    Rule = "ipv4_translate" // ::ffff:0:0:0/96, RFC 2765
	RuleNAT64         Rule = "nat64"          // RFC 6052, RFC 8215
	Rule6to4          Rule = "6to4"           // RFC 3056
	RuleTeredo        Rule = "teredo"         // RFC 4380
	RuleDiscard       Rule = "discard"        // RFC 6666, RFC 9780
	RuleUniqueLocal   Rule = "unique_local"   // RFC 4193
	RuleSiteLocal     Rule = "site_local"     // RFC 3879
	RuleSRv6          Rule = "srv6"           // segment routing SIDs, RFC 9602
	RuleUnallocated   Rule = "unallocated"    // IPv6 outside 2000::/3
)

type special struct {
	prefix netip.Prefix
	rule   Rule
}

// The tables follow the IANA IPv4 and IPv6 Special-Purpose Address Registries,
// including their few entries that are globally reachable (AS112, AMT, anycast
// addresses of protocols): no receiver of a customer lives there. Where ranges
// overlap, the narrower comes first.
var (
	special4 = []special{
		{netip.MustParsePrefix("0.0.0.0/8"), RuleThisNetwork},
		{netip.MustParsePrefix("10.0.0.0/8"), RulePrivate},
		{netip.MustParsePrefix("100.64.0.0/10"), RuleShared},
		{netip.MustParsePrefix("127.0.0.0/8"), RuleLoopback},
		{netip.MustParsePrefix("169.254.0.0/16"), RuleLinkLocal},
		{netip.MustParsePrefix("172.16.0.0/12"), RulePrivate},
		{netip.MustParsePrefix("192.0.0.0/24"), RuleProtocol},
		{netip.MustParsePrefix("192.0.2.0/24"), RuleDocumentation},
		{netip.MustParsePrefix("192.31.196.0/24"), RuleAS112},
		{netip.MustParsePrefix("192.52.193.0/24"), RuleAMT},
		{netip.MustParsePrefix("192.88.99.0/24"), Rule6to4},
		{netip.MustParsePrefix("192.168.0.0/16"), RulePrivate},
		{netip.MustParsePrefix("192.175.48.0/24"), RuleAS112},
		{netip.MustParsePrefix("198.18.0.0/15"), RuleBenchmark},
		{netip.MustParsePrefix("198.51.100.0/24"), RuleDocumentation},
		{netip.MustParsePrefix("203.0.113.0/24"), RuleDocumentation},
		{netip.MustParsePrefix("224.0.0.0/4"), RuleMulticast},
		{netip.MustParsePrefix("255.255.255.255/32"), RuleBroadcast},
		{netip.MustParsePrefix("240.0.0.0/4"), RuleReserved},
	}
	// globalUnicast is all of IPv6 that can be open by default.
	globalUnicast = netip.MustParsePrefix("2000::/3")
	// special6 holds the ranges inside globalUnicast.
	special6 = []special{
		{netip.MustParsePrefix("2001::/32"), RuleTeredo},
		{netip.MustParsePrefix("2001::/23"), RuleProtocol},
		{netip.MustParsePrefix("2001:db8::/32"), RuleDocumentation},
		{netip.MustParsePrefix("2002::/16"), Rule6to4},
		{netip.MustParsePrefix("2620:4f:8000::/48"), RuleAS112},
		{netip.MustParsePrefix("3fff::/20"), RuleDocumentation},
	}
	// outside6 only names ranges outside globalUnicast; addresses not listed
	// here are refused as unallocated.
	outside6 = []special{
		{netip.MustParsePrefix("::/128"), RuleUnspecified},
		{netip.MustParsePrefix("::1/128"), RuleLoopback},
		{netip.MustParsePrefix("::ffff:0:0:0/96"), RuleTranslated},
		{netip.MustParsePrefix("::/96"), RuleCompatible},
		{netip.MustParsePrefix("64:ff9b::/96"), RuleNAT64},
		{netip.MustParsePrefix("64:ff9b:1::/48"), RuleNAT64},
		{netip.MustParsePrefix("100::/64"), RuleDiscard},
		{netip.MustParsePrefix("100:0:0:1::/64"), RuleDiscard},
		{netip.MustParsePrefix("5f00::/16"), RuleSRv6},
		{netip.MustParsePrefix("fc00::/7"), RuleUniqueLocal},
		{netip.MustParsePrefix("fe80::/10"), RuleLinkLocal},
		{netip.MustParsePrefix("fec0::/10"), RuleSiteLocal},
		{netip.MustParsePrefix("ff00::/8"), RuleMulticast},
	}
)

// isMetadata reports the fixed addresses under which cloud providers hand
// credentials to any process that connects.
func isMetadata(a netip.Addr) bool {
	switch a {
	case metadata169, metadataAlibaba, metadataOracle, metadataAWS6:
		return true
	}
	return false
}

var (
	metadata169     = netip.AddrFrom4([4]byte{169, 254, 169, 254}) // most providers
	metadataAlibaba = netip.AddrFrom4([4]byte{100, 100, 100, 200})
	metadataOracle  = netip.AddrFrom4([4]byte{192, 0, 0, 192})
	metadataAWS6    = netip.MustParseAddr("fd00:ec2::254")
)

// judge names the rule that refuses a, or "" for a publicly routable address.
// a is valid, has no zone and is not IPv4-mapped.
func judge(a netip.Addr) Rule {
	if isMetadata(a) {
		return RuleMetadata
	}
	ranges := special4
	if a.Is6() {
		ranges = special6
		if !globalUnicast.Contains(a) {
			ranges = outside6
		}
	}
	for i := range ranges {
		if ranges[i].prefix.Contains(a) {
			return ranges[i].rule
		}
	}
	if a.Is6() && !globalUnicast.Contains(a) {
		return RuleUnallocated
	}
	return ""
}
