# Every target installs what it needs: Open vSwitch and friends from the
# distribution, tools by `go install` into .tools/bin.

SHELL := /bin/bash
.DEFAULT_GOAL := help

TOOLS := $(CURDIR)/.tools/bin
export PATH := $(TOOLS):/usr/local/go/bin:$(PATH)
GO ?= go

VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/weirnet/weir/services/policy.Version=$(VERSION) -X github.com/weirnet/weir/services/audit.Version=$(VERSION) -X github.com/weirnet/weir/shim.Version=$(VERSION) -X github.com/weirnet/weir/shim/cni.Version=$(VERSION)

BUF_VERSION := v1.73.0
PROTOC_GEN_GO_VERSION := v1.36.12
PROTOC_GEN_GO_GRPC_VERSION := v1.6.2
GRPCURL_VERSION := v1.9.4
STATICCHECK_VERSION := v0.7.0

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the binaries, and the IPAM plugin host-local, into bin/.
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./services/cmd/... ./shim/cmd/... github.com/containernetworking/plugins/plugins/ipam/host-local

.PHONY: host-local
host-local: ## Build the address plugin that weir-cni calls, for images and nodes that have none.
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/ github.com/containernetworking/plugins/plugins/ipam/host-local

IMAGES := policyd auditd shim ovs
IMAGE_TAG ?= dev
.PHONY: images
images: ## Build the container images weir-NAME:dev (or IMAGE_TAG) with docker, for this machine.
	for i in $(IMAGES); do docker build --target $$i -t weir-$$i:$(IMAGE_TAG) --build-arg VERSION=$(VERSION) $(IMAGE_ARGS) -f deploy/docker/Dockerfile . || exit 1; done

$(TOOLS)/buf-$(BUF_VERSION):
	GOBIN=$(TOOLS) $(GO) install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION) && touch $@
$(TOOLS)/protoc-gen-go-$(PROTOC_GEN_GO_VERSION):
	GOBIN=$(TOOLS) $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION) && touch $@
$(TOOLS)/protoc-gen-go-grpc-$(PROTOC_GEN_GO_GRPC_VERSION):
	GOBIN=$(TOOLS) $(GO) install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GO_GRPC_VERSION) && touch $@
$(TOOLS)/grpcurl-$(GRPCURL_VERSION):
	GOBIN=$(TOOLS) $(GO) install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION) && touch $@
$(TOOLS)/staticcheck-$(STATICCHECK_VERSION):
	GOBIN=$(TOOLS) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION) && touch $@

GENERATED := proto deploy/base/crds
.PHONY: generate
generate: $(TOOLS)/buf-$(BUF_VERSION) $(TOOLS)/protoc-gen-go-$(PROTOC_GEN_GO_VERSION) $(TOOLS)/protoc-gen-go-grpc-$(PROTOC_GEN_GO_GRPC_VERSION) ## Generate code from the protos, and the CRDs.
	cd proto && buf generate --template buf.gen.yaml .
	$(GO) run ./services/policy/api/crds -dir deploy/base/crds

.PHONY: generate-check
generate-check: generate ## Fail if the committed generated code is not what its sources give.
	@git diff --exit-code -- $(GENERATED) || { echo 'generated code is stale: run make generate and commit'; exit 1; }
	@test -z "$$(git status --porcelain -- $(GENERATED))" || { git status --short -- $(GENERATED); echo 'uncommitted files under $(GENERATED)'; exit 1; }

.PHONY: lint
lint: $(TOOLS)/buf-$(BUF_VERSION) $(TOOLS)/staticcheck-$(STATICCHECK_VERSION) ## Run vet, staticcheck, gofmt and buf lint.
	buf lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	staticcheck ./...

# What the dataplane tests and the demo need on Debian or Ubuntu.
PACKAGES := openvswitch-switch iproute2 nftables iptables ethtool util-linux rsyslog rsyslog-gnutls

