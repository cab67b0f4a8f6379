package gancho

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/registry"
	"gancho/pkg/seal"
	"gancho/pkg/service"
	"gancho/pkg/topology"
	"gancho/pkg/webhook"
)

// keysConfig is what Reseal reads.
type keysConfig struct {
	Bus bus.Config

	// EncryptionKeyFile holds the keys: the first seals, all open.
	EncryptionKeyFile string `env:"ENCRYPTION_KEY_FILE"`
}

// keysUser is the broker's user whose rights Reseal needs; the operator has them too.
const keysUser = "management"

// listWithin is how long reading all webhooks may take.
const listWithin = 2 * time.Minute

// progressEvery is how often Reseal says how far it is.
const progressEvery = 5 * time.Second

// rounds bounds how often Reseal looks again for webhooks that were sealed under an old key during the run.
const rounds = 3

// Reseal seals every webhook's secrets under the first key of ENCRYPTION_KEY_FILE, so that the other keys can
// be removed. The services may run: each write is compare-and-set on the webhook's revision, and a webhook that
// changed during the run is read again. It can be stopped and started again at any time. With dryRun it only
// counts. The exit code is 1 while anything is sealed under another key, or does not open.
func Reseal(environ []string, dryRun bool, stdout, stderr io.Writer) int {
	var cfg keysConfig
	problems := service.Load(&cfg, environ)
	keys, warnings, err := seal.Load(cfg.EncryptionKeyFile)
	if err != nil {
		problems = append(problems, err.Error())
	}
	if len(problems) > 0 {
		return refuse(stderr, problems)
	}
	for _, w := range warnings {
		fmt.Fprintln(stderr, "warning:", w)
	}
	return connected(cfg.Bus, keysUser, stderr, func(ctx context.Context, b *bus.Bus) (int, error) {
		within, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if _, err := b.Bucket(within, topology.BucketWebhooks); err != nil {
			return 0, fmt.Errorf("open the bucket %s: %w; is this the broker of Gancho, "+
				"and the user management or operator?", topology.BucketWebhooks, err)
		}
		r := &resealer{bus: b, keys: keys, stdout: stdout, stderr: stderr}
		for round := 1; ; round++ {
			r.broken = 0
			others, err := r.list(ctx)
			if err != nil {
				return 0, err
			}
			switch left := len(others) + r.broken; {
			case left == 0 && dryRun && len(r.registry.OldDeletions()) > 0:
				fmt.Fprintf(stdout, "%d records of deleted webhooks need another key than %s.\n",
					len(r.registry.OldDeletions()), keys.Current())
				return service.ExitError, nil
			case left == 0:
				if err := r.registry.ResignDeletions(ctx); err != nil {
					return 0, err
				}
				fmt.Fprintf(stdout, "Everything is sealed under %s. The other keys may be removed from the file; "+
					"keep them with the backups made until now, which need them.\n", keys.Current())
				return service.ExitOK, nil
			case dryRun:
				fmt.Fprintf(stdout, "%d webhooks need another key than %s.\n", left, keys.Current())
				return service.ExitError, nil
			case len(others) == 0:
				return 0, fmt.Errorf("%d webhooks do not open, see above; the others are sealed under %s", r.broken,
					keys.Current())
			case round > rounds:
				return 0, fmt.Errorf("%d webhooks were sealed under another key meanwhile; restart every management "+
					"with this key file, then run it again", len(others))
			}
			if err := r.reseal(ctx, others); err != nil {
				return 0, err
			}
			if r.broken > 0 {
				return 0, fmt.Errorf("%d webhooks do not open, see above; add the line of their key again", r.broken)
			}
		}
	})
}

type resealer struct {
	bus            *bus.Bus
	registry       *registry.Registry
	keys           *seal.Keyring
	stdout, stderr io.Writer
	broken         int // webhooks that do not open, and entries that are not management's
}

