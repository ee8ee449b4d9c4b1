# Everything here needs Go and make; the race detector wants gcc. Tools are built from scripts/tools/go.mod.

GO     ?= go
TOOL    = $(GO) tool -modfile=scripts/tools/go.mod
BIN     = bin
LDFLAGS = -s -w

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## both programs, into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/redoubt ./cmd/redoubt-coordinator

.PHONY: demo
demo: build ## a mesh on this machine, in namespaces that vanish afterwards; under 30 s
	@$(GO) run ./scripts/demo -bin $(BIN)

.PHONY: test
test: ## all tests; lists at the end what was left out
	@scripts/test

.PHONY: test-kernel
test-kernel: ## our WireGuard against the kernel's, in a virtual machine; about four minutes, needs root and Debian
	@scripts/interop/kernel

.PHONY: mutants
mutants: ## changes one condition of the policy code at a time, and checks that a test notices; half an hour
	@$(GO) run ./scripts/mutants acl/compile/eval.go acl/compile/condition.go acl/compile/coverage.go

.PHONY: bench
bench: build ## speed and memory, compared with stock wireguard-go in the same run
	@scripts/bench/run

.PHONY: check
check: fmt-check tidy-check vet lint generate-check vuln cross ## all checks except the tests

.PHONY: fmt
fmt: ## format the code
	$(TOOL) gofumpt -w $$(scripts/sources)

.PHONY: fmt-check
fmt-check:
	@out=$$($(TOOL) gofumpt -l $$(scripts/sources)); [ -z "$$out" ] || { echo "not formatted (make fmt):"; echo "$$out"; exit 1; }

.PHONY: tidy-check
tidy-check:
	$(GO) mod tidy -diff

.PHONY: vet
vet:
	$(GO) vet ./...

.PHONY: lint
lint: ## golangci-lint, see .golangci.yml
	$(TOOL) golangci-lint run ./...

.PHONY: generate
generate: ## generated code, from proto/redoubt/v1/*.proto
	scripts/generate

.PHONY: generate-check
generate-check:
	@scripts/generate -check

.PHONY: vuln
vuln: ## known vulnerabilities, where the database can be reached
	@scripts/vuln

.PHONY: cross
cross: ## builds for every system that the code must build for
	@scripts/cross

.PHONY: install
install: $(BIN)/redoubt $(BIN)/redoubt-coordinator ## install both programs and their systemd units below $(DESTDIR)/
	install -D -m 0755 -t $(DESTDIR)/usr/local/bin $(BIN)/redoubt $(BIN)/redoubt-coordinator
	install -D -m 0644 -t $(DESTDIR)/etc/systemd/system scripts/systemd/redoubt.service scripts/systemd/redoubt-coordinator.service

# `make install` uses the programs that `make build` has built, so root needs no Go.
$(BIN)/redoubt $(BIN)/redoubt-coordinator:
	@$(MAKE) --no-print-directory build

.PHONY: clean
clean:
	rm -rf $(BIN)
