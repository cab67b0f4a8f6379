// Package dnstest is a name server for tests, on a free UDP port of 127.0.0.1.
package dnstest

import (
	"net"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Start starts a name server that ends with the test and returns its address. answer is called for one question
// after another and completes the message, which is a response already and holds the additional records of the
// query (EDNS); it returns false for no answer at all.
func Start(tb testing.TB, answer func(q dnsmessage.Question, m *dnsmessage.Message) bool) string {
	tb.Helper()
	c, err := (&net.ListenConfig{}).ListenPacket(tb.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	tb.Cleanup(func() { _ = c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Authoritative = true, true
			if !answer(m.Questions[0], &m) {
				continue
			}
			m.Additionals = nil
			if m.RCode > 0xf { // EDNS holds the upper part
				var h dnsmessage.ResourceHeader
				_ = h.SetEDNS0(512, m.RCode, false)
				m.RCode &= 0xf
				m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
			}
			if packed, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(packed, from)
			}
		}
	}()
	return c.LocalAddr().String()
}

// Address is the record that says where q's name is: an IPv4 address.
func Address(q dnsmessage.Question, a [4]byte) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.AResource{A: a}}
}
