package suspension

import (
	"errors"
	"testing"

	"gancho/pkg/redistest"
)

// TestClusterIsRefused: on a Redis Cluster every script would fail for ever.
func TestClusterIsRefused(t *testing.T) {
	t.Parallel()
	single, cluster, shipped := redistest.Start(t), redistest.Start(t, "--cluster-enabled", "yes"), redistest.StartShipped(t)
	for url, want := range map[string]error{
		single.URL(): nil, single.URL() + "?protocol=2": nil, shipped.URLOf(redistest.UserMonitor): nil, shipped.URLOf(redistest.UserManagement): nil,
		"redis://127.0.0.1:1": nil, cluster.URL(): ErrCluster, cluster.URL() + "?protocol=2": ErrCluster,
	} {
		client, err := Open(url)
		if err != nil {
			t.Fatal(err)
		}
		if err := RefuseCluster(t.Context(), client); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", url, err, want)
		}
		_ = client.Close()
	}
}
