# The one entry point; .ci/run calls these same targets. `make` lists them.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-builtin-rules --no-print-directory

PROGRAMS := publisher dispatcher suspension-monitor management gancho
PACKAGES := ./pkg/... ./services/...
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X gancho/pkg/service.Version=$(VERSION)

# Tools, by version. They live in GOPATH, so a fresh clone finds them again.
GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION   := v1.9.0
CYCLONEDX_VERSION     := v1.10.0
GO_PATH        = $(firstword $(subst :, ,$(shell go env GOPATH 2>/dev/null)))
GOLANGCI_LINT  = $(GO_PATH)/tools/golangci-lint-$(GOLANGCI_LINT_VERSION)/golangci-lint
CYCLONEDX      = $(GO_PATH)/tools/cyclonedx-gomod-$(CYCLONEDX_VERSION)/cyclonedx-gomod

FUZZTIME ?= 20s
CHAOS    ?= 10m
OUTAGE   ?= 10m
BENCH    ?=
DEMO     ?=

.PHONY: help
help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# -- build and run -----------------------------------------------------------

.PHONY: build
build: needs-go ## build all programs into bin/
	@mkdir -p bin
	@for program in $(PROGRAMS); do \
		echo "build bin/$$program"; \
		CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o "bin/$$program" "./services/$$program/cmd"; \
	done

.PHONY: demo
demo: needs-go ## the self-checking tour: everything in one process, ends by itself
	@go run -buildvcs=false -ldflags '$(LDFLAGS)' ./services/gancho/cmd demo $(DEMO)

.PHONY: run
run: needs-go ## all services in one process, state in ./data (gancho serve)
	@go run -buildvcs=false -ldflags '$(LDFLAGS)' ./services/gancho/cmd serve

.PHONY: up
up: ## start everything in containers and wait until it is healthy
	deploy/env
	docker compose up --build --wait

.PHONY: down
down: ## stop the containers; the data stays (docker compose down --volumes deletes it)
	docker compose down

# -- test --------------------------------------------------------------------

# The end-to-end tests take longest and wait much, so the others run beside them. lint runs go vet.
.PHONY: test
test: needs-go tools ## all tests; installs what they need on Debian
	@$(MAKE) -j2 --keep-going test-e2e test-race

.PHONY: test-e2e
test-e2e: needs-go tools ## the end-to-end tests
	go test -shuffle=on -vet=off -parallel 3 -timeout 20m ./services/e2e

# A program with the race detector sleeps before it exits, a second by default.
.PHONY: test-race
test-race: needs-go tools ## all other tests, with the race detector
	GORACE=atexit_sleep_ms=50 go test -race -shuffle=on -vet=off -timeout 20m $$(go list $(PACKAGES) | grep -v /e2e$$)

.PHONY: test-short
test-short: needs-go ## the quick tests, under a minute: no race detector, nothing installed, not end to end
	go test -short -timeout 3m $$(go list $(PACKAGES) | grep -v /e2e$$)

.PHONY: tools
tools: needs-go
	@.ci/test-tools

.PHONY: fuzz
fuzz: needs-go ## every fuzz test for FUZZTIME each (20s)
	@grep -rl --include='*_test.go' '^func Fuzz' pkg services | while read -r file; do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do \
			echo "fuzz $$name in $${file%/*}"; \
			go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "./$${file%/*}"; \
		done; \
	done

.PHONY: bench
bench: needs-go ## measure throughput and latency on this machine (BENCH="-flags"); installs redis-server
	@.ci/test-tools redis-server
	go run -buildvcs=false ./services/internal/bench $(BENCH)

.PHONY: chaos
chaos: needs-go tools ## kill and pause processes under load for CHAOS (10m), then count; prove the count with seeded bugs
	go test -race ./services/e2e -run Chaos -count=1 -v -timeout 0 -args -chaos $(CHAOS)

.PHONY: outages
outages: needs-go tools ## take NATS, Redis and DNS away for OUTAGE (10m) each, at once
	go test ./services/e2e -run Outages -count=1 -v -parallel 6 -timeout 0 -args -outage $(OUTAGE)

# -- check -------------------------------------------------------------------

.PHONY: lint
lint: needs-go $(GOLANGCI_LINT) ## go vet, formatting and all linters
	go vet $(PACKAGES)
	$(GOLANGCI_LINT) fmt --diff
	$(GOLANGCI_LINT) run $(PACKAGES)

.PHONY: fmt
fmt: needs-go $(GOLANGCI_LINT) ## format the Go files
	$(GOLANGCI_LINT) fmt

.PHONY: fix
fix: needs-go $(GOLANGCI_LINT) ## apply go fix, the linters' own fixes, and format
	go fix $(PACKAGES)
	$(GOLANGCI_LINT) run --fix $(PACKAGES)
	$(GOLANGCI_LINT) fmt

.PHONY: tidy
tidy: needs-go ## tidy both modules and the workspace
	cd pkg && GOWORK=off go mod tidy
	cd services && GOWORK=off go mod tidy
	go work sync

.PHONY: tidy-check
tidy-check: needs-go ## fail when tidy would change a file
	cd pkg && GOWORK=off go mod tidy -diff
	cd services && GOWORK=off go mod tidy -diff
	.ci/work-sync

.PHONY: vuln
vuln: needs-go ## known vulnerabilities in the code that runs; REQUIRE_VULN_DB=1 fails where they cannot be looked up
	@.ci/vuln $(GOVULNCHECK_VERSION)

.PHONY: sbom
sbom: build $(CYCLONEDX) ## a CycloneDX bill of materials for each program, in bin/sbom
	@mkdir -p bin/sbom
	@for program in $(PROGRAMS); do \
		echo "sbom bin/sbom/$$program.json"; \
		$(CYCLONEDX) bin -json -noserial -version $(VERSION) -output "bin/sbom/$$program.json" "bin/$$program"; \
	done

.PHONY: release
release: needs-go $(CYCLONEDX) ## archives for Linux and macOS, with checksums, in bin/release; publishes nothing
	@.ci/release '$(VERSION)' bin/release '$(LDFLAGS)' '$(CYCLONEDX)' $(PROGRAMS)

.PHONY: images
images: ## the images of all programs for this machine, tagged with the version
	@for program in $(PROGRAMS); do \
		docker build -f deploy/Dockerfile --build-arg SERVICE=$$program --build-arg VERSION='$(VERSION)' -t "gancho/$$program:$(VERSION)" .; \
	done

.PHONY: licenses
licenses: needs-go ## collect the licences of all linked modules in bin/LICENSES and list them
	@.ci/licenses bin/LICENSES deploy/docs/licenses.md

.PHONY: clean
clean: ## remove what make built
	rm -rf bin

# -- helpers -----------------------------------------------------------------

.PHONY: needs-go
needs-go:
	@command -v go >/dev/null || { echo "Go 1.26 or newer is needed: https://go.dev/doc/install" >&2; exit 1; }

# Built from source at the pinned version: minutes once, seconds with a warm cache.
$(GOLANGCI_LINT): | needs-go
	@echo "build golangci-lint $(GOLANGCI_LINT_VERSION)"
	@GOBIN="$(@D)" GOWORK=off go install -buildvcs=false github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)

$(CYCLONEDX): | needs-go
	@GOBIN="$(@D)" GOWORK=off go install -buildvcs=false github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX_VERSION)
