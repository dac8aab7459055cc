# Short names for the commands of a working day. Everything runs in .venv-dev.
PYTHON ?= python3
VENV := .venv-dev
BIN := $(VENV)/bin

NEWEST := .venv-newest

.PHONY: setup test quick test-thorough newest lint gpu vllm every-vllm docs

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: setup
	$(BIN)/pytest -n auto

# What breaks most often, in under a minute and a half on two idle cores.
quick: setup
	$(BIN)/pytest -n auto -q -m "not slow and not gpu and not browser and not postgres and not vllm"

# More examples, other ones each time, and every size.
test-thorough: setup
	$(BIN)/pytest -n auto --hypothesis-profile=thorough

# The stack that the newest vLLM installs, in an environment of its own (several GB).
newest: $(NEWEST)/ready
	$(NEWEST)/bin/pytest -n auto tests/launch tests/measure tests/contracts tests/search

$(NEWEST)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(NEWEST)
	grep -vE '^(torch|triton|numpy)==' constraints.txt > $(NEWEST)/constraints.txt
	printf 'torch==2.14.0\ntriton==3.8.0\nnumpy==2.4.*\n' >> $(NEWEST)/constraints.txt
	$(NEWEST)/bin/pip install --quiet --constraint $(NEWEST)/constraints.txt --editable '.[dev]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: setup
	$(BIN)/pytest -m gpu --require gpu

vllm: setup
	$(BIN)/python -m tests.vllm.fetch
	$(BIN)/pytest -n auto -m vllm --require vllm

# The same with every release there was (12 GB are fetched, 1 GB is kept): after a threshold moved.
every-vllm: setup
	AUTOTUNE_EVERY_VLLM=1 $(BIN)/python -m tests.vllm.fetch
	AUTOTUNE_EVERY_VLLM=1 $(BIN)/pytest -n auto -m vllm --require vllm tests/vllm

docs: setup
	$(BIN)/python -m tests.cli.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
