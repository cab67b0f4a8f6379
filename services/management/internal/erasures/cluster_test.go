package erasures

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
)

// places are the streams that events pass.
var places = []string{
	topology.Events, topology.Notifications, topology.Retries, topology.Parked, topology.Failed, topology.Attempts, topology.Rejected, topology.Quarantine,
}

// cluster is a rig of three servers that are one broker.
type cluster struct {
	*rig

	servers []*bustest.Server
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	servers := bustest.StartCluster(t, 30<<30)
	l := bustest.Limits()
	l.Replicas = 3
	servers[0].Topology(l)
	c := &cluster{&rig{t: t, srv: servers[0], settle: 3 * time.Second}, servers}
	c.bus = c.connect()
	return c
}

// connect returns a bus that goes to another server when its own is away.
func (c *cluster) connect() *bus.Bus {
	c.t.Helper()
	var urls []string
	for _, s := range c.servers {
		urls = append(urls, s.URL())
	}
	b, err := bus.Connect(bus.Config{URL: strings.Join(urls, ",")}, "management", bustest.Logger(c.t), prometheus.NewRegistry())
	c.must(err)
	c.t.Cleanup(b.Close)
	return b
}

// leader returns the server that leads a stream.
func (c *cluster) leader(stream string) *bustest.Server {
	c.t.Helper()
	var at int
	waittest.Until(c.t, stream+" has a leader", func() bool {
		state, err := c.bus.StreamState(c.t.Context(), stream)
		at = slices.IndexFunc(c.servers, func(s *bustest.Server) bool { return s.Name() == state.Leader })
		return err == nil && at >= 0
	})
	return c.servers[at]
}

// whole waits until every server follows every stream.
func (c *cluster) whole() {
	c.t.Helper()
	for _, stream := range places {
		waittest.Until(c.t, "every server follows "+stream, func() bool {
			state, err := c.bus.StreamState(c.t.Context(), stream)
			return err == nil && state.Leader != "" && len(state.Away)+len(state.Behind) == 0
		})
	}
}

// stored returns the files of a server's streams, without those of the logs by which servers agree, that hold a text.
func (c *cluster) stored(s *bustest.Server, text string) (found []string) {
	c.t.Helper()
	c.must(filepath.WalkDir(s.StoreDir(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "_js_" {
			return fs.SkipDir
		}
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(text)) {
			found = append(found, strings.TrimPrefix(path, s.StoreDir()))
		}
		return err
	}))
	return found
}

// TestEraseInACluster: an erasure survives the stops of the server that leads a stream, of the one that leads the
// cluster, and of its own runner. Nothing of the event can be read afterwards, or is in the files of streams, but for
// those of a server that was away, which the erasure names.
func TestEraseInACluster(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes seconds")
	}
	t.Parallel()
	c := newCluster(t)
	c.fill(c.publish("acme", body("contact-1", "tx-1", "joao@example.test"))) // so that no stream becomes empty
	e := c.publish("acme", body(document, change, person))
	all := c.fill(e)
	keys := seal.New()
	proxy := c.servers[0].Proxy()
	behind, err := bus.Connect(bus.Config{URL: proxy.URL()}, "management", bustest.Logger(t), prometheus.NewRegistry())
	c.must(err)
	t.Cleanup(behind.Close)
	first, stop := c.service(behind, keys)
	cut := &bustest.Break{Fault: bustest.Lost}
	lost := make(chan *bustest.Server, 1)
	cut.Before = func() { // before the runner erases from FAILED, its leader stops
		s := c.leader(topology.Failed)
		s.Stop()
		lost <- s
	}
	proxy.Break(cut, func(subject string, _ []byte) bool { return subject == "$JS.API.STREAM.MSG.DELETE."+topology.Failed })
	began, err := first.Create(t.Context(), "acme", Input{DocumentID: given(document)})
	c.must(err)
	away := <-lost
	named := func() bool {
		v, err := first.Get(t.Context(), "acme", began.ID)
		return err == nil && slices.ContainsFunc(v.NotReached, func(n NotReached) bool { return n.Place == "server "+away.Name() })
	}
	waittest.Until(t, "the erasure goes on without the server, and names it", named)
	away.Run()
	c.whole()
	for _, s := range c.servers {
		if s.LeadsCluster() {
			s.Stop()
			stop()
			second, _ := c.service(c.connect(), keys)
			s.Run()
			if v := c.done(second, began.ID); v.State != Done || v.Matched != 1 {
				t.Errorf("the job says %+v", v)
			}
			break
		}
	}
	c.whole()
	if !named() {
		t.Error("the erasure no longer names the server that was away")
	}
	c.ended(all)
	for _, stream := range places {
		c.gone(stream)
	}
	for _, s := range c.servers {
		for _, text := range []string{document, change, person} {
			if found := c.stored(s, text); len(found) > 0 && s != away {
				t.Errorf("%q is still in %v of %s", text, found, s.Name())
			}
		}
	}
}

// gone looks at every message of a stream.
func (c *cluster) gone(stream string) {
	c.t.Helper()
	for at := uint64(1); ; {
		raw, err := c.bus.Get(c.t.Context(), stream, ">", at)
		if err != nil {
			if !errors.Is(err, bus.ErrNotFound) {
				c.t.Error(err)
			}
			return
		}
		for _, text := range []string{document, change, person} {
			if bytes.Contains(raw.Data, []byte(text)) {
				c.t.Errorf("%s still has %s", stream, raw.Data)
			}
		}
		at = raw.Sequence + 1
	}
}
