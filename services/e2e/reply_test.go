package e2e

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/bus/bustest"
	"gancho/pkg/lane"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/topology"
	"gancho/pkg/waittest"
	"gancho/pkg/webhook"
)

// TestReplySubjectsAreNoWayIn is row 69 of the bad inputs: whoever may publish chooses a reply subject, and the
// broker answers there in its own name, which no permission refuses. An answer sent to the broker's own
// interface must change nothing, and one sent to a stream of ours must lead to nothing.
func TestReplySubjectsAreNoWayIn(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	publisher := b.bus(t, userPublisher)
	must(t, "publisher's streams", publisher.Own(ctx, topology.Publisher, bustest.Limits()))
	operator, err := jetstream.New(b.connect(t, userOperator))
	must(t, "operator", err)
	crm := b.connect(t, userCRM)
	js, err := jetstream.New(crm)
	must(t, "crm", err)
	const subject = "crm.events.acme.crm_deal_created"
	for range 10 {
		_, err := js.Publish(ctx, subject, []byte("{}"))
		must(t, "publish", err)
	}
	// The acknowledgement of a stored message is {"stream":...,"seq":n}; a purge takes a seq too.
	replies := []string{
		"$JS.API.STREAM.PURGE.CRM_EVENTS", "$JS.API.STREAM.DELETE.CRM_EVENTS", "$JS.API.STREAM.UPDATE.CRM_EVENTS", "$JS.API.STREAM.CREATE.FORGED",
		"$JS.API.STREAM.MSG.DELETE.CRM_EVENTS", "$JS.API.STREAM.PURGE.NOTIFICATIONS", "gancho.notifications.acme.forged", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.X.Y",
		"$JS.ACK.CRM_EVENTS.publisher.1.1.1.1.0",
	}
	for _, reply := range replies {
		must(t, "publish with a reply", crm.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: []byte("{}")}))
	}
	last, err := js.Publish(ctx, subject, []byte("{}")) // behind them all
	must(t, "publish", err)
	for range 3 { // and what follows is behind their answers
		_, err := operator.AccountInfo(ctx)
		must(t, "account", err)
	}
	s, err := operator.Stream(ctx, topology.Events)
	must(t, "CRM_EVENTS", err)
	if state := s.CachedInfo().State; state.Msgs != last.Sequence || state.FirstSeq != 1 || state.Msgs < 10+1 {
		t.Errorf("CRM_EVENTS holds %d messages from %d of %d: an answer of the broker was taken for a request", state.Msgs, state.FirstSeq, last.Sequence)
	}
	for info := range operator.ListStreams(ctx).Info() {
		if info.Config.Name == "FORGED" {
			t.Error("a stream was created by an answer")
		}
	}
	// A stream takes the answer for a message. It has none of our headers, so it reaches no service.
	first, err := lane.First(ctx, b.bus(t, userDispatcher), 10*time.Second)
	must(t, "first attempts", err)
	if n, err := first.Pull(ctx, 10, bus.Unbounded, func(d *lane.Delivery) { t.Errorf("an answer of the broker became a delivery: %+v", d.Notification) }); n > 0 || err != nil {
		t.Errorf("first attempts: %d, %v", n, err)
	}
	q, err := operator.Stream(ctx, topology.Quarantine)
	must(t, "QUARANTINE", err)
	if n := q.CachedInfo().State.Msgs; n > 1 {
		t.Errorf("QUARANTINE holds %d messages", n)
	}
}

