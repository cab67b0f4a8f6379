package api

import (
	"bytes"
	"encoding/json"
	"testing"

	"gancho/services/management/internal/webhooks"
)

// FuzzDecode checks that what is accepted has one meaning only: a decoder that ignores case and takes the
// last of several members reads the same.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"data":{"name":"n","event_name":"crm_deal_created","url":"https://a.example/"}}`, `{"data":{"url":"a","URL":"b"}}`, `{"data":{"url":"a","url":"b"}}`,
		`{"data":{"auth_key":null}}`, `{"data":{}}{}`, `{"Data":{}}`, "{\"data\":{\"name\":\"\xff\"}}", `{"data":{"name":"\ud800"}}`, `null`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var in webhooks.Input
		if decode(bytes.Clone(body), &in) != nil {
			return
		}
		var loose struct {
			Data struct {
				Name, URL *string
				EventName *string `json:"event_name"`
				AuthKey   *string `json:"auth_key"`
			}
		}
		if err := json.Unmarshal(body, &loose); err != nil {
			t.Fatalf("accepted, but: %v", err)
		}
		for name, pair := range map[string]struct {
			strict webhooks.Field[string]
			loose  *string
		}{
			"name": {in.Name, loose.Data.Name}, "url": {in.URL, loose.Data.URL},
			"event_name": {in.EventName, loose.Data.EventName}, "auth_key": {in.AuthKey, loose.Data.AuthKey},
		} {
			given := pair.strict.Present && !pair.strict.Null
			if given != (pair.loose != nil) || given && pair.strict.Value != *pair.loose {
				t.Errorf("%s has two meanings: %+v and %v", name, pair.strict, pair.loose)
			}
		}
	})
}
