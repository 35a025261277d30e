# Every target sets up its own environment; the stamp makes the second call quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The second environment: the last transformers 4.
VENV_4 := .venv-4
BIN_4 := $(VENV_4)/bin
READY_4 := $(VENV_4)/.ready
TESTS_4 := tests/test_families.py tests/test_injection.py tests/test_capture.py tests/test_handoff.py tests/test_gguf.py tests/test_kv.py tests/test_trace.py

# A caller's activated environment or import path must not decide what is tested.
unexport PYTHONPATH VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help demo test test-4 docs fuzz support lint style types bench real wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## one hand-off with the embedded pair, with its controls
	$(BIN)/ilcp demo

# A process per core, each on one thread: what shares fixtures stays in one process.
test: $(READY) ## the tests (ARGS="-k name" passes options on)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile $(ARGS)

test-4: $(READY_4) ## what touches models, under transformers 4 (ARGS as above)
	$(BIN_4)/python -m pytest $(TESTS_4) $(ARGS)

fuzz: $(READY) ## hostile inputs, guided by coverage (INPUTS="message=6000000 memory=2000000 transport=2000000")
	$(BIN)/python fuzz/run.py --target all --inputs $(or $(INPUTS),100000) $(ARGS)

# A failing test is a cell of the table, so it does not stop the rest. Only the older report has room for a test's words.
# What quantises is no part of the environment: where it cannot be fetched, its rows say so.
support: $(READY) $(READY_4) ## SUPPORT.md: the families' tests under transformers 5 and 4
	-$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/quantised torchao==0.18.0 bitsandbytes==0.50.2
	-PYTHONPATH=build/quantised $(BIN)/python -m pytest tests/test_families.py tests/test_prepared.py \
		-o junit_family=xunit1 --junitxml=build/support-5.xml
	-$(BIN_4)/python -m pytest tests/test_families.py -o junit_family=xunit1 --junitxml=build/support-4.xml
	$(BIN)/python -m tests.support_matrix build/support-5.xml build/support-4.xml >build/SUPPORT.md
	mv build/SUPPORT.md SUPPORT.md

# All pages are read anew, because a docstring that changed changes no page; --keep-going shows every warning before it fails.
docs: $(READY) ## the documentation, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going --fresh-env -b html -d build/doctrees docs build/docs $(ARGS)

lint: style types ## all that reads the code without running it

style: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy: the library strictly, the rest with its bodies
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

bench: $(READY) ## the figures of the README, measured again
	$(BIN)/python benchmarks/embedded.py
	$(BIN)/python benchmarks/axis.py
	$(BIN)/python benchmarks/train_speed.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/wire.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/faults.py --n 100000
	$(BIN)/python benchmarks/variants.py
	$(BIN)/python benchmarks/peer_avp.py
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/pictures.py

real: $(READY) ## pretrained models of others, into benchmarks/real (MODELS="smollm2 gemma3 minilm")
	$(BIN)/python benchmarks/real_models.py $(MODELS)

# Without isolation: the pinned hatchling builds, and nothing is downloaded.
wheel: $(READY) ## dist/ilcp-*.whl
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove what the other targets made, except the environments
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# pip would say the same in ten lines, after it has made an environment.
define NEW_ENOUGH
import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or newer, got %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])
endef

# The constraints pin torch: without them, several GB of CUDA packages come along.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# No ruff, no mypy, no tensorboard: what reads the code is the first environment's.
$(READY_4): pyproject.toml constraints-4.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)'
	$(PYTHON) -m venv $(VENV_4)
	$(BIN_4)/python -m pip install --quiet --disable-pip-version-check -c constraints-4.txt \
	    -e '.[gguf,train]' hypothesis msgpack pytest
	@touch $@
