package delivery

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"slices"
	"strings"
)

// Types of TLS records.
const (
	recordAlert     = 21
	recordHandshake = 22
)

// renegotiate is a receiver that asks for another handshake (RFC 5246, section 7.4.1.1) instead of answering, which
// crypto/tls cannot do. It returns the type of the record that came back, 0 for none.
func renegotiate(c net.Conn, certs []tls.Certificate) byte {
	spy := &spied{Conn: c}
	var keys bytes.Buffer
	t := tls.Server(spy, &tls.Config{
		Certificates: certs, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
		KeyLogWriter: &keys, SessionTicketsDisabled: true,
	})
	if _, _, err := readRequest(bufio.NewReader(t)); err != nil {
		return 0
	}
	line := strings.Fields(keys.String()) // CLIENT_RANDOM, the random, the master secret
	if len(line) != 3 {
		return 0
	}
	clientRandom, err := hex.DecodeString(line[1])
	if err != nil {
		return 0
	}
	master, err := hex.DecodeString(line[2])
	if err != nil {
		return 0
	}
	serverRandom := spy.first[5+4+2 : 5+4+2+32] // of the ServerHello, behind the heads of record and message
	block := expand(master, slices.Concat([]byte("key expansion"), serverRandom, clientRandom), 2*(16+4))
	key, iv := block[16:32], block[36:40] // the server's
	b, err := aes.NewCipher(key)
	if err != nil {
		return 0
	}
	aead, err := cipher.NewGCM(b)
	if err != nil {
		return 0
	}
	const number = 1 // of the server's encrypted records; 0 ended the handshake
	nonce := binary.BigEndian.AppendUint64(slices.Clone(iv), number)
	helloRequest := []byte{0, 0, 0, 0}
	head := []byte{recordHandshake, 3, 3}
	about := slices.Concat(binary.BigEndian.AppendUint64(nil, number), head, []byte{0, byte(len(helloRequest))})
	sealed := aead.Seal(slices.Clone(nonce[4:]), nonce, helloRequest, about)
	if _, err := c.Write(slices.Concat(head, []byte{0, byte(len(sealed))}, sealed)); err != nil {
		return 0
	}
	kind := make([]byte, 1)
	if _, err := io.ReadFull(c, kind); err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, c) // until the sender gives up
	return kind[0]
}

// spied keeps the first bytes that are written.
type spied struct {
	net.Conn

	first []byte
}

func (s *spied) Write(p []byte) (int, error) {
	if s.first == nil {
		s.first = slices.Clone(p)
	}
	return s.Conn.Write(p)
}

// expand is the pseudorandom function of TLS 1.2 (RFC 5246, section 5).
func expand(secret, seed []byte, n int) []byte {
	sum := func(parts ...[]byte) []byte {
		mac := hmac.New(sha256.New, secret)
		for _, p := range parts {
			mac.Write(p)
		}
		return mac.Sum(nil)
	}
	var out []byte
	for a := sum(seed); len(out) < n; a = sum(a) {
		out = append(out, sum(a, seed)...)
	}
	return out[:n]
}
