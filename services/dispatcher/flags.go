package dispatcher

import (
	"encoding/json"
	"sync"

	"go.uber.org/zap"

	"gancho/pkg/bus"
	"gancho/pkg/schema"
	"gancho/pkg/suspension"
)

// flags is this process's copy of the suspended URLs, kept up to date from the bucket SUSPENSIONS. The hot
// path reads it without asking anyone. It is safe for concurrent use.
type flags struct {
	log     *zap.Logger
	mu      sync.RWMutex
	entries map[urlKey]flagged
}

type flagged struct {
	suspension.Flag
	revision uint64
}

func newFlags(log *zap.Logger) *flags { return &flags{log: log, entries: map[urlKey]flagged{}} }

// get returns the URL's flag, false when it is not suspended.
func (f *flags) get(k urlKey) (flagged, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	e, ok := f.entries[k]
	return e, ok
}

// apply takes over an entry of the bucket. It returns the URL and whether it was resumed by it.
func (f *flags) apply(e bus.Entry) (k urlKey, resumed bool) {
	var flag suspension.Flag
	if e.Value != nil {
		if err := json.Unmarshal(e.Value, &flag); err != nil {
			f.log.Error("an unreadable suspension is ignored", zap.String("key", e.Key), zap.Error(err))
			return urlKey{}, false
		}
		k = urlKey{flag.Account, flag.URLKey}
		if schema.Check(flag.Schema) != nil { // it is suspended; its probe is a newer version's
			k = splitKey(e.Key)
			flag = suspension.Flag{Account: k.account, URLKey: k.url, State: suspension.Suspended}
		}
	} else {
		k = splitKey(e.Key)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old, was := f.entries[k]
	if was && old.revision >= e.Revision {
		return k, false
	}
	if e.Value == nil {
		delete(f.entries, k)
		return k, was
	}
	f.entries[k] = flagged{flag, e.Revision}
	return k, false
}

func splitKey(key string) urlKey {
	for i := range key {
		if key[i] == '.' {
			return urlKey{key[:i], key[i+1:]}
		}
	}
	return urlKey{}
}
