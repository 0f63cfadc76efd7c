# Slipway: `sudo make demo` shows it, `sudo make test` checks it, `make build` puts the programs in bin/.

GO      := scripts/go
BIN     := bin
PREFIX  ?= /usr/local
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X slipway.dev/slipway/daemon/version.Version=$(VERSION)
STATIC  := -tags 'seccomp netgo osusergo runc_nocriu' -ldflags '-s -w -extldflags -static'

.PHONY: build install demo demo-down test test-vm test-compose conformance bench lint prerequisites clean

build: prerequisites
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/slipway ./cmd/slipwayd ./cmd/slipway-compose
	$(GO) build $(STATIC) -o $(BIN)/slipway-warden ./cmd/slipway-warden

prerequisites:
	@scripts/prerequisites build

install: build
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(BIN)/slipway $(BIN)/slipwayd $(BIN)/slipway-compose $(BIN)/slipway-warden $(DESTDIR)$(PREFIX)/bin/

# The demo has a data directory of its own, beside anything that already runs.
demo: build
	@scripts/demo

demo-down:
	@scripts/demo down

test:
	@scripts/prerequisites test
	@$(MAKE) --no-print-directory build
	@scripts/test

bench: build
	@scripts/bench

# Boots a Debian root with systemd and cgroup v2 alone under qemu: minutes, so not part of CI.
test-vm: build
	@test/vm/run

# Docker's own Compose against the Docker API. Building it takes minutes, so it is not part of CI either.
test-compose: build
	@scripts/clients
	cd test/clients/compose && $(CURDIR)/$(GO) build -ldflags '-s -w' -o $(CURDIR)/.cache/clients/docker-compose github.com/docker/compose/v5/cmd
	SLIPWAY_BIN=$(CURDIR)/$(BIN) SLIPWAY_TEST_CLIENTS=$(CURDIR)/.cache/clients $(GO) test -tags seccomp,runc_nocriu -count=1 -run TestScripts/compose ./test/docker

# Kubernetes' own conformance tests, as far as they are in scope: half an hour and more, so not part of CI. FOCUS=REGEXP picks some.
conformance:
	@scripts/prerequisites test
	@$(MAKE) --no-print-directory build
	@test/conformance/run

lint:
	@scripts/lint

clean:
	rm -rf $(BIN)
