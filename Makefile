# sac-rag. Needs Python 3.11 or later and make; everything else goes into .venv.

VENV  ?= .venv
TORCH ?= $(SAC_TORCH)
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
# The product without the tools of its tests.
ALONE := $(VENV)/.runs

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench torture pages site install clean

help:  ## show this list
	@awk -F ':.*## *' '/^[a-z]+:.*## / { printf "%-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "TORCH=torch==2.13.0 (or SAC_TORCH in the environment) installs that torch first, by your pip settings:"
	@echo "where these name an index of CPU builds, TORCH=torch==2.13.0+cpu takes one."
	@echo "TORTURE='--only kills power' runs some parts of the torture, TORTURE=--report writes its page alone."
	@echo "PYTHON=python3.12 names the interpreter that makes $(VENV)."

demo: $(if $(wildcard $(STAMP)),$(STAMP),$(ALONE))  ## index the sample documents and answer questions about them; SERVE=1 ends with a page
	$(BIN)/sac demo $(if $(SERVE),--serve)

test: $(STAMP)  ## ruff, mypy and all tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q --durations=10

test-all: $(STAMP)  ## all tests, those that take minutes each among them
	SAC_TEST_ALL=1 $(BIN)/pytest -q --durations=10

lint: $(STAMP)  ## ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)  ## compressed memory against plain text on this computer: times and sizes
	$(BIN)/python -m sac_rag.evaluate.bench

torture: $(STAMP)  ## kills, power cuts, full disks, mutations and more, counted (hours; goes on where it was stopped)
	$(BIN)/python -m tests.reliability $(TORTURE)

pages: $(STAMP)  ## run the code of all pages and compare the demo with its sample (minutes; tests run the README)
	SAC_TEST_PAGES=1 $(BIN)/pytest -q tests/docs/test_pages.py

site: $(STAMP)  ## write the generated reference and build the site of the pages into site/
	PYTHONPATH=. $(BIN)/python scripts/reference.py
	$(BIN)/mkdocs build --strict

install: $(STAMP)  ## make .venv with the package and its development tools

clean:  ## remove .venv, caches and the demo library
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site demo.lib
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define make_venv
	@set -e; \
	python=''; \
	for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or later among: $(strip $(PYTHON) python3 python3.13 python3.12 python3.11 python)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV) || { \
	  echo "$$python cannot make a virtual environment; on Debian and Ubuntu install python3-venv." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(strip $(TORCH)),$(BIN)/python -m pip install --quiet "$(strip $(TORCH))")
endef

$(STAMP): pyproject.toml
	$(make_venv)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

$(ALONE): pyproject.toml
	$(make_venv)
	$(BIN)/python -m pip install --quiet --editable ".[serve]"
	@touch $@
