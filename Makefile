# Every target sets up .venv by itself, once, and again only when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := targets runtime compiler trainer fleet tests benchmarks
PYTEST_ARGS ?=

.PHONY: help demo test check format bench conformance soak schema emulation clean

help:
	@echo "make demo    the whole loop on this machine, with three devices (arguments: ARGS='--keep')"
	@echo "make test    all tests"
	@echo "make check   ruff, formatting, mypy --strict, import-linter, the length of lines in C"
	@echo "make emulation   what tests of other architectures need: Python for ARM under QEMU, fetched into the user's cache"
	@echo "make conformance   ONNX's own tests through every backend, and docs/operators.md (arguments: ARGS='--keep --backends tvm')"
	@echo "make bench   the benchmarks; make soak: the long runs; make clean: remove what was built"

$(VENV)/.demo: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[compiler,trainer,fleet]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

demo: $(VENV)/.demo
	@exec $(BIN)/outrider demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not soak" --numprocesses auto --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@find $(SOURCES) -name '*.[ch]' -exec awk \
		'length > 120 { print FILENAME ":" FNR ": longer than 120 columns"; bad = 1 } END { exit bad }' {} +

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/.bench
	@for script in benchmarks/*.py; do \
		name=benchmarks.$$(basename $$script .py); echo "== $$name"; $(BIN)/python -m $$name || exit 1; done
	$(BIN)/python -m benchmarks.trees
	$(BIN)/python -m benchmarks.networks

conformance: $(VENV)/.dev
	$(BIN)/python -m outrider.compiler.conformance --results benchmarks/results/onnx-conformance.json --page docs/operators.md $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak --timeout 0 $(PYTEST_ARGS)

emulation: $(VENV)/.dev
	$(BIN)/python -m outrider.targets.emulation $(TARGETS)

schema: $(VENV)/.demo
	$(BIN)/python -m outrider.runtime.schema docs/schema

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