.PHONY: install-deps
install-deps: ## Install Open vSwitch and the other packages that tests and demo need, where missing.
	@missing=""; for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.weir && chmod +x /usr/sbin/policy-rc.d.weir; \
	  [ -e /usr/sbin/policy-rc.d ] || { mv /usr/sbin/policy-rc.d.weir /usr/sbin/policy-rc.d; made=1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; rc=$$?; \
	  [ -z "$$made" ] || rm -f /usr/sbin/policy-rc.d; rm -f /usr/sbin/policy-rc.d.weir; exit $$rc; fi

.PHONY: demo
demo: install-deps ## Show the main job: two nodes, real packets, verdicts and the record.
	$(GO) run ./e2e/demo

.PHONY: kube
kube: ## Build the API server of the end-to-end tests, once a machine.
	$(GO) run ./e2e/buildkube

.PHONY: test
test: install-deps kube build lint generate-check breaking $(TOOLS)/grpcurl-$(GRPCURL_VERSION) ## Run everything that CI runs.
	$(GO) test -race -timeout 20m $$($(GO) list ./... | grep -v -e '/e2e$$' -e '/e2e/differential$$' -e '/e2e/chaos$$' -e '/shim/bridge')
	$(GO) test -race -p 1 -timeout 20m ./shim/bridge/...
	$(GO) test -timeout 20m ./e2e/differential/...
	$(GO) test -timeout 10m ./e2e/chaos
	$(GO) test -timeout 45m ./e2e

.PHONY: breaking
breaking: $(TOOLS)/buf-$(BUF_VERSION) ## Fail if the protos break what an earlier release promised.
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null); \
	if [ -n "$$tag" ]; then buf breaking --against ".git#tag=$$tag"; else echo 'no release yet: nothing to break'; fi

SCENARIO ?= .
.PHONY: e2e
e2e: install-deps kube $(TOOLS)/grpcurl-$(GRPCURL_VERSION) ## Run the end-to-end tests, or one: make e2e SCENARIO=NAME.
	$(GO) test -timeout 30m -v ./e2e -run 'Test($(SCENARIO))'

.PHONY: bench
bench: PACKAGES += iperf3
bench: install-deps kube ## Run the benchmarks.
	$(GO) test -run xxx -bench . -benchmem -timeout 30m ./services/... ./storage/... ./shim/...
	$(GO) test -run xxx -bench APIServerToFlows -benchtime 500x -timeout 30m ./e2e
	$(GO) test -run xxx -bench Rules -benchtime 10x -timeout 30m ./e2e

.PHONY: upgrade-recordings
upgrade-recordings: ## Record the streams and files of this version, for the next one's tests.
	$(GO) test -count=1 ./e2e/upgrade -run 'Record$$' -update

SOAK_FOR ?= 30m
.PHONY: soak
soak: install-deps ## Run the long forms: churn, differential test, 100 rounds of faults, fuzzing. SOAK_FOR=30m each.
	$(GO) test -timeout 0 ./e2e/churn -run 'Churn$$' -churn.for=$(SOAK_FOR) -churn.shims=1000 -churn.rate=200 -v
	$(GO) test -timeout 0 ./e2e/differential -run 'Agree$$' -differential.for=$(SOAK_FOR) -v
	$(GO) test -timeout 0 ./e2e/chaos -run 'Chaos$$' -chaos.rounds=100 -chaos.seed=0 -v
	$(GO) test -timeout 0 ./e2e -run 'ConformanceThroughAPIServer$$' -conformance.through-api=0
	$(GO) test -timeout 0 ./e2e -run 'StagedPoliciesUnderChurn$$' -staged.for=$(SOAK_FOR) -staged.seed=2 -v
	for t in $$(grep -rl 'func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -ho 'func Fuzz[A-Za-z0-9]*' $$t/*_test.go | cut -d' ' -f2); do \
	    $(GO) test -run xxx -fuzz "^$$f\$$" -fuzztime $(SOAK_FOR) -fuzzminimizetime 10x $$t || exit 1; done; done
