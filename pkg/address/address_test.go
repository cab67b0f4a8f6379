package address

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	natsForm  = Form{Schemes: []string{"nats", "tls"}}
	redisForm = Form{Schemes: []string{"redis", "rediss", "unix"}, Hosts: true, Database: true, Socket: "unix", Parameters: []string{"db", "master_name"}}
	mailForm  = Form{Schemes: []string{"smtp", "smtps"}, Parameters: []string{"from"}, At: true}
)

func TestParse(t *testing.T) {
	t.Parallel()
	for raw, tc := range map[string]struct {
		form Form
		want Address
	}{
		"nats://h":                          {natsForm, Address{Scheme: "nats", Hosts: []string{"h"}}},
		"tls://u:p@broker.example:4222/":    {natsForm, Address{Scheme: "tls", User: "u", Password: "p", HasPassword: true, Hosts: []string{"broker.example:4222"}, Path: "/"}},
		"nats://token@[2001:db8::1]:4222":   {natsForm, Address{Scheme: "nats", User: "token", Hosts: []string{"[2001:db8::1]:4222"}}},
		"nats://u:a%40b%2Fc%3Fd%23e%25@h":   {natsForm, Address{Scheme: "nats", User: "u", Password: "a@b/c?d#e%", HasPassword: true, Hosts: []string{"h"}}},
		"nats://u:p:q+r,s=t;!$&'()*~@h":     {natsForm, Address{Scheme: "nats", User: "u", Password: "p:q+r,s=t;!$&'()*~", HasPassword: true, Hosts: []string{"h"}}},
		"redis://:p@h_1:6379/3":             {redisForm, Address{Scheme: "redis", Password: "p", HasPassword: true, Hosts: []string{"h_1:6379"}, Path: "/3"}},
		"redis://a,b:1/0?master_name=m":     {redisForm, Address{Scheme: "redis", Hosts: []string{"a", "b:1"}, Path: "/0", Parameters: url.Values{"master_name": {"m"}}}},
		"unix:///run/redis.sock?db=2":       {redisForm, Address{Scheme: "unix", Path: "/run/redis.sock", Parameters: url.Values{"db": {"2"}}}},
		"unix://u:p@/run/redis.sock":        {redisForm, Address{Scheme: "unix", User: "u", Password: "p", HasPassword: true, Path: "/run/redis.sock"}},
		"smtp://mail:25?from=g@example.com": {mailForm, Address{Scheme: "smtp", Hosts: []string{"mail:25"}, Parameters: url.Values{"from": {"g@example.com"}}}},
	} {
		got, err := tc.form.Parse(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if tc.want.Parameters == nil {
			tc.want.Parameters = url.Values{}
		}
		if diff := cmp.Diff(&tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", raw, diff)
		}
	}
}

// TestRefused: a password that is not encoded makes no other host, and no part of an address comes back.
func TestRefused(t *testing.T) {
	t.Parallel()
	const secret = "wordTail"
	var raws []string
	for _, scheme := range []string{"redis", "nats", "tls", "rediss", "smtp"} {
		for _, char := range []string{"@", "/", "?", "#", "%", "%z", "@ss/", "/@", "?@", "#@", " ", "[", "]", "\\", "\"", "|", "^", "`", "{", "}", "<", "\n", "\t", "é", "\x7f"} {
			raws = append(raws, scheme+"://u:p"+char+secret+"@host:1234", scheme+"://:p"+char+secret+"@host:1234/0", scheme+"://"+char+secret+"@host")
		}
		for _, rest := range []string{
			"", "@", ":p@", "u:" + secret + "@", "u:" + secret + "@:1", "h:0", "h:65536", "h:" + secret, "h:", "h:1:2", "::1", "[::1", "[::1]1", "[1.2.3.4]", "[" + secret + "]",
			"h?" + secret + "=1", "h?" + secret, "h?a=%zz", "h/" + secret, "h/1/2", "h/123456", "h%20i", "h?from=a&from=" + secret, "h;" + secret + "=1",
		} {
			raws = append(raws, scheme+"://"+rest)
		}
	}
	raws = append(raws, "", "h", secret, "u:"+secret+"@h", "//h", "http://"+secret+"@h", "REDIS://h", " redis://h", "redis:/h", "unix://", "unix:///", "unix://h/"+secret, "unix:///a@"+secret, secret+"://h")
	for _, raw := range raws {
		for _, form := range []Form{natsForm, redisForm, mailForm} {
			a, err := form.Parse(raw)
			if err == nil {
				if strings.HasPrefix(raw, "redis://a,") || strings.Contains(raw, "://"+a.Hosts[0]) && !strings.Contains(strings.Join(a.Hosts, ""), secret) && a.User == "" {
					continue // without a login another form takes it: a host, no password
				}
				t.Errorf("%q is accepted: %+v", raw, a)
				continue
			}
			if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "Tail") {
				t.Errorf("%q: the error quotes it: %v", raw, err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("redis://u:p@h:1/0?db=1")
	f.Add("nats://u:p@ss/wordTail@host/0")
	f.Fuzz(func(t *testing.T, raw string) {
		for _, form := range []Form{natsForm, redisForm, mailForm} {
			a, err := form.Parse(raw)
			if err != nil || a.Scheme == "unix" || form.At {
				continue
			}
			// It reads the same as net/url: there is one meaning.
			u, err := url.Parse(raw)
			password, _ := u.User.Password()
			if err != nil || u.Host != strings.Join(a.Hosts, ",") || u.User.Username() != a.User || password != a.Password {
				t.Errorf("%q: %+v, net/url: %v, %v", raw, a, u, err)
			}
		}
	})
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "10.0.0.1": false, "localhost.example": false, "": false, "0.0.0.0": false} {
		if got := Loopback(host); got != want {
			t.Errorf("Loopback(%q) = %v, want %v", host, got, want)
		}
	}
}
