package webhook

import (
	"net/url"
	"strings"
	"testing"

	"gancho/pkg/egress"
)

func policy(tb testing.TB, cfg egress.Config) *egress.Policy {
	tb.Helper()
	p, err := egress.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestNormalizeURLRefuses(t *testing.T) {
	t.Parallel()
	p := policy(t, egress.Config{})
	label64 := strings.Repeat("a", 64)
	host254 := strings.Repeat(strings.Repeat("a", 49)+".", 5) + "abcd"
	for _, tc := range []struct{ row, url, code string }{
		{"01 empty", "", CodeURLBad},
		{"02 http", "http://ok.example/", CodeURLForbiddenScheme},
		{"03 ftp", "ftp://ok.example/", CodeURLForbiddenScheme},
		{"03 file", "file:///etc/passwd", CodeURLForbiddenScheme},
		{"03 gopher", "gopher://ok.example/", CodeURLForbiddenScheme},
		{"03 javascript", "javascript:alert(1)", CodeURLForbiddenScheme},
		{"04 scheme-relative", "//ok.example/x", CodeURLBad},
		{"04 path", "/x", CodeURLBad},
		{"04 bare host", "ok.example/x", CodeURLBad},
		{"04 bare host and port", "ok.example:443/x", CodeURLBad},
		{"05 opaque", "https:ok.example/x", CodeURLBad},
		{"06 no host", "https:///x", CodeURLBad},
		{"06 no host, port", "https://:443/x", CodeURLBad},
		{"06 no host, query", "https://?x", CodeURLBad},
		{"07 userinfo", "https://user:pass@ok.example/", CodeURLUserinfo},
		{"07 empty userinfo", "https://@ok.example/", CodeURLUserinfo},
		{"08 host as user", "https://ok.example@evil.example/", CodeURLUserinfo},
		{"08 two at signs", "https://a@b@c/", CodeURLUserinfo},
		{"09 backslash", `https://ok.example\@evil.example/`, CodeURLBad},
		{"09 backslashes", `https:\\ok.example\`, CodeURLBad},
		{"10 loopback", "https://127.0.0.1/", CodeURLForbiddenAddress},
		{"10 loopback with dot", "https://127.0.0.1./", CodeURLForbiddenAddress},
		{"10 short", "https://127.1/", CodeURLForbiddenAddress},
		{"10 zero", "https://0/", CodeURLForbiddenAddress},
		{"11 decimal", "https://2130706433/", CodeURLForbiddenAddress},
		{"11 hex", "https://0x7f000001/", CodeURLForbiddenAddress},
		{"11 hex capital", "https://0X7F.0.0.0X1/", CodeURLForbiddenAddress},
		{"11 hex empty", "https://1.2.3.0x/", CodeURLForbiddenAddress},
		{"11 octal", "https://0177.0.0.1/", CodeURLForbiddenAddress},
		{"11 five parts", "https://1.2.3.4.5/", CodeURLForbiddenAddress},
		{"11 name with number", "https://ok.example.1/", CodeURLForbiddenAddress},
		{"11 too big", "https://256.1.1.1/", CodeURLForbiddenAddress},
		{"12 this host", "https://0.0.0.0/", CodeURLForbiddenAddress},
		{"13 loopback 6", "https://[::1]/", CodeURLForbiddenAddress},
		{"13 unspecified 6", "https://[::]/", CodeURLForbiddenAddress},
		{"13 loopback 6 long", "https://[0:0:0:0:0:0:0:0001]/", CodeURLForbiddenAddress},
		{"14 mapped", "https://[::ffff:127.0.0.1]/", CodeURLForbiddenAddress},
		{"14 mapped hex", "https://[::ffff:a9fe:a9fe]/", CodeURLForbiddenAddress},
		{"14 mapped public", "https://[::ffff:8.8.8.8]/", CodeURLForbiddenAddress},
		{"15 compatible", "https://[::127.0.0.1]/", CodeURLForbiddenAddress},
		{"16 nat64", "https://[64:ff9b::7f00:1]/", CodeURLForbiddenAddress},
		{"17 local nat64", "https://[64:ff9b:1::a9fe:a9fe]/", CodeURLForbiddenAddress},
		{"18 6to4", "https://[2002:7f00:1::]/", CodeURLForbiddenAddress},
		{"19 teredo", "https://[2001:0:53aa:64c::1]/", CodeURLForbiddenAddress},
		{"20 zone", "https://[fe80::1%25eth0]/", CodeURLForbiddenAddress},
		{"20 raw zone", "https://[fe80::1%eth0]/", CodeURLForbiddenAddress},
		{"20 zone on public", "https://[2606:4700::1%25eth0]/", CodeURLForbiddenAddress},
		{"21 site-local", "https://[fec0::1]/", CodeURLForbiddenAddress},
		{"21 unique local metadata", "https://[fd00:ec2::254]/", CodeURLForbiddenAddress},
		{"22 metadata", "https://169.254.169.254/latest/meta-data/", CodeURLForbiddenAddress},
		{"22 metadata name", "https://metadata.google.internal/", CodeURLForbiddenName},
		{"23 metadata Oracle", "https://192.0.0.192/", CodeURLForbiddenAddress},
		{"23 metadata Alibaba", "https://100.100.100.200/", CodeURLForbiddenAddress},
		{"24 private 10", "https://10.0.0.1/", CodeURLForbiddenAddress},
		{"24 private 172", "https://172.16.0.1/", CodeURLForbiddenAddress},
		{"24 private 192", "https://192.168.0.1/", CodeURLForbiddenAddress},
		{"24 shared", "https://100.64.0.1/", CodeURLForbiddenAddress},
		{"24 benchmark", "https://198.18.0.1/", CodeURLForbiddenAddress},
		{"24 reserved", "https://240.0.0.1/", CodeURLForbiddenAddress},
		{"24 multicast", "https://224.0.0.1/", CodeURLForbiddenAddress},
		{"24 broadcast", "https://255.255.255.255/", CodeURLForbiddenAddress},
		{"25 multicast 6", "https://[ff02::1]/", CodeURLForbiddenAddress},
		{"25 documentation", "https://[2001:db8::1]/", CodeURLForbiddenAddress},
		{"25 documentation 3fff", "https://[3fff::1]/", CodeURLForbiddenAddress},
		{"25 srv6", "https://[5f00::1]/", CodeURLForbiddenAddress},
		{"25 discard", "https://[100::1]/", CodeURLForbiddenAddress},
		{"26 localhost", "https://localhost/", CodeURLForbiddenName},
		{"26 LOCALHOST.", "https://LOCALHOST./", CodeURLForbiddenName},
		{"26 x.localhost", "https://x.localhost/", CodeURLForbiddenName},
		{"27 redis", "https://redis/", CodeURLForbiddenName},
		{"27 nats:443", "https://nats:443/", CodeURLForbiddenName},
		{"27 docker", "https://host.docker.internal/", CodeURLForbiddenName},
		{"27 internal", "https://x.internal/", CodeURLForbiddenName},
		{"27 local", "https://x.local/", CodeURLForbiddenName},
		{"27 local with dot", "https://X.LOCAL./", CodeURLForbiddenName},
		{"27 home.arpa", "https://x.home.arpa/", CodeURLForbiddenName},
		{"27 onion", "https://x.onion/", CodeURLForbiddenName},
		{"29 digits in circles", "https://①②⑦.0.0.1/", CodeURLForbiddenAddress},
		{"29 wide digits", "https://１２７.０.０.１/", CodeURLForbiddenAddress},
		{"29 wide dots", "https://127。0。0。1/", CodeURLForbiddenAddress},
		{"29 letter in a circle", "https://ⓛocalhost/", CodeURLForbiddenName},
		{"29 wide dot at the end", "https://localhost。/", CodeURLForbiddenName},
		{"29 soft hyphen", "https://local\u00adhost/", CodeURLForbiddenName},
		{"30 empty punycode", "https://xn--/", CodeURLBad},
		{"30 bad punycode", "https://xn--a.example/", CodeURLBad},
		{"30 space", "https://exa mple.com/", CodeURLBad},
		{"30 percent in the host", "https://%31%32%37.0.0.1/", CodeURLBad},
		{"30 no ]", "https://[::1", CodeURLBad},
		{"30 text after ]", "https://[2606:4700::1]x/", CodeURLBad},
		{"30 IPv4 in brackets", "https://[8.8.8.8]/", CodeURLBad},
		{"30 no brackets", "https://2606:4700::1/", CodeURLBad},
		{"30 empty label", "https://a..example/", CodeURLBad},
		{"30 leading dot", "https://.ok.example/", CodeURLBad},
		{"30 hyphen first", "https://-a.example/", CodeURLBad},
		{"30 character", "https://a,b.example/", CodeURLBad},
		{"30 bad escape in the path", "https://ok.example/%zz", CodeURLBad},
		{"30 bad escape in the query", "https://ok.example/?a=%1", CodeURLBad},
		{"31 port 0", "https://ok.example:0/", CodeURLForbiddenPort},
		{"31 port 99999", "https://ok.example:99999/", CodeURLForbiddenPort},
		{"31 port -1", "https://ok.example:-1/", CodeURLForbiddenPort},
		{"31 port +443", "https://ok.example:+443/", CodeURLForbiddenPort},
		{"31 port wide digits", "https://ok.example:４４３/", CodeURLForbiddenPort},
		{"31 port 000443", "https://ok.example:000443/", CodeURLForbiddenPort},
		{"31 redis", "https://ok.example:6379/", CodeURLForbiddenPort},
		{"31 ssh", "https://ok.example:22/", CodeURLForbiddenPort},
		{"31 port 80", "https://ok.example:80/", CodeURLForbiddenPort},
		{"34 CR LF", "https://ok.example/\r\nX: y", CodeURLBad},
		{"34 NUL", "https://ok.example/\x00", CodeURLBad},
		{"34 tab", "https://ok.example/\tx", CodeURLBad},
		{"34 C1", "https://ok.example/\u0085", CodeURLBad},
		{"34 DEL", "https://ok.example/\x7f", CodeURLBad},
		{"34 in the scheme", "ht\ntps://ok.example/", CodeURLBad},
		{"34 not UTF-8", "https://ok.example/\xff", CodeURLBad},
		{"35 2049 bytes", "https://ok.example/" + strings.Repeat("a", 2049-19), CodeURLTooLong},
		{"35 2049 bytes encoded", "https://ok.example/" + strings.Repeat("é", 500), CodeURLTooLong},
		{"35 label of 64", "https://" + label64 + ".example/", CodeURLBad},
		{"35 host of 254", "https://" + host254 + "/", CodeURLBad},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			got, problem := NormalizeURL(tc.url, p)
			if problem == nil {
				t.Fatalf("NormalizeURL(%q) = %q, want it refused", tc.url, got)
			}
			if problem.Code != tc.code || problem.Field != "url" || got != "" {
				t.Errorf("NormalizeURL(%q) = %q, %+v, want code %s", tc.url, got, problem, tc.code)
			}
			if strings.Contains(problem.Detail, "pass") {
				t.Errorf("the message repeats a password: %s", problem.Detail)
			}
		})
	}
}

func TestNormalizeURL(t *testing.T) {
	t.Parallel()
	host253 := strings.Repeat(strings.Repeat("a", 49)+".", 5) + "abc"
	long := "https://ok.example/" + strings.Repeat("a", 2048-19)
	for _, tc := range []struct{ row, url, want string }{
		{"28 name of a loopback address", "https://127.0.0.1.nip.io/", "https://127.0.0.1.nip.io/"},
		{"28 rebinding name", "https://a9fea9fe.01010101.rbndr.us/", "https://a9fea9fe.01010101.rbndr.us/"},
		{"32 empty port", "https://ok.example:/", "https://ok.example/"},
		{"33 case, dot, fragment", "HTTPS://OK.EXAMPLE./a/../b?x#frag", "https://ok.example/a/../b?x"},
		{"35 2048 bytes", long, long},
		{"35 host of 253", "https://" + host253, "https://" + host253 + "/"},
		{"default port", "https://ok.example:443", "https://ok.example/"},
		{"default port with zeros", "https://ok.example:00443", "https://ok.example/"},
		{"other port", "https://ok.example:8443/x", "https://ok.example:8443/x"},
		{"fragment only", "https://ok.example#x", "https://ok.example/"},
		{"query only", "https://ok.example?x=1", "https://ok.example/?x=1"},
		{"question mark in the fragment", "https://ok.example/#?x", "https://ok.example/"},
		{"empty query", "https://ok.example/?", "https://ok.example/?"},
		{"two question marks", "https://ok.example/?a?b", "https://ok.example/?a?b"},
		{"escapes stay", "https://ok.example/a%2Fb%2f%7e?c=%20", "https://ok.example/a%2Fb%2f%7e?c=%20"},
		{"escapes stay beside a bad byte", "https://ok.example/a%2Fb|c", "https://ok.example/a%2Fb%7Cc"},
		{"text beyond ASCII", "https://ok.example/ção?q=ã", "https://ok.example/%C3%A7%C3%A3o?q=%C3%A3"},
		{"double slash", "https://ok.example//a//", "https://ok.example//a//"},
		{"at sign in the path", "https://ok.example/@a:b", "https://ok.example/@a:b"},
		{"brackets in the path", "https://ok.example/[a]", "https://ok.example/[a]"},
		{"colon first", "https://ok.example/:x", "https://ok.example/:x"},
		{"IDNA", "https://Ação.example/", "https://xn--ao-siap.example/"},
		{"IDNA, punycode", "https://xn--AO-siap.example/", "https://xn--ao-siap.example/"},
		{"IDNA, deviation", "https://faß.example/", "https://xn--fa-hia.example/"},
		{"hyphens in third place", "https://r3---sn.example/", "https://r3---sn.example/"},
		{"underscore", "https://my_hook.example/", "https://my_hook.example/"},
		{"number inside", "https://1.2.example/", "https://1.2.example/"},
		{"hex inside", "https://0x7f.example/", "https://0x7f.example/"},
		{"public IPv4", "https://8.8.8.8/", "https://8.8.8.8/"},
		{"public IPv6", "https://[2606:4700:0::1111]:8443/x", "https://[2606:4700::1111]:8443/x"},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			p := policy(t, egress.Config{})
			got, problem := NormalizeURL(tc.url, p)
			if problem != nil {
				t.Fatalf("NormalizeURL(%q): %v", tc.url, problem)
			}
			if got != tc.want {
				t.Errorf("NormalizeURL(%q) = %q, want %q", tc.url, got, tc.want)
			}
		})
	}
}

func TestNormalizeURLOpened(t *testing.T) {
	t.Parallel()
	open := egress.Config{
		AllowHTTPURLs: true,
		AllowCIDRs:    []string{"127.0.0.0/8", "10.1.0.0/16"},
		AllowPorts:    []string{"443", "1024-2000"},
	}
	for _, tc := range []struct{ name, url, want, code string }{
		{"http", "HTTP://ok.example:80", "http://ok.example/", ""},
		{"http on 443", "http://ok.example:443/", "http://ok.example:443/", ""},
		{"loopback", "http://127.0.0.1:1999/x", "http://127.0.0.1:1999/x", ""},
		{"listed private", "https://10.1.255.255/", "https://10.1.255.255/", ""},
		{"private not listed", "https://10.2.0.0/", "", CodeURLForbiddenAddress},
		{"localhost", "http://LOCALHOST:1024/", "http://localhost:1024/", ""},
		{"below localhost", "http://x.localhost/", "", CodeURLForbiddenName},
		{"mapped", "https://[::ffff:127.0.0.1]/", "", CodeURLForbiddenAddress},
		{"loopback 6", "https://[::1]/", "", CodeURLForbiddenAddress},
		{"short spelling", "https://127.1/", "", CodeURLForbiddenAddress},
		{"port below", "https://127.0.0.1:1023/", "", CodeURLForbiddenPort},
		{"port above", "https://127.0.0.1:2001/", "", CodeURLForbiddenPort},
		{"ftp", "ftp://ok.example/", "", CodeURLForbiddenScheme},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, problem := NormalizeURL(tc.url, policy(t, open))
			var code string
			if problem != nil {
				code = problem.Code
			}
			if got != tc.want || code != tc.code {
				t.Errorf("NormalizeURL(%q) = %q, %v, want %q, code %q", tc.url, got, problem, tc.want, tc.code)
			}
		})
	}
	six := policy(t, egress.Config{AllowCIDRs: []string{"::1/128"}})
	if got, problem := NormalizeURL("https://localhost/", six); got != "https://localhost/" {
		t.Errorf("localhost with ::1 open: %q, %v", got, problem)
	}
	if got, problem := NormalizeURL("https://[0::1]/", six); got != "https://[::1]/" {
		t.Errorf("::1 open: %q, %v", got, problem)
	}
	no443 := policy(t, egress.Config{AllowPorts: []string{"8443"}})
	for _, url := range []string{"https://ok.example/", "https://ok.example:443/"} { // the sentence must not praise the port
		const want = "url has the port 443, which is not open here; the operator opens ports with EGRESS_ALLOW_PORTS"
		if got, problem := NormalizeURL(url, no443); problem == nil || problem.Code != CodeURLForbiddenPort || problem.Detail != want {
			t.Errorf("443 closed: %q, %+v", got, problem)
		}
	}
}

func TestURLKeyAndHost(t *testing.T) {
	t.Parallel()
	const u = "https://ok.example:8443/hooks?token=canary"
	// printf %s 'https://ok.example:8443/hooks?token=canary' | sha256sum
	if got, want := URLKey(u), "624a1891ea59e4455e1f9135788a2646"; got != want {
		t.Errorf("URLKey = %s, want %s", got, want)
	}
	for _, tc := range []struct{ url, want string }{
		{u, "ok.example:8443"},
		{"https://ok.example/", "ok.example"},
		{"https://[2606:4700::1]:8443/", "[2606:4700::1]:8443"},
		{"https://ok.example?token=canary", "ok.example"},
	} {
		if got := URLHost(tc.url); got != tc.want {
			t.Errorf("URLHost(%q) = %q, want %q", tc.url, got, tc.want)
		}
	}
}

// FuzzNormalizeURL: an accepted URL is accepted again unchanged, is what Go's client would send, and names
// no address the policy refuses.
func FuzzNormalizeURL(f *testing.F) {
	for _, s := range []string{
		"https://ok.example/a%2Fb|c?x=ção#f", "HTTPS://OK.EXAMPLE.:443", "https://①②⑦.0.0.1/", "https://[2606:4700::1]:8443/",
		"https://xn--ao-siap.example/", "https://a@b/", "https://ok.example?%41", "http://127.0.0.1:80/", "https://0x7f.1/",
		"https://faß.example。/", "https://ok.example/%", "https://[::ffff:1.2.3.4]/", "https://x\u200c.example/",
	} {
		f.Add(s)
	}
	strict, open := policy(f, egress.Config{}), policy(f, egress.Config{AllowHTTPURLs: true, AllowPorts: []string{"*"}})
	f.Fuzz(func(t *testing.T, raw string) {
		for _, p := range []*egress.Policy{strict, open} {
			got, problem := NormalizeURL(raw, p)
			if problem != nil {
				if problem.Code == "" || problem.Detail == "" || got != "" {
					t.Fatalf("NormalizeURL(%q) = %q, %+v", raw, got, problem)
				}
				continue
			}
			again, problem := NormalizeURL(got, p)
			if problem != nil || again != got {
				t.Fatalf("NormalizeURL(%q) = %q, then %q, %v", raw, got, again, problem)
			}
			u, err := url.Parse(got)
			if err != nil || u.String() != got || u.Host != URLHost(got) || u.User != nil || len(got) > MaxURLBytes {
				t.Fatalf("NormalizeURL(%q) = %q, which parses as %+v, %v", raw, got, u, err)
			}
			for i := range len(got) {
				if got[i] <= ' ' || got[i] >= 0x7f {
					t.Fatalf("NormalizeURL(%q) = %q, which has the byte %#x", raw, got, got[i])
				}
			}
			if strings.ToLower(u.Host) != u.Host || strings.HasSuffix(u.Hostname(), ".") {
				t.Fatalf("NormalizeURL(%q) = %q: host not normal", raw, got)
			}
		}
	})
}
