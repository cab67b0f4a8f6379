package management_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"gancho/pkg/delivery"
	"gancho/pkg/redistest"
	"gancho/services/management"
)

// path returns the path of a link that leads to this service.
func (s *instance) path(link string) string {
	s.t.Helper()
	path, ok := strings.CutPrefix(link, s.url)
	if link != "" && !ok {
		s.t.Fatalf("%s is not a link to %s", link, s.url)
	}
	return path
}

// ids reads all pages of a list from path on.
func (s *instance) ids(path string) (ids []string, partial bool) {
	s.t.Helper()
	rows, partial := s.rows(path)
	for _, n := range rows {
		ids = append(ids, text(n, "id"))
	}
	return ids, partial
}

// rows reads all pages of a list from path on.
func (s *instance) rows(path string) (rows []map[string]any, partial bool) {
	s.t.Helper()
	for path != "" {
		r := s.do(acme, "GET", path, nil).want(200)
		rows = append(rows, r.rows()...)
		if r.json["partial"] == true {
			partial = true
		}
		path = s.path(text(object(r.json, "links"), "next"))
	}
	return rows, partial
}

func TestList(t *testing.T) {
	t.Parallel()
	t.Run("redis-server", func(t *testing.T) {
		t.Parallel()
		testList(t, redistest.Start(t).URL())
	})
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		testList(t, "redis://"+miniredis.RunT(t).Addr())
	})
}

func testList(t *testing.T, redisURL string) {
	s := start(t, func(c *management.Config) { c.RedisURL = redisURL })
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	path := "/crm/v2/webhooks/" + hookID + "/notifications"
	var all []string
	send := func(i int) {
		n := s.matched("acme", hookID, fmt.Sprintf(`{"transaction_uuid":"t-%d"}`, i))
		all = append(all, n.ID)
		switch i % 4 {
		case 0:
			s.attempted(n, "")
		case 1:
			s.attempted(n, delivery.Timeout)
		case 2:
			for range 6 {
				s.attempted(n, delivery.Status5xx)
			}
		} // 3 is pending
	}
	for i := range 60 {
		send(i)
	}
	s.until("all are listed", func() bool { ids, partial := s.ids(path); return len(ids) == 60 && !partial })
	ids, _ := s.ids(path + "?page[size]=7")
	slices.Sort(ids)
	want := slices.Sorted(slices.Values(all))
	if !slices.Equal(ids, want) {
		t.Errorf("the pages hold %d ids, want the 60 that were sent, each once", len(ids))
	}
	for state, count := range map[string]int{"delivered": 15, "retrying": 15, "permanently_failed": 15, "pending": 15, "parked": 0} {
		if ids, _ := s.ids(path + "?page[size]=4&state=" + state); len(ids) != count {
			t.Errorf("%d are %s, want %d", len(ids), state, count)
		}
	}
	row := s.do(acme, "GET", path+"?state=retrying&page[size]=1", nil).want(200).rows()[0]
	if row["reason"] != "timeout" || row["next_attempt_at"] == nil || object(row, "last_attempt")["outcome"] != "failed" {
		t.Errorf("row = %v", row)
	}

	// New ones do not move the pages that are being read.
	first := s.do(acme, "GET", path+"?page[size]=20", nil).want(200)
	for i := range 10 {
		send(60 + i)
	}
	s.until("the new ones are listed", func() bool { ids, _ := s.ids(path + "?page[size]=200"); return len(ids) == 70 })
	rest, _ := s.ids(s.path(text(object(first.json, "links"), "next")))
	if len(rest) != 40 {
		t.Errorf("%d follow the first page of 20, want 40 of the 60 that were there when it was read", len(rest))
	}

	future := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	if ids, _ := s.ids(path + "?to=" + future); len(ids) != 70 {
		t.Errorf("%d before the future, want 70", len(ids))
	}
	if ids, _ := s.ids(path + "?from=" + future); len(ids) != 0 {
		t.Errorf("%d from the future, want none", len(ids))
	}
	for query, pointer := range map[string]string{
		"state=lost": "?state", "state=": "?state", "from=yesterday": "?from", "page[after]=x": "?page[after]", "page[size]=0": "?page[size]",
		"from=" + future + "&to=" + url.QueryEscape(time.Now().UTC().Format(time.RFC3339)): "?to",
	} {
		s.do(acme, "GET", path+"?"+query, nil).refused(422, "bad_parameter", pointer)
	}
	s.do(other, "GET", path, nil).refused(404, "not_found", "")
}

func TestIndexComesBack(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	redis := redistest.Start(t)
	s := start(t, func(c *management.Config) { c.RedisURL = redis.URL() })
	s.run() // a second replica shares the work
	hookID := s.do(acme, "POST", "/crm/v2/webhooks", hook("https://hooks.example.com/x")).want(201).id()
	path := "/crm/v2/webhooks/" + hookID + "/notifications?page[size]=200"
	send := func(n int) {
		for i := range n {
			s.attempted(s.matched("acme", hookID, fmt.Sprintf(`{"n":%d}`, i)), "")
		}
	}
	complete := func(n int) func() bool {
		return func() bool {
			r := s.do(acme, "GET", path, nil)
			return r.status == 200 && r.json["partial"] == nil && len(r.rows()) == n
		}
	}
	send(100)
	s.until("100 are listed", complete(100))
	client := redis.Client()
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	s.until("the list is whole after FLUSHALL", complete(100))

	redis.Kill()
	s.until("the list is away", func() bool { return s.do(acme, "GET", path, nil).status == 503 })
	s.do(acme, "GET", path, nil).refused(503, "index_unavailable", "")
	send(10)
	s.do(acme, "GET", "/crm/v2/webhooks", nil).want(200)
	redis.Restart()
	s.until("the list caught up", complete(110))

	// What Redis forgot of the last moments is found out.
	if err := client.Del(t.Context(), "gancho:log:"+hookID, "gancho:log:"+hookID+":rows", "gancho:log:seen").Err(); err != nil {
		t.Fatal(err)
	}
	s.until("the list is whole after a partial loss", complete(110))
}
