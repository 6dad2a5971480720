# Each target sets itself up: a fresh machine needs Python 3.11 and make, nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install train test test-all lint bench clean

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

test: lint
	$(BIN)/pytest -m 'not slow and not gpu' $(ARGS)

test-all: lint
	$(BIN)/pytest -m 'not gpu' $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

bench: install
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
