package delivery

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"time"
)

// Identity is a client certificate that is shown to receivers that ask for one. Connections, and TLS sessions that are
// resumed, are kept for each Identity: no request without it, or with another one, uses them. It is safe for concurrent
// use.
type Identity struct {
	certificate tls.Certificate
	sessions    tls.ClientSessionCache
}

// NewIdentity reads a certificate, with the intermediate ones after it, and its private key, both PEM.
func NewIdentity(certificate, key []byte) (*Identity, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, errors.New("the client certificate and its key are not usable") // err may repeat the input
	}
	return &Identity{certificate: pair, sessions: tls.NewLRUClientSessionCache(16)}, nil
}

// Certificate is how long the client certificate is valid.
func (i *Identity) Certificate() Certificate {
	return Certificate{From: i.certificate.Leaf.NotBefore, Until: i.certificate.Leaf.NotAfter, New: true}
}

// show answers a receiver's request for a client certificate: with that of i, whatever authorities the receiver lists
// (it says itself why it refuses one), or with none.
func (i *Identity) show(a *attempt) (*tls.Certificate, error) {
	a.asked = true
	if i == nil {
		return &tls.Certificate{}, nil
	}
	return &i.certificate, nil
}

// refusals are the alerts with which receivers refuse a client certificate, as crypto/tls writes them.
var refusals = []string{
	"bad certificate", "unsupported certificate", "revoked certificate", "expired certificate", "unknown certificate",
	"unknown certificate authority", "access denied", "certificate required", "handshake failure", "error decrypting message",
}

// refused says why a receiver that asked for a client certificate refused ours, or that there is none; "" when err is
// another failure.
func (a *attempt) refused(err error, now time.Time) string {
	_, alert, found := strings.Cut(err.Error(), "remote error: tls: ")
	switch {
	case !a.asked || !found || !slices.Contains(refusals, alert):
		return ""
	case a.identity == nil:
		return "the receiver wants a client certificate (alert " + alert + ")"
	}
	text := "the receiver refused the client certificate (alert " + alert + ")"
	if until := a.identity.certificate.Leaf.NotAfter; now.After(until) {
		text += ", which ended at " + until.UTC().Format(time.RFC3339)
	}
	return text
}

// doubt is what the loss of a connection may mean on which the receiver had just asked for a client certificate.
func (a *attempt) doubt() string {
	switch {
	case !a.asked || !a.fresh:
		return ""
	case a.identity == nil:
		return "; the receiver asked for a client certificate, and the webhook has none"
	}
	return "; the receiver may have refused the client certificate"
}
