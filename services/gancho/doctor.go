package gancho

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"gancho/pkg/books"
	"gancho/pkg/bus"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/service"
	"gancho/pkg/suspension"
	"gancho/pkg/topology"
)

// late is how long something may wait before the doctor asks why.
const late = time.Minute

// diagnosis is the doctor's findings.
type diagnosis struct {
	*books.Report

	Kept     *books.Report `json:"kept,omitempty"` // by a suspension-monitor; nil when none ever did
	Balanced bool          `json:"balanced"`
	Findings []finding     `json:"findings"`
}

// finding is one thing that is not as it should be. Only a serious one makes the exit code 1.
type finding struct {
	Serious bool   `json:"serious"`
	What    string `json:"what"`
	Advice  string `json:"advice"`
}

// Doctor audits the books itself, whether a suspension-monitor keeps them or not, asks Redis, and reports stuck
// messages and their remedy. It changes nothing. asJSON shows it to programs. The exit code is 1 when the books do not
// balance, or Redis cannot be used.
func Doctor(environ []string, asJSON bool, stdout, stderr io.Writer) int {
	return withBroker(environ, stderr, func(ctx context.Context, b *bus.Bus, cfg brokerConfig) (int, error) {
		d, err := examine(ctx, b, cfg)
		if err != nil {
			return 0, err
		}
		d.findRedis(ctx, cfg.RedisURL)
		if asJSON {
			enc := json.NewEncoder(stdout)
			enc.SetIndent("", "  ")
			err = enc.Encode(d)
		} else {
			err = d.print(stdout)
		}
		for _, f := range d.Findings {
			if f.Serious {
				return service.ExitError, err
			}
		}
		return service.ExitOK, err
	})
}

// betweenAudits is the pause between two audits: what only the second one misses was under way.
const betweenAudits = time.Second

// examine finds out how things are.
func examine(ctx context.Context, b *bus.Bus, cfg brokerConfig) (*diagnosis, error) {
	d := &diagnosis{}
	parts, err := b.Topology(ctx, cfg.Limits)
	if err != nil {
		return nil, err
	}
	var missing []string
	state := map[string]bus.Part{}
	for _, p := range parts {
		state[p.Name] = p
		if !p.Exists && p.Kind != bus.KindConsumer {
			missing = append(missing, p.Name)
		}
	}
	if len(missing) > 0 {
		d.Report = &books.Report{At: time.Now().UTC()}
		d.find(true, "missing on the broker: "+strings.Join(missing, ", "),
			"Start the services that own them (gancho topology shows which), or create them with gancho topology --apply.")
		return d, nil
	}
	bucket, err := b.Bucket(ctx, topology.BucketBooks)
	if err != nil {
		return nil, err
	}
	if d.Kept, err = books.ReadReport(ctx, bucket); err != nil && !errors.Is(err, bus.ErrNotFound) {
		return nil, err
	}
	x := books.New(b, books.ReaderDoctor, zap.NewNop())
	defer func() { x.Close(context.WithoutCancel(ctx)) }()
	if _, _, err := x.Load(ctx, bucket); err != nil {
		return nil, err
	}
	if _, _, err := x.Audit(ctx); err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(betweenAudits):
	}
	if d.Report, _, err = x.Audit(ctx); err != nil {
		return nil, err
	}
	d.Balanced = d.Report.Balanced()
	d.judge(state)
	if err := d.findKeys(ctx, b, cfg.EncryptionKeyFile); err != nil {
		return nil, err
	}
	return d, d.findForgotten(ctx, b)
}

func (d *diagnosis) find(serious bool, what, advice string) {
	d.Findings = append(d.Findings, finding{serious, what, advice})
}

// judge lists the numbers that are not as they should be.
func (d *diagnosis) judge(state map[string]bus.Part) {
	r := d.Report
	age := func(t time.Time) time.Duration { return r.At.Sub(t).Round(time.Second) }
	switch {
	case d.Kept == nil:
		d.find(false, "the books have not been kept yet", "Is a suspension-monitor running? It finds lost notifications and puts them right.")
	case age(d.Kept.At) > late:
		d.find(false, fmt.Sprintf("the books have not been kept for %v", age(d.Kept.At)), "Is a suspension-monitor running, and does its log say why it cannot?")
	}
	if r.Unaccounted > 0 {
		d.find(true, fmt.Sprintf("%d notifications are unaccounted for: nothing carries them", r.Unaccounted),
			"The suspension-monitor schedules them again within a minute. If they stay, look for \"cannot be put right\" in its log.")
	} else if !d.Balanced {
		d.find(true, "the counts do not add up", "This is a fault of Gancho. Keep a backup (gancho backup) and report it.")
	}
	if n := state[topology.ConsumerFirst].Messages; !r.OldestPending.IsZero() && age(r.OldestPending) > late {
		d.find(false, fmt.Sprintf("the oldest notification without an attempt has waited for %v (%d wait)", age(r.OldestPending), n),
			"Is a dispatcher running and ready, and not degraded (gancho status)? Is gancho_first_attempts_paused 1? Otherwise add dispatchers or raise MAX_IN_FLIGHT.")
	}
	if !r.MostOverdue.IsZero() && age(r.MostOverdue) > late {
		d.find(false, fmt.Sprintf("the most overdue retry is %v late", age(r.MostOverdue)), "Is a dispatcher running and ready?")
	}
	if n := state[topology.ConsumerPublisher].Messages; n > 10_000 {
		d.find(false, fmt.Sprintf("%d events wait for the publisher", n), "Is a publisher running and ready? Is NOTIFICATIONS full (gancho topology)?")
	}
	if r.Orphans > 0 {
		d.find(false, fmt.Sprintf("%d retries are scheduled for notifications that ended", r.Orphans), "The suspension-monitor removes them.")
	}
	if n := r.Counts.Unread; n > 0 {
		d.find(false, fmt.Sprintf("%d messages were removed before the books read them and left no record", n),
			"They are events that came again, or were lost while no suspension-monitor ran. Replay that time if in doubt.")
	}
	if n := state[topology.Quarantine].Messages; n > 0 {
		d.find(false, fmt.Sprintf("%d messages are in QUARANTINE", n), "Their headers Gancho-Reason and Gancho-Detail say why; nats stream view QUARANTINE shows them.")
	}
}

