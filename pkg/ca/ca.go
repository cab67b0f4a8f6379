// Package ca reads the certificate authorities that a program trusts.
package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ErrNone reports a file without a certificate in PEM.
var ErrNone = errors.New("holds no certificate in PEM")

// Pool returns the system's authorities and those in a PEM file.
func Pool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the file
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's authorities: %w", err)
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s %w", file, ErrNone)
	}
	return pool, nil
}
