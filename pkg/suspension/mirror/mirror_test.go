package mirror_test

import (
	"context"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/suspension"
	"gancho/pkg/suspension/mirror"
	"gancho/pkg/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = suspension.Key{Account: "acme", URLKey: "0123456789abcdef0123456789abcdef"}

func flag(k suspension.Key, trip string) suspension.Flag {
	return suspension.Flag{Account: k.Account, URLKey: k.URLKey, State: suspension.Suspended, Trip: trip, Until: time.Unix(1, 0).UTC()}
}

func entry(t *testing.T, revision uint64, value any) bus.Entry {
	t.Helper()
	e := bus.Entry{Key: key.String(), Revision: revision}
	switch v := value.(type) {
	case nil:
	case string:
		e.Value = []byte(v)
	default:
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		e.Value = body
	}
	return e
}

// TestApply: the copy follows the newest entry of its key, whatever comes late, twice or broken.
func TestApply(t *testing.T) {
	t.Parallel()
	first, second, other := flag(key, "1-1"), flag(key, "2-2"), flag(suspension.Key{Account: "umbrella", URLKey: key.URLKey}, "3-3")
	newer := flag(key, "4-4")
	newer.Schema = 1000
	pubAck := `{"stream":"CRM_EVENTS","seq":12}`
	for _, c := range []struct {
		name    string
		entries []bus.Entry
		want    string // the trip at the end, "" for an active URL
	}{
		{"suspended", []bus.Entry{entry(t, 1, first)}, "1-1"},
		{"suspended again", []bus.Entry{entry(t, 1, first), entry(t, 2, second)}, "2-2"},
		{"resumed", []bus.Entry{entry(t, 1, first), entry(t, 2, nil)}, ""},
		{"the suspension comes again after the resume", []bus.Entry{entry(t, 1, first), entry(t, 2, nil), entry(t, 1, first)}, ""},
		{"an older one comes late", []bus.Entry{entry(t, 2, second), entry(t, 1, first)}, "2-2"},
		{"an older resume comes late", []bus.Entry{entry(t, 2, second), entry(t, 1, nil)}, "2-2"},
		{"gone with the bucket", []bus.Entry{entry(t, 7, first), entry(t, math.MaxUint64, nil)}, ""},
		{"gone with the bucket, then suspended again", []bus.Entry{entry(t, 7, first), entry(t, math.MaxUint64, nil), entry(t, 1<<21, second)}, "2-2"},
		{"gone with the bucket, then an old entry comes late", []bus.Entry{entry(t, 7, first), entry(t, math.MaxUint64, nil), entry(t, 7, first)}, ""},
		{"a broken entry", []bus.Entry{entry(t, 1, first), entry(t, 2, "{")}, "1-1"},
		{"a broker's answer as entry", []bus.Entry{entry(t, 1, first), entry(t, 2, pubAck)}, "1-1"},
		{"a broker's answer for an active URL", []bus.Entry{entry(t, 2, pubAck)}, ""},
		{"another URL's suspension", []bus.Entry{entry(t, 2, other)}, ""},
		{"a good entry after a broken one", []bus.Entry{entry(t, 1, first), entry(t, 2, pubAck), entry(t, 3, second)}, "2-2"},
		{"of a newer version", []bus.Entry{entry(t, 1, first), entry(t, 2, newer)}, "4-4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := mirror.New(bustest.Logger(t))
			for _, e := range c.entries {
				m.Apply(e)
			}
			r, suspended := m.Get(key)
			if suspended != (c.want != "") || r.Trip != c.want {
				t.Errorf("the copy holds %v %q, want %q", suspended, r.Trip, c.want)
			}
			if n := len(m.All()); suspended != (n == 1) || suspended != m.URLs("acme")[key.URLKey] || len(m.URLs("umbrella")) > 0 {
				t.Errorf("lists do not agree: %d suspensions, %v of acme, %v of umbrella", n, m.URLs("acme"), m.URLs("umbrella"))
			}
		})
	}
}