// TestForgingByReplySubject tries, as every user of accounts.conf, to have the broker write into every stream and
// bucket by a reply subject: of a message it stores, of a single message that it reads, of a consumer that it pushes or
// pulls. Whoever is behind that user, the registered webhooks stay what management made of them, and what was stored is
// still there. The CRM's user tries the broker's own interface too. Services are not tested against that: an answer
// without a body deletes a stream, which no list of rights can refuse (see threats.md).
func TestForgingByReplySubject(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for user, owner := range map[string]topology.Owner{
		userPublisher: topology.Publisher, userDispatcher: topology.Dispatcher, userMonitor: topology.Monitor, userManagement: topology.Management,
	} {
		must(t, user+" owns", b.bus(t, user).Own(ctx, owner, bustest.Limits()))
	}
	keys := seal.New()
	watch := func(user string, restores bool) *registry.Registry {
		r, err := registry.Open(ctx, b.bus(t, user), registry.Options{Keys: keys, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
		must(t, user+" opens the registry", err)
		if restores {
			r.Restores()
		}
		loaded := make(chan struct{})
		go func() { _ = r.Run(ctx, func() { close(loaded) }, nil) }()
		<-loaded
		return r
	}
	management, dispatcher := watch(userManagement, true), watch(userDispatcher, false)
	hook := func(account string) *webhook.Webhook {
		w := &webhook.Webhook{ID: uuid.NewString(), Account: account, URL: "https://good.example/", EventName: "*", Status: webhook.Active, Version: 1}
		must(t, "register", management.Create(ctx, w))
		return w
	}
	w, other := hook("acme"), hook("umbrella")
	evil := *w
	evil.URL, evil.Version = "https://evil.example/", 9
	foreign := seal.New()
	forged, err := registry.Sign(foreign, &evil)
	must(t, "sign", err)
	forged = bytes.ReplaceAll(forged, []byte("v1."+foreign.Current()), []byte("v1."+keys.Current()))

	// One message in every stream and bucket, and what each is like.
	operator, err := jetstream.New(b.connect(t, userOperator))
	must(t, "operator", err)
	seeds := map[string]string{
		topology.Events: "crm.events.acme.crm_deal_created", topology.Notifications: "gancho.notifications.acme.seed", topology.Rejected: "gancho.rejected.bad_json",
		topology.Quarantine: "gancho.quarantine.CRM_EVENTS.seed", topology.Retries: "gancho.retries.due.acme.webhook.seed", topology.Parked: "gancho.parked.acme.lane.webhook",
		topology.Attempts: "gancho.attempts.acme.seed", topology.Failed: "gancho.failed.acme.webhook.seed", topology.WebhookStatus: "gancho.webhooks.acme.webhook.seed",
		topology.Commands: "gancho.suspensions.acme.lane", topology.Audit: "gancho.audit.acme", topology.Held: "gancho.held.acme.1.seed",
		topology.Bodies: "gancho.bodies.acme.event.seed.1",
	}
	configs := map[string]jetstream.StreamConfig{}
	first := map[string]uint64{}
	var streams, targets, requests []string
	for info := range operator.ListStreams(ctx).Info() {
		name := info.Config.Name
		streams, configs[name] = append(streams, name), info.Config
		if bucket, is := strings.CutPrefix(name, topology.BucketPrefix); is {
			if name == topology.BucketPrefix+topology.BucketWebhooks {
				seeds[name] = "$KV.WEBHOOKS." + other.Key()
			} else {
				seeds[name] = "$KV." + bucket + ".acme.seed"
			}
			targets = append(targets, "$KV."+bucket+"."+w.Key())
		} else if seeds[name] != "" {
			targets = append(targets, strings.Replace(seeds[name], "seed", "forged", 1))
		}
		if seeds[name] != "" && name != topology.BucketPrefix+topology.BucketWebhooks {
			ack, err := operator.Publish(ctx, seeds[name], forged)
			must(t, "seed "+name, err)
			first[name] = ack.Sequence
		}
	}
	for _, s := range streams {
		for _, verb := range []string{"DELETE", "PURGE", "UPDATE", "MSG.DELETE", "RESTORE"} {
			requests = append(requests, "$JS.API.STREAM."+verb+"."+s)
		}
	}
	requests = append(requests, "$JS.API.STREAM.CREATE.FORGED")
	targets = append(targets, "$KV.WEBHOOKS."+evil.Account+"."+uuid.NewString(), "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.RETRIES.dispatcher-retries")

	tried := 0
	for user, r := range rights() {
		nc := b.connect(t, user)
		send := func(subject, reply string, data []byte) {
			tried++
			must(t, "publish", nc.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: data}))
		}
		to := targets
		if user == userCRM {
			to = slices.Concat(targets, requests)
		}
		for _, target := range to {
			for _, subject := range r.publish {
				send(subject, target, forged)
			}
			for _, s := range slices.Concat(r.get, r.lookUp) {
				send("$JS.API.DIRECT.GET."+s+"."+seeds[s], target, nil)
				send("$JS.API.STREAM.MSG.GET."+s, target, fmt.Appendf(nil, `{"last_by_subj":%q}`, seeds[s]))
			}
			for s, names := range r.consume {
				for _, name := range names {
					if name == "*" {
						name = "forger"
					}
					config := fmt.Sprintf(`{"stream_name":%q,"config":{"name":%q,"deliver_policy":"last","ack_policy":"none","inactive_threshold":1000000000,"deliver_subject":%q}}`, s, name, target)
					send("$JS.API.CONSUMER.CREATE."+s+"."+name, "", []byte(config))
					send("$JS.API.CONSUMER.MSG.NEXT."+s+"."+name, target, nil)
					send("$JS.API.CONSUMER.DELETE."+s+"."+name, "", nil)
				}
			}
		}
		must(t, "flush", nc.Flush())
		_, err := operator.AccountInfo(ctx) // behind what the broker was asked
		must(t, "account", err)

		good := func() bool {
			for _, reg := range []*registry.Registry{management, dispatcher} {
				if got := reg.Get(w.Account, w.ID); got == nil || got.URL != w.URL || reg.Len() != 2 || len(reg.Forged()) > 0 {
					return false
				}
			}
			got, err := dispatcher.Fetch(ctx, w.Account, w.ID)
			return err == nil && got.URL == w.URL && got.Version == 1
		}
		for _, reg := range []*registry.Registry{management, dispatcher} {
			if got := reg.Get(w.Account, w.ID); got == nil || got.URL != w.URL || reg.Len() != 2 {
				t.Errorf("%s: a forged webhook is used: %+v of %d", user, got, reg.Len())
			}
		}
		waittest.Until(t, "what "+user+" forged is put right", good)
		for name, want := range configs {
			s, err := operator.Stream(ctx, name)
			if err != nil {
				t.Errorf("%s: %s is gone: %v", user, name, err)
				continue
			}
			if got := s.CachedInfo().Config; got.Retention != want.Retention || got.MaxMsgsPerSubject != want.MaxMsgsPerSubject || got.MaxBytes != want.MaxBytes || !slices.Equal(got.Subjects, want.Subjects) {
				t.Errorf("%s: %s was edited: %+v", user, name, got)
			}
			if at := first[name]; at > 0 && !strings.HasPrefix(name, topology.BucketPrefix) {
				if _, err := s.GetMsg(ctx, at); err != nil && !(name == topology.Retries || name == topology.Parked) {
					t.Errorf("%s: the message of %s is gone: %v", user, name, err)
				}
			}
		}
		if _, err := operator.Stream(ctx, "FORGED"); err == nil {
			t.Errorf("%s: a stream was created", user)
		}
	}
	t.Logf("%d requests tried", tried)
}
