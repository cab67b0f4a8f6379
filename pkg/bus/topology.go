package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gancho/pkg/topology"
)

// Kinds of parts of the topology.
const (
	KindStream   = "stream"
	KindBucket   = "bucket"
	KindConsumer = "consumer"
)

// Part is one stream, bucket or consumer as the broker has it, compared with what its owner would create.
type Part struct {
	Kind, Name string
	Owner      topology.Owner // "" of a consumer: the service that uses it makes it when it starts
	Stream     string
	Exists     bool
	Messages   uint64
	Bytes      uint64
	Changes    []Change
}

// Change is a difference between a part and its owner's configuration. Loosening ones can be applied while everything
// runs and lose nothing; people decide about the others.
type Change struct {
	Field, Have, Want string
	Loosens           bool
}

// Topology compares the broker with the configuration that services would start with.
func (b *Bus) Topology(ctx context.Context, l topology.Limits) ([]Part, error) {
	l, err := b.granted(ctx, l)
	if err != nil {
		return nil, err
	}
	var parts []Part
	for _, o := range topology.Owners() {
		for _, want := range slices.Concat(o.Streams(l), o.Buckets(l)) {
			p := Part{Kind: KindStream, Name: want.Name, Owner: o}
			if bucket, ok := strings.CutPrefix(want.Name, topology.BucketPrefix); ok {
				p.Kind, p.Name = KindBucket, bucket
			}
			s, err := b.js.Stream(ctx, want.Name)
			if err == nil {
				info := s.CachedInfo()
				p.Exists, p.Messages, p.Bytes = true, info.State.Msgs, info.State.Bytes
				p.Changes = compare(p.Kind, info.Config, want)
			} else if !errors.Is(err, jetstream.ErrStreamNotFound) {
				return nil, fmt.Errorf("look at %s %s: %w", p.Kind, p.Name, err)
			}
			parts = append(parts, p)
		}
	}
	for _, d := range topology.Durables() {
		p := Part{Kind: KindConsumer, Name: d.Name, Stream: d.Stream}
		switch s, err := b.ConsumerState(ctx, d); {
		case err == nil:
			p.Exists, p.Messages = true, s.Pending+uint64(max(s.AckPending, 0))
		case !errors.Is(err, ErrNotFound):
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// Replicas returns how many replicas the streams on the broker have, the largest number where they differ, 0 where
// there are none.
func (b *Bus) Replicas(ctx context.Context) (int, error) {
	most := 0
	for _, name := range topology.Streams() {
		switch s, err := b.js.Stream(ctx, name); {
		case err == nil:
			most = max(most, s.CachedInfo().Config.Replicas)
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return 0, fmt.Errorf("look at %s: %w", name, err)
		}
	}
	return most, nil
}

// Apply creates the streams and buckets that are missing and loosens those that are too tight. It changes
// nothing else, and returns a line for each change.
func (b *Bus) Apply(ctx context.Context, l topology.Limits) (done []string, err error) {
	return b.each(ctx, l, b.apply)
}

// Create creates the streams and buckets that are missing; it does not change existing ones.
func (b *Bus) Create(ctx context.Context, l topology.Limits) error {
	_, err := b.each(ctx, l, func(ctx context.Context, kind, name string, want jetstream.StreamConfig) ([]string,
		error,
	) {
		switch _, err := b.js.Stream(ctx, want.Name); {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			return b.create(ctx, kind, name, want)
		case err != nil:
			return nil, fmt.Errorf("look at %s %s: %w", kind, name, err)
		default:
			return nil, nil
		}
	})
	return err
}

// each calls do for every stream and bucket and returns the lines of all.
func (b *Bus) each(
	ctx context.Context, l topology.Limits,
	do func(ctx context.Context, kind, name string, want jetstream.StreamConfig) ([]string, error),
) (done []string, err error) {
	l, err = b.granted(ctx, l)
	if err != nil {
		return nil, err
	}
	for _, o := range topology.Owners() {
		for _, want := range o.Streams(l) {
			did, err := do(ctx, KindStream, want.Name, want)
			if done = append(done, did...); err != nil {
				return done, err
			}
		}
		for _, want := range o.Buckets(l) {
			did, err := do(ctx, KindBucket, strings.TrimPrefix(want.Name, topology.BucketPrefix), want)
			if done = append(done, did...); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

func (b *Bus) create(ctx context.Context, kind, name string, want jetstream.StreamConfig) (done []string, err error) {
	if err := b.fit(); err != nil {
		return nil, err
	}
	s, err := b.js.CreateStream(ctx, want)
	if err == nil {
		err = b.answer(compare(kind, s.CachedInfo().Config, want))
	}
	if err != nil {
		return nil, fmt.Errorf("create %s %s: %w", kind, name, err)
	}
	return []string{"created " + kind + " " + name}, nil
}

// apply creates or loosens one stream or bucket.
func (b *Bus) apply(ctx context.Context, kind, name string, want jetstream.StreamConfig) (done []string, err error) {
	s, err := b.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return b.create(ctx, kind, name, want)
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s %s: %w", kind, name, err)
	}
	cfg := s.CachedInfo().Config
	changes := slices.DeleteFunc(compare(kind, cfg, want), func(c Change) bool { return !c.Loosens })
	if len(changes) == 0 {
		return nil, nil
	}
	for _, c := range changes {
		set(&cfg, want, c.Field)
	}
	if s, err = b.js.UpdateStream(ctx, cfg); err == nil {
		err = b.answer(slices.DeleteFunc(compare(kind, s.CachedInfo().Config, want), func(c Change) bool {
			return !c.Loosens
		}))
	}
	if err != nil {
		return nil, fmt.Errorf("loosen %s %s: %w", kind, name, err)
	}
	for _, c := range changes {
		done = append(done, fmt.Sprintf("%s %s: %s %s -> %s", kind, name, c.Field, c.Have, c.Want))
	}
	return done, nil
}

// limit compares a limit of which 0 and below mean none.
func limit[N int | int32 | int64 | time.Duration](field string, have, want N, show func(N) string) []Change {
	have, want = max(have, 0), max(want, 0)
	if have == want {
		return nil
	}
	text := func(n N) string {
		if n == 0 {
			return "none"
		}
		return show(n)
	}
	return []Change{{field, text(have), text(want), have > 0 && (want == 0 || want > have)}}
}

func count[N int | int32 | int64](n N) string { return strconv.FormatInt(int64(n), 10) }

// compare returns the differences that matter of a stream or bucket.
func compare(kind string, have, want jetstream.StreamConfig) []Change {
	all := limit("max_age", have.MaxAge, want.MaxAge, time.Duration.String)
	if have.Replicas != want.Replicas {
		all = append(all, Change{"replicas", count(have.Replicas), count(want.Replicas), want.Replicas > have.Replicas})
	}
	if have.AllowDirect != want.AllowDirect { // who answers reads: no message depends on it
		all = append(all, Change{
			"allow_direct", strconv.FormatBool(have.AllowDirect), strconv.FormatBool(want.AllowDirect), true,
		})
	}
	all = append(all, limit("max_bytes", have.MaxBytes, want.MaxBytes, count)...)
	all = append(all, limit("max_msgs", have.MaxMsgs, want.MaxMsgs, count)...)
	all = append(all, limit("max_msgs_per_subject", have.MaxMsgsPerSubject, want.MaxMsgsPerSubject, count)...)
	all = append(all, limit("max_consumers", have.MaxConsumers, want.MaxConsumers, count)...)
	if kind == KindStream {
		all = append(all, limit("max_msg_size", have.MaxMsgSize, want.MaxMsgSize, count)...)
		if have.Duplicates != want.Duplicates {
			all = append(all, Change{
				"duplicate_window", have.Duplicates.String(), want.Duplicates.String(),
				want.Duplicates > have.Duplicates,
			})
		}
	}
	if gone, added := without(have.Subjects, want.Subjects),
		without(want.Subjects, have.Subjects); len(gone)+len(added) > 0 {
		all = append(all, Change{
			"subjects", strings.Join(have.Subjects, " "), strings.Join(want.Subjects, " "), len(gone) == 0,
		})
	}
	for _, f := range []struct {
		name       string
		have, want bool
	}{
		{"allow_atomic", have.AllowAtomicPublish, want.AllowAtomicPublish},
		{"allow_msg_schedules", have.AllowMsgSchedules, want.AllowMsgSchedules},
		{"allow_rollup_hdrs", have.AllowRollup, want.AllowRollup},
		{"no_ack", have.NoAck, want.NoAck},
		{"discard_new_per_subject", have.DiscardNewPerSubject, want.DiscardNewPerSubject},
		{"sealed", have.Sealed, want.Sealed},
		{"deny_delete", have.DenyDelete, want.DenyDelete},
		{"deny_purge", have.DenyPurge, want.DenyPurge},
	} {
		if f.have != f.want {
			all = append(all, Change{
				f.name, strconv.FormatBool(f.have), strconv.FormatBool(f.want),
				f.want && strings.HasPrefix(f.name, "allow_"),
			})
		}
	}
	if have.Description != want.Description {
		all = append(all, Change{"description", have.Description, want.Description, true})
	}
	for _, f := range []struct{ name, have, want string }{
		{"retention", have.Retention.String(), want.Retention.String()},
		{"storage", have.Storage.String(), want.Storage.String()},
		{"discard", have.Discard.String(), want.Discard.String()},
		{"consumer_limits", fmt.Sprint(have.ConsumerLimits), fmt.Sprint(want.ConsumerLimits)},
		{"subject_transform", transform(have), transform(want)},
	} {
		if f.have != f.want {
			all = append(all, Change{f.name, f.have, f.want, false})
		}
	}
	return all
}

// lacking returns the abilities that a stream or bucket needs and does not have. Without them messages are lost,
// whether an operator or a broker chose so.
func lacking(kind string, have, want jetstream.StreamConfig) []Change {
	return slices.DeleteFunc(compare(kind, have, want), func(c Change) bool { return !c.Loosens || !able(c.Field) })
}

// able reports whether a setting is an ability that versions of the broker have or not.
func able(field string) bool {
	return field == "allow_atomic" || field == "allow_msg_schedules" || field == "allow_rollup_hdrs"
}

// without returns the elements of all that some does not have.
func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

func transform(c jetstream.StreamConfig) string {
	if c.SubjectTransform == nil {
		return "none"
	}
	return c.SubjectTransform.Source + " to " + c.SubjectTransform.Destination
}

// set sets a field of cfg to the value of want.
func set(cfg *jetstream.StreamConfig, want jetstream.StreamConfig, field string) {
	switch field {
	case "description":
		cfg.Description = want.Description
	case "max_age":
		cfg.MaxAge = want.MaxAge
	case "replicas":
		cfg.Replicas = want.Replicas
	case "allow_direct":
		cfg.AllowDirect = want.AllowDirect
	case "max_bytes":
		cfg.MaxBytes = cmp.Or(max(want.MaxBytes, 0), -1)
	case "max_msgs":
		cfg.MaxMsgs = cmp.Or(max(want.MaxMsgs, 0), -1)
	case "max_msgs_per_subject":
		cfg.MaxMsgsPerSubject = cmp.Or(max(want.MaxMsgsPerSubject, 0), -1)
	case "max_consumers":
		cfg.MaxConsumers = cmp.Or(max(want.MaxConsumers, 0), -1)
	case "max_msg_size":
		cfg.MaxMsgSize = cmp.Or(max(want.MaxMsgSize, 0), -1)
	case "duplicate_window":
		cfg.Duplicates = want.Duplicates
	case "subjects":
		cfg.Subjects = want.Subjects
	case "allow_atomic":
		cfg.AllowAtomicPublish = want.AllowAtomicPublish
	case "allow_msg_schedules":
		cfg.AllowMsgSchedules = want.AllowMsgSchedules
	case "allow_rollup_hdrs":
		cfg.AllowRollup = want.AllowRollup
	case "no_ack":
		cfg.NoAck = want.NoAck
	case "discard_new_per_subject":
		cfg.DiscardNewPerSubject = want.DiscardNewPerSubject
	case "sealed":
		cfg.Sealed = want.Sealed
	case "deny_delete":
		cfg.DenyDelete = want.DenyDelete
	case "deny_purge":
		cfg.DenyPurge = want.DenyPurge
	case "retention":
		cfg.Retention = want.Retention
	case "discard":
		cfg.Discard = want.Discard
	case "consumer_limits":
		cfg.ConsumerLimits = want.ConsumerLimits
	case "subject_transform":
		cfg.SubjectTransform = want.SubjectTransform
	}
	if cfg.MaxAge > 0 && cfg.Duplicates > cfg.MaxAge {
		cfg.Duplicates = cfg.MaxAge
	}
}

// granted completes limits with the disk that the broker grants the account, where it names it. The broker
// counts every replica against that.
func (b *Bus) granted(ctx context.Context, l topology.Limits) (topology.Limits, error) {
	if l.StoreMaxBytes > 0 {
		return l, nil
	}
	_, limit, err := b.Storage(ctx)
	l.StoreMaxBytes = limit / int64(max(l.Replicas, 1))
	return l, err
}

// Granted completes limits with the disk that the broker grants the account, where they name none. It waits for the
// broker.
func (b *Bus) Granted(ctx context.Context, l topology.Limits) (topology.Limits, error) {
	err := b.Insist(ctx, "disk of the account", func(ctx context.Context) (err error) {
		l, err = b.granted(ctx, l)
		return err
	})
	return l, err
}