// TestChanges: each step is reported once, with the suspension before it.
func TestChanges(t *testing.T) {
	t.Parallel()
	m := mirror.New(bustest.Logger(t))
	c, ok := m.Apply(entry(t, 1, flag(key, "1-1")))
	if !ok || c.Key != key || c.Before != nil || c.Record == nil || c.Record.Revision != 1 || c.Resumed() {
		t.Errorf("a suspension is reported as %+v, %v", c, ok)
	}
	if c, ok := m.Apply(entry(t, 1, flag(key, "1-1"))); ok {
		t.Errorf("the same entry again is reported as %+v", c)
	}
	if c, ok := m.Apply(entry(t, 2, "no JSON")); !ok || !c.Broken || c.Record == nil || c.Record.Trip != "1-1" {
		t.Errorf("a broken entry is reported as %+v, %v", c, ok)
	}
	if c, ok := m.Apply(entry(t, 3, nil)); !ok || !c.Resumed() || c.Before.Trip != "1-1" {
		t.Errorf("a resume is reported as %+v, %v", c, ok)
	}
	if r, revision := m.Latest(key); r != nil || revision != 3 {
		t.Errorf("the last entry is %+v at %d, want a deletion at 3", r, revision)
	}
	if _, ok := m.Apply(bus.Entry{Key: "no key", Revision: 9}); ok {
		t.Error("a key of another form is reported")
	}
}

// TestNewerVersion: a suspension that a newer version wrote stands, and nothing of this version probes it.
func TestNewerVersion(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"more fields":     `{"schema":1000,"account":"acme","url_key":"0123456789abcdef0123456789abcdef","state":"resting","until":"2020-01-01T00:00:00Z"}`,
		"another form":    `{"schema":1000,"state":7,"until":"2020-01-01T00:00:00Z"}`,
		"nothing but it":  `{"schema":1000}`,
		"another account": `{"schema":1000,"account":"umbrella"}`,
	} {
		m := mirror.New(bustest.Logger(t))
		m.Apply(entry(t, 1, value))
		r, suspended := m.Get(key)
		if !suspended || r.State != suspension.Suspended || r.Key() != key || r.ProbeDue(time.Now(), 0) {
			t.Errorf("%s: got %+v, %v; want a suspension that is not probed", name, r, suspended)
		}
	}
}

// TestRun follows a real bucket, also over its deletion, and writes back as its owner.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	broker := bustest.Start(t)
	b := broker.Topology(bustest.Limits())
	open := func() *mirror.Mirror {
		m := mirror.New(bustest.Logger(t))
		if err := m.Open(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		return m
	}
	m, reader := open(), open()
	run := func(m *mirror.Mirror, owner bool) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx, mirror.Options{Owner: owner}) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	run(m, true)
	run(reader, false)
	until := func(what string, done func() bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if !reader.Wait(ctx, done) {
			t.Fatalf("waited 20 s until %s", what)
		}
	}
	trip := func(m *mirror.Mirror) string { r, _ := m.Get(key); return r.Trip }

	revision, err := m.Write(t.Context(), flag(key, "1-1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	until("the suspension is known", func() bool { return trip(reader) == "1-1" })
	if r, at, err := m.Read(t.Context(), key); err != nil || r == nil || at != revision {
		t.Errorf("read %+v at %d, %v; want revision %d", r, at, err, revision)
	}
	if _, err := m.Write(t.Context(), flag(key, "2-2"), revision+1); err == nil || !strings.Contains(err.Error(), bus.ErrConflict.Error()) {
		t.Errorf("written over another revision: %v", err)
	}
	if err := m.Remove(t.Context(), key, revision); err != nil {
		t.Fatal(err)
	}
	until("the resume is known", func() bool { return trip(reader) == "" })
	r, at, err := m.Read(t.Context(), key)
	if err != nil || r != nil || at <= revision {
		t.Errorf("read %+v at %d, %v; want a deletion above %d", r, at, err, revision)
	}
	if _, err := m.Write(t.Context(), flag(key, "2-2"), at); err != nil {
		t.Errorf("suspended again over the deletion: %v", err)
	}
	until("the second suspension is known", func() bool { return trip(reader) == "2-2" && reader.State() == "" })

	if err := broker.JetStream().DeleteStream(t.Context(), topology.BucketPrefix+topology.BucketSuspensions); err != nil {
		t.Fatal(err)
	}
	until("the bucket was written back", func() bool { _, at := reader.Latest(key); return at > 1000 && trip(reader) == "2-2" })
	_, at = reader.Latest(key)
	if err := m.Remove(t.Context(), key, at); err != nil {
		t.Fatal(err)
	}
	until("a resume in the new bucket is known", func() bool { return trip(reader) == "" })
}
