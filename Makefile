# Each target sets itself up: a fresh machine needs Python 3.11 and make, nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install train test test-all test-python lint docs bench clean

# These are of this checkout: packages on the shell's PYTHONPATH would come before its own.
test test-all test-python lint docs bench: export PYTHONPATH =

install: $(INSTALLED)

# Dependencies come first and by exact version, so that no range can pull another torch.
$(INSTALLED): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -q actors cluster learner qfleet replay_service
	@touch $@

train: install
	$(BIN)/qfleet train configs/cartpole.yaml $(ARGS)

# Two at a time; ARGS='-n 0' runs one after another.
test: lint
	$(BIN)/pytest -n 2 --dist loadgroup -m 'not slow and not gpu' $(ARGS)

test-all: lint
	$(BIN)/pytest -m 'not gpu' $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

# The tests that need no torch by another Python: make test-python PYTHON=python3.13. torch for these Pythons may come
# as gigabytes of CUDA; everything else is installed in the versions of constraints.txt.
OTHER := $(VENV)-$(notdir $(PYTHON))
TORCHLESS := tests/actors tests/replay_service tests/cluster/control tests/cluster/diagnosis tests/cluster/metrics \
	tests/cluster/settings tests/cluster/engines/test_own_code.py tests/cluster/engines/test_process_info.py \
	tests/test_house.py
# Those of them that do need it: they build networks, or train.
TORCH = $(shell grep -lrP --include='*.py' '^ *(import|from) (torch|qfleet_serial|learner\.(?!config|core))' $(TORCHLESS))

test-python:
	$(PYTHON) -m venv $(OTHER)
	grep -v -e '^#' -e '^torch==' constraints.txt | $(OTHER)/bin/pip install --quiet --disable-pip-version-check \
		--no-deps --requirement /dev/stdin
	$(OTHER)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(OTHER)/bin/pytest -m 'not slow and not gpu' $(addprefix --ignore=,$(TORCH)) $(TORCHLESS) $(ARGS)

# The documentation as a site: build/docs/site/index.html. Only packages are fetched; the site loads nothing.
docs: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/site.py

bench: install
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) $(VENV)-* build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
