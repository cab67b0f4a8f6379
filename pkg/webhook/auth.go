package webhook

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"gancho/pkg/seal"
)

// The types of Auth.
const (
	OAuth2 = "oauth2" // a token of a token server is sent as Authorization
	MTLS   = "mtls"   // a client certificate is shown
)

// Auth is how requests prove who sends them, beyond a header of the owner's. Which members are set depends on the type.
// A value is immutable once it is shared.
type Auth struct {
	Type string `json:"type"`

	// Of OAuth2.
	TokenURL      string `json:"token_url,omitempty"` // normalised
	TokenURLGiven string `json:"token_url_given,omitempty"`
	ClientID      string `json:"client_id,omitempty"`
	ClientSecret  string `json:"client_secret,omitempty"` // sealed
	Scope         string `json:"scope,omitempty"`
	Audience      string `json:"audience,omitempty"`

	// Of MTLS.
	Certificate string `json:"certificate,omitempty"` // PEM, the intermediate ones after it
	PrivateKey  string `json:"private_key,omitempty"` // PEM, sealed
}

// ShownTokenURL is the URL of the token server as its owner wrote it.
func (a *Auth) ShownTokenURL() string { return cmp.Or(a.TokenURLGiven, a.TokenURL) }

// secret returns the member that is sealed, and its name.
func (a *Auth) secret() (sealed *string, name string) {
	if a.Type == MTLS {
		return &a.PrivateKey, "private_key"
	}
	return &a.ClientSecret, "client_secret"
}

// authContext binds the secret of w's Auth to w, to the origin of its URL, and to that of the token server.
func (w *Webhook) authContext() []byte {
	_, name := w.Auth.secret()
	context := w.SealContext(name)
	if w.Auth.Type == OAuth2 {
		context = append(context, " "+Origin(w.Auth.TokenURL)...)
	}
	return context
}

// SealAuth sets the secret of w's Auth, which must not be shared yet: the client secret or the private key.
func (w *Webhook) SealAuth(keys *seal.Keyring, secret []byte) {
	sealed, _ := w.Auth.secret()
	*sealed = keys.Seal(secret, w.authContext())
}

// OpenAuth opens the secret of w's Auth.
func (w *Webhook) OpenAuth(keys *seal.Keyring) ([]byte, error) {
	sealed, name := w.Auth.secret()
	raw, err := keys.Open(*sealed, w.authContext())
	if err != nil {
		return nil, fmt.Errorf("open the %s of webhook %s: %w", name, w.ID, err)
	}
	return raw, nil
}

// SameAuth reports whether two webhooks prove who they are in the same way, with the same sealed secret.
func SameAuth(a, b *Webhook) bool {
	if a.Auth == nil || b.Auth == nil {
		return a.Auth == b.Auth
	}
	return *a.Auth == *b.Auth
}

// Leaf is the client's own certificate, nil when there is none.
func (a *Auth) Leaf() *x509.Certificate {
	block, _ := pem.Decode([]byte(a.Certificate))
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return leaf
}

// Limits of the members of an Auth, in bytes.
const (
	MaxClientBytes = 2048 // client_id, client_secret, scope and audience, each
	MaxPEMBytes    = 32 << 10
)

// CheckClient accepts the members of an OAuth2 client but its URL. The problems never repeat a value.
func CheckClient(id, secret, scope, audience string) (problems []*Problem) {
	bad := func(field, code, detail string) {
		problems = append(problems, &Problem{Field: "auth/" + field, Code: code, Detail: field + " " + detail})
	}
	for _, f := range []struct{ name, value string }{{"client_id", id}, {"client_secret", secret}, {"scope", scope}, {"audience", audience}} {
		switch {
		case f.value == "" && strings.HasPrefix(f.name, "client_"):
			bad(f.name, "required", "is missing")
		case len(f.value) > MaxClientBytes:
			bad(f.name, "bad_"+f.name, "is too long; it may have 2048 bytes")
		case strings.IndexFunc(f.value, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0:
			bad(f.name, "bad_"+f.name, "has a control character, such as a line break; remove it")
		}
	}
	// RFC 6749, section 3.3.
	if strings.IndexFunc(scope, func(r rune) bool { return r > '~' || r == '"' || r == '\\' }) >= 0 {
		bad("scope", "bad_scope", "is a list of words, separated by spaces, without quotation marks, backslashes and letters beyond ASCII")
	}
	return problems
}

// CheckCertificate accepts a client certificate in PEM, with the intermediate ones after it, that is valid now, and the
// private key that fits it. The problem never repeats a value.
func CheckCertificate(certificate, key string, now time.Time) *Problem {
	bad := func(field, code, format string, args ...any) *Problem {
		return &Problem{"auth/" + field, code, fmt.Sprintf(format, args...)}
	}
	switch {
	case certificate == "":
		return bad("certificate", "required", "certificate is missing")
	case key == "":
		return bad("private_key", "required", "private_key is missing")
	case len(certificate) > MaxPEMBytes:
		return bad("certificate", "bad_certificate", "certificate is too long; it may have 32 KiB: the certificate and its intermediate ones")
	case len(key) > MaxPEMBytes:
		return bad("private_key", "bad_private_key", "private_key is too long; it may have 32 KiB")
	case strings.Contains(certificate, "PRIVATE KEY"):
		return bad("certificate", "bad_certificate", "certificate holds a private key; give that as private_key only")
	}
	rest, n := []byte(certificate), 0
	for ; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return bad("certificate", "bad_certificate", "block %d of certificate is not a certificate of X.509", n+1)
		}
		switch {
		case now.After(c.NotAfter):
			return bad("certificate", "certificate_ended", "certificate %d ended at %s", n+1, c.NotAfter.UTC().Format(time.RFC3339))
		case now.Before(c.NotBefore):
			return bad("certificate", "certificate_not_yet", "certificate %d is not valid before %s", n+1, c.NotBefore.UTC().Format(time.RFC3339))
		}
	}
	if n == 0 || strings.TrimSpace(string(rest)) != "" {
		return bad("certificate", "bad_certificate", "certificate is not in PEM: it begins with -----BEGIN CERTIFICATE-----, and nothing comes after the last one")
	}
	block, rest := pem.Decode([]byte(key))
	switch {
	case block == nil || !strings.HasSuffix(block.Type, "PRIVATE KEY"):
		return bad("private_key", "bad_private_key", "private_key is not in PEM: it begins with -----BEGIN PRIVATE KEY-----")
	case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
		return bad("private_key", "bad_private_key", "private_key is protected by a passphrase; remove it (openssl pkey -in key.pem), it is encrypted here")
	case strings.TrimSpace(string(rest)) != "":
		return bad("private_key", "bad_private_key", "private_key has something after the key; give one key")
	}
	switch _, err := tls.X509KeyPair([]byte(certificate), []byte(key)); {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "does not match"):
		return bad("private_key", "key_mismatch", "private_key is not that of the certificate")
	default:
		return bad("private_key", "bad_private_key", "private_key is not a key that TLS can use: RSA, ECDSA or Ed25519, in PKCS #8, PKCS #1 or SEC 1")
	}
}