// findKeys finds encryption keys that webhooks are sealed under and the file does not have: nothing is sent for them.
func (d *diagnosis) findKeys(ctx context.Context, b *bus.Bus, file string) error {
	used, err := keyUse(ctx, b)
	if err != nil || len(used) == 0 {
		return err
	}
	missing, err := missingKeys(file, used)
	switch {
	case file == "":
		d.find(false, "the webhooks are sealed under the encryption keys "+keysText(used), "Set ENCRYPTION_KEY_FILE to have the doctor look for them.")
	case err != nil:
		d.find(false, "the encryption keys in use were not looked for: "+err.Error(), "They are "+keysText(used)+".")
	case len(missing) > 0:
		d.find(true, "webhooks are sealed under encryption keys that are not in ENCRYPTION_KEY_FILE: "+keysText(missing),
			"Their notifications wait. Put the lines of these keys back into the file and restart dispatchers and management.")
	}
	return nil
}

// findRedis asks Redis as a service does: by a script that would write, but has nothing to write.
func (d *diagnosis) findRedis(ctx context.Context, url string) {
	if url == "" {
		d.find(false, "Redis was not asked", "Set REDIS_URL, as the suspension-monitor or management has it, to have the doctor ask it.")
		return
	}
	client, err := suspension.Open(url)
	if err != nil {
		d.find(true, err.Error(), "Nothing was asked of Redis.")
		return
	}
	defer client.Close()
	trouble := func(cause string) {
		d.find(true, "Redis ("+suspension.Hosts(url)+") cannot be used: "+cause,
			"Notifications are sent all the same. No URL is suspended or probed meanwhile, and lists are not shown.")
	}
	if err := suspension.RefuseCluster(ctx, client); err != nil {
		trouble(err.Error())
		return
	}
	for _, key := range []string{"gancho:window:doctor", "gancho:log:doctor"} { // the suspension-monitor's, management's
		if err = client.Eval(ctx, `return redis.call('SETRANGE', KEYS[1], 0, '')`, []string{key}).Err(); !redis.HasErrorPrefix(err, "NOPERM") {
			break
		}
	}
	if err != nil {
		trouble(suspension.Cause(err))
		return
	}
	about, err := client.Info(ctx, "persistence").Result() // the shipped user may not ask
	if err == nil && strings.Contains(about, "aof_enabled:0") {
		d.find(false, "Redis ("+suspension.Hosts(url)+") keeps nothing over a restart", "Set appendonly yes, as deploy/redis/redis.conf does: "+
			"after a restart the failures of the last minutes are forgotten, and lists are partial until they are filled again.")
	}
}

// findForgotten finds notifications that are parked although their URL is active.
func (d *diagnosis) findForgotten(ctx context.Context, b *bus.Bus) error {
	suspensions, err := b.Bucket(ctx, topology.BucketSuspensions)
	if err != nil {
		return err
	}
	keys, err := suspensions.Keys(ctx)
	if err != nil {
		return err
	}
	backlogs, err := lane.Backlogs(ctx, b, "")
	if err != nil {
		return err
	}
	for _, x := range backlogs {
		if x.Lane == notification.LaneDisabled || slices.Contains(keys, x.Account+"."+x.Lane) {
			continue
		}
		oldest, err := lane.OldestParked(ctx, b, x.Account, x.Lane, x.WebhookID)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if since := time.Since(oldest).Round(time.Second); since > late {
			d.find(false, fmt.Sprintf("%d notifications of webhook %s (account %s) are parked although its URL is not suspended, the oldest for %v", x.Messages, x.WebhookID, x.Account, since),
				"A slow receiver takes its time. If their number does not go down: is a dispatcher running and ready?")
		}
	}
	return nil
}

func (d *diagnosis) print(out io.Writer) error {
	r := d.Report
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, line := range []struct {
		name string
		n    uint64
	}{
		{"matched", r.Counts.Matched},
		{string(notification.Delivered), r.Counts.Delivered},
		{string(notification.PermanentlyFailed), r.Counts.PermanentlyFailed},
		{string(notification.Cancelled), r.Counts.Cancelled},
		{string(notification.Pending), r.Open[notification.Pending]},
		{string(notification.Retrying), r.Open[notification.Retrying]},
		{string(notification.Parked), r.Open[notification.Parked]},
		{"unaccounted", r.Unaccounted},
	} {
		fmt.Fprintf(w, "%s\t%d\t\n", line.name, line.n)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, a := range r.Accounts {
		fmt.Fprintf(out, "account %s: %d unaccounted\n", a.ID, a.Unaccounted)
	}
	for _, s := range r.Stuck {
		fmt.Fprintf(out, "stuck: notification %s of webhook %s, account %s: send %d, %s since %s\n",
			s.NotificationID, s.WebhookID, s.Account, s.Send, s.State, s.Since.Format(time.RFC3339))
	}
	for _, f := range d.Findings {
		mark := "note"
		if f.Serious {
			mark = "PROBLEM"
		}
		fmt.Fprintf(out, "\n%s: %s\n  %s\n", mark, f.What, f.Advice)
	}
	if d.Balanced {
		fmt.Fprintln(out, "\nThe books balance.")
	}
	return nil
}
