# Short names for the commands of a working day. Everything runs in .venv-dev.
PYTHON ?= python3
VENV := .venv-dev
BIN := $(VENV)/bin

.PHONY: setup test lint gpu vllm docs

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: setup
	$(BIN)/pytest -n auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: setup
	$(BIN)/pytest -m gpu --require gpu

vllm: setup
	$(BIN)/python -m tests.vllm.fetch
	$(BIN)/pytest -n auto -m vllm --require vllm

docs: setup
	$(BIN)/python -m tests.cli.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
