// Package address reads the addresses of servers, which may hold a password.
//
// It is strict: an address whose parts are in doubt is refused, because an unescaped "@", "/", "?" or "#" in a
// password makes another host of the rest. An error never quotes the address, not even in part: it says which
// rule is broken and which form is allowed.
package address

import (
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Form is the form of the addresses that one setting takes.
type Form struct {
	Schemes    []string
	Hosts      bool     // several hosts are allowed, separated by commas
	Database   bool     // the path may be a number: /0
	Socket     string   // the scheme whose path is a file on this machine, which has no host
	Parameters []string // allowed in the query
	At         bool     // a parameter's value may hold an "@", as an address of e-mail does
}

// Address is an address in its parts, decoded.
type Address struct {
	Scheme         string
	User, Password string
	HasPassword    bool
	Hosts          []string // host or host:port, IPv6 in brackets
	Path           string
	Parameters     url.Values
}

// The rules, as errors say them. None of them quotes the address.
var (
	errNoScheme = errors.New("it does not begin with a scheme and ://")
	errScheme   = errors.New("its scheme is not one of those allowed")
	errEncode   = errors.New("a character in it must be percent-encoded (# is %23, " +
		"% is %25, / is %2F, ? is %3F, @ is %40)")
	errNoHost    = errors.New("it names no host")
	errHosts     = errors.New("it names several hosts")
	errHost      = errors.New("its host is neither a name nor an IP address (IPv6 is written in brackets)")
	errPort      = errors.New("its port is not a number from 1 to 65535")
	errPath      = errors.New("it has a path that is not allowed")
	errParameter = errors.New("its parameters are not of the form name=value, each name known and given once")
)

// Parse reads one address.
func (f Form) Parse(raw string) (*Address, error) {
	a := &Address{}
	var rest string
	var ok bool
	if a.Scheme, rest, ok = strings.Cut(raw, "://"); !ok {
		return nil, errNoScheme
	}
	if !slices.Contains(f.Schemes, a.Scheme) {
		return nil, errScheme
	}
	if strings.ContainsFunc(rest, func(r rune) bool {
		return r <= ' ' || r >= 0x7f ||
			strings.ContainsRune("\"#<>\\^`{|}", r)
	}) {
		return nil, errEncode
	}
	authority, path, query := split(rest)
	if err := a.login(&authority); err != nil {
		return nil, err
	}
	if strings.Contains(path, "@") || strings.Contains(query, "@") && !f.At {
		return nil, errEncode
	}
	switch socket := f.Socket != "" && a.Scheme == f.Socket; {
	case socket && authority != "":
		return nil, errPath
	case !socket:
		if err := a.hosts(authority, f.Hosts); err != nil {
			return nil, err
		}
	}
	if err := a.path(path, f); err != nil {
		return nil, err
	}
	return a, a.parameters(query, f.Parameters)
}

// URL returns the address as a URL, with the first of its hosts.
func (a *Address) URL() *url.URL {
	u := &url.URL{Scheme: a.Scheme, Path: a.Path, RawQuery: a.Parameters.Encode()}
	if len(a.Hosts) > 0 {
		u.Host = a.Hosts[0]
	}
	switch {
	case a.HasPassword:
		u.User = url.UserPassword(a.User, a.Password)
	case a.User != "":
		u.User = url.User(a.User)
	}
	return u
}

// split cuts the text behind the scheme into its parts, the path with its "/" and the query without its "?".
func split(rest string) (authority, path, query string) {
	authority, query, _ = strings.Cut(rest, "?")
	if i := strings.IndexByte(authority, '/'); i >= 0 {
		authority, path = authority[:i], authority[i:]
	}
	return authority, path, query
}

// login takes user and password off the front of the authority.
func (a *Address) login(authority *string) error {
	login, hosts, ok := strings.Cut(*authority, "@")
	if !ok {
		return nil
	}
	if strings.ContainsAny(hosts, "@") || strings.ContainsAny(login, "[]") {
		return errEncode
	}
	*authority = hosts
	user, password, ok := strings.Cut(login, ":")
	var err, err2 error
	a.User, err = url.PathUnescape(user)
	a.Password, err2 = url.PathUnescape(password)
	a.HasPassword = ok
	if err != nil || err2 != nil {
		return errEncode
	}
	return nil
}

func (a *Address) hosts(authority string, several bool) error {
	a.Hosts = strings.Split(authority, ",")
	if len(a.Hosts) > 1 && !several {
		return errHosts
	}
	for _, h := range a.Hosts {
		if err := checkHost(h); err != nil {
			return err
		}
	}
	return nil
}

func checkHost(host string) error {
	var name, port string
	var hasPort bool
	if inner, after, ok := strings.Cut(strings.TrimPrefix(host, "["), "]"); strings.HasPrefix(host, "[") {
		if ip, err := netip.ParseAddr(inner); !ok || err != nil || !ip.Is6() || after != "" && after[0] != ':' {
			return errHost
		}
		name, hasPort = "ipv6", after != ""
		port = strings.TrimPrefix(after, ":")
	} else {
		name, port, hasPort = strings.Cut(host, ":")
	}
	switch n, err := strconv.ParseUint(port, 10, 16); {
	case name == "":
		return errNoHost
	case strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != "":
		return errHost
	case hasPort && (err != nil || n == 0):
		return errPort
	}
	return nil
}

func (a *Address) path(path string, f Form) error {
	var err error
	if a.Path, err = url.PathUnescape(path); err != nil {
		return errEncode
	}
	number := strings.TrimPrefix(a.Path, "/")
	switch {
	case f.Socket != "" && a.Scheme == f.Socket:
		if number == "" {
			return errPath
		}
	case f.Database:
		if len(number) > 5 || strings.Trim(number, "0123456789") != "" {
			return errPath
		}
	case number != "":
		return errPath
	}
	return nil
}

func (a *Address) parameters(query string, known []string) error {
	var err error
	if a.Parameters, err = url.ParseQuery(query); err != nil {
		return errParameter
	}
	for name, values := range a.Parameters {
		if !slices.Contains(known, name) || len(values) != 1 {
			return errParameter
		}
	}
	return nil
}

// Loopback reports whether a host is localhost or a loopback address: only this machine reaches it.
func Loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}
