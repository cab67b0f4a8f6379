package webhooks

import (
	"bytes"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"gancho/pkg/webhook"
	"gancho/services/management/internal/problem"
)

// AuthInput is how requests prove who sends them, as an owner sets it. It replaces the previous setting.
type AuthInput struct {
	Type Field[string] `json:"type"`

	TokenURL     Field[string] `json:"token_url"`
	ClientID     Field[string] `json:"client_id"`
	ClientSecret Field[string] `json:"client_secret"`
	Scope        Field[string] `json:"scope"`
	Audience     Field[string] `json:"audience"`

	Certificate Field[string] `json:"certificate"`
	PrivateKey  Field[string] `json:"private_key"`

	// As answers have them.
	Subject   Field[jsontext.Value] `json:"subject"`
	ExpiresAt Field[jsontext.Value] `json:"expires_at"`
}

// Auth is how requests prove who sends them, as owners see it: without the secret.
type Auth struct {
	Type      string     `json:"type" enum:"oauth2,mtls"`
	TokenURL  string     `json:"token_url,omitempty" format:"uri" doc:"with oauth2"`
	ClientID  string     `json:"client_id,omitempty" doc:"with oauth2"`
	Scope     string     `json:"scope,omitempty"`
	Audience  string     `json:"audience,omitempty"`
	Subject   string     `json:"subject,omitempty" doc:"with mtls: whom the certificate names"`
	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"with mtls: when the certificate ends"`
}

func authView(a *webhook.Auth) *Auth {
	if a == nil {
		return nil
	}
	v := &Auth{Type: a.Type, TokenURL: a.ShownTokenURL(), ClientID: a.ClientID, Scope: a.Scope, Audience: a.Audience}
	if a.Type == webhook.MTLS {
		if leaf := a.Leaf(); leaf != nil {
			until := leaf.NotAfter.UTC()
			v.Subject, v.ExpiresAt = leaf.Subject.String(), &until
		}
	}
	return v
}

// applyProof sets how requests of w prove who sends them; null removes it. moved means that the URL of w has got
// another origin: no secret goes there that was not given for it.
func (s *Service) applyProof(w *webhook.Webhook, f Field[AuthInput], moved bool, problems *problem.List) {
	old := *w // with the Auth it has
	switch {
	case f.Null:
		w.Auth = nil
	case f.Present:
		in := f.Value
		switch typ := in.Type.Value; {
		case typ == webhook.OAuth2:
			s.applyClient(w, &old, in, moved, problems)
		case typ == webhook.MTLS:
			s.applyCertificate(w, &old, in, moved, problems)
		case in.Type.Present:
			problems.Add("/data/auth/type", "bad_auth_type", "type can be oauth2 or mtls")
		default:
			problems.Add("/data/auth/type", "required", "type is missing: oauth2 or mtls")
		}
	case moved && w.Auth != nil:
		problems.Add("/data/auth", "auth_required", "the url has another origin: give auth for it, with its secret, or take it away with null")
	}
	if w.Auth != nil && w.Auth.Type == webhook.OAuth2 && strings.EqualFold(w.AuthHeader, "Authorization") {
		problems.Add("/data/auth", "auth_collides", "oauth2 sets the header Authorization, and so does auth_header; give one of them")
	}
}

// unwanted adds the members that belong to the other type.
func unwanted(typ string, members map[string]bool, problems *problem.List) {
	for _, name := range []string{"token_url", "client_id", "client_secret", "scope", "audience", "certificate", "private_key", "subject", "expires_at"} {
		if members[name] {
			problems.Add("/data/auth/"+name, "wrong_member", name+" does not belong to "+typ)
		}
	}
}

func (s *Service) applyClient(w, old *webhook.Webhook, in AuthInput, moved bool, problems *problem.List) {
	unwanted(webhook.OAuth2, map[string]bool{
		"certificate": in.Certificate.Present, "private_key": in.PrivateKey.Present, "subject": in.Subject.Present, "expires_at": in.ExpiresAt.Present,
	}, problems)
	a := &webhook.Auth{Type: webhook.OAuth2, ClientID: in.ClientID.Value, Scope: in.Scope.Value, Audience: in.Audience.Value}
	normal, p := webhook.NormalizeURL(in.TokenURL.Value, s.policy)
	switch {
	case !in.TokenURL.Present || in.TokenURL.Null:
		problems.Add("/data/auth/token_url", "required", "token_url is missing")
	case p != nil:
		problems.Add("/data/auth/token_url", p.Code, "token_url: "+p.Detail)
	}
	if a.TokenURL = normal; in.TokenURL.Value != normal {
		a.TokenURLGiven = in.TokenURL.Value
	}
	secret := in.ClientSecret.Value
	kept := old.Auth
	keeps := !in.ClientSecret.Present && !moved && kept != nil && kept.Type == a.Type && kept.TokenURL == a.TokenURL && kept.ClientID == a.ClientID
	check := secret
	if keeps {
		check = "kept"
	}
	for _, p := range webhook.CheckClient(a.ClientID, check, a.Scope, a.Audience) {
		problems.Add("/data/"+p.Field, p.Code, p.Detail)
	}
	if w.Auth = a; keeps {
		a.ClientSecret = kept.ClientSecret
		return
	}
	if a.TokenURL != "" && secret != "" {
		s.sealProof(w, old, []byte(secret))
	}
}

func (s *Service) applyCertificate(w, old *webhook.Webhook, in AuthInput, moved bool, problems *problem.List) {
	unwanted(webhook.MTLS, map[string]bool{
		"token_url": in.TokenURL.Present, "client_id": in.ClientID.Present, "client_secret": in.ClientSecret.Present, "scope": in.Scope.Present, "audience": in.Audience.Present,
	}, problems)
	if !in.Certificate.Present && !in.PrivateKey.Present && old.Auth != nil && old.Auth.Type == webhook.MTLS && !moved { // as GET answers it
		shown := authView(old.Auth)
		if in.Subject.Present && !same(in.Subject, shown.Subject) {
			problems.Add("/data/auth/subject", "read_only", "subject is that of the certificate; give another certificate")
		}
		if in.ExpiresAt.Present && (shown.ExpiresAt == nil || !sameTime(in.ExpiresAt, *shown.ExpiresAt)) {
			problems.Add("/data/auth/expires_at", "read_only", "expires_at is that of the certificate; give another certificate")
		}
		return
	}
	if p := webhook.CheckCertificate(in.Certificate.Value, in.PrivateKey.Value, time.Now()); p != nil {
		problems.Add("/data/"+p.Field, p.Code, p.Detail)
	}
	w.Auth = &webhook.Auth{Type: webhook.MTLS, Certificate: in.Certificate.Value}
	s.sealProof(w, old, []byte(in.PrivateKey.Value))
}

// sealProof seals the secret of w's new Auth. One that is the same as before stays as it is.
func (s *Service) sealProof(w, old *webhook.Webhook, secret []byte) {
	if old.Auth != nil && old.Auth.Type == w.Auth.Type {
		same := *w
		auth := *w.Auth
		same.Auth = &auth
		same.Auth.ClientSecret, same.Auth.PrivateKey = old.Auth.ClientSecret, old.Auth.PrivateKey
		if opened, err := same.OpenAuth(s.keys); err == nil && bytes.Equal(opened, secret) {
			w.Auth = same.Auth
			return
		}
	}
	w.SealAuth(s.keys, secret)
}
