package api

import (
	"bytes"
	"crypto/sha256"
	"io"
	"strings"

	"gancho/pkg/event"
	"gancho/services/management/internal/idempotency"
	"gancho/services/management/internal/problem"
)

// once answers a request with an Idempotency-Key: with the answer that is kept for it, or by handling it.
func (a *API) once(c *call, rt *route) error {
	keys := c.r.Header.Values("Idempotency-Key")
	key := keys[0]
	unprintable := func(r rune) bool { return r < '!' || r > '~' }
	if len(keys) > 1 || key == "" || len(key) > idempotency.MaxKeyBytes || strings.ContainsFunc(key, unprintable) {
		return problem.New(problem.Malformed, "bad_idempotency_key",
			"Idempotency-Key must be one text of 1 to 255 printable characters without spaces")
	}
	body, err := io.ReadAll(io.LimitReader(c.r.Body, int64(max(maxBodyBytes, a.EventMaxBytes+event.Headroom))+1))
	if err != nil {
		return &problem.Error{Kind: problem.Malformed, Cause: err, Problems: []problem.Problem{{
			Code: "bad_body", Detail: "the body could not be read to its end",
		}}}
	}
	rest := c.r.Body
	c.r.Body = struct { // with a body too large for any handler, so that it is refused
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), rest), rest}
	h := sha256.New()
	for _, part := range []string{c.r.Method, c.r.URL.EscapedPath(), c.r.URL.RawQuery, c.r.Header.Get("Content-Type")} {
		_, _ = io.WriteString(h, part+"\x00") // a hash takes everything
	}
	_, _ = h.Write(body)
	request := idempotency.Request{Account: c.caller.Account, Key: key, Fingerprint: [sha256.Size]byte(h.Sum(nil))}
	c.idempotencyKey = key
	kept, again, err := a.Idempotency.Do(c.ctx, request, func() (idempotency.Answer, error) {
		ans, err := rt.handle(c)
		if err != nil {
			return idempotency.Answer{}, err
		}
		body, err := ans.encode(c)
		if err != nil {
			return idempotency.Answer{}, err
		}
		out := idempotency.Answer{Status: ans.status, Body: body, Header: map[string]string{}}
		for _, name := range []string{"ETag", "Location"} {
			if v := c.w.Header().Get(name); v != "" {
				out.Header[name] = v
			}
		}
		return out, nil
	})
	if err != nil {
		return err
	}
	for name, value := range kept.Header {
		c.w.Header().Set(name, value)
	}
	if again {
		c.w.Header().Set("Idempotency-Replayed", "true")
	}
	write(c.w, kept.Status, kept.Body)
	return nil
}