// list reads all webhooks, prints how many use each key, and returns those that use another than the first.
func (r *resealer) list(ctx context.Context) (others []*webhook.Webhook, err error) {
	listing, done := context.WithTimeout(ctx, listWithin)
	defer done()
	complete := false
	if r.registry, err = registry.Open(listing, r.bus,
		registry.Options{Keys: r.keys, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}); err != nil {
		return nil, err
	}
	err = r.registry.Run(listing, func() { complete = true; done() }, nil)
	if err == nil && !complete {
		err = errors.Join(errors.New("the webhooks could not be read"), context.Cause(listing))
	}
	if err != nil {
		return nil, err
	}
	forged := r.registry.Forged()
	for _, key := range slices.Sorted(maps.Keys(forged)) {
		r.fails(fmt.Errorf("the newest entry of webhook %s is not used: %w", key, forged[key]))
	}
	now := time.Now()
	used := map[string]int{r.keys.Current(): 0}
	all := r.registry.All()
	slices.SortFunc(all, func(a, b *webhook.Webhook) int { return cmp.Compare(a.Key(), b.Key()) })
	for _, w := range all {
		ids, err := w.KeyIDs(now)
		if err != nil {
			r.fails(err)
			continue
		}
		if id := r.registry.KeyID(w.Key()); id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
		for _, id := range ids {
			used[id]++
		}
		if slices.ContainsFunc(ids, func(id string) bool { return id != r.keys.Current() }) {
			others = append(others, w)
		}
	}
	fmt.Fprintf(r.stdout, "%d webhooks\n", len(all))
	for _, id := range slices.Sorted(maps.Keys(used)) {
		note := ""
		if id == r.keys.Current() {
			note = " (the first in the file)"
		}
		fmt.Fprintf(r.stdout, "  key %s: %d%s\n", id, used[id], note)
	}
	return others, nil
}

// keyUse counts the webhooks that need each key, by its id. Secrets that no key opens count for none.
func keyUse(ctx context.Context, b *bus.Bus) (map[string]int, error) {
	bucket, err := b.Bucket(ctx, topology.BucketWebhooks)
	if err != nil {
		return nil, err
	}
	listing, done := context.WithTimeout(ctx, listWithin)
	defer done()
	needs, complete, now := map[string][]string{}, false, time.Now()
	err = bucket.Watch(listing, func(e bus.Entry) {
		delete(needs, e.Key)
		if w, err := webhook.Decode(e.Value); err == nil {
			needs[e.Key], _ = w.KeyIDs(now)
		}
	}, func() { complete = true; done() })
	if err == nil && !complete {
		err = errors.Join(errors.New("the webhooks could not be read"), context.Cause(listing))
	}
	if err != nil {
		return nil, err
	}
	used := map[string]int{}
	for _, ids := range needs {
		for _, id := range ids {
			used[id]++
		}
	}
	return used, nil
}

// keysText lists keys for people.
func keysText(used map[string]int) string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(used)) {
		out = append(out, fmt.Sprintf("%s (%d webhooks)", id, used[id]))
	}
	return strings.Join(out, ", ")
}

// missingKeys returns those of the keys that the file does not have.
func missingKeys(file string, used map[string]int) (map[string]int, error) {
	ring, _, err := seal.Load(file)
	if err != nil {
		return nil, err
	}
	missing := maps.Clone(used)
	maps.DeleteFunc(missing, func(id string, _ int) bool { return ring.Missing([]string{id}) == nil })
	return missing, nil
}

// reseal seals the webhooks again, one after the other, and puts the records of deletions under the first key.
func (r *resealer) reseal(ctx context.Context, others []*webhook.Webhook) error {
	said := time.Now()
	for i, w := range others {
		if err := r.one(ctx, w); err != nil {
			return fmt.Errorf("%d of %d webhooks are sealed again; run it again for the others: %w", i, len(others),
				err)
		}
		if time.Since(said) > progressEvery {
			said = time.Now()
			fmt.Fprintf(r.stdout, "%d of %d sealed again\n", i+1, len(others))
		}
	}
	fmt.Fprintf(r.stdout, "%d sealed again\n", len(others)-r.broken)
	return nil
}

// one seals a webhook again, on top of its newest revision. An error ends the run.
func (r *resealer) one(ctx context.Context, w *webhook.Webhook) error {
	for {
		next, err := w.Reseal(r.keys, time.Now())
		if err != nil {
			r.fails(err)
			return nil
		}
		if err = r.registry.Update(ctx, w, next); !errors.Is(err, bus.ErrConflict) {
			return err
		}
		w, err = r.registry.Fetch(ctx, w.Account, w.ID) // its owner was faster
		if errors.Is(err, bus.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *resealer) fails(err error) {
	r.broken++
	fmt.Fprintln(r.stderr, "gancho:", err)
}
