# Short names for the commands of a working day. Everything runs in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup test lint gpu docs

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
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

docs: setup
	$(BIN)/python tests/cli/reference.py
