# Everything runs in .venv, which `make install` makes with uv. Nothing outside this directory is changed.
#
#   EXTRA=cpu|gpu     which vLLM and torch (default: gpu where nvidia-smi works, else cpu)
#   PYTHON=python3.12 which interpreter (3.11 or 3.12; default: the first of python3.11, python3.12, python3 that is one)

SHELL := bash
EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS := requirements/constraints-$(EXTRA).txt
STAMP := .venv/installed-$(EXTRA)

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-all lint format lock clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP)  ## Install Tandem and its tests into .venv

$(STAMP): pyproject.toml $(CONSTRAINTS) scripts/install.sh
	EXTRA=$(EXTRA) PYTHON=$(PYTHON) CONSTRAINTS=$(CONSTRAINTS) bash scripts/install.sh
	@rm -f .venv/installed-*; touch $@

demo: install  ## Train the built-in tiny model, live, in a few minutes
	.venv/bin/tandem demo examples/quickstart.py

up: install  ## Start the service with the built-in tiny model and keep it running
	.venv/bin/tandem up

test: install  ## Run the tests, but for the slow ones
	.venv/bin/python -m pytest -m "not slow"

test-all: install  ## Run all tests: also updates in place, lost nodes, kills at random
	.venv/bin/python -m pytest

lint: install  ## Check style
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

format: install  ## Apply style
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

lock: install  ## Pin the newest versions that pyproject.toml allows
	UV="$$(bash scripts/install.sh --print-uv)" bash scripts/lock.sh

clean:  ## Remove .venv and what was built
	rm -rf .venv .bootstrap demo-results *.egg-info
