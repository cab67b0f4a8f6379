package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"gancho/pkg/egress"
)

// MaxURLBytes limits a URL as given and as stored.
const MaxURLBytes = 2048

// Problem describes one invalid field of a registration, in words for the owner.
type Problem struct {
	Field  string // as in the API: url, auth_header, ...
	Code   string // stable, for programs
	Detail string // the fault, its place, and a valid value
}

func (p *Problem) Error() string { return p.Field + ": " + p.Detail }

// The codes of a refused URL.
const (
	CodeURLBad              = "bad_url"
	CodeURLTooLong          = "url_too_long"
	CodeURLForbiddenScheme  = "url_forbidden_scheme"
	CodeURLUserinfo         = "url_userinfo"
	CodeURLForbiddenName    = "url_forbidden_name"
	CodeURLForbiddenAddress = "url_forbidden_address"
	CodeURLForbiddenPort    = "url_forbidden_port"
)

func urlProblem(code, format string, args ...any) *Problem {
	return &Problem{Field: "url", Code: code, Detail: fmt.Sprintf(format, args...)}
}

// NormalizeURL returns the form of raw that is stored, sent to, compared and suspended: scheme and host
// in lower case, the host in its ASCII form (IDNA, UTS 46), without trailing dot, default port and
// fragment, an empty path as "/". Path and query stay as they are, dot segments and percent escapes
// included, because receivers may distinguish them; only characters that no URL can carry (RFC 3986) are
// percent-encoded. Requests go to exactly this form, and normalising it again does not change it.
//
// It refuses what could never be delivered under the policy p: see the codes. No name is looked up here:
// each connection checks the addresses of a name.
func NormalizeURL(raw string, p *egress.Policy) (string, *Problem) {
	if raw == "" {
		return "", urlProblem(CodeURLBad, "url is empty; give the whole URL, such as https://example.com/hooks")
	}
	if len(raw) > MaxURLBytes {
		return "", urlProblem(CodeURLTooLong, "url has %d bytes; at most %d are allowed", len(raw), MaxURLBytes)
	}
	if problem := checkCharacters(raw); problem != nil {
		return "", problem
	}

	scheme, rest, problem := cutScheme(raw, p)
	if problem != nil {
		return "", problem
	}
	rest, _, _ = strings.Cut(rest, "#")
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority, path := rest[:end], rest[end:]

	host, problem := normalizeAuthority(scheme, authority, p)
	if problem != nil {
		return "", problem
	}
	path, query, hasQuery := strings.Cut(path, "?")
	if path == "" {
		path = "/"
	}
	var b strings.Builder
	b.Grow(len(raw) + 8)
	b.WriteString(scheme + "://" + host)
	if problem := encode(&b, "path", path); problem != nil {
		return "", problem
	}
	if hasQuery {
		b.WriteByte('?')
		if problem := encode(&b, "query", query); problem != nil {
			return "", problem
		}
	}
	out := b.String()
	if len(out) > MaxURLBytes {
		return "", urlProblem(CodeURLTooLong, "url has %d bytes in its encoded form; at most %d are allowed", len(out),
			MaxURLBytes)
	}
	// The client parses the URL again when it sends: both must read the same.
	u, err := url.Parse(out)
	if err != nil || u.Scheme != scheme || u.Host != host || u.User != nil || u.String() != out {
		return "", urlProblem(CodeURLBad, "url can be read in more than one way; write it as https://host/path?query")
	}
	return out, nil
}

// checkCharacters refuses bytes that have no place in a URL, or that other programs take for something else.
func checkCharacters(raw string) *Problem {
	if !utf8.ValidString(raw) {
		return urlProblem(CodeURLBad, "url is not valid UTF-8")
	}
	for i, r := range raw {
		switch {
		case unicode.IsControl(r):
			return urlProblem(CodeURLBad, "url has a control character (U+%04X) at byte %d", r, i+1)
		case unicode.IsSpace(r):
			return urlProblem(CodeURLBad, "url has white space at byte %d; write a space as %%20", i+1)
		case r == '\\':
			return urlProblem(CodeURLBad, "url has a backslash at byte %d; write / or %%5C", i+1)
		}
	}
	return nil
}

