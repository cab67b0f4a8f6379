// Package proxy finds the client of a request behind the proxies that the operator trusts.
//
// A trusted proxy's X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host are believed; those of others are
// ignored. Of several addresses in X-Forwarded-For the client is the last one that is no trusted proxy: the client
// itself sent those before it.
package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Trusted are the proxies whose headers are believed. The zero value trusts none.
type Trusted []netip.Prefix

// Parse reads addresses and CIDRs. The error names every bad one; empty ones are ignored.
func Parse(list []string) (Trusted, error) {
	var trusted Trusted
	var errs []error
	for _, text := range list {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		p, err := prefix(text)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%q is neither an address nor a CIDR; give such as 10.0.0.7 or 10.0.0.0/8",
				text))
		case p.Bits() == 0:
			errs = append(errs, fmt.Errorf("%q trusts every address; name the proxies", text))
		default:
			trusted = append(trusted, p)
		}
	}
	return trusted, errors.Join(errs...)
}

func prefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

func (t Trusted) has(a netip.Addr) bool {
	return slices.ContainsFunc(t, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Handler passes requests on to next as the client made them: RemoteAddr is the client's address (with port 0
// where a proxy named it), Host the host that it asked for, and URL.Scheme the scheme that it used.
func (t Trusted) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, t.resolve(r))
	})
}

func (t Trusted) resolve(r *http.Request) *http.Request {
	out := new(http.Request)
	*out = *r
	u := *r.URL
	u.Scheme = "http"
	if r.TLS != nil {
		u.Scheme = "https"
	}
	out.URL = &u
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !t.has(peer.Addr().Unmap().WithZone("")) {
		return out
	}
	if client, ok := t.client(r.Header.Values("X-Forwarded-For")); ok {
		out.RemoteAddr = netip.AddrPortFrom(client, 0).String()
	}
	if scheme := strings.ToLower(last(r.Header.Values("X-Forwarded-Proto"))); scheme == "http" || scheme == "https" {
		u.Scheme = scheme
	}
	if host := last(r.Header.Values("X-Forwarded-Host")); validHost(host) {
		out.Host = host
	}
	return out
}

// client walks from the nearest hop to the first address that is no trusted proxy. A hop that is no address ends
// the walk: the last proxy before it is all that is known.
func (t Trusted) client(values []string) (client netip.Addr, ok bool) {
	hops := strings.Split(strings.Join(values, ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, err := address(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		client, ok = a, true
		if !t.has(a) {
			break
		}
	}
	return client, ok
}

// address reads an address, with a port or without.
func address(text string) (netip.Addr, error) {
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.Addr().Unmap().WithZone(""), nil
	}
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return a.Unmap().WithZone(""), err
}

// last is the entry that the nearest proxy wrote.
func last(values []string) string {
	all := strings.Join(values, ",")
	return strings.TrimSpace(all[strings.LastIndexByte(all, ',')+1:])
}

func validHost(host string) bool {
	u, err := url.Parse("//" + host)
	return err == nil && host != "" && u.Host == host && u.Hostname() != "" && !strings.ContainsAny(host, " \t\"'<>\\")
}

// baseURL is the scheme and the host that the client of a request sees, such as https://hooks.example.com.
func baseURL(r *http.Request) string {
	scheme := r.URL.Scheme
	if scheme == "" {
		scheme = "http"
		if r.TLS != nil {
			scheme = "https"
		}
	}
	return scheme + "://" + r.Host
}
