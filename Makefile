# Everything a newcomer, a continuous integration and a release need.
#
# Slow things live outside the checkout, so that a clean clone starts warm: the RocksDB archive, the
# build directory and a Python environment are kept in HOLDFAST_CACHE (default ~/.cache/holdfast).
# One profile (release) for everything, so that nothing is compiled twice.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

HOLDFAST_CACHE ?= $(HOME)/.cache/holdfast
export HOLDFAST_CACHE

# RocksDB is built once per version and set of features (.ci/setup.sh) and linked from then on.
ROCKSDB_VERSION := $(shell awk '/^name = "librocksdb-sys"$$/ { getline; gsub(/version = |"/, ""); print }' Cargo.lock)
ROCKSDB_LIB_DIR ?= $(HOLDFAST_CACHE)/rocksdb/$(ROCKSDB_VERSION)-lz4
ROCKSDB_STATIC ?= 1
CARGO_TARGET_DIR ?= $(HOLDFAST_CACHE)/target
HOLDFAST_PYTHON ?= $(HOLDFAST_CACHE)/venv/bin/python
export ROCKSDB_LIB_DIR ROCKSDB_STATIC CARGO_TARGET_DIR HOLDFAST_PYTHON

CARGO ?= cargo
FLAGS := --release --locked
# Tests that start the program find it here.
export HOLDFAST_BIN := $(CURDIR)/bin/holdfast

.PHONY: help setup build planted demo test soak bench verify fmt clippy

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing (as root) or say what to install; build RocksDB once
	@.ci/setup.sh

build: setup ## build the program into bin/holdfast
	$(CARGO) build $(FLAGS) -p node --bin holdfast
	@mkdir -p bin && cp -f $(CARGO_TARGET_DIR)/release/holdfast bin/holdfast.new && mv -f bin/holdfast.new bin/holdfast

# In a directory of its own: one built with the feature must not be taken for the other.
planted: setup ## build the program with planted bugs into bin/holdfast-planted, to try drills on
	CARGO_TARGET_DIR=$(HOLDFAST_CACHE)/target-planted $(CARGO) build $(FLAGS) -p node --bin holdfast --features planted
	@mkdir -p bin && cp -f $(HOLDFAST_CACHE)/target-planted/release/holdfast bin/holdfast-planted.new && mv -f bin/holdfast-planted.new bin/holdfast-planted

demo: build ## three nodes, a fleet, a kill -9 in the middle, and a verdict
	bin/holdfast demo

test: build ## run every test, each kind at least once
	$(CARGO) test $(FLAGS) --workspace --no-fail-fast

soak: build ## run the long matrices too: kills, power cuts, catch-up
	HOLDFAST_SOAK=1 $(CARGO) test $(FLAGS) --workspace -- --include-ignored

bench: build ## measure, and print one table
	bin/holdfast bench

verify: fmt clippy test ## what a change must pass: format, lints, tests

fmt:
	$(CARGO) fmt --all -- --check

clippy: setup
	$(CARGO) clippy $(FLAGS) --workspace --all-targets -- -D warnings
