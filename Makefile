# Every target makes what it needs. `make demo` and `make test` work on a fresh machine with Python 3.11+, pip and a
# C compiler; `make gpu` runs on a bare GPU machine with the system's python3 and no virtual environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A process per core; the tests of a file stay together, since they share what they set up.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint bench gpu clean

demo: $(INSTALLED)
	$(BIN)/ling demo

test: lint
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not gpu"

test-all: lint
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not gpu" --timeout 3600

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/torch_names.py check
	$(BIN)/python tools/docs.py check

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run $(BENCH)

OUT ?= benchmarks/results
BUDGET ?= 540
gpu:
	PYTHONPATH=src:. python3 -m benchmarks.gpu --out $(OUT) --budget $(BUDGET)

$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard src/ling/ops/cpu/kernels/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
