package webhook

import (
	"strings"
	"testing"
)

func TestCheckAuthHeader(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ row, name, code string }{
		{"plain", "X-Api-Key", ""},
		{"authorization", "Authorization", ""},
		{"all token characters", "a!#$%&'*+-.^_`|~9Z", ""},
		{"prefix without hyphen", "contents", ""},
		{"38 CR LF", "X-A\r\nX-B", "bad_auth_header"},
		{"38 empty", "", "bad_auth_header"},
		{"38 space", "a b", "bad_auth_header"},
		{"38 colon", "a:", "bad_auth_header"},
		{"38 beyond ASCII", "ключ", "bad_auth_header"},
		{"38 Kelvin sign", "\u212aeep-Alive", "bad_auth_header"},
		{"38 long", strings.Repeat("a", 257), "bad_auth_header"},
		{"40 Host", "Host", "reserved_auth_header"},
		{"40 Content-Length", "Content-Length", "reserved_auth_header"},
		{"40 Transfer-Encoding", "Transfer-Encoding", "reserved_auth_header"},
		{"40 Connection", "Connection", "reserved_auth_header"},
		{"40 Keep-Alive", "Keep-Alive", "reserved_auth_header"},
		{"40 Upgrade", "Upgrade", "reserved_auth_header"},
		{"40 TE", "TE", "reserved_auth_header"},
		{"40 Trailer", "Trailer", "reserved_auth_header"},
		{"40 Expect", "Expect", "reserved_auth_header"},
		{"40 Proxy-Authorization", "Proxy-Authorization", "reserved_auth_header"},
		{"40 Cookie", "Cookie", "reserved_auth_header"},
		{"40 Content-Type", "cOnTeNt-TyPe", "reserved_auth_header"},
		{"40 Webhook-Id", "Webhook-Id", "reserved_auth_header"},
		{"40 Webhook-Signature", "webhook-signature", "reserved_auth_header"},
		{"40 Gancho-Event", "GANCHO-event", "reserved_auth_header"},
		{"40 User-Agent", "user-agent", "reserved_auth_header"},
		{"40 Idempotency-Key", "Idempotency-Key", "reserved_auth_header"},
		{"40 X-Idempotency-Key", "x-idempotency-key", "reserved_auth_header"},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			if got := code(CheckAuthHeader(tc.name)); got != tc.code {
				t.Errorf("CheckAuthHeader(%q) = %q, want %q", tc.name, got, tc.code)
			}
		})
	}
}

func TestCheckAuthKey(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ row, value, code string }{
		{"plain", "Bearer canary", ""},
		{"tab inside", "a\tb", ""},
		{"8192 bytes", strings.Repeat("a", 8192), ""},
		{"beyond ASCII", "chave-ção", ""},
		{"39 CR", "canary\r", "bad_auth_key"},
		{"39 LF", "canary\nX-B: c", "bad_auth_key"},
		{"39 NUL", "canary\x00", "bad_auth_key"},
		{"39 DEL", "canary\x7f", "bad_auth_key"},
		{"39 8193 bytes", strings.Repeat("a", 8193), "bad_auth_key"},
		{"39 empty", "", "bad_auth_key"},
		{"39 space before", " canary", "bad_auth_key"},
		{"39 tab after", "canary\t", "bad_auth_key"},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			p := CheckAuthKey(tc.value)
			if got := code(p); got != tc.code {
				t.Errorf("CheckAuthKey(%q) = %q, want %q", tc.value, got, tc.code)
			}
			if p != nil && strings.Contains(p.Error(), "canary") {
				t.Errorf("the message repeats the value: %s", p)
			}
		})
	}
}

func TestCheckAuthPair(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ row, header, key, field string }{
		{"both", "a", "b", ""},
		{"neither", "", "", ""},
		{"41 header alone", "a", "", "auth_key"},
		{"41 key alone", "", "b", "auth_header"},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			var got string
			if p := CheckAuthPair(tc.header, tc.key); p != nil {
				got = p.Field
			}
			if got != tc.field {
				t.Errorf("problem in %q, want %q", got, tc.field)
			}
		})
	}
}

func TestCheckMethod(t *testing.T) {
	t.Parallel()
	for _, m := range Methods() {
		if p := CheckMethod(m); p != nil {
			t.Errorf("CheckMethod(%q) = %v, want nil", m, p)
		}
	}
	for _, m := range []string{"", "TRACE", "CONNECT", "HEAD", "OPTIONS", "post", "POST\r\n", " POST"} {
		if got := code(CheckMethod(m)); got != "bad_http_method" {
			t.Errorf("row 42: CheckMethod(%q) = %q, want bad_http_method", m, got)
		}
	}
}

func code(p *Problem) string {
	if p == nil {
		return ""
	}
	return p.Code
}
