package gancho

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gancho/pkg/bus"
	"gancho/pkg/bytesize"
	"gancho/pkg/service"
	"gancho/pkg/topology"
)

// manifestFile lists the contents of a backup. It is written last: a backup without one is not complete.
const manifestFile = "manifest.json"

// manifest of a backup.
type manifest struct {
	Format  int        `json:"format"` // 1
	At      time.Time  `json:"at"`
	Version string     `json:"version"` // of the program that made it
	Streams []backedUp `json:"streams"`
	// Keys counts the webhooks that are sealed under each encryption key, by the key's id. A restored installation
	// needs all of them.
	Keys map[string]int `json:"keys,omitempty"`
}

// backedUp is one stream of a backup.
type backedUp struct {
	Name     string       `json:"name"`
	File     string       `json:"file"`
	SHA256   string       `json:"sha256"`
	Bytes    int64        `json:"bytes"`
	Messages uint64       `json:"messages"`
	Snapshot bus.Snapshot `json:"snapshot"`
}

// Backup copies every stream and bucket, with consumers, into a directory that is new or empty. It can run
// while the services do: see topology.Backup for the order. The files hold customers' data and sealed secrets;
// the encryption key is not among them.
func Backup(environ []string, dir string, stdout, stderr io.Writer) int {
	return withBroker(environ, stderr, func(ctx context.Context, b *bus.Bus, _ brokerConfig) (int, error) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return 0, fmt.Errorf("make the folder of the backup: %w", err)
		}
		there, err := os.ReadDir(dir)
		if err != nil || len(there) > 0 {
			return 0, errors.Join(err, fmt.Errorf("%s is not empty; give a new folder for each backup", dir))
		}
		m := manifest{Format: 1, At: time.Now().UTC(), Version: service.Version}
		for _, name := range topology.Backup() {
			s, err := backupStream(ctx, b, dir, name)
			if errors.Is(err, bus.ErrNotFound) {
				fmt.Fprintf(stdout, "%-22s does not exist\n", name)
				continue
			}
			if err != nil {
				return 0, err
			}
			fmt.Fprintf(stdout, "%-22s %d messages, %s\n", name, s.Messages, bytesize.Text(uint64(s.Bytes))) //nolint:gosec // a size
			m.Streams = append(m.Streams, *s)
		}
		if len(m.Streams) == 0 {
			return 0, errors.New("the broker has no stream of Gancho; is NATS_URL the right one?")
		}
		if slices.ContainsFunc(m.Streams, func(s backedUp) bool { return s.Name == topology.BucketPrefix+topology.BucketWebhooks }) {
			if m.Keys, err = keyUse(ctx, b); err != nil {
				return 0, fmt.Errorf("list the encryption keys in use: %w", err)
			}
		}
		body, err := json.MarshalIndent(m, "", "  ")
		if err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(dir, manifestFile), append(body, '\n'), 0o600); err != nil {
			return 0, fmt.Errorf("write the backup: %w", err)
		}
		fmt.Fprintf(stdout, "Backed up. A restore also needs, kept somewhere else: the encryption keys in use "+
			"(ENCRYPTION_KEY_FILE): %s; and the API tokens (API_TOKENS_FILE).\n",
			cmp.Or(keysText(m.Keys), "none yet"))
		return service.ExitOK, nil
	})
}

func backupStream(ctx context.Context, b *bus.Bus, dir, name string) (*backedUp, error) {
	s := &backedUp{Name: name, File: name + ".snapshot"}
	path := filepath.Join(dir, s.File)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if s.Snapshot, err = b.Backup(ctx, name, io.MultiWriter(f, sum)); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	if s.Bytes, err = f.Seek(0, io.SeekCurrent); err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	s.SHA256, s.Messages = hex.EncodeToString(sum.Sum(nil)), s.Snapshot.Messages()
	return s, nil
}

