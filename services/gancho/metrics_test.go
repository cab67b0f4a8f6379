package gancho

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap/zapcore"

	"gancho/pkg/service"
	"gancho/pkg/waittest"
)

var update = flag.Bool("update", false, "write the golden files again")

// TestMetrics compares name, type, labels and help of every metric of all services with testdata/metrics.golden.
// Dashboards and alerts are written against them.
func TestMetrics(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close() // management takes it; no one else asks for this very port
	var cfg Config
	environ := []string{
		"DATA_DIR=" + t.TempDir(), "NATS_LISTEN=127.0.0.1:0", "NATS_SYNC_INTERVAL=1s", "HTTP_ADDR=" + addr, "API_TOKENS=acme:token",
		"EVENT_MAX_BYTES=4194304", // more than the embedded broker takes by default: it must follow
	}
	if problems := service.Load(&cfg, environ); len(problems) > 0 {
		t.Fatal(problems)
	}
	all, problems, err := prepare(&cfg, environ)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	shell, err := service.NewShell("error", zapcore.AddSync(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- all.run(ctx, shell, nil) }()
	defer func() {
		stop()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	answers := func() bool { // and so there is the duration of a request
		resp, err := http.Get("http://" + addr + "/crm/v2/webhooks")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		families, err := shell.Registry.Gather() // the request is counted after its answer
		return err == nil && shell.Health.State().Ready && slices.ContainsFunc(families, func(f *dto.MetricFamily) bool {
			return f.GetName() == "gancho_http_request_duration_seconds"
		})
	}
	waittest.Until(t, "the API answers", answers)

	families, err := shell.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "gancho_") {
			t.Errorf("the metric %s does not start with gancho_", f.GetName())
		}
		if strings.HasPrefix(f.GetName(), "gancho_go_") || strings.HasPrefix(f.GetName(), "gancho_process_") {
			continue // of the runtime and the system: they change with them
		}
		var labels []string
		values := map[string][]string{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
				values[l.GetName()] = append(values[l.GetName()], l.GetValue())
			}
		}
		slices.Sort(labels)
		var described []string
		for _, name := range slices.Compact(labels) {
			v := values[name]
			slices.Sort(v)
			v = slices.Compact(v)
			switch name {
			case "version", "go", "route", "status": // not a closed list, or one that the API's routes give
				v = []string{"..."}
			}
			described = append(described, name+"="+strings.Join(v, "|"))
		}
		lines = append(lines, f.GetName()+" "+strings.ToLower(f.GetType().String())+"\n  "+f.GetHelp()+"\n  "+strings.Join(described, "\n  ")+"\n")
	}
	got := strings.Join(lines, "\n")
	golden := filepath.Join("testdata", "metrics.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the metrics changed; go test ./services/gancho -run TestMetrics -update writes them again (-want +got):\n%s", diff)
	}
}
