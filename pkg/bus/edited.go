package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"gancho/pkg/topology"
)

// settingsKey is where a consumer's metadata hold the settings that a service gave it last. A consumer with other
// settings was edited, although this service may want others again: replicas of a service may be configured differently
// during a rollout.
const settingsKey = "gancho.settings"

// settings returns the settings of a consumer that can be edited and change its deliveries.
func settings(c jetstream.ConsumerConfig) []string {
	filters := slices.Sorted(slices.Values(c.FilterSubjects))
	if c.FilterSubject != "" {
		filters = []string{c.FilterSubject}
	}
	return []string{
		fmt.Sprint("max_deliver=", c.MaxDeliver),
		fmt.Sprint("ack_wait=", c.AckWait),
		fmt.Sprint("max_ack_pending=", c.MaxAckPending),
		"backoff=" + strings.ReplaceAll(strings.Trim(fmt.Sprint(c.BackOff), "[]"), " ", ","),
		"filter_subjects=" + strings.Join(filters, ","),
		fmt.Sprint("headers_only=", c.HeadersOnly),
		fmt.Sprint("inactive_threshold=", c.InactiveThreshold),
		fmt.Sprint("max_batch=", c.MaxRequestBatch),
		fmt.Sprint("max_expires=", c.MaxRequestExpires),
		fmt.Sprint("max_bytes=", c.MaxRequestMaxBytes),
		"priority_groups=" + strings.Join(c.PriorityGroups, ","),
	}
}

// stamped creates or updates the consumer and stores its settings in its metadata. Settings that the broker adds where
// we set none, as its own limits have it, count as ours. Settings that the broker changed are an error.
func (b *Bus) stamped(
	ctx context.Context, s jetstream.Stream, cfg jetstream.ConsumerConfig,
) (jetstream.Consumer, error) {
	asked := cfg
	for stamp := stampOf(cfg); ; {
		cfg.Metadata = map[string]string{settingsKey: stamp}
		c, err := s.CreateOrUpdateConsumer(ctx, cfg)
		if err != nil {
			return nil, err
		}
		differ := ignored(asked, c.CachedInfo().Config)
		if c.CachedInfo().Config.Metadata[settingsKey] != stamp {
			differ = append(differ, Change{Field: "metadata", Want: settingsKey})
		}
		if err := b.answer(differ); err != nil {
			return nil, err
		}
		actual := stampOf(c.CachedInfo().Config)
		if actual == stamp {
			return c, nil
		}
		stamp = actual
	}
}

// ignored returns the settings of a consumer that the broker did not take over.
func ignored(asked, have jetstream.ConsumerConfig) (differ []Change) {
	is, unset := settings(have), settings(jetstream.ConsumerConfig{})
	for i, s := range settings(asked) {
		if s != is[i] && s != unset[i] {
			field, want, _ := strings.Cut(s, "=")
			_, got, _ := strings.Cut(is[i], "=")
			differ = append(differ, Change{Field: field, Have: got, Want: want})
		}
	}
	return differ
}

func stampOf(c jetstream.ConsumerConfig) string { return strings.Join(settings(c), " ") }

// edits returns the differences between the consumer and its metadata, or our own settings where it has no metadata.
func (c *Consumer) edits(have jetstream.ConsumerConfig) []Change {
	is := map[string]string{}
	for _, s := range settings(have) {
		field, value, _ := strings.Cut(s, "=")
		is[field] = value
	}
	var edits []Change
	for s := range strings.FieldsSeq(cmp.Or(have.Metadata[settingsKey], stampOf(c.cfg))) {
		field, was, _ := strings.Cut(s, "=")
		if value, known := is[field]; known && value != was { // another version may know others
			edits = append(edits, Change{Field: field, Have: value, Want: was})
		}
	}
	return edits
}

// setBack undoes edits of the consumer.
func (c *Consumer) setBack(ctx context.Context, have jetstream.ConsumerConfig) {
	c.b.setBack(KindConsumer, c.cfg.Durable, c.edits(have), func() error {
		ctx, cancel := context.WithTimeout(ctx, lookEvery)
		defer cancel()
		return c.create(ctx)
	})
}