// Restore makes streams and buckets from a backup. It refuses a broker that holds anything of Gancho, and
// checks every file before it begins. Unless withoutKeys, it refuses a backup whose keys are not in
// ENCRYPTION_KEY_FILE. Services must not run during a restore.
func Restore(environ []string, dir string, withoutKeys bool, stdout, stderr io.Writer) int {
	return withBroker(environ, stderr, func(ctx context.Context, b *bus.Bus, cfg brokerConfig) (int, error) {
		m, err := readManifest(dir)
		if err != nil {
			return 0, err
		}
		if err := m.checkKeys(cfg.EncryptionKeyFile); err != nil && !withoutKeys {
			return 0, err
		}
		var full []string
		for _, name := range topology.Backup() {
			empty, err := b.Empty(ctx, name)
			if err != nil {
				return 0, err
			}
			if !empty {
				full = append(full, name)
			}
		}
		if len(full) > 0 {
			return 0, fmt.Errorf("the broker holds messages already (%s); restore "+
				"into an empty one, with no service running", strings.Join(full, ", "))
		}
		for _, s := range m.Streams {
			if err := restoreStream(ctx, b, dir, s); err != nil {
				return 0, err
			}
			fmt.Fprintf(stdout, "%-22s %d messages\n", s.Name, s.Messages)
		}
		// The parts that a backup leaves out, or did not have yet. The limits of restored streams stay: those
		// of another broker, or for more replicas, are for gancho topology --apply.
		if there, err := b.Replicas(ctx); err == nil && cfg.Limits.Replicas == 1 {
			cfg.Limits.Replicas = max(there, 1)
		}
		if err := b.Create(ctx, cfg.Limits); err != nil {
			return 0, err
		}
		fmt.Fprintf(stdout, "Restored as of %s. Start the services with the same "+
			"encryption key, then run gancho doctor.\n", m.At.Format(time.RFC3339))
		return service.ExitOK, nil
	})
}

// checkKeys returns an error when the file lacks a key that the backup needs.
func (m *manifest) checkKeys(file string) error {
	if len(m.Keys) == 0 {
		return nil
	}
	const advice = "set ENCRYPTION_KEY_FILE to the key file of that time, or restore with --without-keys: secrets " +
		"sealed under a missing key never open again"
	missing, err := missingKeys(file, m.Keys)
	if err != nil {
		return fmt.Errorf("the backup needs the encryption keys %s: %w; %s", keysText(m.Keys), err, advice)
	}
	if len(missing) > 0 {
		return fmt.Errorf("the backup needs encryption keys that %s does not have: %s; %s", file, keysText(missing),
			advice)
	}
	return nil
}

// readManifest reads the backup's manifest and checks its files.
func readManifest(dir string) (*manifest, error) {
	body, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return nil, fmt.Errorf("this is no complete backup: %w", err)
	}
	var m manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w", manifestFile, err)
	}
	if m.Format != 1 {
		return nil, fmt.Errorf("the backup has format %d, this program reads 1", m.Format)
	}
	known := topology.Backup()
	for _, s := range m.Streams {
		if !slices.Contains(known, s.Name) || s.File != s.Name+".snapshot" {
			return nil, fmt.Errorf("the backup names %q, which is no stream of Gancho", s.Name)
		}
		f, err := os.Open(filepath.Join(dir, s.File))
		if err != nil {
			return nil, fmt.Errorf("read the backup: %w", err)
		}
		sum := sha256.New()
		_, err = io.Copy(sum, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read the backup: %w", err)
		}
		if hex.EncodeToString(sum.Sum(nil)) != s.SHA256 {
			return nil, fmt.Errorf("%s differs from the backup's: its checksum is another one", s.File)
		}
	}
	return &m, nil
}

func restoreStream(ctx context.Context, b *bus.Bus, dir string, s backedUp) error {
	f, err := os.Open(filepath.Join(dir, s.File))
	if err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	defer f.Close()
	return b.Restore(ctx, s.Name, s.Snapshot, f)
}