// cutScheme returns the lower-case scheme and the rest after "://".
func cutScheme(raw string, p *egress.Policy) (scheme, rest string, problem *Problem) {
	want := "https://"
	if p.AllowHTTP {
		want = "https:// or http://"
	}
	scheme, rest, ok := strings.Cut(raw, ":")
	if !ok || strings.ContainsAny(scheme, "/?#@[.") {
		return "", "", urlProblem(CodeURLBad, "url has no scheme; it must start with %s", want)
	}
	switch scheme = strings.ToLower(scheme); {
	case scheme == "https", scheme == "http" && p.AllowHTTP:
	case scheme == "http":
		return "", "", urlProblem(CodeURLForbiddenScheme,
			"url has the scheme http, which sends notifications in clear; use https")
	default:
		return "", "", urlProblem(CodeURLForbiddenScheme, "url has the scheme %q; it must start with %s",
			shorten(scheme), want)
	}
	rest, ok = strings.CutPrefix(rest, "//")
	if !ok {
		return "", "", urlProblem(CodeURLBad, "url has no // after its scheme; write %s://host/path", scheme)
	}
	return scheme, rest, nil
}

// normalizeAuthority returns host or host:port.
func normalizeAuthority(scheme, authority string, p *egress.Policy) (string, *Problem) {
	if authority == "" {
		return "", urlProblem(CodeURLBad, "url has no host; write %s://host/path", scheme)
	}
	if strings.Contains(authority, "@") {
		return "", urlProblem(CodeURLUserinfo, "url has user information before an @; use "+
			"auth_header and auth_key for credentials")
	}

	var host, portText string
	var hasPort bool
	if literal, ok := strings.CutPrefix(authority, "["); ok {
		literal, after, closed := strings.Cut(literal, "]")
		if !closed {
			return "", urlProblem(CodeURLBad, "url has a host with [ but no ]")
		}
		if after != "" {
			if portText, hasPort = strings.CutPrefix(after, ":"); !hasPort {
				return "", urlProblem(CodeURLBad, "url has %q between its host and its path", shorten(after))
			}
		}
		var problem *Problem
		if host, problem = normalizeIPv6(literal, p); problem != nil {
			return "", problem
		}
	} else {
		host, portText, hasPort = strings.Cut(authority, ":")
		if strings.Contains(portText, ":") {
			return "", urlProblem(CodeURLBad, "url has more than one : in its host; write an IPv6 address as [address]")
		}
		var problem *Problem
		if host, problem = normalizeName(host, p); problem != nil {
			return "", problem
		}
	}

	standard := uint16(443)
	if scheme == "http" {
		standard = 80
	}
	port := standard
	if hasPort && portText != "" {
		n, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || len(portText) > 5 || n == 0 {
			return "", urlProblem(CodeURLForbiddenPort, "url has the port %q; a port is a number from 1 to 65535",
				shorten(portText))
		}
		port = uint16(n)
	}
	if !p.PortAllowed(port) {
		return "", urlProblem(CodeURLForbiddenPort,
			"url has the port %d, which is not open here; the operator opens ports with EGRESS_ALLOW_PORTS", port)
	}
	if port != standard {
		host += ":" + strconv.Itoa(int(port))
	}
	return host, nil
}

// normalizeIPv6 normalises the address between [ and ].
func normalizeIPv6(literal string, p *egress.Policy) (string, *Problem) {
	if strings.Contains(literal, "%") {
		return "", urlProblem(CodeURLForbiddenAddress,
			"url has an IPv6 address with a zone, which only means something on one machine; use a public host name")
	}
	a, err := netip.ParseAddr(literal)
	if err != nil || !a.Is6() {
		return "", urlProblem(CodeURLBad, "url has %q between [ and ], which is not an IPv6 address", shorten(literal))
	}
	if a.Is4In6() {
		return "", urlProblem(CodeURLForbiddenAddress, "url has an IPv4 address in IPv6 form; use a public host name")
	}
	if problem := checkAddress(a, p); problem != nil {
		return "", problem
	}
	return "[" + a.String() + "]", nil
}

func checkAddress(a netip.Addr, p *egress.Policy) *Problem {
	if p.AddrAllowed(a) == nil {
		return nil
	}
	return urlProblem(CodeURLForbiddenAddress, "url has the address %s, which is not "+
		"publicly routable; use a public host name", a)
}

// names is IDNA for look-ups: UTS 46 mapping (width, case, digits in circles), then validation. The ASCII rules
// for a label are checked after it.
var names = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.Transitional(false),
	idna.CheckJoiners(true),
	idna.CheckHyphens(false),
	idna.StrictDomainName(false),
	idna.VerifyDNSLength(false),
)

// specialNames are ends of names that never belong to a public host (IANA Special-Use Domain Names and
// what ICANN reserved for private use). Names for examples and tests (RFC 6761) are accepted: they reach
// nothing unless the operator's resolver knows them.
var specialNames = []string{"localhost", "localdomain", "local", "internal", "home.arpa", "onion", "alt"}

