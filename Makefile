# Everything runs in .venv, which the targets make themselves. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CONFIG ?= configs/digits.yaml
TORCH := 2.13.0

BIN := .venv/bin
# A copy of each lock file as it was installed.
RUNTIME := .venv/installed-requirements.lock
DEV := .venv/installed-requirements-dev.lock

.PHONY: help run up stop status test test-unit test-times test-all coverage lint lock audit clean FORCE

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

run: $(RUNTIME)  ## the main job, end to end (KEEP=1 leaves it up; ARGS='--set seed=1' changes a setting; CONFIG=file)
	@$(BIN)/python -m infra.local run --config $(CONFIG) $(if $(filter 1,$(KEEP)),--keep) $(ARGS)

up: $(RUNTIME)  ## start the local Ray and MLflow and leave them up
	@$(BIN)/python -m infra.local up

stop:  ## stop whatever KEEP=1 or `make up` left up
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m infra.local stop; fi

status: $(RUNTIME)  ## what is up, and where
	@$(BIN)/python -m infra.local status

test: $(DEV)  ## the suite that CI runs (ARGS='-k name' to select)
	@$(BIN)/python -m pytest -m "not slow and not chaos" $(ARGS)

test-unit: $(DEV)  ## what a pull request's author runs: no Ray, no MLflow server, under five minutes
	@$(BIN)/python -m pytest -m "not slow and not chaos and not integration" $(ARGS)

test-all: $(DEV)  ## every test, the long ones included
	@$(BIN)/python -m pytest $(ARGS)

test-times: $(DEV)  ## where the time of `make test` goes: runs it, and rewrites the table in CONTRIBUTING.md
	@$(BIN)/python -m pytest -m "not slow and not chaos" --junitxml=out/test-times.xml $(ARGS)
	@$(BIN)/python -m tests.times out/test-times.xml CONTRIBUTING.md

coverage: $(DEV)  ## that the theory's tests take every branch of diffusion/
	@$(BIN)/python -m pytest tests/diffusion --cov=diffusion --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered $(ARGS)

lint: $(DEV)  ## ruff, pyright and the import contracts
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

# The locks hold no index addresses, no hashes and no local versions, so that a GPU machine gets torch's GPU build, and
# leave out the CUDA libraries which that build brings along.
PIP_COMPILE = $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-annotate --no-header --no-emit-options \
	--no-emit-index-url --no-emit-find-links $(if $(filter 1,$(UPGRADE)),--upgrade)
PLAIN = sed -E -e '/^(\#|$$|pip==|nvidia-|cuda-|triton)/d' -e 's/\+[a-z0-9.]+$$//'

lock: $(DEV)  ## resolve pyproject.toml into the two lock files (UPGRADE=1 takes newer versions)
	@echo 'torch==$(TORCH)' > .venv/pins.txt
	@$(PIP_COMPILE) --constraint .venv/pins.txt --output-file requirements.lock pyproject.toml
	@$(PLAIN) -i requirements.lock
	@$(PIP_COMPILE) --extra dev --constraint requirements.lock --output-file .venv/dev.lock pyproject.toml
	@{ echo '-r requirements.lock'; $(PLAIN) .venv/dev.lock | grep -vxFf requirements.lock; } > requirements-dev.lock

audit: $(DEV)  ## known vulnerabilities of what the lock files pin (needs a network; ARGS='--fix' and the like go to pip-audit)
	@$(PYTHON) -m venv .venv/audit && .venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@.venv/audit/bin/pip-audit --requirement requirements.lock --requirement requirements-dev.lock --no-deps --disable-pip $(ARGS)

clean: stop  ## remove .venv, out/ and caches; runs and MLflow's data in var/ stay
	@rm -rf .venv out .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage htmlcov
	@find . -name __pycache__ -not -path './var/*' -prune -exec rm -rf {} +

# $(call install,LOCK,HOW LONG): brings .venv to a lock; nothing to do is decided by content. An interrupted installation
# leaves .venv/installing behind, and a venv that was moved or half made cannot run its own scripts: those are made anew.
define install
	@set -e; begin=$$SECONDS; \
	made() { [ ! -e .venv/installing ] && grep -qsF '$(CURDIR)/.venv' $(BIN)/activate && [ -x $(BIN)/python ]; }; \
	if made && cmp -s $(1) $@; then exit 0; fi; \
	if ! made || ! $(BIN)/python -m pip --version > /dev/null 2>&1; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
			|| { echo 'error: Python 3.11 or newer is needed, $(PYTHON) is not; try make PYTHON=python3.11' >&2; exit 1; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
			|| { echo 'error: $(PYTHON) has no venv module; on Debian or Ubuntu: apt install python3-venv' >&2; exit 1; }; \
		rm -rf .venv; $(PYTHON) -m venv .venv; \
	fi; \
	touch .venv/installing; \
	echo 'installing $(1) into .venv ($(2), once) …'; \
	$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --no-compile -r $(1); \
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true; \
	cp $(1) $@; rm .venv/installing; \
	echo "✓ installed ($$((SECONDS - begin)) s)"
endef

$(RUNTIME): requirements.lock FORCE
	$(call install,requirements.lock,about 2 minutes)

$(DEV): requirements-dev.lock $(RUNTIME) FORCE
	$(call install,requirements-dev.lock,about 20 seconds)

FORCE:
