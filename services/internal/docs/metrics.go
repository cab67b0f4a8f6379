package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// metricsFile lists every metric as a test of gancho serve sees them.
const metricsFile = "services/gancho/testdata/metrics.golden"

// metrics returns the page of metrics.
func metrics(root string) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, metricsFile))
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("# Metrics\n\nEvery service serves them at `/metrics` on `OPS_ADDR`; " +
		"`gancho serve` those of all services. " +
		"Labels have few and fixed values: never an account, a webhook or a URL. Go's and the process's own metrics " +
		"come along as `gancho_go_...` and `gancho_process_...`.\n\n" +
		"<!-- Written by `go run ./services/internal/docs` from " + metricsFile +
		". -->\n\n| metric | type | meaning | labels |\n| --- | --- | --- | --- |\n")
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		lines := strings.Split(block, "\n")
		name, kind, ok := strings.Cut(lines[0], " ")
		if !ok || len(lines) < 2 {
			return "", fmt.Errorf("%s: %q is not a metric", metricsFile, block)
		}
		var labels []string
		for _, line := range lines[2:] {
			label, _, _ := strings.Cut(strings.TrimSpace(line), "=")
			labels = append(labels, code(label))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", code(name), kind, cell(strings.TrimSpace(lines[1])),
			strings.Join(labels, ", "))
	}
	return b.String(), nil
}
