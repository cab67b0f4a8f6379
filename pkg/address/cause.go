package address

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"syscall"
)

// Cause says in a few words why a server cannot be reached, "" when err is not about the network. It contains no part
// of an address or a password.
func Cause(err error) string {
	var name *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var timeout net.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &name) && name.IsTimeout:
		return "the name server does not answer"
	case errors.As(err, &name):
		return "unknown name"
	case errors.As(err, new(x509.HostnameError)):
		return "TLS: the certificate is for another name"
	case errors.As(err, &certificate), errors.As(err, &record), errors.As(err, new(x509.UnknownAuthorityError)):
		return "TLS: the certificate is not accepted, or the server does not speak TLS"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused: nothing listens there"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no route to it"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case strings.Contains(err.Error(), "EOF"), errors.Is(err, syscall.ECONNRESET):
		return "the connection was closed: does one side speak TLS and the other not?"
	}
	return ""
}
