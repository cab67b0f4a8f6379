package delivery

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/html/charset"
)

// handshakeFailure is one sentence with the cause of a failed handshake.
func handshakeFailure(err error) string {
	const prefix = "TLS handshake: "
	refused, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if ok && len(refused.UnverifiedCertificates) > 0 {
		return prefix + certificateFailure(refused.UnverifiedCertificates, refused.Err)
	}
	text := err.Error()
	switch {
	case strings.HasSuffix(text, alertHandshakeFailure):
		return prefix + "the receiver accepts none of the cipher suites offered (alert handshake " +
			"failure); it has to offer TLS 1.3, " +
			"or TLS 1.2 with ECDHE and AES or ChaCha20"
	case strings.HasSuffix(text, "remote error: tls: protocol version not supported"),
		strings.Contains(text, "server selected unsupported protocol version"):
		return prefix + "the receiver speaks nothing newer than TLS 1.1; it has to offer TLS 1.2 or 1.3"
	case strings.HasSuffix(text, "remote error: tls: certificate required"),
		strings.HasSuffix(text, "remote error: tls: bad certificate"):
		return prefix + "the receiver wants a client certificate (" + text + ")"
	case strings.HasSuffix(text, "remote error: tls: unrecognized name"):
		return prefix + "the receiver has no certificate for this host name (alert unrecognized name)"
	case malformedCertificate(text) != "":
		return prefix + "the certificate is malformed (" + malformedCertificate(text) + "); issue a new one"
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		return prefix + "the receiver does not speak TLS on this port"
	case errors.Is(err, io.EOF):
		return prefix + "the receiver closed the connection"
	}
	return prefix + text
}

// malformedCertificate is what crypto/x509 has against a certificate that it cannot read, "" in any other failure.
func malformedCertificate(text string) string {
	_, why, _ := strings.Cut(text, "failed to parse certificate from server: ")
	return why
}

// certificateFailure says why the chain, leaf first, was refused.
func certificateFailure(chain []*x509.Certificate, err error) string {
	leaf := chain[0]
	if host, ok := errors.AsType[x509.HostnameError](err); ok {
		names := leaf.DNSNames
		for _, ip := range leaf.IPAddresses {
			names = append(names, ip.String())
		}
		if len(names) == 0 {
			return "the certificate names no host (a subject alternative name is missing; " +
				"its common name does not count), and " + host.Host + " is wanted"
		}
		const most = 3
		shown := strings.Join(names[:min(most, len(names))], ", ")
		if len(names) > most {
			shown += " and others"
		}
		return "the certificate is for " + shown + ", not for " + host.Host
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		which := "the certificate"
		if invalid.Cert != nil && !invalid.Cert.Equal(leaf) {
			which = "the certificate of the authority " + name(invalid.Cert)
		}
		if invalid.Reason == x509.Expired && invalid.Cert != nil {
			if time.Now().Before(invalid.Cert.NotBefore) {
				return which + " is not valid before " + invalid.Cert.NotBefore.UTC().Format(time.RFC3339)
			}
			return which + " ended at " + invalid.Cert.NotAfter.UTC().Format(time.RFC3339)
		}
		return which + " is not acceptable: " + err.Error()
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		last := chain[len(chain)-1]
		switch {
		case bytes.Equal(leaf.RawIssuer, leaf.RawSubject):
			return "the certificate is self-signed; use one from a public authority"
		case len(chain) == 1 || !bytes.Equal(last.RawIssuer, last.RawSubject):
			return "an intermediate certificate is missing, or the authority is not a trusted " +
				"one: the receiver sent no certificate of " +
				issuer(last) + "; send the whole chain"
		}
		return "the certificate's authority is not a trusted one: " + name(last)
	}
	return err.Error()
}

func name(c *x509.Certificate) string   { return quote(c.Subject.String()) }
func issuer(c *x509.Certificate) string { return quote(c.Issuer.String()) }

// inflated returns the beginning of body without its content coding, for people to read. A body with
// another coding than the header says stays as it is.
func inflated(body []byte, h http.Header) []byte {
	var r io.ReadCloser
	var err error
	switch strings.ToLower(strings.TrimSpace(h.Get("Content-Encoding"))) {
	case "gzip", "x-gzip":
		r, err = gzip.NewReader(bytes.NewReader(body))
	case "deflate":
		if r, err = zlib.NewReader(bytes.NewReader(body)); err != nil && !utf8.Valid(body) {
			r, err = flate.NewReader(bytes.NewReader(body)), nil // many leave zlib's header out
		}
	default:
		return body
	}
	if err != nil {
		return body
	}
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, scratchBytes))
	if err != nil && len(out) == 0 {
		return body
	}
	return out // a body that was cut ends early
}

// namesOther reports a Content-Type whose encoding may look like UTF-8 and is not.
func namesOther(h http.Header) bool {
	m := charsetName.FindStringSubmatch(h.Get("Content-Type"))
	if m == nil {
		return false
	}
	name := strings.ToLower(m[1])
	return strings.HasPrefix(name, "utf-16") || strings.HasPrefix(name, "iso-2022")
}

// charsetName finds the encoding in a Content-Type, also where the rest of it is malformed.
var charsetName = regexp.MustCompile(`(?i)[;\s]charset\s*=\s*["']?([a-z0-9._:-]{1,40})`)

// xmlEncoding finds the encoding that an XML document names.
var xmlEncoding = regexp.MustCompile(`^<\?xml[^>]*\sencoding=["']([A-Za-z0-9._-]{1,40})["']`)

// asUTF8 returns body in UTF-8 where its encoding is named: in Content-Type, by a byte order mark, or in the document.
func asUTF8(body []byte, h http.Header) []byte {
	kind := h.Get("Content-Type")
	e, label, certain := charset.DetermineEncoding(body, kind)
	if m := charsetName.FindStringSubmatch(kind); m != nil && !certain {
		if named, l := charset.Lookup(m[1]); named != nil {
			e, label, certain = named, l, true
		}
	}
	if m := xmlEncoding.FindSubmatch(body); m != nil && !strings.Contains(strings.ToLower(kind), "charset") {
		e, label = charset.Lookup(string(m[1]))
		certain = e != nil
	}
	if strings.Contains(kind, "html") && bytes.Contains(body[:min(len(body), 1024)], []byte("charset")) {
		certain = true // the document names it
	}
	if !certain || label == "utf-8" || label == "replacement" {
		return body
	}
	out, err := e.NewDecoder().Bytes(body)
	if err != nil {
		return body
	}
	return out
}
