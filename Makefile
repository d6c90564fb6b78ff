# The two commands a newcomer needs: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint bench wheel-test clean

demo: .venv/core
	$(BIN)/fedcar demo

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto

test-slow: .venv/dev  ## real models and long runs; uses ../shared where it is there
	$(BIN)/pytest -m slow

lint: .venv/dev
	$(BIN)/ruff check fedcar tests
	$(BIN)/ruff format --check fedcar tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: .venv/dev  ## ratios of a short set against the committed ones; fails past 25 %
	$(BIN)/python benchmarks/guard.py

wheel-test: .venv/dev  ## the built wheel, alone in an empty environment, runs the demo
	rm -rf dist/wheel-test && $(BIN)/python -m build --quiet --wheel --outdir dist .
	$(PYTHON) -m venv dist/wheel-test
	dist/wheel-test/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd dist/wheel-test && bin/fedcar demo

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/dev: .venv/core
	$(INSTALL) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv dist fedcar-demo
