package management_test

import (
	"strings"
	"testing"
)

// TestErasures: operators alone begin erasures, for one account, by exactly one id; the answers and the record of the
// change do not repeat the id.
func TestErasures(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	const path = "/crm/v2/erasures"
	forAcme := []string{"X-Account-Id", "acme"}
	s.do(acme, "POST", path, map[string]any{"document_id": "person-77"}).want(403)
	s.do(acme, "GET", path, nil).want(403)
	s.do(operator, "POST", path, map[string]any{"document_id": "person-77"}).want(400)
	for _, body := range []map[string]any{{}, {"document_id": ""}, {"document_id": "a", "event_id": "b"}, {"transaction_uuid": "a b"}, {"event_id": "x"}, {"nope": 1}} {
		if r := s.do(operator, "POST", path, body, forAcme...); r.status != 422 && r.status != 400 {
			t.Errorf("%v: %d %s", body, r.status, r.raw)
		}
	}
	r := s.do(operator, "POST", path, map[string]any{"document_id": "person-77"}, forAcme...).want(202)
	id, _ := r.data()["id"].(string)
	if r.header.Get("Location") != path+"/"+id || r.data()["state"] != "running" || r.data()["kind"] != "document_id" {
		t.Errorf("%s at %s", r.raw, r.header.Get("Location"))
	}
	s.do(operator, "GET", path+"/"+id, nil, forAcme...).want(200)
	s.do(operator, "GET", path+"/"+id, nil, "X-Account-Id", "globex").want(404)
	s.until("the erasure is in the list", func() bool { return len(s.do(operator, "GET", path, nil, forAcme...).want(200).rows()) == 1 })
	if rows := s.do(operator, "GET", path, nil, "X-Account-Id", "globex").want(200).rows(); len(rows) > 0 {
		t.Errorf("another account's list: %v", rows)
	}
	audit := s.do(operator, "GET", "/crm/v2/audit?action=createErasure", nil, forAcme...).want(200)
	if rows := audit.rows(); len(rows) != 1 || strings.Contains(string(audit.raw), "person-77") {
		t.Errorf("audit: %s", audit.raw)
	}
}