// begin has the first look at a stream or bucket: differences that exist now stay.
func (k *kept) begin(info *jetstream.StreamInfo) {
	k.last, k.left = info, map[string]bool{}
	for _, c := range ours(k.kind, info.Config, k.want) {
		k.left[c.Field] = !able(c.Field)
	}
}

// edits returns the edits since the owner began.
func (k *kept) edits() []Change {
	differ := ours(k.kind, k.last.Config, k.want)
	for field := range k.left {
		if !slices.ContainsFunc(differ, func(c Change) bool { return c.Field == field }) {
			delete(k.left, field) // put right; from now on it must stay so
		}
	}
	return slices.DeleteFunc(differ, func(c Change) bool { return k.left[c.Field] })
}

// ours returns the differences that lose, refuse or misplace messages. Ages, sizes, replicas and the duplicate window
// are for operators to choose, except a limit where there must be none.
func ours(kind string, have, want jetstream.StreamConfig) []Change {
	if have.Sealed {
		return []Change{{Field: "sealed", Have: "true", Want: "false"}} // and all that comes with it
	}
	return slices.DeleteFunc(compare(kind, have, want), func(c Change) bool {
		switch c.Field {
		case "max_age":
			return kind == KindStream && want.MaxAge > 0
		case "max_bytes":
			return kind == KindStream && want.Name != topology.Retries
		case "allow_direct": // of several servers one that lags behind would answer; without it the leader does
			return !have.AllowDirect || have.Replicas <= 1
		case "subjects": // others may be a newer version's
			return len(without(want.Subjects, have.Subjects)) == 0
		case "allow_rollup_hdrs": // one write may remove a key's history, which some buckets need
			return !c.Loosens && (kind == KindStream || want.AllowRollup)
		case "max_consumers", "allow_atomic", "allow_msg_schedules": // more does no harm
			return !c.Loosens
		case "description", "replicas", "max_msg_size", "duplicate_window", "storage": // the last cannot be edited
			return true
		}
		return false
	})
}

// setBackStream undoes edits of the stream or bucket.
func (b *Bus) setBackStream(ctx context.Context, k *kept) {
	edits := k.edits()
	b.setBack(k.kind, k.name, edits, func() error {
		cfg, forGood := k.last.Config, ""
		for _, c := range edits {
			switch c.Field {
			case "sealed", "deny_delete", "deny_purge":
				forGood = c.Field
			default:
				set(&cfg, k.want, c.Field)
			}
		}
		if forGood == "" || len(edits) > 1 {
			s, err := b.js.UpdateStream(ctx, cfg)
			if err != nil {
				return err
			}
			if err := b.answer(lacking(k.kind, s.CachedInfo().Config, k.want)); err != nil {
				return err
			}
		}
		if forGood != "" {
			return errors.New("the broker does not allow taking back " + forGood)
		}
		return nil
	})
}

// setBack reports the edits and has undo restore the settings. Until that succeeds the service is not ready, and each
// look tries again.
func (b *Bus) setBack(kind, name string, edits []Change, undo func() error) {
	what := "settings of " + kind + " " + name
	if len(edits) == 0 {
		b.setProblem(what, "")
		return
	}
	changes := make([]string, 0, len(edits))
	for _, c := range edits {
		changes = append(changes, fmt.Sprintf("%s %s -> %s", c.Field, cmp.Or(c.Want, "none"), cmp.Or(c.Have, "none")))
	}
	problem := "edited while services ran: " + strings.Join(changes, ", ")
	if b.ShouldLog(what + problem) {
		b.log.Error("a "+kind+" was edited while services ran; setting it back", zap.String(kind, name),
			zap.Strings("changes", changes))
	}
	b.setProblem(what, problem)
	b.metrics.restored.WithLabelValues(kind).Inc()
	if err := undo(); err != nil {
		b.trouble(what, err)
		return
	}
	b.setProblem(what, "")
}
