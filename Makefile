# Every target does its own set-up; the first run makes .venv and installs sidrec into it with pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One torch thread a worker: two workers on two cores finish soonest.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Real data sets, where they lie beside the checkout and nothing else was chosen.
ifndef SIDREC_DATA
ifneq ($(wildcard ../shared/data/README.md),)
export SIDREC_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: setup demo test test-all lint docs bench bench-table

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sidrec demo

test: $(STAMP)
	$(PYTEST)

test-all: $(STAMP)
	$(PYTEST) -m 'not gpu and not network'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(STAMP)
	$(BIN)/python -m sidrec.cli.reference cli > docs/cli.md
	$(BIN)/python -m sidrec.cli.reference papers > docs/papers.md
	$(PYTEST) tests/docs

bench: $(STAMP)
	$(BIN)/sidrec bench

bench-table: $(STAMP)
	$(BIN)/python benchmarks/tables.py