// normalizeName judges a host that is not in brackets: a name or an IPv4 address, in any spelling.
func normalizeName(raw string, p *egress.Policy) (string, *Problem) {
	if raw == "" {
		return "", urlProblem(CodeURLBad, "url has no host; give the host's name")
	}
	if strings.Contains(raw, "%") {
		return "", urlProblem(CodeURLBad, "url has a percent escape in its host; write the host's name itself")
	}
	name, err := names.ToASCII(raw)
	if err != nil {
		return "", urlProblem(CodeURLBad, "url has the host %q, which is not a valid internationalised name",
			shorten(raw))
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if problem := checkLabels(name); problem != nil {
		return "", problem
	}

	// Everything below judges the mapped form: before it, ①②⑦.0.0.1 was no address.
	if a, err := netip.ParseAddr(name); err == nil {
		if problem := checkAddress(a, p); problem != nil {
			return "", problem
		}
		return name, nil
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	if isNumber(last) {
		return "", urlProblem(CodeURLForbiddenAddress,
			"url has the host %q, a number that some programs read as an IPv4 address; use a public host name", name)
	}
	for _, special := range specialNames {
		if name != special && !strings.HasSuffix(name, "."+special) {
			continue
		}
		if name == "localhost" && loopbackOpen(p) {
			return name, nil
		}
		return "", urlProblem(CodeURLForbiddenName, "url has the host %q; names that end in %s are not public", name,
			special)
	}
	if last == name {
		return "", urlProblem(CodeURLForbiddenName, "url has the host %q without a domain; give the full public name",
			name)
	}
	return name, nil
}

// checkLabels applies the limits of DNS and the letters, digits and hyphens of host names. The underscore
// is accepted too: hosts with one exist and can be reached.
func checkLabels(name string) *Problem {
	if len(name) > 253 {
		return urlProblem(CodeURLBad, "url has a host of %d characters; at most 253 are allowed", len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return urlProblem(CodeURLBad, "url has a host with an empty part between two dots or at its start")
		case len(label) > 63:
			return urlProblem(CodeURLBad, "url has a host with a part of %d characters; at most 63 are allowed",
				len(label))
		case label[0] == '-' || label[len(label)-1] == '-':
			return urlProblem(CodeURLBad, "url has the host %q; no part of a name starts or ends with a hyphen", name)
		case label == "xn--":
			return urlProblem(CodeURLBad, "url has the host %q, which is not a valid internationalised name", name)
		}
		for i := range len(label) {
			if c := label[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return urlProblem(CodeURLBad, "url has the host %q; %q has no place in a host's name", shorten(name), c)
			}
		}
	}
	return nil
}

// isNumber reports whether programs that accept old spellings of IPv4 addresses (127.1, 0x7f000001) would
// take a name with this last label for one.
func isNumber(label string) bool {
	hex, ok := strings.CutPrefix(label, "0x")
	digits := "0123456789"
	if ok {
		label, digits = hex, "0123456789abcdef"
	}
	return strings.Trim(label, digits) == ""
}

func loopbackOpen(p *egress.Policy) bool {
	return p.AddrAllowed(netip.AddrFrom4([4]byte{127, 0, 0, 1})) == nil || p.AddrAllowed(netip.IPv6Loopback()) == nil
}

// encode writes s with every byte percent-encoded that RFC 3986 does not allow in a path or query, so that
// the stored form is the sent one.
func encode(b *strings.Builder, part, s string) *Problem {
	const upperHex = "0123456789ABCDEF"
	for i := range len(s) {
		switch c := s[i]; {
		case c == '%':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return urlProblem(CodeURLBad, "url has a %% in its %s that is not followed by two "+
					"hex digits; write %%25 for a percent sign", part)
			}
			b.WriteByte(c)
		case c >= utf8.RuneSelf || strings.IndexByte("\"<>^`{|}", c) >= 0:
			b.WriteByte('%')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		default:
			b.WriteByte(c)
		}
	}
	return nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// shorten keeps messages readable when the input is not.
func shorten(s string) string {
	if len(s) <= 80 {
		return s
	}
	return strings.ToValidUTF8(s[:80], "") + "..."
}

// URLKey identifies a normalised URL in subjects and keys: the first 128 bits of its SHA-256, in hex.
func URLKey(normalized string) string {
	sum := sha256.Sum256([]byte(normalized))
	return hex.EncodeToString(sum[:16])
}

// URLHost returns the host[:port] of a normalised URL: all of it that may be logged.
func URLHost(normalized string) string {
	_, rest, _ := strings.Cut(normalized, "://")
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	return rest
}

// Origin returns scheme, host and port of a normalised URL, in the form https://host[:port].
func Origin(normalized string) string {
	scheme, _, _ := strings.Cut(normalized, "://")
	return scheme + "://" + URLHost(normalized)
}
