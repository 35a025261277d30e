# Every target sets up its own .venv; the stamp makes the second call quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# A caller's activated environment or import path must not decide what is tested.
unexport PYTHONPATH VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help demo test lint style types bench wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## one hand-off with the embedded pair, with its controls
	$(BIN)/ilcp demo

test: $(READY) ## the tests (ARGS="-k name" passes options on)
	$(BIN)/python -m pytest $(ARGS)

lint: style types ## all that reads the code without running it

style: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

bench: $(READY) ## the figures of the README, measured again
	$(BIN)/python benchmarks/embedded.py
	$(BIN)/python benchmarks/variants.py
	$(BIN)/python benchmarks/peer_avp.py
	$(BIN)/python benchmarks/tables.py

# Without isolation: the pinned hatchling builds, and nothing is downloaded.
wheel: $(READY) ## dist/ilcp-*.whl
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove what the other targets made, except .venv
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The constraints pin torch: without them, several GB of CUDA packages come along.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
