package webhook

import (
	"slices"
	"strings"
)

// Limits of the optional auth header, in bytes.
const (
	MaxAuthHeaderBytes = 256
	MaxAuthKeyBytes    = 8192
)

// Methods are the HTTP methods a webhook may use, the default first.
func Methods() []string { return []string{"POST", "PUT", "PATCH", "GET", "DELETE"} }

// CheckMethod accepts exactly the methods of [Methods], in upper case.
func CheckMethod(m string) *Problem {
	if slices.Contains(Methods(), m) {
		return nil
	}
	return &Problem{"http_method", "bad_http_method", "http_method must be one of " + strings.Join(Methods(), ", ")}
}

// Header names that HTTP, the connection or Gancho itself sets: sent by an owner they would break the
// request, be dropped without a word, or (Idempotency-Key) make Go's client send a request twice.
var (
	reservedHeaders = []string{
		"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings", "expect",
		"host", "cookie", "cookie2", "set-cookie", "user-agent", "idempotency-key", "x-idempotency-key",
	}
	reservedPrefixes = []string{"proxy-", "content-", "webhook-", "gancho-"}
)

// CheckAuthHeader accepts a header name: a token (RFC 9110, section 5.6.2) that is not reserved.
func CheckAuthHeader(name string) *Problem {
	bad := func(detail string) *Problem { return &Problem{"auth_header", "bad_auth_header", detail} }
	switch {
	case name == "":
		return bad("auth_header is empty; give a header name, such as Authorization, " +
			"or leave auth_header and auth_key out")
	case len(name) > MaxAuthHeaderBytes:
		return bad("auth_header is too long; a header name may have 256 characters")
	}
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return bad("auth_header is not a header name; use letters, digits and hyphens, such as X-Api-Key")
		}
	}
	lower := strings.ToLower(name)
	reserved := slices.Contains(reservedHeaders, lower) ||
		slices.ContainsFunc(reservedPrefixes, func(p string) bool { return strings.HasPrefix(lower, p) })
	if reserved {
		return &Problem{
			"auth_header", "reserved_auth_header",
			"auth_header " + name + " is set by the HTTP connection or by Gancho; " +
				"use another name, such as Authorization",
		}
	}
	return nil
}

// CheckAuthKey accepts a header value (RFC 9110, section 5.5) that arrives as it was given: no control
// characters but the tab, no white space around it. The problem never repeats the value.
func CheckAuthKey(value string) *Problem {
	bad := func(detail string) *Problem { return &Problem{"auth_key", "bad_auth_key", detail} }
	switch {
	case value == "":
		return bad("auth_key is empty; give the header's value, or leave auth_header and auth_key out")
	case len(value) > MaxAuthKeyBytes:
		return bad("auth_key is too long; a header value may have 8192 bytes")
	case strings.Trim(value, " \t") != value:
		return bad("auth_key starts or ends with white space, which would be lost on the way; remove it")
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return bad("auth_key has a control character, such as a line break; remove it")
		}
	}
	return nil
}

// CheckAuthPair accepts both of auth_header and auth_key, or neither.
func CheckAuthPair(header, key string) *Problem {
	switch {
	case header != "" && key == "":
		return &Problem{"auth_key", "auth_pair", "auth_header is set without auth_key; give both or neither"}
	case header == "" && key != "":
		return &Problem{"auth_header", "auth_pair", "auth_key is set without auth_header; give both or neither"}
	}
	return nil
}
