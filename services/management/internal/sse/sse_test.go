package sse

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestStream(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s := Open(w, "retry: 2000")
		defer s.Close()
		s.Event("attempt", 7, "one\ntwo")
		s.StillHere()
		s.Event("end", 0, "")
		if s.Err != nil {
			t.Error(s.Err)
		}
	}))
	defer server.Close()
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if want := "retry: 2000\n\nevent: attempt\nid: 7\ndata: one\ndata: two\n\n: still here\n\nevent: end\ndata:\n\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type %q", got)
	}
}

// TestStreamEnds: a reader that is gone ends the stream.
func TestStreamEnds(t *testing.T) {
	t.Parallel()
	s := Open(struct{ http.ResponseWriter }{httptest.NewRecorder()}, "retry: 2000")
	defer s.Close()
	if s.StillHere(); s.Err == nil {
		t.Error("a writer without deadlines was accepted")
	}
}
